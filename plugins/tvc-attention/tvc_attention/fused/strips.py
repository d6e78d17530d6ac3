"""Gates of rows and columns by compiled loops: passes that `product` takes where they run.

Rows are [N, C, H, 1] and columns [N, C, 1, W].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .compiled import as_array, as_number, compiles, run

__all__ = ["means", "scaled", "scaled_gradient", "scaled_gradients", "takes_strips"]


def takes_strips(x: Tensor) -> bool:
    """Return whether the loops take a map that `fuses` takes."""
    return compiles(x, _trial)


def means(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means of rows and of columns."""
    rows, columns = _new(x, x.shape[2]), _new(x, x.shape[3])
    _run("means", x, _map(x), as_array(rows), as_array(columns))
    return _as_rows(rows, x), _as_columns(columns, x)


def scaled(x: Tensor, rows: Tensor, columns: Tensor, rest: Tensor | None) -> Tensor:
    """Return x * (rest + rows * columns)."""
    y = torch.empty_like(x)
    _run("scale", x, _map(x), _few(rows, x), _few(columns, x), as_number(rest, x), _map(y))
    return y


def scaled_gradients(
    x: Tensor, grad: Tensor, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `scaled` for rows, columns and rest."""
    drows, dcolumns = _new(x, x.shape[2]), _new(x, x.shape[3])
    drest = x.new_empty(len(drows))
    factors, results = (_few(rows, x), _few(columns, x)), map(as_array, (drows, dcolumns, drest))
    _run("dots", x, _map(x), _map(grad), *factors, *results)
    return _as_rows(drows, x), _as_columns(dcolumns, x), drest.sum()


def scaled_gradient(
    grad: Tensor, factors: tuple[Tensor, Tensor, Tensor | None], to_rows: Tensor, to_columns: Tensor
) -> Tensor:
    """Return the gradient of `scaled` for the map, and with it what goes to each value of a row and
    of a column.
    """
    rows, columns, rest = factors
    dx = torch.empty_like(grad)
    few = _few(rows, grad), _few(columns, grad), as_number(rest, grad)
    _run("gradient", grad, _map(grad), *few, _few(to_rows, grad), _few(to_columns, grad), _map(dx))
    return dx


def _trial(dtype: torch.dtype) -> None:
    one = torch.ones(1, 1, 1, 1, dtype=dtype)
    rows, columns = means(one)
    scaled_gradients(one, scaled(one, rows, columns, None), rows, columns)
    scaled_gradient(one, (rows, columns, None), rows, columns)


def _run(loop: str, x: Tensor, *arrays: Any) -> None:
    from .loops import strips as loops  # needs numba

    run(getattr(loops, loop if x.is_contiguous() else f"{loop}_last"), len(arrays[0]), *arrays)


def _map(x: Tensor) -> Any:
    """Return a map as the array [N * C, H, W] or [N, H, W, C] that lies in memory."""
    x = x.detach()
    return (x.flatten(0, 1) if x.is_contiguous() else x.permute(0, 2, 3, 1)).numpy()


def _new(x: Tensor, length: int) -> Tensor:
    """Return room for what there is one of for each row or column, as the loops want it."""
    N, C = x.shape[:2]
    return x.new_empty((N * C, length) if x.is_contiguous() else (N, length, C))


def _few(strips: Tensor, x: Tensor) -> Any:
    """Return rows or columns as the loops want them."""
    each = strips.flatten(2)
    return as_array(each.flatten(0, 1) if x.is_contiguous() else each.transpose(1, 2))


def _as_rows(few: Tensor, x: Tensor) -> Tensor:
    return (few.view(*x.shape[:2], -1) if few.dim() == 2 else few.transpose(1, 2))[..., None]


def _as_columns(few: Tensor, x: Tensor) -> Tensor:
    return _as_rows(few, x).transpose(2, 3)
