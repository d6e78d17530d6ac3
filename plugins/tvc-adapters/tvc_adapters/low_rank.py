"""LoRA: a low-rank update of a layer's weight, beside the layer.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1; of a convolution the weight is taken as the
matrix [out_channels, in_channels / groups * kernel height * kernel width].
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvc_core import Target, is_watched

from .layers import add_, check_layer, conv_like

__all__ = ["LowRankConv2d", "LowRankLinear", "lora", "lora_for_target"]


class _LowRank(nn.Module):
    """What both have: `down`, `up`, and a factor."""

    down: nn.Conv2d | nn.Linear
    up: nn.Conv2d | nn.Linear

    def __init__(self, rank: int, alpha: float | None, dropout: float) -> None:
        super().__init__()
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank is a whole number of at least 1, not {rank!r}")
        if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
            raise ValueError(f"alpha is a number above 0, or None for the rank, not {alpha!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is a probability of at least 0 and below 1, not {dropout!r}")
        self.scale = 1.0 if alpha is None else alpha / rank
        self.dropout = nn.Dropout(dropout)

    def _start(self, like: Tensor | None = None) -> None:
        nn.init.zeros_(self.up.weight)
        if like is not None:
            self.to(device=like.device, dtype=like.dtype)

    def delta(self) -> Tensor:
        """Return what is added to the weight of the layer, as a matrix in float64."""
        up, down = self.up.weight.detach(), self.down.weight.detach()
        return self.scale * (up.double().flatten(1) @ down.double().flatten(1))

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"


class LowRankLinear(_LowRank):
    """Add scale * up(down(x)), two linear layers of which the first has `rank` outputs.

    Maps [*, in_channels] to [*, out_channels] of the same dtype and device.

    Args:
        in_channels: width of the incoming map [channels].
        out_channels: width of the result; None for `in_channels` [channels].
        rank: of the update.
        alpha: the update is multiplied by alpha / rank; None for `rank`, a factor of 1.
        dropout: probability of dropout before `down`.
        stride: of height and width: every so many pixels; for maps [N, H, W, C] alone [pixels].

    Raises:
        ValueError: `rank`, `alpha` or `dropout` is out of range.

    Source: Hu et al. 2021, section 4.1: `down` starts at random, `up` at 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        rank: int = 8,
        alpha: float | None = None,
        dropout: float = 0.0,
        stride: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__(rank, alpha, dropout)
        self.stride = stride
        self.down = nn.Linear(in_channels, rank, bias=False)
        self.up = nn.Linear(rank, out_channels or in_channels, bias=False)
        self._start()

    def forward(self, x: Tensor) -> Tensor:
        """Return what the update adds."""
        if self.stride != (1, 1):
            x = x[:, :: self.stride[0], :: self.stride[1]]
        y = self.down(self.dropout(x))
        out: Tensor = self.up(y if self.scale == 1 else y * self.scale)
        return out

    def fold(self, target: nn.Module) -> None:
        """Add the update to the weight of the linear layer beside which it stands.

        Raises:
            ValueError: it is no such layer.
        """
        check_layer(target, nn.Linear)
        with torch.no_grad():
            add_(target.weight, self.delta())  # type: ignore[arg-type]


