"""SSF: scale and shift the channels of a map.

Source: Lian et al. 2022, arXiv:2210.08823, section 3.2, and equation (6) for folding. The paper
draws scales around 1 and shifts around 0; here they start at 1 and 0, as the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tvc_core import is_normalization

from .layers import add_, check_layer

__all__ = ["ScaleShift"]


class ScaleShift(nn.Module):
    """Return scale * x + shift, with one scale and one shift for each channel.

    Maps [*, C] to the same shape, dtype and device.

    Args:
        in_channels: C, the width of the map [channels].

    Source: Lian et al. 2022, equation (3).
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(in_channels))
        self.shift = nn.Parameter(torch.zeros(in_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled and shifted map."""
        return torch.addcmul(self.shift.to(x.dtype), x, self.scale.to(x.dtype))

    def fold(self, target: nn.Module) -> None:
        """Scale and shift what a layer before it computes: a Conv2d, a Linear or a normalization
        with a scale; of a Sequential, its last one.

        A layer without a bias gets one where there is a shift.

        Raises:
            ValueError: it is no such layer.
        """
        while isinstance(target, nn.Sequential) and len(target):
            target = target[-1]
        weight = target._parameters.get("weight")
        if isinstance(target, (nn.Conv2d, nn.Linear)):
            check_layer(target, nn.Conv2d if isinstance(target, nn.Conv2d) else nn.Linear)
        elif weight is None or weight.ndim != 1 or not is_normalization(target):
            name = type(target).__name__
            raise ValueError(
                f"it takes a Conv2d, a Linear or a normalization with a scale, not a {name}"
            )
        assert weight is not None
        if weight.shape[0] != len(self.scale):
            raise ValueError(
                f"it has {len(self.scale)} channels, and this {type(target).__name__} has "
                f"{weight.shape[0]}"
            )
        with torch.no_grad():
            scale, shift = self.scale.double(), self.shift.double()
            change = (scale - 1).view(-1, *[1] * (weight.ndim - 1))
            add_(weight, weight.double() * change)
            bias = target._parameters.get("bias")
            if bias is not None:
                add_(bias, bias.double() * (scale - 1) + shift)
            elif bool(shift.any()):
                target.bias = nn.Parameter(
                    self.shift.detach().to(weight.dtype), requires_grad=weight.requires_grad
                )
