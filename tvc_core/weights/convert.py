"""Bring a tensor of a checkpoint into the type of the model's, and refuse what cannot be right."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import describe_error

__all__ = ["Converted", "UnfitError", "convert"]

_COUNTERS = ("num_batches_tracked",)
_VARIANCES = ("running_var",)
_STATISTICS = ("running_mean", *_VARIANCES, *_COUNTERS)


class UnfitError(Exception):
    """A value that is not loaded, with the reason."""


@dataclass(frozen=True)
class Converted:
    """A tensor in the type and shape of the model's.

    Args:
        tensor: the values.
        how: what became of them; empty where they are the checkpoint's numbers, all of them.
        cast: the two types, where they differ and nothing was lost.
    """

    tensor: Tensor
    how: str = ""
    cast: str = ""


def convert(name: str, value: Tensor, like: Tensor, *, is_parameter: bool) -> Converted:
    """Return a checkpoint's tensor in the type of the model's.

    Args:
        name: last segment of its key: statistics of normalizations are known by it.
        value: of the checkpoint; of the shape of `like`.
        like: the model's.
        is_parameter: it is a parameter, not a buffer.

    Raises:
        UnfitError: integers for real numbers, complex for real ones, numbers that the type cannot
            hold, NaN or infinity, a negative variance or count.
    """
    try:
        _check(name, value, like, is_parameter)
        if value.dtype == like.dtype:
            return Converted(value)
        return _cast(value, like.dtype)
    except UnfitError:
        raise
    except Exception as error:  # an operation that this type of tensor does not have
        raise UnfitError(
            f"{_word(value.dtype)} cannot become {_word(like.dtype)}: {describe_error(error)}"
        ) from error


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check(name: str, value: Tensor, like: Tensor, is_parameter: bool) -> None:
    is_real = value.is_floating_point() or value.is_complex()
    wants_real = like.is_floating_point() or like.is_complex()
    if wants_real and not is_real:
        raise UnfitError(f"{_word(value.dtype)} for {_word(like.dtype)}: integers are no weights")
    if value.is_complex() and not like.is_complex():
        raise UnfitError(
            f"{_word(value.dtype)} for {_word(like.dtype)}: the imaginary part would go"
        )
    if is_real and (bad := _not_finite(value)):
        # a mask of -inf is a buffer that the module has made itself
        own = not is_parameter and name not in _STATISTICS and not like.is_meta
        if not own or _not_finite(like) == 0:
            raise UnfitError(f"{bad} of {value.numel()} values are NaN or infinite")
    if name in (*_VARIANCES, *_COUNTERS) and value.numel():
        least = value.double().min().item()
        if least < 0:
            what = "variance" if name in _VARIANCES else "count"
            raise UnfitError(f"a negative {what} ({least:g})")


def _wide(value: Tensor) -> Tensor:
    """Return numbers in a type that has all operations."""
    if value.is_complex():
        return torch.view_as_real(value.resolve_conj())
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def _not_finite(value: Tensor) -> int:
    """Return how many values are NaN or infinite."""
    if not (value.is_floating_point() or value.is_complex()):
        return 0
    wide = _wide(value)
    # one pass without a mask: NaN and infinity stay in a sum, and few sums overflow
    if math.isfinite(wide.sum().item()):
        return 0
    return int((~torch.isfinite(wide)).sum())


def _cast(value: Tensor, dtype: torch.dtype) -> Converted:
    words = f"{_word(value.dtype)} to {_word(dtype)}"
    new = value.to(dtype)
    if value.is_floating_point() and dtype.is_floating_point:
        lost = _not_finite(new) - _not_finite(value)
        if lost > 0:
            raise UnfitError(f"{lost} of {value.numel()} values are too large: {words}")
        if torch.equal(new.double(), value.double()):
            return Converted(new, cast=words)
        return Converted(new, how=f"rounded, {words}")
    if new.is_complex():
        same = torch.equal(new.to(value.dtype), value)
        return Converted(new, cast=words) if same else Converted(new, how=f"rounded, {words}")
    # large integers wrap, and come back as they were from a type of the same width
    if not torch.equal(new.to(value.dtype), value) or not torch.equal(new.double(), value.double()):
        raise UnfitError(f"the values do not survive: {words}")
    return Converted(new, cast=words)
