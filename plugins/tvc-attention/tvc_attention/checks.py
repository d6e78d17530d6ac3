"""The checks of parameters that blocks share, and the precision of their statistics."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["divisor_of", "full_precision", "odd_size", "positive"]


def odd_size(kernel_size: int) -> int:
    """Return the kernel size.

    Raises:
        ValueError: it is not odd and positive.
    """
    whole = isinstance(kernel_size, int) and not isinstance(kernel_size, bool)
    if not whole or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is an odd number of at least 1, not {kernel_size!r}")
    return kernel_size


def positive(name: str, value: float, *, most: float = math.inf) -> float:
    """Return the value of the parameter of this name.

    Raises:
        ValueError: it is not a finite number above 0 and up to `most`.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= most or math.isinf(value):
        limit = "" if math.isinf(most) else f" and up to {most:g}"
        raise ValueError(f"{name} is a number above 0{limit}, not {value!r}")
    return value


def divisor_of(in_channels: int, name: str, value: int) -> int:
    """Return the number of groups of channels that the parameter of this name has.

    Raises:
        ValueError: it is not a whole number that divides in_channels.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < 1 or in_channels % value:
        raise ValueError(f"{name} divides in_channels ({in_channels}), and {value!r} does not")
    return value


def full_precision(x: Tensor) -> Tensor:
    """Return a map in float32 if its type is a shorter one, in which sums of squares overflow
    (float16) or lose their digits (bfloat16).
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
