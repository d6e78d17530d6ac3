"""The preprocessing that a model's images need."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from ..errors import BackboneError
from ..specs import FROM_MODULE
from .torchvision import transforms_of

if TYPE_CHECKING:
    from ..recipe import Plan

__all__ = ["transforms"]


def transforms(plan: Plan) -> nn.Module:
    """Return the preprocessing of a plan's weights, or of its backbone's default weights.

    Raises:
        BackboneError: the backbone has no pretrained weights, or they were trained on images with
            another number of channels.
    """
    spec = plan.backbone.spec
    weights = plan.weights
    if plan.backbone.owner == FROM_MODULE:
        raise BackboneError(
            f"the model was made from a module of your own ({spec.name}), so only you know how its "
            "images were prepared"
        )
    if weights is None:
        if spec.default_weights is None:
            raise BackboneError(
                f"{plan.backbone.qualified} has no pretrained weights, so nothing says how to "
                "prepare images for it"
            )
        weights = spec.find_weights(spec.default_weights)
        assert weights is not None
        message = (
            "the model has no pretrained weights; transforms() gives the preprocessing of "
            f"the default weights, {weights.name}"
        )
        warnings.warn(message, UserWarning, stacklevel=3)
    if (channels := plan.recipe.in_channels or spec.num_channels) != len(weights.mean):
        known = (
            f"mean {weights.mean}, standard deviation {weights.std}, crop {weights.crop_size} "
            "pixels"
        )
        raise BackboneError(
            f"the model takes {channels} channels, and the preprocessing of {weights.name} knows "
            f"{len(weights.mean)} ({known}): prepare the images yourself"
        )
    size = plan.image_side or weights.crop_size
    resize = round(weights.resize_size * size / weights.crop_size)
    return transforms_of(replace(weights, crop_size=size, resize_size=resize))
