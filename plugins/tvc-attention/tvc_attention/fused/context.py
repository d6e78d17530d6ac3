"""Gates of channels, computed from a mean over pixels that is weighted by attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .channel import Scaling, Shared
from .layers import is_untouched
from .passes import blend, fuses, pieces, weighted_sum

__all__ = ["attend", "scale_by_context"]


def scale_by_context(
    x: Tensor, attention: nn.Module, gate_of: Callable[[Tensor], Tensor], alpha: Tensor | None
) -> Tensor:
    """Return a map times the gate of each channel, mixed by alpha.

    Args:
        x: map [N, C, H, W].
        attention: the layer that gives each pixel a score [N, 1, H, W].
        gate_of: computes the gate [N, C, 1, 1] from the context [N, C, 1, 1], the mean over pixels
            weighted by the softmax of the scores.
        alpha: as for `blend`.
    """
    if (
        not fuses(x)
        or x.is_cuda  # where matrix products are the fastest way to read a map
        or not is_untouched(attention)
        or attention.weight.dtype != x.dtype
    ):
        return x * blend(gate_of(attend(x, attention)), alpha, x)
    shared = Shared()
    bias = attention.bias if isinstance(attention.bias, Tensor) else None
    handed_on, context = Context.apply(x, attention.weight, bias, shared)
    y: Tensor = Scaling.apply(x, handed_on, blend(gate_of(context), alpha, x), shared)
    return y


def attend(x: Tensor, attention: nn.Module) -> Tensor:
    """Return the context [N, C, 1, 1] of a map."""
    weights = attention(x).flatten(2).softmax(-1).to(x.dtype)  # [N, 1, H * W]
    return (x.flatten(2) @ weights.transpose(1, 2))[..., None]


class Context(torch.autograd.Function):
    """Hand on a map, and its context [N, C, 1, 1].

    A bias moves all scores alike, which the softmax does not see, so its gradient is 0.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shared: Shared
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        scores = weighted_sum(x, weight.expand(len(x), -1, -1, -1), (1,))
        if bias is not None:
            scores = scores + bias.view(1, 1, 1, 1)
        weights = scores.flatten(2).softmax(-1).view_as(scores)
        context = weighted_sum(x, weights, (2, 3))
        ctx.save_for_backward(x, weight, bias, weights)
        ctx.shared = shared
        return x.view_as(x), context

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_context: Tensor | None) -> tuple[Any, ...]:
        x, weight, bias, weights = ctx.saved_tensors
        dbias = None if bias is None else torch.zeros_like(bias)
        if torch.is_grad_enabled():
            if grad_context is None:
                return None, None, None, None
            return _plain_backward(x, weight, bias, grad_context)
        scale = ctx.shared.scale
        if grad_context is None:
            return (None if grad is None else grad * scale), None, dbias, None
        # through the softmax: weights * (dweights - their weighted mean)
        dweights = weighted_sum(x, grad_context, (1,))
        mean = (weights * dweights).sum((2, 3), keepdim=True)
        dscores = weights * (dweights - mean)
        dweight = None
        if ctx.needs_input_grad[1]:
            dweight = weighted_sum(x, dscores, (2, 3)).sum(0, keepdim=True)
        if not ctx.needs_input_grad[0]:
            return None, dweight, dbias, None
        dx = torch.empty_like(x)
        for part, shift, other in pieces(x, 2):
            torch.mul(grad_context[part], weights[part], out=shift)
            shift.add_(torch.mul(weight, dscores[part], out=other))
            if grad is None:
                dx[part] = shift
            else:
                torch.mul(grad[part], scale[part], out=dx[part]).add_(shift)
        return dx, dweight, dbias, None


def _plain_backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, grad_context: Tensor
) -> tuple[Any, ...]:
    # the scores again, since those of forward have no graph
    scores = (x * weight).sum(1, keepdim=True)
    weights = scores.flatten(2).softmax(-1).view_as(scores)
    dweights = (x * grad_context).sum(1, keepdim=True)
    dscores = weights * (dweights - (weights * dweights).sum((2, 3), keepdim=True))
    dx = grad_context * weights + weight * dscores
    dweight = (x * dscores).sum((0, 2, 3), keepdim=True).view_as(weight)
    dbias = None if bias is None else dscores.sum().view_as(bias)  # 0 but for rounding
    return dx, dweight, dbias, None
