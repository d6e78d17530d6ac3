"""Poolings that take the place of a network's own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from .checks import check_counts, check_flags, check_positive

__all__ = ["BlurPool2d", "GeM", "blur_pool", "blur_pool_in_place_of", "gem_in_place_of"]


class GeM(nn.Module):
    """Generalized-mean pooling: (mean of x^p)^(1/p) of each channel, with a learned p. It is the
    average at p = 1 and nears the maximum as p grows.

    Maps [N, C, H, W] to [N, C, 1, 1], in float32 at least. Entries below `eps` are raised to it: a
    power of a negative number is none. In the place of a global average pooling, `p` starts at 1,
    so that the network computes what it did wherever that map is not negative.

    Args:
        in_channels: C [channels].
        p: start of the exponent, above 0; None for 1 in the place of a global average pooling, or
            else 3, the paper's.
        eps: smallest entry, above 0.
        per_channel: each channel learns an exponent of its own.

    Raises:
        ValueError: `p` or `eps` is no finite number above 0, or `per_channel` is neither True nor
            False.

    Source: Radenovic et al. 2018, arXiv:1711.02512, section 3.2, equation (3).
    """

    def __init__(
        self, in_channels: int, p: float | None = None, eps: float = 1e-6, per_channel: bool = False
    ) -> None:
        super().__init__()
        start = 3.0 if p is None else p
        check_positive(p=start, eps=eps)
        check_flags(per_channel=per_channel)
        self.p = nn.Parameter(torch.full((in_channels if per_channel else 1,), float(start)))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Pool all pixels of each channel."""
        # the power of a small number vanishes in half precision, and its root has no gradient then
        dtype = torch.promote_types(x.dtype, torch.float32)
        p = self.p.to(dtype).view(-1, 1, 1)
        mean = x.to(dtype).clamp(min=self.eps).pow(p).mean((2, 3), keepdim=True)
        # a copy: backward needs the root itself, and a dropout after a pooling may work in place
        return mean.pow(1 / p).to(x.dtype, copy=True)


def gem_in_place_of(
    original: nn.Module,
    in_channels: int,
    p: float | None = None,
    eps: float = 1e-6,
    per_channel: bool = False,
) -> nn.Module | None:
    """Return generalized-mean pooling that starts as the average, for a global average pooling."""
    if not isinstance(original, nn.AdaptiveAvgPool2d) or original.output_size not in (1, (1, 1)):
        return None
    return GeM(in_channels, 1.0 if p is None else p, eps, per_channel)


class BlurPool2d(nn.Module):
    """Blur each channel by a binomial kernel, then take every `stride`-th pixel.

    Maps [N, C, H, W] to [N, C, ceil(H / stride), ceil(W / stride)]. Borders are mirrored, or
    repeated where the map is too small for that.

    Args:
        in_channels: C [channels].
        kernel_size: side of the kernel [pixels].
        stride: step of the kernel [pixels].

    Raises:
        ValueError: a size is no whole number of at least 1.

    Source: Zhang 2019, arXiv:1904.11486, section 3.2.
    """

    kernel: Tensor

    def __init__(self, in_channels: int, kernel_size: int = 3, stride: int = 2) -> None:
        super().__init__()
        check_counts(kernel_size=kernel_size, stride=stride)
        self.in_channels, self.kernel_size, self.stride = in_channels, kernel_size, stride
        row = torch.tensor([math.comb(kernel_size - 1, i) for i in range(kernel_size)]) / 2 ** (
            kernel_size - 1
        )
        kernel = torch.outer(row, row).repeat(in_channels, 1, 1, 1)
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Blur and subsample."""
        before, after = (self.kernel_size - 1) // 2, self.kernel_size // 2
        mode = "reflect" if min(x.shape[2:]) > after else "replicate"
        x = pad(x, (before, after, before, after), mode=mode) if after else x
        return conv2d(x, self.kernel.to(x.dtype), stride=self.stride, groups=self.in_channels)


def blur_pool(in_channels: int, kernel_size: int = 3, stride: int | None = None) -> nn.Module:
    """Blur each channel by a binomial kernel, then take every `stride`-th pixel: subsampling
    without aliasing.

    Maps [N, C, H, W] to [N, C, ceil(H / stride), ceil(W / stride)]. Borders are mirrored, or
    repeated where the map is too small for that. In the place of a maximum pooling, that pooling
    runs before it at stride 1, as in the paper.

    Args:
        in_channels: C [channels].
        kernel_size: side of the binomial kernel; the paper uses 2, 3 and 5 [pixels].
        stride: step of the kernel; None for that of the replaced pooling, or else 2 [pixels].

    Raises:
        ValueError: a size is no whole number of at least 1; or it takes the stride of a pooling
            that has two, or 1, where nothing is subsampled.

    Source: Zhang 2019, arXiv:1904.11486, section 3.2.
    """
    return BlurPool2d(in_channels, kernel_size, 2 if stride is None else stride)


def blur_pool_in_place_of(
    original: nn.Module, in_channels: int, kernel_size: int = 3, stride: int | None = None
) -> nn.Module | None:
    """Return a blur with the stride of a pooling, and before it the maximum, where it is of the
    maximum.

    Raises:
        ValueError: as for `blur_pool`.
    """
    if not isinstance(original, (nn.MaxPool2d, nn.AvgPool2d)):
        return None
    steps = original.stride if isinstance(original.stride, tuple) else (original.stride,) * 2
    if stride is None and (steps[0] != steps[1] or steps[0] == 1):
        why = (
            "nothing is subsampled there, so that there is no aliasing to prevent"
            if steps == (1, 1)
            else "a blur has one stride for both sides"
        )
        raise ValueError(
            f"stride is missing: {type(original).__name__} has {steps[0]} by {steps[1]}; {why}"
        )
    blur = BlurPool2d(in_channels, kernel_size, steps[0] if stride is None else stride)
    if isinstance(original, nn.AvgPool2d):
        return blur
    dense: list[nn.Module] = [
        nn.MaxPool2d(original.kernel_size, 1, original.padding, original.dilation),
        blur,
    ]
    if original.ceil_mode:
        # the windows that begin in the map and end outside, of which ceil_mode takes one more
        dense.insert(0, nn.ConstantPad2d((0, steps[1] - 1, 0, steps[0] - 1), -math.inf))
    return nn.Sequential(*dense)
