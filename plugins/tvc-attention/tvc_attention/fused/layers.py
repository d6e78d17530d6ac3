"""The layers between two fused functions: on tensors so small that starting them is what costs."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as _module

from .passes import is_plain

__all__ = ["is_untouched", "pointwise"]


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


def is_untouched(layer: nn.Module) -> bool:
    """Return whether calling a layer is nothing but a 1x1 convolution with its weight."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == (1, 1)
        and layer.groups == 1
        and layer.padding == (0, 0)
        and layer.stride == (1, 1)
        and "forward" not in layer.__dict__
        and not (
            layer._forward_hooks
            or layer._forward_pre_hooks
            or layer._backward_hooks
            or layer._backward_pre_hooks
            or _module._global_forward_hooks
            or _module._global_forward_pre_hooks
            or _module._global_backward_hooks
            or _module._global_backward_pre_hooks
        )
    )
