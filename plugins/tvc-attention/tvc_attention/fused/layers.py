"""The layers between two fused functions: on tensors so small that starting them is what costs."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvc_core import is_watched

from .passes import is_plain

__all__ = ["is_untouched", "neighbor_scores", "pixel_scores", "pointwise"]

Convolution: TypeAlias = type[nn.Conv1d] | type[nn.Conv2d]

LEAST = 1 << 12
"""Length of lines together from which shifted copies of them beat a convolution [elements]."""


def pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """Return a 1x1 convolution of [N, C, 1, 1], computed as the matrix product that it is.

    That takes a fifth of the time. A layer of another class, with hooks or another forward, such as
    one that a tool has wrapped, is called.
    """
    if not (is_plain(x) and x.shape[2:] == (1, 1) and is_untouched(layer)):
        y: Tensor = layer(x)
        return y
    assert isinstance(layer, nn.Conv2d)
    return F.linear(x.flatten(1), layer.weight.flatten(1), layer.bias)[:, :, None, None]


def pixel_scores(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Return a convolution of [N, 2, H, W] to one channel.

    The CPU's kernels work on blocks of 8 or 16 channels, which are mostly empty for 2 and 1. So all
    images become channels of one image, each convolved by itself, which takes a third of the time.
    """
    if not (_is_simple(x, layer, nn.Conv2d) and x.numel() > 0 and x.dtype == torch.float32):
        y: Tensor = layer(x)
        return y
    N, C, H, W = x.shape
    weight = layer.weight.transpose(0, 1).repeat(N, 1, 1, 1)
    each = F.conv2d(x.reshape(1, N * C, H, W), weight, padding=layer.padding, groups=N * C)
    return each.view(N, C, H, W).sum(1, keepdim=True)


def neighbor_scores(layer: nn.Conv1d, x: Tensor) -> Tensor:
    """Return a convolution of [N, 1, L] to one channel.

    With one channel in and out, the CPU's kernels take 2 to 6 times as long, forward and backward,
    as a sum of shifted copies, one for each entry of the kernel.
    """
    if not (
        _is_simple(x, layer, nn.Conv1d)
        and layer.weight.shape == (1, 1, *layer.kernel_size)
        and x.shape[1] == 1
        and x.numel() >= LEAST
    ):
        y: Tensor = layer(x)
        return y
    kernel = layer.weight.flatten()
    length, padded = x.shape[2], F.pad(x, (len(kernel) // 2,) * 2)
    total = padded[..., :length] * kernel[0]
    for offset in range(1, len(kernel)):
        total = total + padded[..., offset : offset + length] * kernel[offset]
    return total


def _is_simple(x: Tensor, layer: Any, kind: Convolution) -> bool:
    """Return whether a convolution without bias is all that a layer is, on the CPU and in a type
    that sums keep their digits in.
    """
    return (
        is_plain(x)
        and x.device.type == "cpu"
        and is_untouched(layer, kind, is_pointwise=False)
        and layer.bias is None
        and x.dtype == layer.weight.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
    )


def is_untouched(layer: Any, kind: Convolution = nn.Conv2d, is_pointwise: bool = True) -> bool:
    """Return whether calling a layer is nothing but a convolution with its weight and bias that
    keeps the size of the map, pointwise or with an odd kernel of equal sides.
    """
    return (
        type(layer) is kind
        and len(set(layer.kernel_size)) == 1
        and (layer.kernel_size[0] == 1 if is_pointwise else layer.kernel_size[0] % 2 == 1)
        and layer.padding == tuple(side // 2 for side in layer.kernel_size)
        and {*layer.stride, *layer.dilation} == {1}
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not is_watched(layer)
    )
