"""Mixed local channel attention.

Wan et al. 2023, "Mixed local channel attention for object detection", Engineering Applications of
Artificial Intelligence 123:106442. Written from the authors' code and a second public
implementation, which agree; the layers have the authors' names.

Pooling to a fixed size and back is written as products with matrices that depend on the map's size,
which exporters take with dynamic sizes; `torch.nn.functional.adaptive_avg_pool2d` does the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import odd_size, positive
from .fused import neighbor_scores
from .widths import neighbor_kernel

__all__ = ["MixedLocalChannelAttention"]


class MixedLocalChannelAttention(nn.Module):
    """Scale each pixel of each channel by two gates mixed: one of its part of the map, and one of
    the whole channel.

    Maps [N, C, H, W] to the same shape, dtype and device. The map's means over local_size x
    local_size parts, and their means, each go through a convolution over neighboring channels and a
    sigmoid; both are added with weights and spread over the map again.

    Args:
        in_channels: C, the width of the incoming map [channels].
        local_size: parts of a side; the paper uses 5.
        local_weight: share of the local gate, above 0 and up to 1; the paper uses 0.5.
        kernel_size: neighbors that a gate sees, odd; None computes it from C as ECA does, with
            gamma 2 and b 1.

    Raises:
        ValueError: `local_size` is below 1, `local_weight` is not above 0 and up to 1, or
            `kernel_size` is not odd and positive.

    Source: Wan et al. 2023, section 3; the authors' code.
    """

    def __init__(
        self,
        in_channels: int,
        local_size: int = 5,
        local_weight: float = 0.5,
        kernel_size: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(local_size, bool) or not isinstance(local_size, int) or local_size < 1:
            raise ValueError(f"local_size is a whole number of at least 1, not {local_size!r}")
        if kernel_size is None:
            kernel_size = neighbor_kernel(in_channels)
        padding = odd_size(kernel_size) // 2
        self.local_size = local_size
        self.local_weight = positive("local_weight", local_weight, most=1)
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=padding, bias=False)
        self.conv_local = nn.Conv1d(1, 1, kernel_size, padding=padding, bias=False)

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate [N, C, H, W], each entry in (0, 1)."""
        n, c, height, width = x.shape
        size = self.local_size
        parts = means(height, size, x) @ (x @ means(width, size, x).T)  # [N, C, size, size]
        # One row of descriptors, channels fastest: at the ends of a part's channels the convolution
        # sees the next part's, as in the authors' code.
        row = parts.flatten(2).transpose(1, 2).reshape(n, 1, size * size * c)
        local = neighbor_scores(self.conv_local, row).reshape(n, size * size, c)
        whole = neighbor_scores(self.conv, parts.mean((2, 3)).unsqueeze(1))
        local, whole = (scores.transpose(1, 2).sigmoid() for scores in (local, whole))
        mixed = local * self.local_weight + whole * (1 - self.local_weight)
        mixed = mixed.reshape(n, c, size, size)
        return means(size, height, mixed) @ (mixed @ means(size, width, mixed).T)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by its gate."""
        return x * self.gate(x).to(x.dtype)

    def extra_repr(self) -> str:
        """Say what the gate depends on."""
        return f"local_size={self.local_size}, local_weight={self.local_weight}"


def means(size: int, parts: int, like: Tensor) -> Tensor:
    """Return the matrix [parts, size] that takes the means of a line's parts.

    Part i has the entries from floor(i * size / parts) to ceil((i + 1) * size / parts), so parts
    share entries where `parts` does not divide `size`, and repeat them where it is larger.

    Args:
        size: of the line [entries].
        parts: number of means.
        like: has the type and device of the matrix.
    """
    part = torch.arange(parts, device=like.device).unsqueeze(1)
    start, end = part * size // parts, ((part + 1) * size + parts - 1) // parts
    entry = torch.arange(size, device=like.device)
    return ((entry >= start) & (entry < end)).to(like.dtype) / (end - start)
