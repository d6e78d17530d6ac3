"""Gates of channels, computed from each channel's mean, or mean and maximum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .passes import affine, as_stored, blend, channel_dots, fuses, marks_of_maxima, pieces, summed

__all__ = ["Shared", "scale_channels"]


def scale_channels(
    x: Tensor, gate_of: Callable[..., Tensor], alpha: Tensor | None, *, maxima: bool = False
) -> Tensor:
    """Return a map times the gate of each channel, mixed by alpha.

    Args:
        x: map [N, C, H, W].
        gate_of: computes the gate [N, C, 1, 1] from the spatial means, and maxima, [N, C, 1, 1].
        alpha: as for `blend`.
        maxima: the gate depends on the maxima.
    """
    if not fuses(x):
        mean = x.mean((2, 3), keepdim=True)
        gate = gate_of(mean, x.amax((2, 3), keepdim=True)) if maxima else gate_of(mean)
        return x * blend(gate, alpha, x)
    shared = Shared()
    handed_on, *pooled = Means.apply(x, maxima, shared)
    y: Tensor = Scaling.apply(x, handed_on, blend(gate_of(*pooled), alpha, x), shared)
    return y


class Shared:
    """What the function that multiplies leaves for the one that has pooled.

    Tensors without their graph, which leads to the first: with it they would make a cycle that
    keeps the map alive.
    """

    scale: Tensor | None = None
    """What the gradient that is handed through is still to be multiplied with."""
    factors: tuple[Tensor | None, ...] = ()
    """The same where it is a product: first, second and rest of `Product`."""
    sends_first = False
    """Another function sends the first factor its gradient."""
    compiled = False
    """Compiled loops take the map."""


class Means(torch.autograd.Function):
    """Hand on a map, its spatial means, and its maxima if they are wanted."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, maxima: bool, shared: Shared) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.shared, ctx.shape = shared, x.shape
        if not maxima:
            return x.view_as(x), x.mean((2, 3), keepdim=True)
        pooled, largest = (x.new_empty(*x.shape[:2], 1, 1) for _ in range(2))
        for part, _, _ in pieces(x, 0):
            pooled[part] = x[part].mean((2, 3), keepdim=True)
            largest[part] = x[part].amax((2, 3), keepdim=True)
        ctx.save_for_backward(x, largest)
        return x.view_as(x), pooled, largest

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_mean: Tensor | None, grad_max: Tensor | None = None
    ) -> tuple[Any, ...]:
        height, width = ctx.shape[2:]
        shift = None if grad_mean is None else grad_mean / (height * width)
        scale = ctx.shared.scale
        if grad is None or torch.is_grad_enabled():
            # the gradient of the product went past, or there is none
            dx = None if shift is None else shift.expand(ctx.shape)
            if grad_max is not None:
                x, largest = ctx.saved_tensors
                dx = _plain_maxima(dx, x, largest, grad_max)
            return dx, None, None
        if scale is not None:
            dx = grad * scale if shift is None else affine(grad, scale, shift)
            shift = None
        else:
            dx = grad  # it is no one else's
        if grad_max is not None:
            x, largest = ctx.saved_tensors
            _add_at_maxima(dx, x, largest, grad_max, shift)
        elif shift is not None:
            dx.add_(shift)
        return dx, None, None


def _plain_maxima(dx: Tensor | None, x: Tensor, largest: Tensor, grad: Tensor) -> Tensor:
    marks = (x == largest).to(x.dtype)
    share = marks * (grad / marks.sum((2, 3), keepdim=True))
    return share if dx is None else dx + share


def _add_at_maxima(
    dx: Tensor, x: Tensor, largest: Tensor, grad: Tensor, shift: Tensor | None
) -> None:
    """Add the gradient of maxima where they are, in equal parts where several are equal, and a
    shift everywhere.
    """
    for part, buffer, _ in pieces(x):
        marks = marks_of_maxima(x[part], largest[part], buffer)
        marks.mul_(grad[part] / summed(marks, (2, 3)))
        if shift is not None:
            marks.add_(shift[part])
        dx[part].add_(marks)


class Scaling(torch.autograd.Function):
    """Multiply a map with a factor [N, C, 1, 1] or [N, 1, H, W]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, handed_on: Tensor, scale: Tensor, shared: Shared) -> Tensor:
        ctx.save_for_backward(x, scale)
        shared.scale = scale.detach()
        return x * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, scale = ctx.saved_tensors
        if torch.is_grad_enabled():
            return grad * scale, None, (grad * x).sum((2, 3), keepdim=True), None
        grad = as_stored(grad, x)
        dots = channel_dots(grad, x) if ctx.needs_input_grad[2] else None
        return None, grad, dots, None
