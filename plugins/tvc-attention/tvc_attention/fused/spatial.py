"""Gates of pixels, computed from mean and maximum over channels, alone or after a gate of
channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .channel import Means, Shared
from .passes import as_stored, blend, channel_dots, fuses, marks_of_maxima, pieces
from .product import Product, plain_product

__all__ = ["scale_both", "scale_both_plainly", "scale_pixels"]


def scale_pixels(x: Tensor, gate_of: Callable[[Tensor], Tensor], alpha: Tensor | None) -> Tensor:
    """Return a map times the gate of each pixel, mixed by alpha.

    Args:
        x: map [N, C, H, W].
        gate_of: computes the gate [N, 1, H, W] from mean and maximum over channels [N, 2, H, W].
        alpha: as for `blend`.
    """
    if not fuses(x):
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * blend(gate_of(pooled), alpha, x)
    shared = Shared()
    handed_on, pooled = Pixels.apply(x, x, None, shared)
    scale = blend(gate_of(pooled), alpha, x)
    y: Tensor = Product.apply(x, handed_on, None, scale, None, shared)
    return y


def scale_both(
    x: Tensor,
    channel_gate_of: Callable[[Tensor, Tensor], Tensor],
    pixel_gate_of: Callable[[Tensor], Tensor],
    alpha: Tensor | None,
) -> Tensor:
    """Return a map times a gate of channels and then of pixels, mixed by alpha.

    Args:
        x: map [N, C, H, W].
        channel_gate_of: computes the gate [N, C, 1, 1] from the spatial means and maxima.
        pixel_gate_of: computes the gate [N, 1, H, W] from mean and maximum over channels [N, 2, H,
            W] of the map times the first gate.
        alpha: as for `blend`.
    """
    if not fuses(x):
        return scale_both_plainly(x, channel_gate_of, pixel_gate_of, alpha)
    shared = Shared()
    shared.sends_first = True
    handed_on, mean, largest = Means.apply(x, True, shared)
    channel = channel_gate_of(mean, largest).to(x.dtype)
    handed_on, pooled = Pixels.apply(x, handed_on, channel, shared)
    pixel = pixel_gate_of(pooled).to(x.dtype)
    rest = None
    if alpha is not None:
        alpha = alpha.to(x.dtype)
        rest, pixel = 1 - alpha, alpha * pixel
    y: Tensor = Product.apply(x, handed_on, channel, pixel, rest, shared)
    return y


def scale_both_plainly(
    x: Tensor,
    channel_gate_of: Callable[[Tensor, Tensor], Tensor],
    pixel_gate_of: Callable[[Tensor], Tensor],
    alpha: Tensor | None,
) -> Tensor:
    """Do what `scale_both` does by operators that autograd, compilers and exporters see."""
    mean, largest = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    channel = channel_gate_of(mean, largest).to(x.dtype)
    scaled = x * channel
    pooled = torch.cat([scaled.mean(1, keepdim=True), scaled.amax(1, keepdim=True)], 1)
    return plain_product(x, channel, pixel_gate_of(pooled), alpha)


class Pixels(torch.autograd.Function):
    """Hand on a map, and mean and maximum over the channels of map * channel [N, 2, H, W].

    Backward takes over the share of the product that goes to `channel`: the sum over pixels of x *
    (grad * pixel + the statistics' gradients), which is one pass for both.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, handed_on: Tensor, channel: Tensor | None, shared: Shared
    ) -> tuple[Tensor, Tensor]:
        N, _, H, W = x.shape
        pooled = x.new_empty(N, 2, H, W)
        for part, buffer, _ in pieces(x, 0 if channel is None else 1):
            few = x[part]
            if channel is not None:
                few = torch.mul(few, channel[part], out=buffer)
            pooled[part, :1] = few.mean(1, keepdim=True)
            pooled[part, 1:] = few.amax(1, keepdim=True)
        ctx.shared = shared
        # a copy: a view of what is returned would lead back to this function, in a cycle
        ctx.save_for_backward(x, channel, pooled[:, 1:].clone())
        return x.view_as(x), pooled

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_pooled: Tensor) -> tuple[Any, ...]:
        x, channel, largest = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _plain_backward(x, channel, largest, grad_pooled)
        pixel, rest = ctx.shared.factors[1:]
        grad = as_stored(grad, x)
        grad_mean = grad_pooled[:, :1] / x.shape[1]
        dx = torch.empty_like(x) if ctx.needs_input_grad[1] else None
        dchannel = None if channel is None else torch.empty_like(channel)
        for part, marks, dscaled in pieces(x, 2):
            few, gradient = x[part], grad[part]
            scaled = few if channel is None else torch.mul(few, channel[part], out=marks)
            marks = marks_of_maxima(scaled, largest[part], marks)
            share = grad_pooled[part, 1:] / marks.sum(1, keepdim=True)
            if channel is None and dx is not None:
                dscaled = dx[part]
            # the gradient of the map times `channel`
            torch.mul(gradient, pixel[part], out=dscaled).add_(grad_mean[part])
            dscaled.addcmul_(marks, share)
            if channel is None or dchannel is None:
                continue
            dchannel[part] = channel_dots(dscaled, few)
            if dx is not None:
                torch.mul(dscaled, channel[part], out=dx[part])
                if rest is not None:
                    # as a number where reading it waits for nothing, since that is faster
                    if x.is_cuda:
                        dx[part].addcmul_(gradient, rest)
                    else:
                        dx[part].add_(gradient, alpha=float(rest))
        return None, dx, dchannel, None


def _plain_backward(
    x: Tensor, channel: Tensor | None, largest: Tensor, grad_pooled: Tensor
) -> tuple[Any, ...]:
    scaled = x if channel is None else x * channel
    marks = (scaled == largest).to(x.dtype)
    share = grad_pooled[:, 1:] / marks.sum(1, keepdim=True)
    dscaled = grad_pooled[:, :1] / x.shape[1] + marks * share
    if channel is None:
        return dscaled, None, None, None
    return dscaled * channel, None, (dscaled * x).sum((2, 3), keepdim=True), None
