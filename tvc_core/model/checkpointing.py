"""Gradient checkpointing by stage: activations are computed again in the backward pass instead of being kept.

Chen et al. 2016, arXiv:1604.06174. Recomputing would move the running statistics of normalizations a second time, so
the second pass works on copies of the buffers of a stage and of the blocks inserted in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..surgery.patches import installed_patches

__all__ = ["Checkpointed", "set_checkpointing"]


class Checkpointed:
    """A picklable stand-in for a module's `forward` that keeps no activations while gradients are recorded."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward."""
        forward = type(self.module).forward
        if not torch.is_grad_enabled():
            return forward(self.module, *args, **kwargs)
        return checkpoint(
            forward,
            self.module,
            *args,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _spare_buffers(self.module)),
            **kwargs,
        )


@contextmanager
def _spare_buffers(root: nn.Module) -> Iterator[None]:
    inserted = [module for _, _, patch in installed_patches(root) for module in patch.modules()]
    kept = [(module, dict(module._buffers)) for module in (*root.modules(), *inserted) if module._buffers]
    try:
        for module, buffers in kept:
            for name, buffer in buffers.items():
                module._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for module, buffers in kept:
            module._buffers.update(buffers)


def set_checkpointing(module: nn.Module, enable: bool) -> None:
    """Switch checkpointing of one module on or off. Names, keys and hooks stay.

    A single layer is left alone: it needs its input for the backward pass either way, and it may overwrite it in place.
    """
    if enable and module._modules:
        module.__dict__["forward"] = Checkpointed(module)
    else:
        module.__dict__.pop("forward", None)
