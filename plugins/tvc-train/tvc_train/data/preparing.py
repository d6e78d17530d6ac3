"""How an image becomes what a network gets: resized, varied at random in training, normalized."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from tvc_core import BackboneError, HybridModel, short_repr

from ..errors import DataError
from .order import own_generator, seed_of
from .settings import DataSettings

__all__ = ["Preprocessing", "Transforms"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How images are prepared, the same in training, evaluation and prediction.

    Args:
        size: height and width of what the network gets [pixels].
        resize: the short side before the center is cut out, with `fit` "crop" [pixels].
        fit: "crop", "squash" or "pad".
        interpolation: "bilinear", "bicubic" or "nearest".
        mean: by channel, of images scaled to [0, 1]; one channel stands for grey images.
        std: likewise.
    """

    size: tuple[int, int]
    resize: int
    fit: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def of(model: nn.Module, settings: DataSettings) -> Preprocessing:
        """Return what the section says, and where it says nothing, what the model's weights say.

        Raises:
            DataError: neither says it.
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
        if len(given["mean"]) not in (1, 3):
            raise DataError(
                f"data.mean: {len(given['mean'])} channels; images have 3, or 1 where they are grey"
            )
        ratio = said["resize"] / max(said["size"]) if said.get("size") else 1.0
        given["resize"] = max(1, round(ratio * max(given["size"])))
        return Preprocessing(**given)

    @staticmethod
    def from_mapping(data: Mapping[str, Any]) -> Preprocessing:
        """Read what `to_mapping` wrote.

        Raises:
            DataError: it is something else.
        """
        fields = Preprocessing.__dataclass_fields__
        try:
            made: dict[str, Any] = {
                name: tuple(v) if isinstance(v, list) else v for name, v in data.items()
            }
            found = Preprocessing(**made)
            fits = len(found.size) == 2 and len(found.mean) == len(found.std)
            fits = fits and all(isinstance(n, int) and n > 0 for n in (*found.size, found.resize))
            fits = fits and all(isinstance(n, (int, float)) for n in (*found.mean, *found.std))
            fits = fits and all(n > 0 for n in found.std) and found.fit in ("crop", "squash", "pad")
            fits = fits and found.interpolation in ("bilinear", "bicubic", "nearest")
        except (TypeError, AttributeError):
            fits = False
        if not fits:
            raise DataError(
                f"a preprocessing has the keys {', '.join(fields)}, not {short_repr(data)}"
            )
        return found

    def to_mapping(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def resized(self, size: int | Sequence[int]) -> Preprocessing:
        """Return it for images of another size, height and width or one side [pixels]."""
        height, width = (size, size) if isinstance(size, int) else size
        resize = max(1, round(self.resize * max(height, width) / max(self.size)))
        return replace(self, size=(height, width), resize=resize)


def _said_by(model: nn.Module) -> dict[str, Any]:
    """Return what a model says about its images; `why` where it says nothing."""
    if not isinstance(model, HybridModel):
        return {"why": "it is no hybrid"}
    try:
        with warnings.catch_warnings():  # that the default weights stand in for a random start
            warnings.simplefilter("ignore", UserWarning)
            found: Any = model.transforms()
    except BackboneError as error:
        return {"why": str(error)}
    crop, resize = list(found.crop_size), list(found.resize_size)
    return {
        "size": (crop[0], crop[-1]),
        "resize": resize[0],
        "fit": "squash" if len(resize) == 2 else "crop",
        "interpolation": found.interpolation.value,
        "mean": tuple(found.mean),
        "std": tuple(found.std),
    }


class Transforms:
    """Prepare images for a network.

    `Transforms(preprocessing)` prepares them for evaluation, and is a function from uint8
    [3, H, W] to float32 [C, h, w]. With `augment`, images are also varied at random, by torchvision
    transforms on 8 bits; then an image's look depends only on the seed, the epoch and its index.

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
        """Return the same for another size of images, height and width or one side [pixels]."""
        return Transforms(self.preprocessing.resized(size), self.augment, mirror=self.mirror)

    def __call__(self, image: Tensor) -> Tensor:
        """Return an image as the network gets it in evaluation, float32 [C, h, w]."""
        return self.normalize(self.pixels(image)[None])[0]

    def pixels(self, image: Tensor, *, seed: int = 0, epoch: int = 0, index: int = 0) -> Tensor:
        """Return all but the normalization of an image, uint8 [C, h, w]."""
        if self._vary is None:
            return self._channels(self._fitted(image))
        with own_generator() as generator:
            generator.manual_seed(seed_of("image", seed, epoch, index))
            return self._channels(self._vary(image))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return normalized images, float32 [N, C, h, w], of uint8 [N, C, h, w]."""
        # the operations of the model's own transforms, whose bits come out
        shape = (-1, 1, 1)
        mean = torch.tensor(self.preprocessing.mean, device=pixels.device).view(shape)
        std = torch.tensor(self.preprocessing.std, device=pixels.device).view(shape)
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)

    def _channels(self, image: Tensor) -> Tensor:
        return F.rgb_to_grayscale(image) if len(self.preprocessing.mean) == 1 else image

    def _fitted(self, image: Tensor) -> Tensor:
        """Return an image of the network's size, without anything random."""
        # By Pillow, as the model's own transforms resize what they are given: torch's kernels for 8
        # bits differ from it by one in some pixels of a thousand, and from processor to processor.
        size, fit = list(self.preprocessing.size), self.preprocessing.fit
        picture: Any = F.to_pil_image(image)
        if fit == "crop":
            picture = self._resized(picture, [self.preprocessing.resize])
            return F.pil_to_tensor(F.center_crop(picture, size))
        if fit == "squash":
            return F.pil_to_tensor(self._resized(picture, size))
        shape = image.shape[-2:]
        scale = min(outer / side for outer, side in zip(size, shape, strict=True))
        inner = [max(1, round(side * scale)) for side in shape]
        inner = [min(side, outer) for side, outer in zip(inner, size, strict=True)]
        border = torch.tensor(self._fill(), dtype=torch.uint8)
        canvas = border[:, None, None].repeat(1, *size)
        top, left = ((outer - side) // 2 for outer, side in zip(size, inner, strict=True))
        resized = F.pil_to_tensor(self._resized(picture, inner))
        canvas[:, top : top + inner[0], left : left + inner[1]] = resized
        return canvas

    def _fill(self) -> list[int]:
        """Return the mean color, in 8 bits."""
        mean = self.preprocessing.mean
        fill = [min(max(round(255 * value), 0), 255) for value in mean]
        return fill * 3 if len(fill) == 1 else fill

    def _resized(self, picture: Any, size: list[int]) -> Any:
        return F.resize(picture, size, interpolation=self._interpolation, antialias=True)

    def _variation(self) -> Any:
        """Return what varies an image, and brings it to the network's size; None for nothing."""
        if self.augment == "none":
            return None
        least, magnitude = self.PRESETS[self.augment]
        size, fill = (
            list(self.preprocessing.size),
            [round(255 * m) for m in self.preprocessing.mean],
        )
        fill = fill * 3 if len(fill) == 1 else fill
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
