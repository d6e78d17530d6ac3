"""Squeeze-and-Excitation, and the effective one with one layer.

Hu et al. 2018, "Squeeze-and-Excitation Networks", arXiv:1709.01507, and Lee and Park 2020,
"CenterMask: Real-Time Anchor-Free Instance Segmentation", arXiv:1911.06667. The layers are 1x1
convolutions, as in torchvision and timm, and have their names; the papers' are fully connected
layers without difference in what they compute.
"""

from __future__ import annotations

from torch import Tensor, nn

from .fused import pointwise
from .mean_gate import MeanGate
from .widths import hidden_width

__all__ = ["EffectiveSqueezeExcite", "SqueezeExcite"]


class SqueezeExcite(MeanGate):
    """Scale each channel by a gate computed from its spatial mean.

    Maps [N, C, H, W] to the same shape, dtype and device: x * sigmoid(fc2(relu(fc1(mean(x))))).

    Args:
        in_channels: C, the width of the incoming map [channels].
        reduction: C divided by the width of the hidden layer, 1 to C; the paper uses 16. Narrow
            maps keep a width of 1.
        hidden_channels: width of the hidden layer [channels] instead of C // reduction, as other
            libraries round it.

    Raises:
        ValueError: `reduction` is below 1 or above both C and 16, or `hidden_channels` is below 1.

    Source: Hu et al. 2018, section 3.
    """

    def __init__(
        self, in_channels: int, reduction: int = 16, hidden_channels: int | None = None
    ) -> None:
        super().__init__()
        hidden = hidden_width(in_channels, reduction, hidden_channels)
        self.fc1 = nn.Conv2d(in_channels, hidden, 1)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(hidden, in_channels, 1)
        self.sigmoid = nn.Sigmoid()

    def _excite(self, squeezed: Tensor) -> Tensor:
        return self.sigmoid(pointwise(self.fc2, self.relu(pointwise(self.fc1, squeezed))))


class HardSigmoid(nn.Module):
    """relu6(x + 3) / 6; torch's own has no second derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 3).clamp(0, 6) / 6


class EffectiveSqueezeExcite(MeanGate):
    """Scale each channel by a gate computed from all channels' means in one layer of full width.

    Maps [N, C, H, W] to the same shape, dtype and device: x * gate(fc(mean(x))).

    Args:
        in_channels: C, the width of the incoming map [channels].
        hard: the gate is the hard sigmoid, relu6(x + 3) / 6, of the authors' code and of pretrained
            weights; else the sigmoid that the equation names.

    Source: Lee and Park 2020, the section on VoVNetV2.
    """

    def __init__(self, in_channels: int, hard: bool = True) -> None:
        super().__init__()
        self.fc = nn.Conv2d(in_channels, in_channels, 1)
        self.sigmoid = HardSigmoid() if hard else nn.Sigmoid()

    def _excite(self, squeezed: Tensor) -> Tensor:
        return self.sigmoid(pointwise(self.fc, squeezed))
