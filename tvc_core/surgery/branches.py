"""Where the residual branch of a block ends: what the position "branch" needs to know.

Whoever offers a network declares it, by `BackboneSpec.branches`; a class declares it for itself by
an attribute.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

__all__ = ["branch_of", "known_blocks"]


def branch_of(module: nn.Module, branches: Mapping[str, str]) -> str | None:
    """Return the path of the end of a block's branch, relative to the block; None for what is not a
    known block.

    A class or block says it by an attribute, `tvc_branch = "bn2"`. A subclass of a known block is
    known as long as it has the same forward.

    Args:
        module: the block.
        branches: class of a known block, "package.module.Class" -> path of the end of its branch.
    """
    declared = getattr(module, "tvc_branch", None)
    if isinstance(declared, str):
        return declared
    for cls in type(module).__mro__:
        end = branches.get(f"{cls.__module__}.{cls.__qualname__}")
        if end is not None and type(module).forward is getattr(cls, "forward", None):
            return end
    return None


def known_blocks(branches: Mapping[str, str]) -> list[str]:
    """Return the names of the known blocks, such as "BasicBlock (resnet)"."""
    split = [name.split(".") for name in branches]
    return [f"{cls} ({module})" for *_, module, cls in split]
