"""Whether a block depends on the width that it is made for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..errors import TvcError
from .probing import own_randomness

__all__ = ["depends_on_width"]

_PLAIN = (bool, int, float, str, tuple, type(None), torch.dtype)


def depends_on_width(
    make: Callable[[int, nn.Module], nn.Module], original: nn.Module, widths: Iterable[int]
) -> bool:
    """Return whether the blocks that are made for several widths differ.

    A block that runs on every width may still have been made for one, as efficient channel
    attention, whose kernel grows with it. So one is made for each, with the same random numbers,
    and everything in them is compared.
    """
    found = []
    for width in widths:
        with own_randomness():
            try:
                found.append(_content(make(width, original)))
            except TvcError:  # it is not made for every width
                return True
    return any(not _equal(found[0], other) for other in found[1:])


def _content(module: nn.Module) -> list[tuple[str, Any]]:
    return [
        (f"{path}.{name}", value)
        for path, part in module.named_modules()
        for name, value in (
            ("", type(part)),
            *((key, value) for key, value in vars(part).items() if isinstance(value, _PLAIN)),
            *part._parameters.items(),
            *part._buffers.items(),
        )
    ]


def _equal(one: list[tuple[str, Any]], other: list[tuple[str, Any]]) -> bool:
    return [name for name, _ in one] == [name for name, _ in other] and all(
        _same(a, b) for (_, a), (_, b) in zip(one, other, strict=True)
    )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and (a.is_meta or torch.equal(a, b))
    return type(a) is type(b) and bool(a == b)
