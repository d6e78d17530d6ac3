"""Gates that are a product of two small factors, and gates of rows and columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import strips
from .channel import Shared
from .passes import as_stored, fuses, is_dense, pieces, summed, weighted_sum

__all__ = ["plain_product", "scale_by_strips", "strip_means"]


def scale_by_strips(
    x: Tensor, gates_of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], alpha: Tensor | None
) -> Tensor:
    """Return a map times gates of its rows and columns, mixed by alpha.

    Args:
        x: map [N, C, H, W].
        gates_of: computes two gates [N, C, H, 1] and [N, C, 1, W] from the means of the same
            shapes.
        alpha: as for `blend`.
    """
    if not fuses(x):
        return plain_product(x, *gates_of(*strip_means(x)), alpha)
    shared = Shared()
    shared.compiled = strips.takes_strips(x)
    handed_on, rows, columns = Strips.apply(x, shared)
    rows, columns = (gate.to(x.dtype) for gate in gates_of(rows, columns))
    rest = None
    if alpha is not None:
        alpha = alpha.to(x.dtype)
        rest, columns = 1 - alpha, alpha * columns
    y: Tensor = Product.apply(x, handed_on, rows, columns, rest, shared)
    return y


def strip_means(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means of a map's rows [N, C, H, 1] and columns [N, C, 1, W]."""
    if torch.is_grad_enabled() or not is_dense(x):  # which it is not inside of `Strips`
        return x.mean(3, keepdim=True), x.mean(2, keepdim=True)
    N, C, H, W = x.shape
    rows, columns = x.new_empty(N, C, H, 1), x.new_empty(N, C, 1, W)
    for part, _, _ in pieces(x, 0):
        rows[part], columns[part] = summed(x[part], (3,)), summed(x[part], (2,))
    return rows.div_(W), columns.div_(H)


def plain_product(x: Tensor, first: Tensor, second: Tensor, alpha: Tensor | None) -> Tensor:
    """Return x * (1 - alpha + alpha * first * second), or x * first * second where alpha is
    None.
    """
    first, second = first.to(x.dtype), second.to(x.dtype)
    if alpha is None:
        return x * (first * second)
    alpha = alpha.to(x.dtype)
    return x * (1 - alpha + first * (alpha * second))


class Strips(torch.autograd.Function):
    """Hand on a map, and the means of its rows [N, C, H, 1] and columns [N, C, 1, W]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shared: Shared) -> tuple[Tensor, Tensor, Tensor]:
        ctx.shared, ctx.shape = shared, x.shape
        return x.view_as(x), *(strips.means(x) if shared.compiled else strip_means(x))

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, grad_rows: Tensor, grad_columns: Tensor
    ) -> tuple[Any, ...]:
        H, W = ctx.shape[2:]
        grad_rows, grad_columns = grad_rows / W, grad_columns / H
        if torch.is_grad_enabled():
            return grad_rows + grad_columns, None
        first, second, rest = factors = ctx.shared.factors
        if ctx.shared.compiled:
            return strips.scaled_gradient(grad, factors, grad_rows, grad_columns), None
        dx = torch.empty_like(grad)
        for part, factor, shift in pieces(grad, 2):
            _factor(first, second, rest, part, factor)
            torch.add(grad_rows[part], grad_columns[part], out=shift)
            torch.addcmul(shift, grad[part], factor, out=dx[part])
        return dx, None


class Product(torch.autograd.Function):
    """Multiply a map with rest + first * second, or with `second` where the others are None."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        handed_on: Tensor,
        first: Tensor | None,
        second: Tensor,
        rest: Tensor | None,
        shared: Shared,
    ) -> Tensor:
        ctx.save_for_backward(x, first, second, rest)
        ctx.shared = shared
        shared.factors = tuple(
            None if each is None else each.detach() for each in (first, second, rest)
        )
        if first is None:
            return x * second
        if shared.compiled:
            return strips.scaled(x, first, second, rest)
        y = torch.empty_like(x)
        for part, buffer, _ in pieces(x):
            torch.mul(x[part], _factor(first, second, rest, part, buffer), out=y[part])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, first, second, rest = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _plain_backward(grad, x, first, second, rest)
        grad = as_stored(grad, x)
        needs_first, needs_second, needs_rest = ctx.needs_input_grad[2:5]
        if first is None:
            dsecond = weighted_sum(grad, x, (1,)) if needs_second else None
            return None, grad, None, dsecond, None, None
        if ctx.shared.compiled:
            *dfactors, drest = strips.scaled_gradients(x, grad, first, second)
            return None, grad, *dfactors, drest.view_as(rest) if needs_rest else None, None
        dfirst = torch.empty_like(first) if needs_first and not ctx.shared.sends_first else None
        dsecond = torch.empty_like(second) if needs_second else None
        drest = x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
        for part, products, weighted in pieces(x, 2):
            torch.mul(x[part], grad[part], out=products)
            if needs_rest:
                drest += products.sum(dtype=drest.dtype)
            for total, other in ((dfirst, second), (dsecond, first)):
                if total is not None:
                    torch.mul(products, other[part], out=weighted)
                    dims = tuple(axis for axis in (1, 2, 3) if total.shape[axis] == 1)
                    total[part] = summed(weighted, dims)
        total = drest.to(x.dtype).view_as(rest) if needs_rest else None
        return None, grad, dfirst, dsecond, total, None


def _plain_backward(
    grad: Tensor, x: Tensor, first: Tensor | None, second: Tensor, rest: Tensor | None
) -> tuple[Any, ...]:
    products = grad * x
    if first is None:
        return grad * second, None, None, products.sum(1, keepdim=True), None, None
    factor = first * second if rest is None else rest + first * second
    dfirst = (products * second).sum_to_size(first.shape)
    dsecond = (products * first).sum_to_size(second.shape)
    drest = None if rest is None else products.sum().view_as(rest)
    return grad * factor, None, dfirst, dsecond, drest, None


def _factor(first: Tensor, second: Tensor, rest: Tensor | None, part: slice, out: Tensor) -> Tensor:
    torch.mul(first[part], second[part], out=out)
    return out if rest is None else out.add_(rest)
