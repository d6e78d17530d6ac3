"""When fused functions run, and passes over maps that read each as often as needed and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = [
    "affine",
    "as_stored",
    "blend",
    "channel_dots",
    "fuses",
    "is_dense",
    "is_plain",
    "marks_of_maxima",
    "pieces",
    "summed",
    "weighted_sum",
]

PIECE = 1 << 19
"""Elements that are worked on together, so that they stay in the cache from one step to the next.
Small enough for that, large enough that starting the steps costs little.
"""

LEAST_CUDA = 1 << 27
"""Size of a map from which the functions win on a GPU in eager mode [bytes]."""

_in_functorch: Callable[[], bool] = getattr(
    torch._C, "_are_functorch_transforms_active", lambda: False
)


def is_plain(x: Tensor) -> bool:
    """Return whether code may do more with a tensor than what can be traced and transformed."""
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()
        and not torch._C._get_tracing_state()
        and not _in_functorch()
        and forward_ad._current_level < 0
    )


def fuses(x: Tensor) -> bool:
    """Return whether the fused functions take a map: dense in memory, with a backward pass to
    come.
    """
    if not (torch.is_grad_enabled() and is_dense(x)):
        return False
    # On a GPU a few passes over a small map take less time than it takes to start more kernels from
    # Python, unless they are recorded into a graph.
    return not x.is_cuda or x.nbytes >= LEAST_CUDA or torch.cuda.is_current_stream_capturing()


def is_dense(x: Tensor) -> bool:
    """Return whether a tensor is a map of numbers in one of the two usual orders in memory."""
    return (
        is_plain(x)
        and x.device.type in ("cpu", "cuda")
        and x.is_floating_point()
        and x.dim() == 4
        and x.numel() > 0
        and (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))
    )


def blend(gate: Tensor, alpha: Tensor | None, x: Tensor) -> Tensor:
    """Return what a map is multiplied with, in the type of the map: 1 + alpha * (gate - 1), or the
    gate itself where alpha is None.
    """
    gate = gate.to(x.dtype)
    return gate if alpha is None else 1 + alpha.to(x.dtype) * (gate - 1)


def as_stored(grad: Tensor, x: Tensor) -> Tensor:
    """Return a gradient in the order in memory that the map has."""
    contiguous = x.is_contiguous()
    return grad.contiguous(
        memory_format=torch.contiguous_format if contiguous else torch.channels_last
    )


def pieces(x: Tensor, num_buffers: int = 1) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield which images are worked on together, a few on a CPU and all on a GPU, with two buffers
    for maps of theirs as far as they are asked for.
    """
    N = x.shape[0]
    step = N if x.is_cuda else min(max(PIECE // x[0].numel(), 1), N)
    first = torch.empty_like(x[:step]) if num_buffers else x
    second = torch.empty_like(first) if num_buffers == 2 else first
    for start in range(0, N, step):
        part = slice(start, min(start + step, N))
        yield part, first[: part.stop - start], second[: part.stop - start]


def weighted_sum(x: Tensor, weight: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the sum of x * weight over some axes, which stay with size 1, without the map of the
    products.
    """
    shape = [1 if axis in dims else size for axis, size in enumerate(x.shape)]
    total = x.new_empty(shape)
    for part, buffer, _ in pieces(x):
        total[part] = summed(torch.mul(x[part], weight[part], out=buffer), dims)
    return total


def summed(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the sum of a map over some axes, which stay with size 1."""
    if not x.is_contiguous():
        # In the order of memory: over one axis of a view, torch is up to six times as slow.
        axes = tuple({1: 3, 2: 1, 3: 2}[axis] for axis in dims)
        return x.permute(0, 2, 3, 1).sum(axes, keepdim=True).permute(0, 3, 1, 2)
    if dims == (3,) and x.device.type == "cpu" and x.element_size() > 2:
        # rows are short, and a sum of each is started by itself; a product with ones is one call
        N, C, H, W = x.shape
        total = x.new_empty(N * C * H)
        # with out=, since autocast would compute it in bfloat16 otherwise
        return torch.mv(x.view(-1, W), x.new_ones(W), out=total).view(N, C, H, 1)
    return x.sum(dims, keepdim=True)


def channel_dots(a: Tensor, b: Tensor) -> Tensor:
    """Return the dot products of the channels of two maps stored alike [N, C, 1, 1]."""
    N, C, H, W = a.shape
    if a.is_cuda or not a.is_contiguous():
        return weighted_sum(a, b, (2, 3))
    # The gradient of a batch norm's weight is sum(grad * (x - mean)) / std. With each channel of
    # each image as a channel of its own, mean 0 and std 1, that is this dot product: in one pass,
    # vectorized, and summed in float32 at least. A matrix product of one row and one column takes
    # four times as long.
    zeros, ones = _constants(a, N * C)
    dots = torch.ops.aten.native_batch_norm_backward(
        a.view(1, N * C, H, W),
        b.view(1, N * C, H, W),
        None,
        None,
        None,
        zeros,
        ones,
        True,
        0.0,
        [False, True, False],
    )[1]
    return dots.view(N, C, 1, 1).to(a.dtype)


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return x * scale + shift, both of each channel [N, C, 1, 1], in one pass."""
    N, C, H, W = x.shape
    if x.is_cuda or not x.is_contiguous():
        return torch.addcmul(shift, x, scale)
    # batch norm with mean 0 and std 1, which is vectorized here; addcmul is not
    zeros, ones = _constants(x, N * C)
    scale, shift = scale.reshape(-1).to(ones.dtype), shift.reshape(-1).to(ones.dtype)
    x = x.view(1, N * C, H, W)
    return torch.batch_norm(x, scale, shift, zeros, ones, False, 0.0, 0.0, False).view(N, C, H, W)


def _constants(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return zeros and ones in the type in which batch norm sums."""
    dtype = torch.float32 if x.element_size() < 4 else x.dtype
    return x.new_zeros(count, dtype=dtype), x.new_ones(count, dtype=dtype)


def marks_of_maxima(x: Tensor, maxima: Tensor, out: Tensor) -> Tensor:
    """Write 1 where a map has its maximum and 0 elsewhere, as numbers of its type: a comparison
    that writes bytes takes five times as long.
    """
    return torch.eq(x, maxima, out=out)
