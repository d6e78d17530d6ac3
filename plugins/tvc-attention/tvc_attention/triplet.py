"""Triplet attention.

Misra et al. 2021, "Rotate to Attend: Convolutional Triplet Attention Module", WACV 2021,
arXiv:2010.03045. Written from the authors' code and a second public implementation, which agree;
the layers have the authors' names, so their weights load. Nothing is rotated here: pooling an axis
gives the same strips.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from .checks import odd_size
from .norms import BatchNorm2d

__all__ = ["TripletAttention"]


class TripletAttention(nn.Module):
    """Scale each pixel of each channel by the mean of three gates, one for each pair of the axes
    channels, height and width.

    Maps [N, C, H, W] to the same shape, dtype and device. The gate of a pair of axes is
    sigmoid(bn(conv([max; mean]))), with maximum and mean over the third axis.

    Args:
        in_channels: C; the gates do not depend on it [channels].
        kernel_size: side of the convolutions' neighborhood in their two axes, odd; the paper uses
            7.

    Raises:
        ValueError: `kernel_size` is not odd and positive.

    Source: Misra et al. 2021, section 3: Z-pool and the three branches.
    """

    def __init__(self, in_channels: int, kernel_size: int = 7) -> None:
        super().__init__()
        self.cw = _PairGate(odd_size(kernel_size))
        self.hc = _PairGate(kernel_size)
        self.hw = _PairGate(kernel_size)

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate [N, C, H, W], each entry in (0, 1)."""
        channel_width = self.cw(x, 2).unsqueeze(2)  # [N, C, 1, W]
        height_channel = self.hc(x, 3).transpose(1, 2).unsqueeze(3)  # [N, C, H, 1]
        height_width = self.hw(x, 1).unsqueeze(1)  # [N, 1, H, W]
        return (channel_width + height_channel + height_width) / 3

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by its gate."""
        return x * self.gate(x).to(x.dtype)


class _PairGate(nn.Module):
    """The gate of two axes of a map."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False),
                bn=BatchNorm2d(1, momentum=0.01),
            )
        )
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor, pooled: int) -> Tensor:
        """Return the gate of the axes other than batch and the pooled one; height comes before
        channels, as the authors turn the map.
        """
        pair = torch.stack([x.amax(pooled), x.mean(pooled)], 1)
        if pooled == 3:
            pair = pair.transpose(2, 3)
        gate: Tensor = self.sigmoid(self.conv(pair))
        return gate.squeeze(1)
