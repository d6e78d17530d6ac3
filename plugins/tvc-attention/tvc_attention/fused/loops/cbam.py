"""CBAM on the CPU in loops that numba compiles: an image stays in the cache from its first pass to
its last, so its map is read from memory once forward, and once backward with its gradient.

An image is an array [outer, inner] without gaps: [C, H * W], or [H * W, C] in channels_last. What
runs along the rows of one runs down the columns of the other, so most passes come in two shapes.
Factors and statistics of rows are [outer], of columns [inner].
"""

from __future__ import annotations

import numpy as np

from .jit import compiled

__all__ = ["backward", "forward"]

SPAN = 512
"""Numbers whose sum is taken by itself: over a large map, float32 would lose up to four digits."""

# -- passes over one image -------------------------------------------------------------------------


@compiled
def row_statistics(x, scale, mean, largest):
    """Write mean and maximum of the rows of x * scale, which is of columns."""
    zero, least = x.dtype.type(0), x.dtype.type(-float("inf"))
    for o in range(x.shape[0]):
        total, most, second, third, fourth = zero, least, least, least, least
        for start in range(0, x.shape[1], SPAN):
            part, factor = x[o, start : start + SPAN], scale[start : start + SPAN]
            quarters, a, b, c, d = part.size % 4, zero, zero, zero, zero
            for i in range(quarters):
                value = part[i] * factor[i]
                a += value
                most = max(most, value)
            # four numbers at once, since each sum and maximum waits for the one before it
            for i in range(quarters, part.size, 4):
                one, two = part[i] * factor[i], part[i + 1] * factor[i + 1]
                three, four = part[i + 2] * factor[i + 2], part[i + 3] * factor[i + 3]
                a, b, c, d = a + one, b + two, c + three, d + four
                most, second = max(most, one), max(second, two)
                third, fourth = max(third, three), max(fourth, four)
            total += a + b + c + d
        mean[o] = total / x.shape[1]
        largest[o] = max(max(most, second), max(third, fourth))


@compiled
def column_statistics(x, scale, mean, largest):
    """Write mean and maximum of the columns of x * scale, which is of rows."""
    outer = x.shape[0]
    part = np.empty_like(mean)
    mean[:] = 0
    largest[:] = -float("inf")
    for start in range(0, outer, SPAN):
        stop = min(start + SPAN, outer)
        quarters = start + (stop - start) % 4
        part[:] = 0
        for o in range(start, quarters):
            row, factor = x[o], scale[o]
            for i in range(row.size):
                value = row[i] * factor
                part[i] += value
                largest[i] = max(largest[i], value)
        # four rows at once, since reading and writing the statistics is what takes the time
        for o in range(quarters, stop, 4):
            row, second, third, fourth = x[o], x[o + 1], x[o + 2], x[o + 3]
            a, b, c, d = scale[o], scale[o + 1], scale[o + 2], scale[o + 3]
            for i in range(row.size):
                one, two, three, four = row[i] * a, second[i] * b, third[i] * c, fourth[i] * d
                part[i] += one + two + three + four
                largest[i] = max(largest[i], max(max(one, two), max(three, four)))
        mean += part
    mean /= x.dtype.type(outer)


@compiled
def multiply(x, outer, inner, rest, y):
    """Write x * (rest + outer * inner), factors of rows and of columns."""
    for o in range(x.shape[0]):
        row, out, scale = x[o], y[o], outer[o]
        for i in range(row.size):
            out[i] = row[i] * (rest + scale * inner[i])


@compiled
def row_dots(x, grad, scale, largest, dots, count):
    """Write the sums of x * grad * scale along rows, scale being of columns, and how often x *
    scale is the largest of its row; return the sum of x * grad.
    """
    zero, one = x.dtype.type(0), x.dtype.type(1)
    whole = zero
    for o in range(x.shape[0]):
        row, gradient, most = x[o], grad[o], largest[o]
        dot, total, equal = zero, zero, zero
        for i in range(row.size):
            product = row[i] * gradient[i]
            dot += product * scale[i]
            total += product
            equal += one if row[i] * scale[i] == most else zero
        dots[o], count[o] = dot, equal
        whole += total
    return whole


