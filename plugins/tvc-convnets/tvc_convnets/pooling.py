"""torchvision's AlexNet and VGG, exported right for images of any size.

Both pool maps of any size to 6 x 6 or 7 x 7 places. ONNX has no such operation; exporters refuse
it, or write what is right for sizes that divide as their example's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tvc_core import BackboneSpec, WeightsSpec, build_torchvision

__all__ = ["AdaptiveAvgPool2d", "build"]


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """torch's pooling to a fixed number of places, which computes by two products with matrices
    while it is exported.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Pool [N, C, H, W]."""
        traced = torch.jit.is_tracing()  # type: ignore[attr-defined]
        if not (traced or torch.compiler.is_exporting()):
            return super().forward(input)
        height, width = self.output_size  # type: ignore[misc]
        rows, columns = _means(input.shape[2], height, input), _means(input.shape[3], width, input)
        linear = nn.functional.linear
        return linear(linear(input, columns).transpose(2, 3), rows).transpose(2, 3)


def _means(size: int, places: Any, like: Tensor) -> Tensor:
    """Return the matrix [places, size] that averages as torch does: place i has the mean from
    floor(i * size / places) to ceil((i + 1) * size / places).
    """
    place = torch.arange(places, device=like.device)[:, None]
    start, stop = place * size // places, ((place + 1) * size + places - 1) // places
    index = torch.arange(size, device=like.device)
    return ((index >= start) & (index < stop)).to(like.dtype) / (stop - start).to(like.dtype)


def build(spec: BackboneSpec, *, weights: WeightsSpec | None, **options: Any) -> nn.Module:
    """Build an AlexNet or VGG; the arguments and errors are those of
    `tvc_core.build_torchvision`.
    """
    network: Any = build_torchvision(spec, weights=weights, **options)
    network.avgpool.__class__ = AdaptiveAvgPool2d
    return network
