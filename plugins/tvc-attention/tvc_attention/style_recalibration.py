"""Style-based recalibration.

Lee et al. 2019, "SRM: A Style-based Recalibration Module for Convolutional Neural Networks", ICCV
2019, arXiv:1903.10829. The standard deviation is the paper's, divided by the number of pixels; the
authors' code divides by one less, which has no value for one pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import full_precision, positive
from .norms import BatchNorm2d

__all__ = ["StyleRecalibration"]


class StyleRecalibration(nn.Module):
    """Scale each channel by a gate computed from its own mean and standard deviation.

    Maps [N, C, H, W] to the same shape, dtype and device: x * sigmoid(bn(cfc[c, 0] * mean + cfc[c,
    1] * std)).

    In training mode the batch normalization sees one value of each channel for an image; for a
    batch of one image it takes its running statistics.

    Args:
        in_channels: C, the width of the incoming map [channels].
        eps: added to the variance before its root, so that a constant map has a gradient.

    Raises:
        ValueError: `eps` is not above 0.

    Source: Lee et al. 2019, section 3: style pooling and style integration. The weights
    start at 0, as in the authors' code.
    """

    def __init__(self, in_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = positive("eps", eps)
        self.cfc = nn.Parameter(torch.zeros(in_channels, 2))
        self.bn = BatchNorm2d(in_channels)
        self.sigmoid = nn.Sigmoid()

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate [N, C, 1, 1], each entry in (0, 1)."""
        full = full_precision(x)
        mean = full.mean((2, 3), keepdim=True)
        std = ((full - mean).square().mean((2, 3), keepdim=True) + self.eps).sqrt()
        weights = self.cfc[:, :, None, None]
        style = weights[:, 0] * mean + weights[:, 1] * std
        return self.sigmoid(self.bn(style.to(x.dtype)))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by its gate."""
        return x * self.gate(x).to(x.dtype)
