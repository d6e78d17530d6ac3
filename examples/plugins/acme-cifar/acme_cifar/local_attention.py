"""Efficient local attention.

Xu and Wan 2024, "ELA: Efficient Local Attention for Deep Convolutional Neural Networks",
arXiv:2403.01123. Rows and columns share one convolution and one normalization. The paper's numbers
of groups divide its widths; for other widths this takes the greatest common divisor.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor, nn

__all__ = ["EfficientLocalAttention"]

VARIANTS = {"tiny": (5, 1, 32), "base": (7, 1, 16), "small": (5, 8, 16), "large": (7, 8, 16)}
"""Kernel size [pixels], width of a group of the convolution [channels], groups of the
normalization.
"""


class EfficientLocalAttention(nn.Module):
    """Scale each pixel of each channel by two gates: one of its row's mean, one of its column's.

    Maps [N, C, H, W] to the same shape, dtype and device. With z_h the mean over a row and z_w that
    over a column,

        y_h = sigmoid(norm(conv(z_h))),  y_w = sigmoid(norm(conv(z_w))),  result = x * y_h * y_w

    where conv mixes neighbors along the strip and norm is a group normalization.

    Args:
        in_channels: C, the width of the incoming map [channels].
        variant: "tiny", "base", "small" or "large": the paper's four sets of kernel size and
            numbers of groups.

    Raises:
        ValueError: another `variant`.

    Source: Xu and Wan 2024, section 3.
    """

    def __init__(self, in_channels: int, variant: str = "base") -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant is one of {', '.join(VARIANTS)}, not {variant!r}")
        kernel_size, width, norm_groups = VARIANTS[variant]
        groups = in_channels // gcd(in_channels, width)
        self.conv = nn.Conv1d(
            in_channels,
            in_channels,
            kernel_size,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        )
        self.norm = nn.GroupNorm(gcd(in_channels, norm_groups), in_channels)

    def gate(self, x: Tensor) -> Tensor:
        """Return the product of both gates [N, C, H, W], each entry in (0, 1)."""
        rows, columns = self._weigh(x.mean(3)), self._weigh(x.mean(2))
        return rows.unsqueeze(3) * columns.unsqueeze(2)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by its gate."""
        return x * self.gate(x).to(x.dtype)

    def _weigh(self, strip: Tensor) -> Tensor:
        """Return the gate of strips [N, C, L]."""
        # called by its function, since the module refuses a strip of one value, where the gate is
        # constant
        norm = self.norm
        return torch.group_norm(
            self.conv(strip), norm.num_groups, norm.weight, norm.bias, norm.eps
        ).sigmoid()
