"""Where the file of a pretrained set is."""

from __future__ import annotations

from pathlib import Path

import torchvision

from ..registry import Registry
from ..specs import BackboneSpec
from .cache import cached_file

__all__ = ["weights_file"]


def weights_file(
    backbone: str, weights: str = "DEFAULT", *, registry: Registry | None = None
) -> Path | None:
    """Return the file that a pretrained set is read from, downloaded first where it is not there.

    Args:
        backbone: short or qualified name.
        weights: name of the set.
        registry: where the name is looked up; by default what is installed.

    Returns:
        None where only the backbone's plugin knows, such as for timm's networks.

    Raises:
        UnknownNameError: no such backbone is installed.
        WeightsError: the file cannot be downloaded.
    """
    spec = (registry or Registry()).resolve(BackboneSpec, backbone).spec
    found = spec.find_weights(spec.default_weights or "" if weights == "DEFAULT" else weights)
    if found is None:
        return None
    if found.url:
        return cached_file(found.url, found.sha256 or None)
    if spec.origin != "torchvision":
        return None
    return cached_file(torchvision.models.get_model_weights(spec.name)[found.name].url)
