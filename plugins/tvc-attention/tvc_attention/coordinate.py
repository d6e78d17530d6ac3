"""Coordinate Attention.

Hou et al. 2021, "Coordinate Attention for Efficient Mobile Network Design", arXiv:2103.02907.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .fused import scale_by_strips, strip_means
from .widths import hidden_width

__all__ = ["CoordinateAttention"]


class CoordinateAttention(nn.Module):
    """Scale each row and each column of each channel by gates computed from the means of all rows
    and columns.

    Maps [N, C, H, W] to the same shape, dtype and device.

    Args:
        in_channels: C, the width of the incoming map [channels].
        reduction: C divided by the width of the hidden layer, 1 to C; the paper uses 32. The width
            is at least 8, as in the authors' code.
        hidden_channels: width of the hidden layer [channels], instead of that.
        bias: the convolutions have a bias.

    Raises:
        ValueError: `reduction` is below 1 or above both C and 32, or `hidden_channels` is below 1.

    Source: Hou et al. 2021, section 3.2, equations (4) to (9).
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int = 32,
        hidden_channels: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        hidden = hidden_width(in_channels, reduction, hidden_channels, most=32)
        if hidden_channels is None:
            hidden = max(hidden, 8)
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, bias=bias)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.act = nn.Hardswish()
        self.conv_h = nn.Conv2d(hidden, in_channels, 1, bias=bias)
        self.conv_w = nn.Conv2d(hidden, in_channels, 1, bias=bias)
        self.sigmoid = nn.Sigmoid()

    def gate(self, x: Tensor) -> Tensor:
        """Return the product of both gates [N, C, H, W], each entry in (0, 1)."""
        rows, columns = self._excite(*strip_means(x))
        return rows * columns

    def mix(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        """Return x * (1 + alpha * (gate(x) - 1)) as one computation; without alpha x * gate(x)."""
        return scale_by_strips(x, self._excite, alpha)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by both gates."""
        return self.mix(x, None)

    def _excite(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        strips = torch.cat([rows, columns.transpose(2, 3)], dim=2)  # [N, C, H + W, 1]
        hidden = self.act(self.bn1(self.conv1(strips)))
        rows, columns = hidden.split([rows.shape[2], columns.shape[3]], dim=2)
        return (self.sigmoid(self.conv_h(rows)), self.sigmoid(self.conv_w(columns.transpose(2, 3))))
