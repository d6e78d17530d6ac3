"""Gates of rows and columns on the CPU, in loops that numba compiles: each reads the map once.

A map is an array without gaps, [N * C, H, W], or [N, H, W, C] in channels_last, whose loops end in
`_last`. What there is one of for each row and column of a channel is [N * C, H] and [N * C, W], or
[N, H, C] and [N, W, C].
"""

from __future__ import annotations

from .jit import compiled

__all__ = [
    "dots",
    "dots_last",
    "gradient",
    "gradient_last",
    "means",
    "means_last",
    "scale",
    "scale_last",
]


@compiled
def means(start, stop, x, rows, columns):
    """Write the means of rows and columns."""
    for n in range(start, stop):
        column = columns[n]
        column[:] = 0
        for h in range(x.shape[1]):
            row, total = x[n, h], x.dtype.type(0)
            for w in range(row.size):
                total += row[w]
                column[w] += row[w]
            rows[n, h] = total / row.size
        column /= x.dtype.type(x.shape[1])


@compiled
def means_last(start, stop, x, rows, columns):
    """Do what `means` does in channels_last."""
    H, W = x.shape[1:3]
    for n in range(start, stop):
        rows[n] = 0
        columns[n] = 0
        for h in range(H):
            row = rows[n, h]
            for w in range(W):
                values, column = x[n, h, w], columns[n, w]
                for c in range(values.size):
                    row[c] += values[c]
                    column[c] += values[c]
        rows[n] /= x.dtype.type(W)
        columns[n] /= x.dtype.type(H)


@compiled
def scale(start, stop, x, rows, columns, rest, y):
    """Write x * (rest + rows * columns)."""
    for n in range(start, stop):
        column = columns[n]
        for h in range(x.shape[1]):
            values, out, row = x[n, h], y[n, h], rows[n, h]
            for w in range(values.size):
                out[w] = values[w] * (rest + row * column[w])


@compiled
def scale_last(start, stop, x, rows, columns, rest, y):
    """Do what `scale` does in channels_last."""
    for n in range(start, stop):
        for h in range(x.shape[1]):
            row = rows[n, h]
            for w in range(x.shape[2]):
                values, out, column = x[n, h, w], y[n, h, w], columns[n, w]
                for c in range(values.size):
                    out[c] = values[c] * (rest + row[c] * column[c])


@compiled
def dots(start, stop, x, grad, rows, columns, drows, dcolumns, drest):
    """Write the gradients of `scale` for its factors: that of `rest` for each map [N * C]."""
    for n in range(start, stop):
        column, dcolumn = columns[n], dcolumns[n]
        dcolumn[:] = 0
        drest[n] = 0
        for h in range(x.shape[1]):
            values, gradient, row = x[n, h], grad[n, h], rows[n, h]
            total, whole = x.dtype.type(0), x.dtype.type(0)
            for w in range(values.size):
                product = values[w] * gradient[w]
                total += product * column[w]
                whole += product
                dcolumn[w] += product * row
            drows[n, h] = total
            drest[n] += whole


@compiled
def dots_last(start, stop, x, grad, rows, columns, drows, dcolumns, drest):
    """Do what `dots` does in channels_last, where the gradient of `rest` is for each image [N]."""
    for n in range(start, stop):
        drows[n] = 0
        dcolumns[n] = 0
        drest[n] = 0
        for h in range(x.shape[1]):
            row, drow = rows[n, h], drows[n, h]
            for w in range(x.shape[2]):
                values, gradient = x[n, h, w], grad[n, h, w]
                column, dcolumn = columns[n, w], dcolumns[n, w]
                whole = x.dtype.type(0)
                for c in range(values.size):
                    product = values[c] * gradient[c]
                    drow[c] += product * column[c]
                    dcolumn[c] += product * row[c]
                    whole += product
                drest[n] += whole


@compiled
def gradient(start, stop, grad, rows, columns, rest, to_rows, to_columns, dx):
    """Write the gradient of the map: grad * (rest + rows * columns), and what goes to each value of
    a row and of a column.
    """
    for n in range(start, stop):
        column, to_column = columns[n], to_columns[n]
        for h in range(grad.shape[1]):
            values, out, row, to_row = grad[n, h], dx[n, h], rows[n, h], to_rows[n, h]
            for w in range(values.size):
                out[w] = values[w] * (rest + row * column[w]) + (to_row + to_column[w])


@compiled
def gradient_last(start, stop, grad, rows, columns, rest, to_rows, to_columns, dx):
    """Do what `gradient` does in channels_last."""
    for n in range(start, stop):
        for h in range(grad.shape[1]):
            row, to_row = rows[n, h], to_rows[n, h]
            for w in range(grad.shape[2]):
                values, out = grad[n, h, w], dx[n, h, w]
                column, to_column = columns[n, w], to_columns[n, w]
                for c in range(values.size):
                    scaled = values[c] * (rest + row[c] * column[c])
                    out[c] = scaled + (to_row[c] + to_column[c])
