"""How images are prepared for a model, where that was set: by whom it was trained, not by whom its
pretrained weights were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..errors import ParameterError, join_names, short_repr, what_there_is
from ..specs import WeightsSpec

__all__ = ["ALPHA_MODES", "OwnWeights", "Preprocessing", "as_rgb"]

_FITS = ("crop", "squash", "pad")
_INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
_ORIENTATION = 0x0112  # of EXIF
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How images are prepared for a model: `model.preprocessing = Preprocessing(...)`, and then
    `model.transforms()` prepares them so, also after `save` and `load`.

    Args:
        size: height and width of what the network gets [pixels].
        resize: the short side before the center is cut out, with `fit` "crop" [pixels].
        fit: how an image gets to its size: "crop" (resized by its short side, and its center cut
            out), "squash" (height and width each on its own) or "pad" (resized by its long side,
            with a border of the mean color).
        interpolation: "bilinear", "bicubic" or "nearest".
        mean: by channel, of images scaled to [0, 1].
        std: likewise.

    Raises:
        ParameterError: a value that cannot be.
    """

    size: tuple[int, int]
    resize: int
    fit: str = "crop"
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple)):
                object.__setattr__(self, name, tuple(value))
        sides = self.size if isinstance(self.size, tuple) and len(self.size) == 2 else (0,)
        self._require(all(map(_is_side, sides)), "size", "height and width in pixels")
        self._require(_is_side(self.resize), "resize", "a number of pixels")
        self._require(self.fit in _FITS, "fit", f"one of {join_names(_FITS)}")
        known = self.interpolation in _INTERPOLATIONS
        self._require(known, "interpolation", f"one of {join_names(_INTERPOLATIONS)}")
        self._require(_are_numbers(self.mean), "mean", "a number for each channel")
        fits = _are_numbers(self.std) and len(self.std) == len(self.mean)
        fits = fits and all(each > 0 for each in self.std)
        self._require(fits, "std", f"a positive number for each channel, {len(self.mean)} as mean")

    def _require(self, fits: bool, name: str, what: str) -> None:
        if not fits:
            raise ParameterError(
                f"Preprocessing: {name} is {what}, not {short_repr(getattr(self, name))}"
            )

    @staticmethod
    def from_mapping(data: Mapping[str, Any]) -> Preprocessing:
        """Read what `to_mapping` wrote.

        Raises:
            ParameterError: a key or a value that cannot be.
        """
        names = [each.name for each in fields(Preprocessing)]
        for name in data:
            if name not in names:
                keys = what_there_is(str(name), names, "The keys are")
                raise ParameterError(f"Preprocessing: unknown key {short_repr(name)}.{keys}")
        if missing := [name for name in names if name not in data]:
            raise ParameterError(f"Preprocessing: {join_names(missing)} is missing")
        return Preprocessing(**data)

    def to_mapping(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def resized(self, size: int | Sequence[int]) -> Preprocessing:
        """Return it for images of another size, height and width or one side [pixels]."""
        height, width = (size, size) if isinstance(size, int) else size
        resize = max(1, round(self.resize * max(height, width) / max(self.size)))
        return replace(self, size=(height, width), resize=resize)

    def fitted(self, image: Any) -> Any:
        """Return an image of `size`, as `fit` says.

        Args:
            image: a PIL image, or a tensor [..., C, H, W].

        Returns:
            What was given, of that size: what `transforms()` scales to [0, 1] and normalizes.
        """
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        def resized(size: list[int]) -> Any:
            mode = InterpolationMode(self.interpolation)
            return F.resize(image, size, interpolation=mode, antialias=True)

        size = list(self.size)
        if self.fit == "crop":
            return F.center_crop(resized([self.resize]), size)
        if self.fit == "squash":
            return resized(size)
        shape = F.get_size(image)
        scale = min(outer / side for outer, side in zip(size, shape, strict=True))
        inner = [
            min(max(1, round(side * scale)), outer) for side, outer in zip(shape, size, strict=True)
        ]
        top, left = ((outer - side) // 2 for outer, side in zip(size, inner, strict=True))
        bottom, right = (size[0] - inner[0] - top), (size[1] - inner[1] - left)
        return F.pad(resized(inner), [left, top, right, bottom], fill=self._border(image))

    def _border(self, image: Any) -> list[float]:
        """Return the mean color, in the range of an image."""
        is_floating = getattr(getattr(image, "dtype", None), "is_floating_point", False)
        if is_floating:
            return list(self.mean)
        return [min(max(round(255 * value), 0), 255) for value in self.mean]


@dataclass(frozen=True, kw_only=True)
class OwnWeights(WeightsSpec):
    """Weights from a file that a model was saved to, with the preprocessing that was set for it.

    Args:
        preprocessing: None where none was.
    """

    preprocessing: Preprocessing | None = None


def as_rgb(picture: Any) -> Any:
    """Return a PIL image in red, green and blue of 8 bits, as a model is trained on it.

    It is turned upright as its EXIF says. Grey images get three equal channels, palettes are
    looked up, CMYK is converted, 16 bits are scaled to 8, and transparent pixels show a white
    background. Of several frames the first is taken.

    Raises:
        ParameterError: pixels of 32 bits, whose range is not known.
    """
    from PIL import Image, ImageOps

    if picture.getexif().get(_ORIENTATION, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    picture = _eight_bits(picture)
    if picture.mode == "La":  # which PIL converts to nothing else
        picture = picture.convert("LA")
    if picture.mode in ALPHA_MODES or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _eight_bits(picture: Any) -> Any:
    """Return a picture of at most 8 bits a channel."""
    import numpy as np
    from PIL import Image

    mode = picture.mode
    # before Pillow 11.3 a PNG of 16 bits is opened as 32 bits
    if mode.startswith("I;16") or (mode == "I" and picture.format in ("PNG", "PPM")):
        deep = np.asarray(picture).astype(np.int64)
        grey = Image.fromarray((deep.clip(0, 65535) >> 8).astype(np.uint8))
        if (hidden := picture.info.get("transparency")) is not None:  # a grey of 16 bits
            grey.putalpha(Image.fromarray((deep != hidden).astype(np.uint8) * 255))
        return grey
    if mode in ("I", "F"):
        raise ParameterError(
            f"{mode} pixels of 32 bits, whose range is not known: convert it to 8 bits"
        )
    return picture


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 1_000_000


def _are_numbers(values: Any) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) > 0
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        and all(abs(v) < 1e6 for v in values)
    )
