"""How images are prepared for a model: by the preprocessing of its weights."""

from __future__ import annotations

import warnings
from dataclasses import replace

from torch import nn

from ..errors import BackboneError
from ..recipe import Plan
from ..specs import FROM_MODULE
from .torchvision import set_crop, transforms_of

__all__ = ["image_size", "transforms"]


def image_size(plan: Plan) -> tuple[int, int] | None:
    """Return height and width of the image that a plan's options ask for; None where they ask for
    none [pixels].
    """
    size = plan.options.get(plan.backbone.spec.size_option)
    sides = size if isinstance(size, (tuple, list)) else (size, size)
    return (sides[0], sides[-1]) if all(isinstance(side, int) for side in sides) else None


def transforms(plan: Plan) -> nn.Module:
    """Return the preprocessing of a plan's weights at its image size, as torchvision's own module.

    A UserWarning says where those of the default weights stand in for a random start.

    Args:
        plan: of the model.

    Raises:
        BackboneError: nothing says how: the network is a module of the user's, has no pretrained
            weights, or takes another number of channels than they do.
    """
    spec, weights = plan.backbone.spec, plan.weights
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
        warnings.warn(
            "the model has no pretrained weights; transforms() gives the preprocessing of "
            f"the default weights, {weights.name}",
            UserWarning,
            stacklevel=3,  # whoever called the model's method
        )
    channels = plan.recipe.in_channels or spec.num_channels
    if channels != len(weights.mean):
        raise BackboneError(
            f"the model takes {channels} channels, and the preprocessing of {weights.name} knows "
            f"{len(weights.mean)} (mean {weights.mean}, standard deviation {weights.std}, crop "
            f"{weights.crop_size} pixels): prepare the images yourself"
        )
    sides = image_size(plan) or (weights.crop_size, weights.crop_size)
    resize = round(weights.resize_size * max(sides) / weights.crop_size)
    prepare = transforms_of(replace(weights, crop_size=max(sides), resize_size=resize))
    if sides[0] != sides[1]:
        set_crop(prepare, sides)
    return prepare
