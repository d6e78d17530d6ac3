"""The networks and blocks of `kit`: small, and the same at every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..specs import BackboneSpec, WeightsSpec
from .seeding import torch_seed

__all__ = ["Gate", "Mix", "channels_last", "maps", "tokens"]

CLASSES = 7


class Residual(nn.Module):
    """x plus two convolutions with normalization. Maps [N, C, H, W] to the same shape."""

    tvc_branch = "norm2"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch."""
        return x + self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))


class Maps(nn.Module):
    """Three stages of residual blocks over [N, C, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.layer1 = nn.Sequential(Residual(8))
        self.layer2 = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), Residual(12))
        self.layer3 = nn.Sequential(nn.Conv2d(12, 16, 3, 2, 1), Residual(16), nn.ReLU(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.fc(
            torch.flatten(self.pool(self.layer3(self.layer2(self.layer1(self.stem(x))))), 1)
        )


class Perceptron(nn.Module):
    """x plus a multilayer perceptron over the last axis."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, 2 * channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Add the perceptron's result."""
        return x + self.fc2(self.act(self.fc1(self.norm(x))))


class ToChannelsLast(nn.Sequential):
    """Patches of an image as [N, H, W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        """Embed and permute."""
        return super().forward(x).permute(0, 2, 3, 1)


class Merge(nn.Module):
    """Halve height and width of [N, H, W, C] and change the width."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, channels, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve in the other layout."""
        return self.reduce(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ChannelsLast(nn.Module):
    """Two stages over [N, H, W, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.patches_of = ToChannelsLast(nn.Conv2d(3, 8, 4, 4))
        self.stage1 = nn.Sequential(Perceptron(8))
        self.merge = Merge(8, 12)
        self.stage2 = nn.Sequential(Perceptron(12))
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(
            self.norm(self.stage2(self.merge(self.stage1(self.patches_of(x))))).mean((1, 2))
        )


class Tokens(nn.Module):
    """Two layers of attention over [N, 1 + 16, C], for images of 32 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 17, 8))
        self.embed = nn.Conv2d(3, 8, 8, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class Gate(nn.Module):
    """Scale each channel by a sigmoid of all channels' means. Maps [N, C, H, W] to the same
    shape.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(in_channels, in_channels, 1)

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate [N, C, 1, 1]."""
        return torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by its gate."""
        return x * self.gate(x)


class Mix(nn.Module):
    """Convolution, normalization and activation. Maps [N, C, H, W] to the same shape."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalize and cut at zero."""
        return torch.relu(self.norm(self.conv(x)))


def maps(spec: BackboneSpec, *, weights: WeightsSpec | None) -> nn.Module:
    """Make the network over [N, C, H, W]."""
    return _enlivened(Maps)


def channels_last(spec: BackboneSpec, *, weights: WeightsSpec | None) -> nn.Module:
    """Make the network over [N, H, W, C]."""
    return _enlivened(ChannelsLast)


def tokens(spec: BackboneSpec, *, weights: WeightsSpec | None) -> nn.Module:
    """Make the network over [N, tokens, C]."""
    return _enlivened(Tokens)


def _enlivened(make: Callable[[], Any]) -> nn.Module:
    """Return a network of the same random values at every call, none of them constant."""
    with torch_seed(0):
        network: nn.Module = make()
        with torch.no_grad():
            for name, tensor in (*network.named_parameters(), *network.named_buffers()):
                if name.endswith("running_var"):
                    tensor.uniform_(0.8, 1.2)
                elif tensor.is_floating_point() and bool((tensor == tensor.reshape(-1)[0]).all()):
                    tensor.add_(torch.randn(tensor.shape) * 0.1)
    return network
