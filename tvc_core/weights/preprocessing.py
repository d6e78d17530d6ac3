"""How images are prepared for a model: as was set, or by the preprocessing of its weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BackboneError, ParameterError, short_repr
from ..recipe import Plan
from ..specs import FROM_MODULE, WeightsSpec
from .preparing import ALPHA_MODES, OwnWeights, Preprocessing, as_rgb
from .torchvision import training_transforms_of, transforms_of

__all__ = [
    "built_size", "check_preprocessing", "image_size", "preprocessing_of", "sized", "transforms",
]  # fmt: skip


def image_size(plan: Plan) -> tuple[int, int] | None:
    """Return height and width of the image that a plan's options ask for; None where they ask for
    none [pixels].
    """
    return _sides(plan.options.get(plan.backbone.spec.size_option))


def built_size(plan: Plan) -> tuple[int, int] | None:
    """Return height and width of the image that the network of a plan is built for; None where they
    are those of its pretrained weights, or any will do [pixels].
    """
    found = image_size(plan)
    if found is None and (plan.weights is None or isinstance(plan.weights, OwnWeights)):
        # the default set may be of another size: ViT-H/14's is of 518, its builder makes one of 224
        return _sides(plan.backbone.spec.options.get(plan.backbone.spec.size_option))
    return found


def _sides(size: Any) -> tuple[int, int] | None:
    sides = size if isinstance(size, (tuple, list)) else (size, size)
    return (sides[0], sides[-1]) if all(isinstance(side, int) for side in sides) else None


def sized(plan: Plan, weights: WeightsSpec) -> tuple[WeightsSpec, tuple[int, int]]:
    """Return a pretrained set with the sizes of the image that the network of a plan takes, and
    that image's height and width [pixels].
    """
    sides = built_size(plan) or (weights.crop_size, weights.crop_size)
    resize = round(weights.resize_size * max(sides) / weights.crop_size)
    return replace(weights, crop_size=max(sides), resize_size=resize), sides


def preprocessing_of(plan: Plan) -> Preprocessing | None:
    """Return the preprocessing that was set for the model in a plan's file of weights, at the image
    size of the plan; None where none was, or for another number of channels.
    """
    found = plan.weights.preprocessing if isinstance(plan.weights, OwnWeights) else None
    channels = plan.recipe.in_channels or plan.backbone.spec.num_channels
    if found is None or len(found.mean) != channels:
        return None
    sides = built_size(plan)
    return found if sides is None else found.resized(sides)


def check_preprocessing(said: Any, channels: int) -> None:
    """Refuse to set what is no preprocessing for a model of so many channels.

    Raises:
        ParameterError: it is not.
    """
    if not isinstance(said, Preprocessing):
        raise ParameterError(
            "the preprocessing of a model is a tvc_core.Preprocessing, or None for that of its "
            f"weights, not {short_repr(said)}"
        )
    if len(said.mean) != channels:
        raise ParameterError(
            f"the model takes {channels} channels, and this preprocessing is for {len(said.mean)} "
            f"(mean {said.mean})"
        )


def transforms(
    plan: Plan,
    preprocessing: Preprocessing | None = None,
    *,
    train: bool = False,
    use_test_size: bool = False,
) -> nn.Module:
    """Return what was set for a model, or the preprocessing of its plan's weights at its image
    size, as torchvision's own module that looks at each image first.

    A UserWarning says where those of the default weights stand in for a random start.

    Args:
        plan: of the model.
        preprocessing: what was set; None for the weights'.
        train: augment images, as for training.
        use_test_size: crop them at the size at which the weights' publisher evaluates.

    Raises:
        BackboneError: nothing says how: the network is a module of the user's, has no pretrained
            weights, or takes another number of channels than they do.
        ParameterError: `train` and `use_test_size` are both true, or one is no truth value.
    """
    for name, flag in (("train", train), ("use_test_size", use_test_size)):
        if not isinstance(flag, bool):
            raise ParameterError(f"transforms: {name} is True or False, not {flag!r}")
    if train and use_test_size:
        raise ParameterError(
            "transforms: train=True and use_test_size=True contradict each other, since the test "
            "size is for evaluation only"
        )
    if preprocessing is not None:
        return _as_set(preprocessing, train)
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
    if use_test_size and (crop := weights.test_crop_size) is not None:
        weights = replace(weights, crop_size=crop, resize_size=weights.test_resize_size or crop)
    weights, sides = sized(plan, weights)
    prepare = (training_transforms_of if train else transforms_of)(weights, sides)
    # a hook, so that what is returned stays torchvision's module, with its attributes
    prepare.register_forward_pre_hook(_Reader(channels))
    return prepare


def _as_set(preprocessing: Preprocessing, train: bool) -> nn.Module:
    """Return the module for what was set."""
    sides = preprocessing.size
    prepare = (training_transforms_of if train else transforms_of)(preprocessing, sides)
    if not train and preprocessing.fit != "crop":  # the reader brings images to their size
        prepare.resize_size = list(sides)  # type: ignore[assignment]
    channels = len(preprocessing.mean)
    prepare.register_forward_pre_hook(_Reader(channels, preprocessing, train))
    return prepare


_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_INDIRECT_MODES = {
    "PA": "numbers of a palette in the place of colors",
    "La": "grey that was multiplied by its transparency",
    "RGBa": "colors that were multiplied by their transparency",
}
_LEAST, _MOST = -1.0, 2.0
"""Of floats from 0 to 1, noise and resampling with overshoot included."""


@dataclass(frozen=True)
class _Reader:
    """Turn what preprocessing is given into a picture of 8 bits with `channels` bands, or check
    that it is a tensor of that many channels; refuse all else.

    torchvision's own functions run on nearly anything: they normalize a grey picture as if it had
    three equal channels, fail on RGBA inside `normalize`, and PIL clips 16 bits to white.

    Args:
        channels: of the network.
        preprocessing: what was set for the model: then pictures are read as it was trained on them,
            and nothing has to be guessed.
        train: what follows brings images to their size, at random.
    """

    channels: int
    preprocessing: Preprocessing | None = None
    train: bool = False

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        from PIL import Image

        image, *others = args
        if isinstance(image, Image.Image):
            if not all(image.size):
                raise self._refusal(image.mode, f"no pixels: its size is {image.size}")
            return (self._fitted(self._picture(image)), *others)
        if isinstance(image, Tensor):
            self._check_tensor(image)
            return (self._fitted(image), *others)
        advice = "prepare images one by one"
        if isinstance(image, (str, PurePath)):
            advice = "PIL.Image.open(path) opens a file"
        elif type(image).__name__ == "ndarray":
            advice = "PIL.Image.fromarray(array) makes a picture of one with 8 bits"
        raise ParameterError(
            f"transforms take a PIL image or a tensor [..., {self.channels}, H, W], not "
            f"{type(image).__name__}: {advice}"
        )

    def _fitted(self, image: Any) -> Any:
        """Return an image with what torchvision's module has no word for: squashed or padded."""
        own = self.preprocessing
        return image if own is None or own.fit == "crop" or self.train else own.fitted(image)

    def _picture(self, picture: Any) -> Any:
        if self.preprocessing is not None and self.channels in (1, 3):
            rgb = as_rgb(picture)
            return rgb if self.channels == 3 else rgb.convert("L")
        mode = picture.mode
        if mode in _DEEP_MODES:
            raise self._refusal(
                mode, "more than 8 bits a pixel, which PIL would clip at 255: scale it to 8 bits"
            )
        if self.channels not in (1, 3):
            if mode in _INDIRECT_MODES:
                raise self._refusal(mode, f"{_INDIRECT_MODES[mode]}: convert it first")
            if len(picture.getbands()) != self.channels:
                raise self._refusal(
                    mode, f"{len(picture.getbands())} channels, and the model takes {self.channels}"
                )
            return picture
        transparent = mode in ALPHA_MODES or "transparency" in picture.info
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
        if not all(shape[-2:]):
            raise ParameterError(f"a tensor {shape} has no pixels")
        has_values = image.numel() and not image.is_meta and not torch.compiler.is_compiling()
        if image.dtype == torch.uint8 or not has_values:
            return
        least, most = (each.item() for each in image.aminmax())
        if least < _LEAST or most > _MOST:
            raise ParameterError(
                f"a tensor of {image.dtype} has floats from 0 to 1, and this one goes from "
                f"{least:.3g} to {most:.3g}: divide by 255, or give torch.uint8; what was "
                "normalized already needs no transforms"
            )
