"""A convolution that keeps the weights of the one whose place it takes, with another stride or
kernel.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .checks import check_counts, check_flags

__all__ = ["conv2d", "conv2d_in_place_of", "resample_kernel"]

_RESAMPLINGS = ("resize", "center")


def conv2d(
    in_channels: int,
    channels: int | None = None,
    kernel_size: int | None = None,
    stride: int | None = None,
    padding: int | None = None,
    dilation: int | None = None,
    groups: int | None = None,
    bias: bool | None = None,
    resample: str = "resize",
) -> nn.Module:
    """Convolution.

    In the place of another one, what is None is taken from it, and the weights stay, resampled
    where the kernel has another size:

    - "resize": W' = P_h W P_w^T for each pair of channels. P is the pseudo-inverse of R^T, and R is
      the matrix that resizes a row of pixels from the old kernel's length to the new one's
      (bicubic, with antialiasing). So W' answers to a resized patch as W does to the patch itself,
      exactly where the kernel grows, else in the least-squares sense: for images that are resized
      like the kernel.
    - "center": zeros around the kernel, or its borders cut off: for images of the same size. A
      kernel that grows by an even number computes the same function.

    Args:
        in_channels: width of the incoming map [channels].
        channels: width of the outgoing map; None for that of the replaced convolution, or else
            in_channels [channels].
        kernel_size: side of the kernel; None for that of the replaced convolution, or else 3
            [pixels].
        stride: step of the kernel; None for that of the replaced convolution, or else 1 [pixels].
        padding: on each side; None for what gives the map of the replaced convolution at its
            stride (where that had none, a resized kernel gets none), or else of the incoming one
            at stride 1 [pixels].
        dilation: distance of the kernel's points; None for that of the replaced convolution, or
            else 1 [pixels].
        groups: of channels that see each other only; None for those of the replaced convolution,
            or else 1.
        bias: there is a shift for each channel; None for as in the replaced convolution, or else
            True.
        resample: "resize" or "center".

    Raises:
        ValueError: a size is not positive, `groups` does not divide both widths, or `resample` is
            something else.

    Source: torch.nn.Conv2d; Beyer et al. 2022, arXiv:2212.08013, section 3.4 ("resize").
    """
    _check(resample, channels, kernel_size, stride, padding, dilation, groups, bias)
    kernel, spread = kernel_size or 3, dilation or 1
    return nn.Conv2d(
        in_channels,
        channels or in_channels,
        kernel,
        stride or 1,
        (kernel - 1) // 2 * spread if padding is None else padding,
        spread,
        groups or 1,
        bias=bias is not False,
    )


def conv2d_in_place_of(
    original: nn.Module,
    in_channels: int,
    channels: int | None = None,
    kernel_size: int | None = None,
    stride: int | None = None,
    padding: int | None = None,
    dilation: int | None = None,
    groups: int | None = None,
    bias: bool | None = None,
    resample: str = "resize",
) -> nn.Module | None:
    """Return a convolution with the weights and settings of another one, as far as they are not
    given.

    Raises:
        ValueError: as for `conv2d`; or the convolution has a forward of its own, and more than
            stride, padding or dilation is to change.
    """
    if not isinstance(original, nn.Conv2d):
        return None
    _check(resample, channels, kernel_size, stride, padding, dilation, groups, bias)
    step = _pair(original.stride, stride)
    spread = _pair(original.dilation, dilation)
    kernel = _pair(original.kernel_size, kernel_size)
    around = _padding(original, kernel, spread, resample) if padding is None else (padding,) * 2
    kind = type(original)
    if kind.forward is not nn.Conv2d.forward or kind._conv_forward is not nn.Conv2d._conv_forward:
        if (channels, kernel_size, groups, bias) != (None,) * 4:
            raise ValueError(
                f"{kind.__name__} is a convolution with a forward of its own: of its settings, "
                "stride, padding and dilation can change"
            )
        new = copy.deepcopy(original)
        new.stride, new.padding, new.dilation = step, around, spread
        return new
    new = nn.Conv2d(
        in_channels,
        original.out_channels if channels is None else channels,
        kernel,
        step,
        around,
        spread,
        original.groups if groups is None else groups,
        bias=(original.bias is not None) if bias is None else bias,
        padding_mode=original.padding_mode,
        device=original.weight.device,
        dtype=original.weight.dtype,
    )
    with torch.no_grad():
        if new.weight.shape[:2] == original.weight.shape[:2] and new.groups == original.groups:
            new.weight.copy_(resample_kernel(original.weight, kernel, resample))
        if new.bias is not None and new.out_channels == original.out_channels:
            new.bias.zero_() if original.bias is None else new.bias.copy_(original.bias)
    return new


def resample_kernel(weight: Tensor, size: tuple[int, int], resample: str = "resize") -> Tensor:
    """Return kernels of another size, as `conv2d` describes.

    Args:
        weight: [out, in, height, width].
        size: new height and width [pixels].
        resample: "resize" or "center".
    """
    old = (weight.shape[2], weight.shape[3])
    if old == size:
        return weight
    if weight.is_meta:
        return weight.new_empty((*weight.shape[:2], *size))
    if resample == "center":
        # negative padding cuts off; the border on the left and at the top is the larger one
        (top, bottom), (left, right) = (
            (-((before - after) // 2), (after - before) // 2)
            for before, after in zip(old, size, strict=True)
        )
        return nn.functional.pad(weight, (left, right, top, bottom))
    down, across = (
        torch.linalg.pinv(_resizing(before, after).T)
        for before, after in zip(old, size, strict=True)
    )
    exact = weight.detach().to(device="cpu", dtype=torch.float64)
    return (down @ exact @ across.T).to(weight)


def _resizing(before: int, after: int) -> Tensor:
    """Return the matrix [after, before] that resizes a row of pixels."""
    rows = torch.eye(before, dtype=torch.float64, device="cpu")
    pixels = rows[:, None, None, :]  # an image for each pixel of a row
    resized = nn.functional.interpolate(
        pixels, size=(1, after), mode="bicubic", antialias=True, align_corners=False
    )
    return resized[:, 0, 0, :].T


Pair = tuple[int, int]


def _pair(before: tuple[int, ...], given: int | None) -> Pair:
    return (before[0], before[1]) if given is None else (given, given)


def _padding(original: nn.Conv2d, kernel: Pair, dilation: Pair, resample: str) -> str | Pair:
    """Return what keeps the map's size at the same stride; where there was none, a resized kernel
    gets none, as that of an embedding of patches.
    """
    if isinstance(original.padding, str):
        return original.padding

    def side(axis: int) -> int:
        around = int(original.padding[axis])
        reach = dilation[axis] * (kernel[axis] - 1)
        before = original.dilation[axis] * (original.kernel_size[axis] - 1)
        return max(0, around + (reach - before) // 2) if around or resample == "center" else 0

    return side(0), side(1)


def _check(
    resample: str,
    channels: int | None,
    kernel_size: int | None,
    stride: int | None,
    padding: int | None,
    dilation: int | None,
    groups: int | None,
    bias: bool | None,
) -> None:
    if resample not in _RESAMPLINGS:
        raise ValueError(f"resample is 'resize' or 'center', not {resample!r}")
    given = {
        "channels": channels,
        "kernel_size": kernel_size,
        "stride": stride,
        "dilation": dilation,
        "groups": groups,
    }
    check_counts(**{name: value for name, value in given.items() if value is not None})
    if padding is not None:
        check_counts(0, padding=padding)
    if bias is not None:
        check_flags(bias=bias)
