"""Efficient multi-scale attention.

Ouyang et al. 2023, "Efficient Multi-Scale Attention Module with Cross-Spatial Learning", ICASSP
2023, arXiv:2305.13563. Written from the authors' code and a second public implementation, which
agree; the layers have the authors' names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import divisor_of
from .norms import GroupNorm

__all__ = ["EfficientMultiScaleAttention"]


class EfficientMultiScaleAttention(nn.Module):
    """Scale each pixel of each group of channels by a gate in which two branches, of strips and of
    3x3 neighborhoods, weigh each other's channels.

    Maps [N, C, H, W] to the same shape, dtype and device. Each group of channels is computed as an
    image of its own, u. With h and w the means of its rows and columns after a shared 1x1
    convolution, a = gn(u * sigmoid(h) * sigmoid(w)) and b = conv3x3(u), the gate is sigmoid(sum
    over channels of softmax(mean(a)) * b + softmax(mean(b)) * a), with the softmax over the
    group's channels.

    Args:
        in_channels: C, the width of the incoming map [channels].
        factor: number of groups, which divides C. The authors' code uses 32; None takes the largest
            divisor of C that is not above 32.

    Raises:
        ValueError: `factor` does not divide C.

    Source: Ouyang et al. 2023, section 3; the authors' code.
    """

    def __init__(self, in_channels: int, factor: int | None = None) -> None:
        super().__init__()
        if factor is None:
            factor = max(n for n in range(1, min(in_channels, 32) + 1) if in_channels % n == 0)
        self.groups = divisor_of(in_channels, "factor", factor)
        width = in_channels // factor
        self.gn = GroupNorm(width, width)
        self.conv1x1 = nn.Conv2d(width, width, 1)
        self.conv3x3 = nn.Conv2d(width, width, 3, padding=1)

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate [N, C, H, W], each entry in (0, 1), the same in all channels of a
        group.
        """
        n, c, height, width = x.shape
        channels = c // self.groups
        u = x.reshape(n * self.groups, channels, height, width)
        strips = torch.cat([u.mean(3), u.mean(2)], 2).unsqueeze(3)  # rows, then columns
        rows, columns = self.conv1x1(strips).sigmoid().split([height, width], 2)
        a = self.gn(u * rows * columns.transpose(2, 3))
        b = self.conv3x3(u)
        weights_of_b, weights_of_a = (y.mean((2, 3), keepdim=True).softmax(1) for y in (a, b))
        gate = (weights_of_b * b + weights_of_a * a).sum(1, keepdim=True).sigmoid()
        gate = gate.reshape(n, self.groups, 1, height, width)
        return gate.expand(-1, -1, channels, -1, -1).reshape(n, c, height, width)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by its gate."""
        return x * self.gate(x).to(x.dtype)

    def extra_repr(self) -> str:
        """Say into how many groups channels are taken apart."""
        return f"factor={self.groups}"
