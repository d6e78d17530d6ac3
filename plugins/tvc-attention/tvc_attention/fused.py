"""Gate and map in as few passes over memory as they need, forward and backward.

A gate that is computed from a map and multiplied with it is small, and the map is large, so what it
costs is how often the map is read and written. Autograd reads and writes it 14 times for a
squeeze-excite; 7 are enough: the mean reads it, the product reads and writes it, and backward one
pass reads map and gradient for their dot products, one reads the gradient and writes the result.

How the backward pass saves the rest: `_Mean` hands the map on beside its mean, and `_Scale` takes
it from there. So the map's gradient comes from one place, `_Mean.backward`, which adds the mean's
share in the pass that multiplies with the gate. `_Scale.backward` hands the gradient through as it
is, and leaves the product to it. What is between the two, the block's own layers, is ordinary code
on small tensors: hooks, wrappers and quantized layers in it act as everywhere.

Under torch.compile, torch.export, torch.fx, tracing, torch.func and forward-mode derivatives, and
for tensors of other classes, plain code runs, which computes the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["blend", "scale_channels"]

CHUNK = 1 << 18
"""Elements of a buffer that stays in a core's cache."""

_in_functorch: Callable[[], bool] = getattr(
    torch._C, "_are_functorch_transforms_active", lambda: False
)


def blend(gate: Tensor, alpha: Tensor | None, like: Tensor) -> Tensor:
    """Return what a map is multiplied with, in the type of the map: 1 + alpha * (gate - 1), or the
    gate itself where alpha is None.
    """
    gate = gate.to(like.dtype)
    return gate if alpha is None else 1 + alpha.to(like.dtype) * (gate - 1)


def scale_channels(x: Tensor, gate_of: Callable[[Tensor], Tensor], alpha: Tensor | None) -> Tensor:
    """Return a map times the gate of each channel, mixed by alpha.

    Args:
        x: map [N, C, H, W].
        gate_of: computes the gate [N, C, 1, 1] from the spatial means [N, C, 1, 1].
        alpha: as for `blend`.
    """
    if not fuses(x):
        return x * blend(gate_of(x.mean((2, 3), keepdim=True)), alpha, x)
    shared = _Shared()
    handed_on, mean = _Mean.apply(x, shared)
    y: Tensor = _Scale.apply(x, handed_on, blend(gate_of(mean), alpha, x), shared)
    return y


def fuses(x: Tensor) -> bool:
    """Return whether the fused functions take a map: a plain dense tensor, in eager mode, with a
    backward pass to come.
    """
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and x.device.type in ("cpu", "cuda")
        and x.layout == torch.strided
        and x.is_floating_point()
        and x.dim() == 4
        and x.numel() > 0
        and (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))
        and not torch.jit.is_tracing()
        and not _in_functorch()
        and forward_ad._current_level < 0
    )


class _Shared:
    """What `_Scale` leaves for `_Mean`: the factor, without its graph (which leads to `_Mean`, and
    would make a cycle that keeps the map alive).
    """

    scale: Tensor


class _Mean(torch.autograd.Function):
    """Hand on a map, and its spatial means [N, C, 1, 1]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shared: _Shared) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.shared, ctx.shape = shared, x.shape
        return x.view_as(x), x.mean((2, 3), keepdim=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_mean: Tensor | None) -> tuple[Any, ...]:
        height, width = ctx.shape[2:]
        shift = None if grad_mean is None else grad_mean / (height * width)
        if grad is None:
            return None if shift is None else shift.expand(ctx.shape), None
        scale = ctx.shared.scale
        return grad * scale if shift is None else _affine(grad, scale, shift), None


class _Scale(torch.autograd.Function):
    """Multiply a map with a factor of each channel [N, C, 1, 1].

    The map is given twice: as it is, for derivatives of derivatives, which are ordinary code, and
    as `_Mean` has handed it on, which takes the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, handed_on: Tensor, scale: Tensor, shared: _Shared) -> Tensor:
        ctx.save_for_backward(x, scale)
        shared.scale = scale.detach()
        return x * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, scale = ctx.saved_tensors
        if torch.is_grad_enabled():
            return grad * scale, None, (grad * x).sum((2, 3), keepdim=True), None
        grad = grad.contiguous(memory_format=_format(x))
        product = _dot(grad, x) if ctx.needs_input_grad[2] else None
        return None, grad, product, None  # `_Mean` multiplies the gradient with the factor


def _format(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the dot products of the channels of two maps of one memory format [N, C, 1, 1]."""
    N, C, H, W = a.shape
    if not a.is_cuda and a.is_contiguous():
        # The gradient of batch norm's weight is sum(grad * (x - mean)) / std. With each channel of
        # each image as a channel of its own, mean 0 and std 1, that is this dot product, in one
        # pass, vectorized, and summed in float32 at least. A matrix product of one row and one
        # column takes four times as long.
        zeros, ones = _constants(a, N * C)
        product = torch.ops.aten.native_batch_norm_backward(
            a.view(1, N * C, H, W), b.view(1, N * C, H, W), None, None, None, zeros, ones, True,
            0.0, [False, True, False],
        )[1]
        return product.view(N, C, 1, 1).to(a.dtype)
    if a.is_cuda:
        return (a * b).sum((2, 3), keepdim=True)
    # Channels last: products of a few images at a time, in a buffer that the cache holds.
    rows_a, rows_b = (each.permute(0, 2, 3, 1).view(N, H * W, C) for each in (a, b))
    step = max(CHUNK // (C * H * W), 1)
    buffer, product = a.new_empty(min(step, N), H * W, C), a.new_empty(N, C)
    for start in range(0, N, step):
        part = slice(start, min(start + step, N))
        some = buffer[: part.stop - start]
        torch.mul(rows_a[part], rows_b[part], out=some)
        torch.sum(some, 1, out=product[part])
    return product.view(N, C, 1, 1)


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return x * scale + shift, both of each channel, in one pass."""
    N, C, H, W = x.shape
    if x.is_cuda or not x.is_contiguous():
        return torch.addcmul(shift, x, scale)
    # Batch norm with mean 0 and std 1 is vectorized here, addcmul is not.
    zeros, ones = _constants(x, N * C)
    return torch.batch_norm(
        x.view(1, N * C, H, W), scale.reshape(-1).to(ones), shift.reshape(-1).to(ones), zeros, ones,
        False, 0.0, 0.0, False,
    ).view(N, C, H, W)


def _constants(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return zeros and ones in the type in which batch norm sums."""
    dtype = torch.float32 if x.element_size() < 4 else x.dtype
    zeros, ones = torch.tensor([[0.0], [1.0]], dtype=dtype, device=x.device).expand(2, count)
    return zeros.contiguous(), ones.contiguous()