@compiled
def column_dots(x, grad, scale, largest, dots, count):
    """Do what `row_dots` does, down columns, where scale is of rows."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    whole = zero
    dots[:] = 0
    count[:] = 0
    for o in range(x.shape[0]):
        row, gradient, factor, total = x[o], grad[o], scale[o], zero
        for i in range(row.size):
            product = row[i] * gradient[i]
            dots[i] += product * factor
            total += product
            count[i] += one if row[i] * factor == largest[i] else zero
        whole += total
    return whole


@compiled
def row_gradients(x, grad, channel, pixel, shift, share, largest, peak, dchannel, count):
    """Write the gradients of gates of channels, which are the rows, and how often their maximum
    `peak` occurs.

    What reaches x * channel is grad * pixel, `shift` by the mean of its pixel, and `share` where it
    is the largest of it.
    """
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for o in range(x.shape[0]):
        row, gradient, scale, top, total, equal = x[o], grad[o], channel[o], peak[o], zero, zero
        for i in range(row.size):
            there = share[i]  # read in any case, else the loop is not vectorized
            inner = gradient[i] * pixel[i] + shift[i]
            inner += there if row[i] * scale == largest[i] else zero
            total += inner * row[i]
            equal += one if row[i] == top else zero
        dchannel[o], count[o] = total, equal


@compiled
def column_gradients(x, grad, channel, pixel, shift, share, largest, peak, dchannel, count):
    """Do what `row_gradients` does, where channels are the columns."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    dchannel[:] = 0
    count[:] = 0
    for o in range(x.shape[0]):
        row, gradient = x[o], grad[o]
        factor, everywhere, there, most = pixel[o], shift[o], share[o], largest[o]
        for i in range(row.size):
            inner = gradient[i] * factor + everywhere
            inner += there if row[i] * channel[i] == most else zero
            dchannel[i] += inner * row[i]
            count[i] += one if row[i] == peak[i] else zero


@compiled
def row_map(x, grad, rest, channel, pixel, of_channels, of_pixels, largest, peak, dx):
    """Write the gradient of the map, where channels are the rows.

    `of_pixels` and `of_channels` hold what goes to each value by the mean of its pixel and channel
    [0], and to each that is their largest [1].
    """
    zero = x.dtype.type(0)
    shift, share = of_pixels[0], of_pixels[1]
    for o in range(x.shape[0]):
        row, gradient, out, scale, top = x[o], grad[o], dx[o], channel[o], peak[o]
        everywhere, there = of_channels[0, o], of_channels[1, o]
        for i in range(row.size):
            here = share[i]
            inner = gradient[i] * pixel[i] + shift[i]
            inner += here if row[i] * scale == largest[i] else zero
            inner = inner * scale + gradient[i] * rest + everywhere
            out[i] = inner + (there if row[i] == top else zero)


@compiled
def column_map(x, grad, rest, channel, pixel, of_channels, of_pixels, largest, peak, dx):
    """Do what `row_map` does, where channels are the columns."""
    zero = x.dtype.type(0)
    shift, share = of_channels[0], of_channels[1]
    for o in range(x.shape[0]):
        row, gradient, out, factor, most = x[o], grad[o], dx[o], pixel[o], largest[o]
        everywhere, there = of_pixels[0, o], of_pixels[1, o]
        for i in range(row.size):
            here = share[i]
            inner = gradient[i] * factor + everywhere
            inner += there if row[i] * channel[i] == most else zero
            inner = inner * channel[i] + gradient[i] * rest + shift[i]
            out[i] = inner + (here if row[i] == peak[i] else zero)


# -- layers between them ---------------------------------------------------------------------------


@compiled
def matrix_product(weight, x, y):
    """Write weight [M, N] @ x [N]."""
    for m in range(y.size):
        row, total = weight[m], x.dtype.type(0)
        for n in range(x.size):
            total += row[n] * x[n]
        y[m] = total


