"""The width of a gate's hidden layer, and the number of neighbors of a channel."""

from __future__ import annotations

import math

__all__ = ["hidden_width", "neighbor_kernel"]


def hidden_width(
    in_channels: int, reduction: int, hidden_channels: int | None, most: int = 16
) -> int:
    """Return the width of the hidden layer [channels]: `hidden_channels`, or in_channels //
    reduction but at least 1. `most` is the largest reduction that narrower maps may have as well,
    the paper's own.

    Raises:
        ValueError: `reduction` is below 1 or above both in_channels and `most`, or
            `hidden_channels` is below 1.
    """
    if hidden_channels is not None:
        if (
            isinstance(hidden_channels, bool)
            or not isinstance(hidden_channels, int)
            or hidden_channels < 1
        ):
            raise ValueError(
                f"hidden_channels is a whole number of at least 1, not {hidden_channels!r}"
            )
        return hidden_channels
    if (
        isinstance(reduction, bool)
        or not isinstance(reduction, int)
        or not 1 <= reduction <= max(in_channels, most)
    ):
        raise ValueError(
            f"reduction is a whole number from 1 to in_channels ({in_channels}), not {reduction!r}"
        )
    return max(in_channels // reduction, 1)


def neighbor_kernel(in_channels: int, gamma: float = 2, b: float = 1) -> int:
    """Return how many neighboring channels a gate sees: |log2(C) / gamma + b / gamma|, rounded to
    odd (Wang et al. 2020, equation 12).
    """
    size = int(abs((math.log2(in_channels) + b) / gamma))
    return size if size % 2 else size + 1
