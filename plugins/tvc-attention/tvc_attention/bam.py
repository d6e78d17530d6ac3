"""Bottleneck attention.

Park et al. 2018, "BAM: Bottleneck Attention Module", BMVC 2018, arXiv:1807.06514. The equations,
which Guo et al. 2021 (a survey, arXiv:2111.07624) give as well, leave open what stands between the
layers: a ReLU after each hidden layer, as in the authors' code. That code differs from the
equations elsewhere (it multiplies the two branches, and normalizes hidden layers instead of
results); this follows the equations.
"""

from __future__ import annotations

from torch import Tensor, nn

from .norms import BatchNorm2d
from .widths import hidden_width

__all__ = ["BottleneckAttention"]


class BottleneckAttention(nn.Module):
    """Scale each pixel of each channel by one plus a gate, computed from all channels' means and
    from a wide neighborhood of the pixel.

    Maps [N, C, H, W] to the same shape, dtype and device: x * (1 + sigmoid(channel(x) +
    spatial(x))).

    In training mode the channel branch's batch normalization sees one value of each channel for an
    image; for a batch of one image it takes its running statistics.

    Args:
        in_channels: C, the width of the incoming map [channels].
        reduction: C divided by the width of the hidden layers of both branches, 1 to C; the paper
            uses 16. Narrow maps keep a width of 1.
        dilation: of the two 3x3 convolutions; the paper uses 4 [pixels].
        hidden_channels: width of the hidden layers [channels] instead of C // reduction.

    Raises:
        ValueError: `reduction` is below 1 or above both C and 16, or `hidden_channels` or
            `dilation` is below 1.

    Source: Park et al. 2018, section 3, equations (1) to (4).
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int = 16,
        dilation: int = 4,
        hidden_channels: int | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_width(in_channels, reduction, hidden_channels)
        if isinstance(dilation, bool) or not isinstance(dilation, int) or dilation < 1:
            raise ValueError(f"dilation is a whole number of at least 1, not {dilation!r}")
        self.channel = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, in_channels, 1),
            BatchNorm2d(in_channels),
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation),
            nn.ReLU(),
            nn.Conv2d(hidden, 1, 1),
            BatchNorm2d(1),
        )
        self.sigmoid = nn.Sigmoid()

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate [N, C, H, W], each entry in (1, 2)."""
        return 1 + self.sigmoid(self.channel(x) + self.spatial(x))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by its gate."""
        return x * self.gate(x).to(x.dtype)
