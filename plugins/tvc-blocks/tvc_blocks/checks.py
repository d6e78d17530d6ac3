"""What the blocks' parameters may be."""

from __future__ import annotations

import math

from torch import nn

__all__ = [
    "ACTIVATIONS", "NORMALIZATIONS", "check_counts", "check_flags", "check_numbers",
    "check_positive", "check_probabilities", "choose",
]  # fmt: skip

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "hardsigmoid": nn.Hardsigmoid,
}
NORMALIZATIONS: dict[str, type[nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "instance": nn.InstanceNorm2d,
}


def choose(
    what: str, name: str | None, known: dict[str, type[nn.Module]]
) -> type[nn.Module] | None:
    """Return the class that a parameter's value names, None for None."""
    if name is None:
        return None
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{what} is one of {', '.join(known)}, not {name!r}")
    return known[name]


def check_counts(least: int = 1, /, **counts: object) -> None:
    """Refuse what is no whole number of at least `least`."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise ValueError(f"{name} is a whole number of at least {least}, not {count!r}")


def check_flags(**flags: object) -> None:
    """Refuse what is neither True nor False."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise ValueError(f"{name} is True or False, not {flag!r}")


def check_numbers(least: float | None = None, /, **numbers: object) -> None:
    """Refuse what is no finite number, or one below `least`."""
    for name, number in numbers.items():
        fits = _is_number(number) and math.isfinite(number)  # type: ignore[arg-type]
        if not fits or (least is not None and number < least):  # type: ignore[operator]
            bound = "" if least is None else f" of at least {least}"
            raise ValueError(f"{name} is a finite number{bound}, not {number!r}")


def check_probabilities(**numbers: object) -> None:
    """Refuse what is no number from 0 to 1."""
    for name, number in numbers.items():
        if not _is_number(number) or not 0 <= number <= 1:  # type: ignore[operator]
            raise ValueError(f"{name} is a probability, a number from 0 to 1, not {number!r}")


def check_positive(**numbers: object) -> None:
    """Refuse what is no finite number above 0."""
    for name, number in numbers.items():
        if not _is_number(number) or not 0 < number < math.inf:  # type: ignore[operator]
            raise ValueError(f"{name} is a finite number above 0, not {number!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
