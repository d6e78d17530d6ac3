"""CBAM as one function of compiled loops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvc_core import is_watched

from .compiled import as_array, as_number, compiles, run
from .layers import is_untouched
from .passes import as_stored, fuses
from .spatial import scale_both_plainly

__all__ = ["cbam", "takes_cbam"]


def takes_cbam(x: Tensor, layers: list[nn.Conv2d], activations: list[nn.Module]) -> bool:
    """Return whether the loops take a map, and may do the work of the block's layers: two pointwise
    convolutions and one of pixels, a ReLU and two sigmoids.
    """
    first, second, pixels = layers
    return (
        fuses(x)
        and is_untouched(first)
        and is_untouched(second)
        and is_untouched(pixels, is_pointwise=False)
        and first.weight.shape == (first.out_channels, x.shape[1], 1, 1)
        and second.weight.shape == (x.shape[1], first.out_channels, 1, 1)
        and pixels.weight.shape == (1, 2, *pixels.kernel_size)
        and all(layer.bias is None for layer in layers)
        and all(type(layer.weight) in (Tensor, nn.Parameter) for layer in layers)
        and all(layer.weight.dtype == x.dtype for layer in layers)
        and [type(layer) for layer in activations] == [nn.ReLU, nn.Sigmoid, nn.Sigmoid]
        and not any(map(is_watched, activations))
        and compiles(x, _trial)
    )


def cbam(x: Tensor, weights: list[Tensor], alpha: Tensor | None) -> Tensor:
    """Return a map times its gates of channels and of pixels, mixed by alpha as in `blend`.

    Args:
        x: map [N, C, H, W].
        weights: of the channel attention's layers [D, C, 1, 1] and [C, D, 1, 1], and of the
            convolution [1, 2, K, K].
        alpha: one number.
    """
    y: Tensor = Both.apply(x, *weights, alpha)
    return y


def _trial(dtype: torch.dtype) -> None:
    one = torch.ones(1, 1, 1, 1, dtype=dtype, requires_grad=True)
    y = cbam(one, [one, one, one.detach().expand(1, 2, 1, 1)], None)
    torch.autograd.grad(y, one)


class Both(torch.autograd.Function):
    """The block as one function of its map, its weights and alpha."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *others: Any) -> Tensor:
        from .loops import cbam as loops  # needs numba

        (N, C, H, W), D = x.shape, others[0].shape[0]
        sizes = (3, N, C), (2, N, D), (N, 2, H, W), (N, H * W)
        saved = [x.new_empty(size) for size in sizes]
        y = torch.empty_like(x)
        arrays = [_map(y), tuple(map(as_array, saved))]
        run(loops.forward, N, *_inputs(x, *others), *arrays)
        ctx.save_for_backward(x, *others, *saved)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from .loops import cbam as loops

        x, first, second, kernel, alpha, *saved = ctx.saved_tensors
        others = [first, second, kernel, alpha]
        if torch.is_grad_enabled():
            return _plain_backward(ctx.needs_input_grad, x, others, grad)
        of_channels, hidden = saved[:2]
        x = as_stored(x, x)  # hooks of saved tensors may have changed the order in memory
        grad, dx = as_stored(grad, x), torch.empty_like(x if ctx.needs_input_grad[0] else x[:0])
        dhidden, dscores = torch.empty_like(hidden), torch.empty_like(of_channels[0])
        dkernel, dalpha = x.new_empty(x.shape[0], *kernel.shape[1:]), x.new_empty(x.shape[0])
        results = [_map(dx), *map(as_array, (dhidden, dscores, dkernel, dalpha))]
        arrays = [_map(grad), tuple(map(as_array, saved)), *results]
        run(loops.backward, x.shape[0], *_inputs(x, *others), *arrays)
        with torch.autocast("cpu", enabled=False):
            dfirst = dhidden[0].T @ of_channels[0] + dhidden[1].T @ of_channels[1]
            dsecond = dscores.T @ hidden.sum(0)
        return (
            dx if ctx.needs_input_grad[0] else None,
            dfirst.view_as(first),
            dsecond.view_as(second),
            dkernel.sum(0, keepdim=True),
            None if alpha is None else dalpha.sum().to(alpha.dtype).view_as(alpha),
        )


def _plain_backward(
    needed: tuple[bool, ...], x: Tensor, others: list[Any], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the same gradients by operators of torch, which have gradients themselves."""
    first, second, kernel, alpha = others

    def channel_gate_of(mean: Tensor, largest: Tensor) -> Tensor:
        hidden = F.conv2d(mean, first).relu() + F.conv2d(largest, first).relu()
        return F.conv2d(hidden, second).sigmoid()

    def pixel_gate_of(pooled: Tensor) -> Tensor:
        return F.conv2d(pooled, kernel, padding=kernel.shape[2] // 2).sigmoid()

    y = scale_both_plainly(x, channel_gate_of, pixel_gate_of, alpha)
    wanted = [each for each, is_needed in zip((x, *others), needed, strict=True) if is_needed]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return tuple(next(found) if is_needed else None for is_needed in needed)


def _inputs(
    x: Tensor, first: Tensor, second: Tensor, kernel: Tensor, alpha: Tensor | None
) -> list[Any]:
    """Return the order in memory, the map, the weights, and the factors of the gates and of the
    map.
    """
    weights = map(as_array, (first.flatten(1), second.flatten(1), kernel[0]))
    alpha = x.new_ones(()) if alpha is None else alpha
    return [x.is_contiguous(), _map(x), *weights, as_number(alpha, x), as_number(1 - alpha, x)]


def _map(x: Tensor) -> Any:
    """Return a map as the array [N, outer, inner] that lies in memory."""
    x = x.detach()
    return (x.flatten(2) if x.is_contiguous() else x.permute(0, 2, 3, 1).flatten(1, 2)).numpy()
