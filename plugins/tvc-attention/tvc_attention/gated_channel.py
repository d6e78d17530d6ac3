"""Gated channel transformation.

Yang et al. 2020, "Gated Channel Transformation for Visual Recognition", CVPR 2020,
arXiv:1909.11519. Written from the authors' PyTorch code and a second public implementation, which
agree; the parameters have the names and shapes of both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import full_precision, positive

__all__ = ["GatedChannelTransform"]


class GatedChannelTransform(nn.Module):
    """Scale each channel by a gate that makes channels compete or cooperate by their norms.

    Maps [N, C, H, W] to the same shape, dtype and device: with s = alpha * ||x|| over the pixels of
    each channel, x * (1 + tanh(gamma * s / rms(s) + beta)), where rms is the root mean square over
    the channels. It starts as the identity by itself, since gamma and beta start at 0.

    Args:
        in_channels: C, the width of the incoming map [channels].
        eps: added under both roots; the authors use 1e-5.

    Raises:
        ValueError: `eps` is not above 0.

    Source: Yang et al. 2020, section 3; `eps` is added to the mean over the channels, as
    in the authors' code.
    """

    def __init__(self, in_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = positive("eps", eps)
        self.alpha = nn.Parameter(torch.ones(1, in_channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, in_channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, in_channels, 1, 1))

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate [N, C, 1, 1], each entry in (0, 2)."""
        norm = (full_precision(x).square().sum((2, 3), keepdim=True) + self.eps).sqrt()
        embedded = self.alpha * norm
        normed = embedded * (embedded.square().mean(1, keepdim=True) + self.eps).rsqrt()
        return 1 + torch.tanh(self.gamma * normed + self.beta)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by its gate."""
        return x * self.gate(x).to(x.dtype)

    def extra_repr(self) -> str:
        """Say what the gate depends on."""
        return f"eps={self.eps}"
