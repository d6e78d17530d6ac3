"""Convolutional Block Attention Module and its two parts.

Woo et al. 2018, "CBAM: Convolutional Block Attention Module", arXiv:1807.06521. The maxima are
taken with amax instead of a pooling layer over the whole map, which exporters with dynamic sizes
refuse; the shared layers have no bias, as the authors' equations (2) and (3) have none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .widths import hidden_width

__all__ = ["CBAM", "ChannelAttention", "SpatialAttention"]


class ChannelAttention(nn.Module):
    """Scale each channel by a gate computed from its spatial mean and maximum, through one shared
    network.

    Maps [N, C, H, W] to the same shape, dtype and device.

    Args:
        in_channels: C, the width of the incoming map [channels].
        reduction: C divided by the width of the hidden layer, 1 to C; the paper uses 16.
        hidden_channels: width of the hidden layer [channels] instead of C // reduction.

    Raises:
        ValueError: `reduction` is below 1 or above both C and 16, or `hidden_channels` is below 1.

    Source: Woo et al. 2018, section 3.1, equation (2).
    """

    def __init__(
        self, in_channels: int, reduction: int = 16, hidden_channels: int | None = None
    ) -> None:
        super().__init__()
        hidden = hidden_width(in_channels, reduction, hidden_channels)
        self.fc1 = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(hidden, in_channels, 1, bias=False)
        self.sigmoid = nn.Sigmoid()

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate [N, C, 1, 1], each entry in (0, 1)."""
        mean, maximum = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return self.sigmoid(
            self.fc2(self.relu(self.fc1(mean))) + self.fc2(self.relu(self.fc1(maximum)))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by its gate."""
        return x * self.gate(x).to(x.dtype)


class SpatialAttention(nn.Module):
    """Scale each pixel by a gate computed from mean and maximum over channels in its neighborhood.

    Maps [N, C, H, W] to the same shape, dtype and device.

    Args:
        in_channels: C; the gate does not depend on it.
        kernel_size: side of the neighborhood, odd; the paper uses 7 [pixels].

    Raises:
        ValueError: `kernel_size` is not odd and positive.

    Source: Woo et al. 2018, section 3.2, equation (3).
    """

    def __init__(self, in_channels: int, kernel_size: int = 7) -> None:
        super().__init__()
        if (
            isinstance(kernel_size, bool)
            or not isinstance(kernel_size, int)
            or kernel_size < 1
            or kernel_size % 2 == 0
        ):
            raise ValueError(f"kernel_size is an odd number of at least 1, not {kernel_size!r}")
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate [N, 1, H, W], each entry in (0, 1)."""
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return self.sigmoid(self.conv(maps))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by its gate."""
        return x * self.gate(x).to(x.dtype)


class CBAM(nn.Module):
    """Channel attention, then spatial attention on its result.

    Maps [N, C, H, W] to the same shape, dtype and device.

    Args:
        in_channels: C, the width of the incoming map [channels].
        reduction: of the channel attention, 1 to C; the paper uses 16.
        kernel_size: of the spatial attention, odd; the paper uses 7 [pixels].
        hidden_channels: of the channel attention [channels], instead of C // reduction.

    Raises:
        ValueError: as for the two parts.

    Source: Woo et al. 2018, section 3, equation (1).
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int = 16,
        kernel_size: int = 7,
        hidden_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.channel = ChannelAttention(in_channels, reduction, hidden_channels)
        self.spatial = SpatialAttention(in_channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both attentions, one after the other."""
        return self.spatial(self.channel(x))