@compiled
def transposed_product(weight, x, y):
    """Write x [M] @ weight [M, N]."""
    y[:] = 0
    for m in range(x.size):
        row, factor = weight[m], x[m]
        for n in range(y.size):
            y[n] += row[n] * factor


@compiled
def relu(x):
    """Set what is negative to 0."""
    for i in range(x.size):
        x[i] = max(x[i], x.dtype.type(0))


@compiled
def sigmoid(x):
    """Put the sigmoid in the place of each number."""
    one = x.dtype.type(1)
    for i in range(x.size):
        x[i] = one / (one + np.exp(-x[i]))


@compiled
def pad(x, kernel, padded):
    """Write an image [C, H, W] into the middle of zeros [C, (H + K) * (W + K - 1)]."""
    (C, H, W), K = x.shape, kernel.shape[1]
    for c in range(C):
        for h in range(H):
            at = (h + K // 2) * (W + K - 1) + K // 2
            padded[c, at : at + W] = x[c, h]


@compiled
def convolve(padded, kernel, wide, total):
    """Write the convolution of a padded image with one kernel [C, K, K], as rows of `wide` numbers,
    the last K - 1 of which mean nothing.

    A value and its neighbor by some offset lie equally far apart everywhere, so that each entry of
    the kernel takes one long loop.
    """
    C, K = kernel.shape[:2]
    total[:] = 0
    for c in range(C):
        for i in range(K):
            for j in range(K):
                value, row = kernel[c, i, j], padded[c, i * wide + j :]
                for k in range(total.size):
                    total[k] += row[k] * value


@compiled
def convolve_gradients(padded, kernel, wide, grad, dpadded, dkernel):
    """Write the gradients of `convolve`; `grad` is 0 where its result means nothing."""
    C, K = kernel.shape[:2]
    dpadded[:] = 0
    for c in range(C):
        for i in range(K):
            for j in range(K):
                value, total = kernel[c, i, j], grad.dtype.type(0)
                row, out = padded[c, i * wide + j :], dpadded[c, i * wide + j :]
                for k in range(grad.size):
                    out[k] += grad[k] * value
                    total += grad[k] * row[k]
                dkernel[c, i, j] = total


# -- the whole block, image by image ---------------------------------------------------------------


@compiled
def forward(start, stop, by_rows, x, first, second, kernel, alpha, rest, y, saved):
    """Write x * (rest + alpha * gate of channels * gate of pixels) for some images of a batch.

    Args:
        start, stop: which images.
        by_rows: channels are the rows.
        x, y: maps [N, outer, inner].
        first, second: weights of the channel attention [D, C] and [C, D].
        kernel: of the spatial attention [2, K, K].
        alpha, rest: numbers of the map's type.
        saved: what is written for `backward`: mean, maximum and gate of each channel [3, N, C], the
            hidden layer for means and maxima [2, N, D], mean and maximum of each pixel [N, 2, H,
            W], and its gate [N, H * W].
    """
    of_channels, hidden, pooled, pixels = saved
    H, W = pooled.shape[2:]
    K = kernel.shape[1]
    wide = W + K - 1
    padded = np.zeros((2, (H + K) * wide), x.dtype)
    ones, scores = np.ones(H * W, x.dtype), np.empty(H * wide, x.dtype)
    sums, factor = np.empty(first.shape[0], x.dtype), np.empty(H * W, x.dtype)
    for n in range(start, stop):
        mean, peak, channel = of_channels[0, n], of_channels[1, n], of_channels[2, n]
        averages, largest, pixel = pooled[n, 0].ravel(), pooled[n, 1].ravel(), pixels[n]
        if by_rows:
            row_statistics(x[n], ones, mean, peak)
        else:
            column_statistics(x[n], ones, mean, peak)
        for each in range(2):
            matrix_product(first, of_channels[each, n], hidden[each, n])
            relu(hidden[each, n])
        for d in range(sums.size):
            sums[d] = hidden[0, n, d] + hidden[1, n, d]
        matrix_product(second, sums, channel)
        sigmoid(channel)
        if by_rows:
            column_statistics(x[n], channel, averages, largest)
        else:
            row_statistics(x[n], channel, averages, largest)
        pad(pooled[n], kernel, padded)
        convolve(padded, kernel, wide, scores)
        for h in range(H):
            pixel[h * W : (h + 1) * W] = scores[h * wide : h * wide + W]
        sigmoid(pixel)
        for i in range(factor.size):
            factor[i] = alpha * pixel[i]
        if by_rows:
            multiply(x[n], channel, factor, rest, y[n])
        else:
            multiply(x[n], factor, channel, rest, y[n])


@compiled
def backward(
    start, stop, by_rows, x, first, second, kernel, alpha, rest,
    grad, saved, dx, dhidden, dscores, dkernel, dalpha,
):  # fmt: skip
    """Write the gradients of `forward` for some images.

    Args:
        grad, dx: of the result and of the map [N, outer, inner].
        dhidden: of the hidden layers before their ReLU [2, N, D].
        dscores: of what the gate of channels is the sigmoid of [N, C].
        dkernel: for each image [N, 2, K, K].
        dalpha: for each image [N], rest being 1 - alpha.
    """
    of_channels, hidden, pooled, pixels = saved
    zero, one = x.dtype.type(0), x.dtype.type(1)
    C = of_channels.shape[2]
    H, W = pooled.shape[2:]
    K = kernel.shape[1]
    wide = W + K - 1
    padded = np.zeros((2, (H + K) * wide), x.dtype)
    dpadded = np.empty_like(padded)
    scores = np.zeros(H * wide, x.dtype)
    # each by itself: rows of one array would not be known to have no gaps
    dpixel, factor = np.empty(H * W, x.dtype), np.empty(H * W, x.dtype)
    count, times = np.empty(H * W, x.dtype), np.empty(C, x.dtype)
    dchannel, dsums = np.empty(C, x.dtype), np.empty(first.shape[0], x.dtype)
    to_pixels, to_channels = np.empty((2, H * W), x.dtype), np.empty((2, C), x.dtype)
    for n in range(start, stop):
        peak, channel = of_channels[1, n], of_channels[2, n]
        largest, pixel = pooled[n, 1].ravel(), pixels[n]
        if by_rows:
            whole = column_dots(x[n], grad[n], channel, largest, dpixel, count)
        else:
            whole = row_dots(x[n], grad[n], channel, largest, dpixel, count)
        total = zero
        for i in range(pixel.size):
            total += dpixel[i] * pixel[i]
            factor[i] = alpha * pixel[i]
            dpixel[i] *= factor[i] * (one - pixel[i])
        dalpha[n] = total - whole
        pad(pooled[n], kernel, padded)
        for h in range(H):
            scores[h * wide : h * wide + W] = dpixel[h * W : (h + 1) * W]
        convolve_gradients(padded, kernel, wide, scores, dpadded, dkernel[n])
        for h in range(H):
            at = (h + K // 2) * wide + K // 2
            for w in range(W):
                i = h * W + w
                to_pixels[0, i] = dpadded[0, at + w] / C
                to_pixels[1, i] = dpadded[1, at + w] / count[i]
        arrays = (channel, factor, to_pixels[0], to_pixels[1], largest, peak, dchannel, times)
        if by_rows:
            row_gradients(x[n], grad[n], *arrays)
        else:
            column_gradients(x[n], grad[n], *arrays)
        for c in range(C):
            dscores[n, c] = dchannel[c] * channel[c] * (one - channel[c])
        transposed_product(second, dscores[n], dsums)
        for each in range(2):
            for d in range(dsums.size):
                dhidden[each, n, d] = dsums[d] if hidden[each, n, d] > zero else zero
        if dx.size == 0:
            continue
        for each in range(2):
            transposed_product(first, dhidden[each, n], to_channels[each])
        for c in range(C):
            to_channels[0, c] /= pixel.size
            to_channels[1, c] /= times[c]
        few = (rest, channel, factor, to_channels, to_pixels, largest, peak, dx[n])
        if by_rows:
            row_map(x[n], grad[n], *few)
        else:
            column_map(x[n], grad[n], *few)
