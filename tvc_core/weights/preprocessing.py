"""How images are prepared for a model: by the preprocessing of its weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BackboneError, ParameterError
from ..recipe import Plan
from ..specs import FROM_MODULE
from .torchvision import set_crop, training_transforms_of, transforms_of

__all__ = ["image_size", "transforms"]


def image_size(plan: Plan) -> tuple[int, int] | None:
    """Return height and width of the image that a plan's options ask for; None where they ask for
    none [pixels].
    """
    size = plan.options.get(plan.backbone.spec.size_option)
    sides = size if isinstance(size, (tuple, list)) else (size, size)
    return (sides[0], sides[-1]) if all(isinstance(side, int) for side in sides) else None


def transforms(plan: Plan, *, train: bool = False, use_test_size: bool = False) -> nn.Module:
    """Return the preprocessing of a plan's weights at its image size, as torchvision's own module
    that looks at each image first.

    A UserWarning says where those of the default weights stand in for a random start.

    Args:
        plan: of the model.
        train: augment images, as for training.
        use_test_size: crop them at the size at which the weights' publisher evaluates.

    Raises:
        BackboneError: nothing says how: the network is a module of the user's, has no pretrained
            weights, or takes another number of channels than they do.
        ParameterError: `train` and `use_test_size` are both true.
    """
    if train and use_test_size:
        raise ParameterError(
            "transforms: train=True and use_test_size=True contradict each other, since the test "
            "size is for evaluation only"
        )
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
    crop, resize = weights.crop_size, weights.resize_size
    if use_test_size and weights.test_crop_size is not None:
        crop = weights.test_crop_size
        resize = weights.test_resize_size or crop
    sides = image_size(plan) or (crop, crop)  # what the network was built for goes first
    longer = max(sides)
    sized = replace(weights, crop_size=longer, resize_size=round(resize * longer / crop))
    prepare = training_transforms_of(sized, sides) if train else transforms_of(sized)
    if not train and sides[0] != sides[1]:
        set_crop(prepare, sides)
    # a hook, so that what is returned stays torchvision's module, with its attributes
    prepare.register_forward_pre_hook(_Reader(channels))
    return prepare


_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


@dataclass(frozen=True)
class _Reader:
    """Turn what preprocessing is given into a picture of 8 bits with `channels` bands, or check
    that it is a tensor of that many channels; refuse all else.

    torchvision's own functions run on nearly anything: they normalize a grey picture as if it had
    three equal channels, fail on RGBA inside `normalize`, and PIL clips 16 bits to white.
    """

    channels: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        from PIL import Image

        image, *others = args
        if isinstance(image, Image.Image):
            return (self._picture(image), *others)
        if isinstance(image, Tensor):
            self._check_tensor(image)
            return args
        advice = "prepare images one by one"
        if isinstance(image, (str, PurePath)):
            advice = "PIL.Image.open(path) opens a file"
        elif type(image).__name__ == "ndarray":
            advice = "PIL.Image.fromarray(array) makes a picture of one with 8 bits"
        raise ParameterError(
            f"transforms take a PIL image or a tensor [..., {self.channels}, H, W], not "
            f"{type(image).__name__}: {advice}"
        )

    def _picture(self, picture: Any) -> Any:
        mode = picture.mode
        if mode in _DEEP_MODES:
            raise self._refusal(
                mode, "more than 8 bits a pixel, which PIL would clip at 255: scale it to 8 bits"
            )
        if self.channels not in (1, 3):
            if len(picture.getbands()) != self.channels:
                raise self._refusal(
                    mode, f"{len(picture.getbands())} channels, and the model takes {self.channels}"
                )
            return picture
        transparent = mode in _ALPHA_MODES or "transparency" in picture.info
        try:
            if transparent and picture.convert("RGBA").getextrema()[3] != (255, 255):
                raise self._refusal(
                    mode,
                    "transparent pixels, whose color would be a guess: put it on a background, "
                    "as with PIL.Image.alpha_composite",
                )
            if mode != ("RGB" if self.channels == 3 else "L"):
                picture = picture.convert("RGB")  # a palette is looked up here
            return picture if self.channels == 3 else picture.convert("L")
        except ParameterError:
            raise
        except ValueError as error:  # there are modes that PIL cannot convert
            raise self._refusal(mode, f"no conversion: {error}") from error

    def _refusal(self, mode: str, reason: str) -> ParameterError:
        return ParameterError(f"a PIL image of mode {mode!r} has {reason}")

    def _check_tensor(self, image: Tensor) -> None:
        shape, wanted = list(image.shape), self.channels
        if image.ndim < 3 or shape[-3] != wanted:
            advice = "select or repeat channels first"
            if image.ndim >= 3 and shape[-1] == wanted:
                advice = "its channels are last: image.movedim(-1, -3)"
            raise ParameterError(
                f"a tensor {shape} is not an image [..., {wanted}, H, W] of {wanted} "
                f"channel{'s' if wanted > 1 else ''}: {advice}"
            )
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise ParameterError(
                f"a tensor of {image.dtype} says no range: give torch.uint8 from 0 to 255, or "
                "floats from 0 to 1"
            )
