"""Convolutional Block Attention Module and its two parts.

Woo et al. 2018, "CBAM: Convolutional Block Attention Module", arXiv:1807.06521. The maxima are
taken with amax instead of a pooling layer over the whole map, which exporters with dynamic sizes
refuse; the shared layers have no bias, as the authors' equations (2) and (3) have none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .fused import (
    cbam,
    pixel_scores,
    pointwise,
    scale_both,
    scale_channels,
    scale_pixels,
    takes_cbam,
)
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
        return self.excite(x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))

    def mix(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        """Return x * (1 + alpha * (gate(x) - 1)) as one computation; without alpha x * gate(x)."""
        return scale_channels(x, self.excite, alpha, maxima=True)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by its gate."""
        return self.mix(x, None)

    def excite(self, mean: Tensor, maximum: Tensor) -> Tensor:
        """Return the gate from the spatial means and maxima, all [N, C, 1, 1]."""
        return self.sigmoid(self._shared(mean) + self._shared(maximum))

    def _shared(self, pooled: Tensor) -> Tensor:
        return pointwise(self.fc2, self.relu(pointwise(self.fc1, pooled)))


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
        return self.excite(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1))

    def mix(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        """Return x * (1 + alpha * (gate(x) - 1)) as one computation; without alpha x * gate(x)."""
        return scale_pixels(x, self.excite, alpha)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by its gate."""
        return self.mix(x, None)

    def excite(self, pooled: Tensor) -> Tensor:
        """Return the gate from mean and maximum over channels [N, 2, H, W]."""
        return self.sigmoid(pixel_scores(self.conv, pooled))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # timm's convolution stands in a module with a normalization
        if f"{prefix}conv.conv.weight" in state_dict:
            state_dict[f"{prefix}conv.weight"] = state_dict.pop(f"{prefix}conv.conv.weight")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


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

    def gate(self, x: Tensor) -> Tensor:
        """Return the product of both gates [N, C, H, W], each entry in (0, 1)."""
        channel = self.channel.gate(x).to(x.dtype)
        return channel * self.spatial.gate(x * channel).to(x.dtype)

    def mix(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        """Return x * (1 + alpha * (gate(x) - 1)) as one computation; without alpha x * gate(x)."""
        channel, spatial = self.channel, self.spatial
        if type(channel) is ChannelAttention and type(spatial) is SpatialAttention:
            layers = [channel.fc1, channel.fc2, spatial.conv]
            activations = [channel.relu, channel.sigmoid, spatial.sigmoid]
            if takes_cbam(x, layers, activations):
                return cbam(x, [layer.weight for layer in layers], alpha)
        return scale_both(x, channel.excite, spatial.excite, alpha)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both attentions, one after the other."""
        return self.mix(x, None)
