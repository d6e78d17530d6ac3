"""SimAM, an attention without parameters.

Yang et al. 2021, "SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural
Networks", ICML 2021, PMLR 139:11863. The paper gives the variance twice: divided by the number M of
pixels (below equation 5), and by M - 1 (in its listing, figure 3, and in the authors' code). This
is the latter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .checks import full_precision, positive

__all__ = ["SimAM"]


class SimAM(nn.Module):
    """Scale each pixel of each channel by a gate that is larger the more the pixel differs from its
    channel's mean.

    Maps [N, C, H, W] to the same shape, dtype and device: x * sigmoid(d / (4 * (v + e_lambda)) +
    0.5), with d the squared distance from the channel's mean and v = sum(d) / (H * W - 1). In a map
    of one pixel d and v are 0. It has no parameters.

    Args:
        in_channels: C; the gate does not depend on it [channels].
        e_lambda: added to the variance; the paper uses 1e-4.

    Raises:
        ValueError: `e_lambda` is not above 0.

    Source: Yang et al. 2021, section 3.2, equation (5), and figure 3.
    """

    def __init__(self, in_channels: int, e_lambda: float = 1e-4) -> None:
        super().__init__()
        self.e_lambda = positive("e_lambda", e_lambda)

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate [N, C, H, W], each entry in (0.5, 1]."""
        x = full_precision(x)
        distance = (x - x.mean((2, 3), keepdim=True)).square()
        # max would fix the size in exports
        others: Any = torch.sym_max(x.shape[2] * x.shape[3] - 1, 1)
        variance = distance.sum((2, 3), keepdim=True) / others
        return (distance / (4 * (variance + self.e_lambda)) + 0.5).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by its gate."""
        return x * self.gate(x).to(x.dtype)

    def extra_repr(self) -> str:
        """Say what the gate depends on."""
        return f"e_lambda={self.e_lambda}"
