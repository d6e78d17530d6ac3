"""The blocks that a network's stage is made of, which no declaration names: found by how its
modules are nested.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from .branches import branch_of
from .patch import PatchTree

__all__ = ["inner_blocks"]

Found = dict[str, nn.Module]


def inner_blocks(modules: Found, branches: Mapping[str, str]) -> Found:
    """Return the blocks of a stage by their paths, in order.

    A sequence (nn.Sequential, ModuleList, ModuleDict) of modules that have parts is a sequence of
    blocks, also where it is the only one in a module of its own; a sequence of layers, such as a
    convolution with its normalization, is not a block. So:

    - in ResNet, EfficientNet, ConvNeXt, DenseNet, Swin, ...: what is in the stage's sequences of
      blocks
    - where there are none, as in MobileNet, GoogLeNet and ViT: the stage's modules that have parts
      and are not sequences
    - of plain layers, as in VGG: the layers

    Args:
        modules: the stage's modules by their paths, in order of execution.
        branches: classes of residual blocks, which are blocks as a whole; see `branch_of`.
    """
    # No attribute says what the blocks of a stage are, and each family nests them in another way.
    # What they share is that blocks repeat, so they are in a sequence, and that a block has parts
    # while a layer has none. The three rules are tried in the order of how much they say.
    inside = {
        path: block
        for start, module in modules.items()
        for path, block in _in_sequences(start, module, branches).items()
    }
    if inside:
        return inside
    if whole := {path: module for path, module in modules.items() if _is_block(module)}:
        return whole
    sequences = [(path, parts) for path, module in modules.items() if (parts := _parts(module))]
    if not sequences:
        return modules
    path, parts = sequences[-1]
    return {f"{path}.{name}": part for name, part in parts.items()}


def _in_sequences(path: str, module: nn.Module, branches: Mapping[str, str]) -> Found:
    """Return the blocks in a sequence of blocks, or in the only one within a module that is not
    a sequence itself.
    """
    parts = {f"{path}.{name}": part for name, part in _parts(module).items()}
    if not _is_sequence(module):
        if branch_of(module, branches) is not None:
            return {}
        held = [
            (name, part)
            for name, part in parts.items()
            if _is_sequence(part) and _all_blocks(_parts(part).values())
        ]
        return _in_sequences(*held[0], branches) if len(held) == 1 else {}
    found: Found = {}
    for name, part in parts.items():
        found |= (
            _in_sequences(name, part, branches)
            if _is_sequence(part)
            else {name: part}
            if _is_block(part)
            else {}
        )
    return found


def _is_sequence(module: nn.Module) -> bool:
    return isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))


def _is_block(module: nn.Module) -> bool:
    return bool(_parts(module)) and not _is_sequence(module)


def _all_blocks(modules: Iterable[nn.Module]) -> bool:
    modules = list(modules)
    return bool(modules) and all(_is_block(module) for module in modules)


def _parts(module: nn.Module) -> Found:
    return {
        name: part
        for name, part in module._modules.items()
        if part is not None and not isinstance(part, PatchTree)
    }
