"""torchvision's DenseNet with the activation before its pooling as a module."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from tvc_core import BackboneSpec, WeightsSpec, build_torchvision

__all__ = ["DenseNet", "build"]


class DenseNet(torchvision.models.DenseNet):  # type: ignore[misc]
    """torchvision's DenseNet whose last ReLU is the module `features.relu5`.

    torchvision calls a function there, so that no module returns the map that is pooled. It has no
    parameters: the keys of the state dict are torchvision's. `build` makes it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes] of images [N, 3, H, W]."""
        x = nn.functional.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


def build(spec: BackboneSpec, *, weights: WeightsSpec | None, **options: Any) -> nn.Module:
    """Build a DenseNet; the arguments and errors are those of `tvc_core.build_torchvision`."""
    network: Any = build_torchvision(spec, weights=weights, **options)
    network.features.add_module("relu5", nn.ReLU())
    network.__class__ = DenseNet
    return network
