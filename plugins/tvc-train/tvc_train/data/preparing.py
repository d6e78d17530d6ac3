"""How an image becomes what a network gets: resized, varied at random in training, normalized."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from tvc_core import BackboneError, HybridModel, ParameterError, Preprocessing

from ..errors import DataError
from .order import own_generator, seed_of
from .settings import DataSettings

__all__ = ["Transforms", "preprocessing_for"]


def preprocessing_for(model: HybridModel, settings: DataSettings) -> Preprocessing:
    """Return how images are prepared: what the section says, and where it says nothing, what the
    model says.

    Raises:
        DataError: neither says it, or the section says it for another number of channels.
    """
    said = _said_by(model)
    given: dict[str, Any] = {
        name: getattr(settings, name) or said.get(name)
        for name in ("size", "fit", "interpolation", "mean", "std")
    }
    given["fit"] = given["fit"] or "crop"
    given["interpolation"] = given["interpolation"] or "bilinear"
    missing = [name for name in ("size", "mean", "std") if given[name] is None]
    if missing:
        raise DataError(
            f"nothing says how images are prepared for this model ({said['why']}). Write what "
            f"is missing into the section data: {', '.join(missing)}; for images scaled to "
            "[0, 1] and nothing known, 'mean: [0.5, 0.5, 0.5]' and 'std: [0.5, 0.5, 0.5]'"
        )
    channels = model.num_channels
    if channels not in (1, 3):
        raise DataError(f"the model takes {channels} channels; images have 3, or 1 in grey")
    if len(given["mean"]) != channels:
        raise DataError(
            f"data.mean: {len(given['mean'])} numbers, and the model takes {channels} channels"
        )
    ratio = said["resize"] / max(said["size"]) if said.get("size") else 1.0
    given["resize"] = max(1, round(ratio * max(given["size"])))
    try:
        return Preprocessing(**given)
    except ParameterError as error:
        raise DataError(f"data: {error}") from error


def _said_by(model: HybridModel) -> dict[str, Any]:
    """Return what a model says about its images; `why` where it says nothing."""
    if model.preprocessing is not None:
        return vars(model.preprocessing)
    try:
        with warnings.catch_warnings():  # that the default weights stand in for a random start
            warnings.simplefilter("ignore", UserWarning)
            found: Any = model.transforms()
    except BackboneError as error:
        return {"why": str(error)}
    crop, resize = list(found.crop_size), list(found.resize_size)
    return {
        "size": (crop[0], crop[-1]),
        "resize": max(resize),
        "fit": "squash" if len(resize) == 2 else "crop",
        "interpolation": found.interpolation.value,
        "mean": tuple(found.mean),
        "std": tuple(found.std),
    }


@functools.cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    # once a device: a copy to a GPU waits until it has computed all that it was given before
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


class Transforms:
    """Prepare images for a network.

    `Transforms(preprocessing)` prepares them for evaluation, and is a function from uint8
    [3, H, W] to float32 [C, h, w], the bits of `model.transforms()`. With `augment`, images are
    also varied at random, by torchvision transforms on 8 bits; then an image's look depends only on
    the seed, the epoch and its index.

    Args:
        preprocessing: what the network expects.
        augment: "none", "light" (a crop that loses little), "standard" (as torchvision's
            reference scripts train where they are told nothing else) or "strong" (RandAugment, and
            a part erased).
        mirror: half of the varied images are mirrored.
    """

    PRESETS: ClassVar[dict[str, tuple[float, int]]] = {
        "light": (0.6, 0), "standard": (0.08, 0), "strong": (0.08, 9),
    }  # fmt: skip
    """The smallest part of the area that a random crop keeps, and the magnitude of RandAugment
    (Cubuk et al. 2020, arXiv:1909.13719)."""

    def __init__(
        self, preprocessing: Preprocessing, augment: str = "none", *, mirror: bool = True
    ) -> None:
        self.preprocessing = preprocessing
        self.augment = augment
        self.mirror = mirror
        self._interpolation = InterpolationMode(preprocessing.interpolation)
        self._vary = self._variation()

    @property
    def is_random(self) -> bool:
        """Whether one image can look different from epoch to epoch."""
        return self.augment != "none"

    def to_mapping(self) -> dict[str, Any]:
        """Return all that decides what comes out, as plain data."""
        return {**self.preprocessing.to_mapping(), "augment": self.augment, "mirror": self.mirror}

    def for_evaluation(self) -> Transforms:
        """Return the same without anything random."""
        return Transforms(self.preprocessing)

    def resized(self, size: int | Sequence[int]) -> Transforms:
        """Return the same for another size of images: height and width, or the longer one, with
        which the other one shrinks [pixels].
        """
        if isinstance(size, int):
            sides = self.preprocessing.size
            size = [max(1, round(side * size / max(sides))) for side in sides]
        return Transforms(self.preprocessing.resized(size), self.augment, mirror=self.mirror)

    def __call__(self, image: Tensor) -> Tensor:
        """Return an image as the network gets it in evaluation, float32 [C, h, w]."""
        return self.normalize(self.pixels(image)[None])[0]

    def pixels(self, image: Tensor, *, seed: int = 0, epoch: int = 0, index: int = 0) -> Tensor:
        """Return all but the normalization of an image, uint8 [C, h, w]."""
        if len(self.preprocessing.mean) == 1:
            image = F.pil_to_tensor(F.to_pil_image(image).convert("L"))
        if self._vary is None:
            return self._fitted(image)
        with own_generator() as generator:
            generator.manual_seed(seed_of("image", seed, epoch, index))
            found: Tensor = self._vary(image)
            return found

    def normalize(self, pixels: Tensor, device: torch.device | str | None = None) -> Tensor:
        """Return normalized images, float32 [N, C, h, w], of uint8 [N, C, h, w].

        Args:
            pixels: the images.
            device: where they are wanted; what it computes is not waited for.
        """
        if device is not None:
            pixels = pixels.to(device, non_blocking=True)
        # the operations of the model's own transforms, whose bits come out
        mean = _channels(self.preprocessing.mean, pixels.device)
        std = _channels(self.preprocessing.std, pixels.device)
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)

    def _fitted(self, image: Tensor) -> Tensor:
        """Return an image of the network's size, without anything random."""
        # By Pillow, as the model's own transforms resize what they are given: torch's kernels for 8
        # bits differ from it by one in some pixels of a thousand, and from processor to processor.
        return F.pil_to_tensor(self.preprocessing.fitted(F.to_pil_image(image)))

    def _variation(self) -> Any:
        """Return what varies an image, and brings it to the network's size; None for nothing."""
        if self.augment == "none":
            return None
        least, magnitude = self.PRESETS[self.augment]
        size, fill = (
            list(self.preprocessing.size),
            [round(255 * m) for m in self.preprocessing.mean],
        )
        first: list[Any]
        if self.preprocessing.fit == "crop":
            first = [
                v2.RandomResizedCrop(
                    size, (least, 1.0), interpolation=self._interpolation, antialias=True
                )
            ]
        else:  # nothing of the image may be lost, so it is shifted and scaled a little
            moved = {"light": 0.05, "standard": 0.1, "strong": 0.15}[self.augment]
            first = [
                v2.Lambda(self._fitted),
                v2.RandomAffine(0, (moved, moved), (1 - moved, 1 + moved), fill=fill),
            ]
        steps = [*first, *([v2.RandomHorizontalFlip()] if self.mirror else [])]
        if magnitude:
            steps += [v2.RandAugment(2, magnitude, fill=fill), v2.RandomErasing(0.25)]
        return v2.Compose(steps)
