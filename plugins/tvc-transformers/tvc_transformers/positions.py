"""Position embeddings of files for images of another size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torchvision.models.vision_transformer import interpolate_embeddings

from tvc_core import BackboneSpec

__all__ = ["migrate"]

_POSITIONS = "encoder.pos_embedding"


def migrate(
    spec: BackboneSpec, network: Any, tensors: Mapping[str, Tensor]
) -> Mapping[str, Tensor] | None:
    """Return a ViT's tensors with position embeddings for the network's size of images, bicubic as
    torchvision resamples them; None where there is nothing to do.
    """
    if tensors[_POSITIONS].shape == network.encoder.pos_embedding.shape:
        return None
    size, patch = network.image_size, network.patch_size
    new: Mapping[str, Tensor] = interpolate_embeddings(size, patch, OrderedDict(tensors))
    return new
