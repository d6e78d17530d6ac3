"""What a replacement keeps of the module whose place it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["keeping", "kept_weights"]

Names = tuple[str, ...]


def kept_weights(old: nn.Module, new: nn.Module, took_over: bool) -> tuple[Names, Names, Names]:
    """Return which of a module's tensors its replacement has, has with other values, and has not.

    They are compared, since a plugin's word could be wrong. Where nothing was taken over, only the
    same tensor counts, as in a replacement that holds the original: an equal start is chance.
    """
    same: dict[bool, list[str]] = {True: [], False: []}
    lost: list[str] = []
    present = {id(tensor) for tensor in (*new.parameters(), *new.buffers())}
    found = dict((*new.named_parameters(), *new.named_buffers())) if took_over else {}
    for name, tensor in (*old.named_parameters(), *old.named_buffers()):
        other = tensor if id(tensor) in present else found.get(name)
        if other is None:
            lost.append(name)
        else:
            fits = other.shape == tensor.shape
            same[fits and (tensor.is_meta or torch.equal(other.to(tensor), tensor))].append(name)
    return tuple(same[True]), tuple(same[False]), tuple(lost)


@contextmanager
def keeping(module: nn.Module) -> Iterator[None]:
    """Keep the tensors of a module that may be part of its own replacement: initializers fill new
    ones only.
    """
    kept = [
        (tensor, tensor.detach().clone()) for tensor in (*module.parameters(), *module.buffers())
    ]
    yield
    with torch.no_grad():
        for tensor, before in kept:
            if not torch.equal(tensor, before):
                tensor.copy_(before)