class LowRankConv2d(_LowRank):
    """Add the convolution with a kernel of low rank, for the pixels that another one looks at.

    Of one group it is two convolutions: one like the other with `rank` outputs, and one of 1x1. Of
    several, where each would need factors of its own, which are more than the kernel has, all
    groups share `down`: a depthwise kernel [C, 1, k, k] is a matrix [C, k * k] like any other.

    Maps [N, H, W, C] to [N, H', W', out_channels] of the same dtype and device: both are views of
    channels-first maps.

    Args:
        conv: the convolution that it stands beside; it stays as it is.
        rank: of the update.
        alpha: the update is multiplied by alpha / rank; None for `rank`, a factor of 1.
        dropout: probability of dropout before `down`.

    Raises:
        ValueError: `rank`, `alpha` or `dropout` is out of range.
    """

    down: nn.Conv2d
    up: nn.Conv2d

    def __init__(
        self, conv: nn.Conv2d, rank: int = 8, alpha: float | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__(rank, alpha, dropout)
        groups = conv.groups
        self.down = conv_like(conv, conv.in_channels // groups, rank)
        self.up = nn.Conv2d(groups * rank, conv.out_channels, 1, groups=groups, bias=False)
        self._start(conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the update adds."""
        x = self.dropout(x.permute(0, 3, 1, 2))
        if self.up.groups == 1:
            y = self.down(x)
            y = self.up(y if self.scale == 1 else y * self.scale)
        elif self._is_plain():
            y = self._convolve(x)
        else:
            y = self._by_groups(x)
        return y.permute(0, 2, 3, 1)

    def _is_plain(self) -> bool:
        """Return whether no one waits for the two convolutions to be called."""
        plain = type(self.down).forward is nn.Conv2d.forward
        return plain and not is_watched(self.down) and not is_watched(self.up)

    # Groups share `down`, so of each group `rank` maps would have to be kept, of a depthwise
    # convolution `rank` times its input. The kernel is small, so it is multiplied out instead.
    def _convolve(self, x: Tensor) -> Tensor:
        down = self.down
        padding: Any = down.padding
        kernel = self.up.weight.flatten(1) @ down.weight.flatten(1)
        kernel = (kernel * self.scale).unflatten(1, down.weight.shape[1:])
        if down.padding_mode != "zeros":
            around = down._reversed_padding_repeated_twice
            x, padding = F.pad(x, around, mode=down.padding_mode), 0
        return F.conv2d(x, kernel, None, down.stride, padding, down.dilation, self.up.groups)

    # A class that pads by itself does so in its forward, which knows its own weight alone, and a
    # tool that offloads weights brings them back for a call: so it runs on the groups as if they
    # were images.
    def _by_groups(self, x: Tensor) -> Tensor:
        groups, count = self.up.groups, x.shape[0]
        y = self.down(x.reshape(count * groups, x.shape[1] // groups, *x.shape[2:]))
        y = y.reshape(count, self.up.in_channels, *y.shape[2:])
        out: Tensor = self.up(y * self.scale)
        return out

    def fold(self, target: nn.Module) -> None:
        """Add the update to the weight of the convolution beside which it stands.

        Raises:
            ValueError: it is no such convolution.
        """
        check_layer(target, nn.Conv2d)
        with torch.no_grad():
            weight: Tensor = target.weight  # type: ignore[assignment]
            add_(weight, self.delta().view(weight.shape))


def lora(
    in_channels: int, rank: int = 8, alpha: float | None = None, dropout: float = 0.0
) -> nn.Module:
    """Make an update of a layer that keeps the width.

    Args:
        in_channels: width of the map [channels].
        rank: of the update.
        alpha: the update is multiplied by alpha / rank; None for `rank`, a factor of 1.
        dropout: probability of dropout before the update.

    Raises:
        ValueError: a value is out of range.
    """
    return LowRankLinear(in_channels, None, rank, alpha, dropout)


def lora_for_target(
    target: Target,
    in_channels: int,
    rank: int = 8,
    alpha: float | None = None,
    dropout: float = 0.0,
) -> nn.Module:
    """Make the update of a convolution or of a linear layer; beside anything else, of its pixels'
    channels.

    Args:
        target: what it stands beside.
        in_channels: width of the map that goes in [channels].
        rank: as in `lora`.
        alpha: as in `lora`.
        dropout: as in `lora`.

    Raises:
        ValueError: a value is out of range; or the target is a convolution or linear layer whose
            output is not linear in its weight.
    """
    module = target.module
    if isinstance(module, nn.Conv2d):
        check_layer(module, nn.Conv2d)
        return LowRankConv2d(module, rank, alpha, dropout)
    if isinstance(module, nn.Linear):
        check_layer(module, nn.Linear)
        return LowRankLinear(module.in_features, module.out_features, rank, alpha, dropout)
    stride = target.stride
    return LowRankLinear(in_channels, target.out_channels, rank, alpha, dropout, stride)
