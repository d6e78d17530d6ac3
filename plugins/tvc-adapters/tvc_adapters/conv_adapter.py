"""Conv-Adapter: a depthwise and a pointwise convolution beside a convolution or a residual block.

Source: Chen et al. 2022, arXiv:2208.07463, section 3.2, and the authors' code
(github.com/Hhhhhhao/Conv-Adapter, models/tuning_modules/conv_adapter.py, "Design 2 v4"). These are
its two parallel schemes, which are the paper's choice: beside one convolution, and beside a whole
block. Here `conv2` starts at 0, so that it adds nothing at first.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tvc_core import Target

from .layers import check_layer, conv_like

__all__ = ["ConvAdapter", "conv_adapter", "conv_adapter_for_target"]


class ConvAdapter(nn.Module):
    """Return se * conv2(relu(conv1(x))): `conv1` is grouped and narrows, `conv2` is 1x1 and widens.

    Maps [N, in_channels, H, W] to [N, channels, H', W'] of the same dtype and device. Names of
    parameters are those of the authors' code.

    Args:
        conv1: from `in_channels` to the hidden width.
        channels: width of the result [channels].
    """

    def __init__(self, conv1: nn.Conv2d, channels: int) -> None:
        super().__init__()
        self.conv1 = conv1
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(conv1.out_channels, channels, 1)
        self.se = nn.Parameter(torch.ones(1, channels, 1, 1))
        nn.init.zeros_(self.conv2.weight)
        assert self.conv2.bias is not None
        nn.init.zeros_(self.conv2.bias)
        self.to(device=conv1.weight.device, dtype=conv1.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the adapter adds."""
        y: Tensor = self.conv2(self.act(self.conv1(x)))
        return y * self.se.to(y.dtype)


def conv_adapter(
    in_channels: int,
    channels: int | None = None,
    kernel_size: int | None = None,
    stride: int | None = None,
    reduction: float = 4,
    hidden_channels: int | None = None,
) -> nn.Module:
    """Make an adapter beside a block.

    Args:
        in_channels: width of the incoming map [channels].
        channels: width of the result; None for that of the target [channels].
        kernel_size: odd side of the kernel; None for that of the convolution beside which it
            stands, or 3 [pixels].
        stride: of the kernel; None for that of the target [pixels].
        reduction: `in_channels` divided by the hidden width; the paper's gamma.
        hidden_channels: the hidden width, in place of `reduction` [channels].

    Raises:
        ValueError: a value is out of range.
    """
    hidden, groups = _hidden(in_channels, reduction, hidden_channels)
    width, steps = _whole("channels", channels, in_channels), _whole("stride", stride, 1)
    return _plain(in_channels, width, kernel_size, steps, hidden, groups)


def conv_adapter_for_target(
    target: Target,
    in_channels: int,
    channels: int | None = None,
    kernel_size: int | None = None,
    stride: int | None = None,
    reduction: float = 4,
    hidden_channels: int | None = None,
) -> nn.Module:
    """Make an adapter with the width and the stride of its target, and where that is a convolution,
    with its kernel.

    Args:
        target: what it stands beside.
        in_channels: width of the incoming map [channels].
        channels: as in `conv_adapter`.
        kernel_size: as in `conv_adapter`.
        stride: as in `conv_adapter`.
        reduction: as in `conv_adapter`.
        hidden_channels: as in `conv_adapter`.

    Raises:
        ValueError: a value is out of range.
    """
    hidden, groups = _hidden(in_channels, reduction, hidden_channels)
    module, out = target.module, _whole("channels", channels, target.out_channels)
    if isinstance(module, nn.Conv2d) and kernel_size is None and stride is None:
        check_layer(module, nn.Conv2d)
        return ConvAdapter(conv_like(module, in_channels, hidden, groups, bias=True), out)
    steps = _whole("stride", stride, target.stride)
    return _plain(in_channels, out, kernel_size, steps, hidden, groups)


def _plain(
    in_channels: int, channels: int, kernel_size: int | None, stride: Any, hidden: int, groups: int
) -> ConvAdapter:
    size = 3 if kernel_size is None else kernel_size
    if size < 1 or size % 2 == 0:
        raise ValueError(f"kernel_size is an odd whole number of at least 1, not {size!r}")
    conv1 = nn.Conv2d(in_channels, hidden, size, stride, padding=size // 2, groups=groups)
    return ConvAdapter(conv1, channels)


def _whole(name: str, given: int | None, default: Any) -> Any:
    if given is None:
        return default
    if given < 1:
        raise ValueError(f"{name} is a whole number of at least 1, not {given!r}")
    return given


def _hidden(in_channels: int, reduction: float, hidden: int | None) -> tuple[int, int]:
    """Return the hidden width, and into how many groups the channels fall: as many where the one
    divides the other, as in the paper, and else their greatest common divisor.
    """
    if hidden is None:
        if not reduction >= 1 or not math.isfinite(reduction):
            raise ValueError(f"reduction is a number of at least 1, not {reduction!r}")
        hidden = max(1, int(in_channels / reduction))
    if isinstance(hidden, bool) or not isinstance(hidden, int) or hidden < 1:
        raise ValueError(f"hidden_channels is a whole number of at least 1, not {hidden!r}")
    return hidden, math.gcd(in_channels, hidden)
