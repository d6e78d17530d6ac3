"""torchvision's MaxViT for images of other sizes, with its pretrained weights."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import nn

from tvc_core import BackboneSpec, ParameterError, WeightsSpec, build_torchvision

__all__ = ["build"]

_SIDE = 224
"""Of images whose maps, at strides of 4 to 32, divide into windows of 7 [pixels]."""


def build(
    spec: BackboneSpec,
    *,
    weights: WeightsSpec | None,
    input_size: int | tuple[int, int] = _SIDE,
    **options: Any,
) -> nn.Module:
    """Build a MaxViT. Of its tensors none depends on the size of the images, only how many windows
    there are, so pretrained weights fit every size that torchvision builds.

    Args:
        spec: its `name` is torchvision's.
        weights: one of the spec's pretrained sets, or None for random weights.
        input_size: side of the images, or [height, width] [pixels].
        **options: what else torchvision's builder takes.

    Raises:
        ParameterError: the images are not square, or do not divide into windows.
        TvcError: as `tvc_core.build_torchvision`.
    """
    height, width = [input_size] * 2 if isinstance(input_size, int) else input_size
    if height != width or height < _SIDE or height % _SIDE:
        near = max(1, round(max(height, width) / _SIDE)) * _SIDE
        raise ParameterError(
            f"{spec.name} takes square images whose side is a multiple of {_SIDE} pixels, such as "
            f"{near}, since its windows have to divide every map, not {height} x {width}"
        )
    network = build_torchvision(spec, weights=weights, **options)
    if height == _SIDE:
        return network
    num_classes = network.get_submodule("classifier")[-1].out_features  # type: ignore[index]
    with torch.device("meta"):
        larger: nn.Module = torchvision.models.get_model(
            spec.name, input_size=(height, width), num_classes=num_classes
        )
    larger.load_state_dict(network.state_dict(), assign=True)
    return larger
