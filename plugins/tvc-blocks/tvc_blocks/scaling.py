"""A learned factor for each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import check_positive

__all__ = ["LayerScale"]


class LayerScale(nn.Module):
    """Scale each channel by a learned number, the same for every image and position. Belongs at the
    end of a residual branch.

    Maps [N, C, H, W], [N, tokens, C] or [N, C] to the same shape. With `init_values=1` it is the
    identity at its start; the paper starts it near zero (0.1 to 1e-6, the deeper the network the
    smaller), for networks that are trained from scratch.

    Args:
        in_channels: C [channels].
        init_values: start of the factors, above 0.

    Raises:
        ValueError: `init_values` is no number above 0.

    Source: Touvron et al. 2021, arXiv:2103.17239, section 2; the factors have the name of timm's
        LayerScale.
    """

    def __init__(self, in_channels: int, init_values: float = 1.0) -> None:
        super().__init__()
        check_positive(init_values=init_values)
        self.gamma = nn.Parameter(torch.full((in_channels,), float(init_values)))

    def gate(self, x: Tensor) -> Tensor:
        """Return the factors, shaped for the layout of x."""
        gamma = self.gamma.to(x.dtype)
        return gamma.view(-1, 1, 1) if x.ndim == 4 else gamma

    def forward(self, x: Tensor) -> Tensor:
        """Scale."""
        return x * self.gate(x)
