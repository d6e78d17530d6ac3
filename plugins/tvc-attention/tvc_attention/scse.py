"""Concurrent spatial and channel squeeze and excitation.

Roy et al. 2018, "Concurrent Spatial and Channel 'Squeeze & Excitation' in Fully Convolutional
Networks", MICCAI 2018, arXiv:1803.02579. The layers have the names that they have in
segmentation_models_pytorch, whose weights load.
"""

from __future__ import annotations

from torch import Tensor, nn

from .widths import hidden_width

__all__ = ["ConcurrentSqueezeExcite"]


class ConcurrentSqueezeExcite(nn.Module):
    """Scale each pixel of each channel by the sum of two gates: its channel's and its pixel's.

    Maps [N, C, H, W] to the same shape, dtype and device: x * cSE(x) + x * sSE(x).

    Args:
        in_channels: C, the width of the incoming map [channels].
        reduction: C divided by the width of the channel gate's hidden layer, 1 to C; the paper uses
            2. Narrow maps keep a width of 1.
        hidden_channels: width of that hidden layer [channels] instead of C // reduction.

    Raises:
        ValueError: `reduction` is below 1 or above both C and 16, or `hidden_channels` is below 1.

    Source: Roy et al. 2018, section 2: cSE, sSE, and their sum, scSE.
    """

    def __init__(
        self, in_channels: int, reduction: int = 2, hidden_channels: int | None = None
    ) -> None:
        super().__init__()
        hidden = hidden_width(in_channels, reduction, hidden_channels)
        self.cSE = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, in_channels, 1),
            nn.Sigmoid(),
        )
        self.sSE = nn.Sequential(nn.Conv2d(in_channels, 1, 1), nn.Sigmoid())

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate [N, C, H, W], each entry in (0, 2)."""
        channels: Tensor = self.cSE(x)
        return channels + self.sSE(x)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by its gate."""
        return x * self.gate(x).to(x.dtype)
