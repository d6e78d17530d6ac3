"""A U-Net on a hybrid: a decoder that goes back to the image's size, with skip connections from
every map of the pyramid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

from tvc_core import BackboneError, HybridModel, ParameterError, check_hybrid, freeze_head

from .backbones import check_count, check_norm_layer, stage_of

__all__ = ["UNet", "unet"]


class UNet(nn.Module):
    """A hybrid and a U-Net decoder on its maps; `unet` makes it.

    Maps images [N, C, H, W] to logits [N, num_classes, H, W].

    Args:
        body: the hybrid.
        strides: of the levels of its pyramid, finest first [pixels].
        decoder: blocks, from the coarsest map to the image's size.
        head: makes logits of the last block's map.
    """

    def __init__(
        self,
        body: HybridModel,
        strides: Sequence[int],
        decoder: Sequence[DecoderBlock],
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.body = body
        self.strides = tuple(strides)
        self.decoder = nn.ModuleList(decoder)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every pixel."""
        maps = {
            stride: fit(each, grid(x, stride))
            for stride, each in zip(self.strides, self.body.pyramid(x).values(), strict=True)
        }
        found = maps[self.strides[-1]]
        for each in self.decoder:
            block = cast(DecoderBlock, each)
            found = block(found, grid(x, block.stride), maps.get(block.stride))
        return cast(Tensor, self.head(found))


class DecoderBlock(nn.Module):
    """Enlarges a map, puts a finer one beside it, and convolves twice.

    Args:
        in_channels: of the map that it gets [channels].
        skip_channels: of the map of the backbone at its stride; 0 where there is none [channels].
        out_channels: of what it returns [channels].
        stride: side of the image divided by the side of what it returns [pixels].
        norm_layer: makes a normalization for a number of channels; None for none.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        stride: int,
        norm_layer: Callable[..., nn.Module] | None,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = Conv2dNormActivation(
            in_channels + skip_channels, out_channels, norm_layer=norm_layer
        )
        self.conv2 = Conv2dNormActivation(out_channels, out_channels, norm_layer=norm_layer)

    def forward(self, x: Tensor, size: tuple[int, int], skip: Tensor | None) -> Tensor:
        """Return a map of a size [N, out_channels, *size]."""
        x = F.interpolate(x, size=size, mode="nearest")
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        return cast(Tensor, self.conv2(self.conv1(x)))


def unet(
    model: HybridModel,
    num_classes: int,
    *,
    decoder_channels: Sequence[int] | None = None,
    norm_layer: Callable[..., nn.Module] | None = nn.BatchNorm2d,
) -> UNet:
    """Return a U-Net whose encoder is a hybrid.

    From the coarsest map of the pyramid, each step doubles the size, down to stride 1. Where the
    pyramid has a map of a step's stride, it is put beside (Ronneberger et al. 2015,
    arXiv:1505.04597); where it has none (stride 1 of nearly all backbones, stride 2 of many), the
    step goes without. Images of any size that the backbone takes give logits of the same size. The
    hybrid is used itself, not a copy, and its classifier, which does not run here, is frozen; build
    it with `num_classes=0` to have none.

    Args:
        model: the hybrid.
        num_classes: channels of the logits [classes].
        decoder_channels: of each step, coarsest first [channels]; by default 16 times the step's
            stride and at most 256, which is 256, 128, 64, 32, 16 for a backbone that ends at stride
            32.
        norm_layer: makes a normalization for a number of channels, after each convolution of the
            decoder; None for none.

    Raises:
        BackboneError: no stage of the hybrid returns a map.
        ParameterError: not a hybrid, or `num_classes` or `decoder_channels` is not what it can be;
            nothing has changed.
        FreezeError: the model is wrapped in DistributedDataParallel already.
    """
    check_hybrid(model, "unet")
    check_count("num_classes", num_classes)
    check_norm_layer(norm_layer)
    levels = {level.stride: level.channels for level in model.pyramid_info}
    if not levels:
        raise BackboneError(
            f"no stage of {type(model).__name__} returns a map, so there is nothing to segment"
        )
    strides = _steps(list(levels))
    widths = [min(256, 16 * stride) for stride in strides]
    if decoder_channels is not None:
        if isinstance(decoder_channels, str) or not isinstance(decoder_channels, Iterable):
            raise ParameterError(
                f"decoder_channels is a list of one number for each step of the decoder, such as "
                f"{widths}, not {decoder_channels!r}"
            )
        widths = list(decoder_channels)
        if len(widths) != len(strides):
            raise ParameterError(
                f"decoder_channels has one number for each step of the decoder, and the "
                f"{len(strides)} steps of this one are to the strides "
                f"{', '.join(map(str, strides))}; not {widths}"
            )
        for width in widths:
            check_count("each of decoder_channels", width)
    inputs = [levels[max(levels)], *widths]
    decoder = [
        DecoderBlock(given, levels.get(stride, 0), width, stride, norm_layer)
        for stride, given, width in zip(strides, inputs, widths, strict=False)
    ]
    freeze_head(model, [stage_of(level) for level in model.pyramid_info])
    return UNet(model, list(levels), decoder, nn.Conv2d(inputs[-1], num_classes, 3, padding=1))


def _steps(levels: list[int]) -> list[int]:
    """Return the strides of the decoder's steps, coarsest first: those of the levels but the
    coarsest, and 1, and halves where two are further apart (ViT's 14 goes over 7, 4 and 2).
    """
    found: list[int] = []
    stride = levels[-1]
    for finer in dict.fromkeys([*levels[-2::-1], 1]):
        while stride > finer:
            stride = max(finer, (stride + 1) // 2)
            found.append(stride)
    return found


def grid(image: Tensor, stride: int) -> tuple[int, int]:
    """Return the number of rows and columns of a map that has a cell wherever the image has a
    pixel.
    """
    height, width = image.shape[2:]
    return (height + stride - 1) // stride, (width + stride - 1) // stride


def fit(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop a map, or repeat its last row and column, so that it has a cell wherever the image has a
    pixel.

    Cell i of a map with stride s stands at pixel i * s, whatever the size of the image. Where s
    does not divide the size, some backbones round the number of cells up (ResNet pads), some down
    (ConvNeXt leaves the image's last pixels out), once for each stage. To stretch one map to the
    size of another, as is common, would then move its cells away from their pixels, by another
    amount for each size of the image: of a ConvNeXt at 95 pixels, two cells that saw 64 would be
    spread over all 95. On a common grid that is rounded up, nearest-neighbor enlargement puts cell
    i at cells 2i and 2i + 1, always. An exported program takes the way that asks nothing of the
    shapes, so that height and width stay free in it.
    """
    jit: Any = torch.jit
    exporting = torch.compiler.is_exporting() or jit.is_tracing()
    if not exporting and x.shape[2:] == size:
        return x
    for dim, side in ((2, size[0]), (3, size[1])):
        cells = torch.arange(side, device=x.device).clamp(max=x.shape[dim] - 1)
        x = x.index_select(dim, cells)
    return x
