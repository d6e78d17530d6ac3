"""Photos and maps as pictures."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from tvc_core import HybridModel, ParameterError

__all__ = ["check_format", "data_address", "map_picture", "open_photo", "prepared", "strip_picture"]

SIDE = 448
"""Longer side of a picture on a page [pixels]."""


_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def check_format(path: Path) -> str:
    """Return the format of a picture by the suffix of its file.

    Raises:
        ParameterError: it is none that is written here.
    """
    if path.suffix.lower() not in _FORMATS:
        raise ParameterError(
            f"--out: {str(path)!r} does not end in the suffix of a picture: {', '.join(_FORMATS)}"
        )
    return _FORMATS[path.suffix.lower()]


def open_photo(path: str | Path) -> Image.Image:
    """Return a photo, the right way up.

    Raises:
        ParameterError: it cannot be read; the message has its name and why.
    """
    try:
        with Image.open(path) as photo:
            photo.load()
            return ImageOps.exif_transpose(photo) or photo
    except UnidentifiedImageError as error:
        raise ParameterError(f"{path}: is no picture of a format that Pillow reads") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = getattr(error, "strerror", None) or error
        raise ParameterError(f"{path}: the photo cannot be read: {why}") from error


def prepared(model: HybridModel, photo: Image.Image, name: str) -> tuple[Tensor, Image.Image]:
    """Return a photo as the model takes it [1, C, H, W], and the picture of just that part of it.

    Args:
        model: the hybrid, whose `transforms` prepare it.
        photo: the photo.
        name: of the photo, for errors.

    Raises:
        ParameterError: the photo cannot be converted; the message has its name.
        BackboneError: nothing says how the model's photos are prepared.
    """
    transforms = model.transforms()
    try:
        image = transforms(photo)
    except ParameterError as error:
        raise ParameterError(f"{name}: {error}") from error
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return image[None].to(dtype=like.dtype, device=like.device), _seen(transforms, image)


def _seen(transforms: Any, image: Tensor) -> Image.Image:
    """Return what the model sees: the prepared image with its normalization taken back."""
    count = image.shape[0]
    mean, std = (
        torch.tensor(getattr(transforms, key, None) or [default] * count).reshape(-1, 1, 1)
        for key, default in (("mean", 0.0), ("std", 1.0))
    )
    pixels = image * std + mean if mean.shape[0] == count else image
    rgb = pixels[:3] if count >= 3 else pixels[:1].expand(3, -1, -1)
    array = (rgb.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(array.numpy(), "RGB")


def map_picture(seen: Image.Image, values: Tensor, *, signed: bool = True) -> Image.Image:
    """Return a map laid over what the model saw: red where it is largest; of a signed one blue
    where it is most negative.

    Args:
        seen: the picture.
        values: [h, w].
        signed: color by sign, both on one scale; else from the least (clear) to the largest.
    """
    values = values.float().cpu()
    if not signed:
        values = values - values.min()
    scale = float(values.abs().max()) or 1.0
    size = (seen.height, seen.width)
    large = torch.nn.functional.interpolate(values[None, None] / scale, size, mode="bilinear")[0, 0]
    strength = large.abs().clamp(0, 1)[..., None] * 0.7
    red, blue = torch.tensor([215.0, 20.0, 20.0]), torch.tensor([20.0, 60.0, 220.0])
    color = torch.where(large[..., None] >= 0, red, blue)
    below = torch.frombuffer(
        bytearray(seen.convert("L").convert("RGB").tobytes()), dtype=torch.uint8
    )
    below = below.reshape(*size, 3).float()
    mixed = (below * (1 - strength) + color * strength).round().to(torch.uint8)
    return Image.fromarray(mixed.numpy(), "RGB")


def strip_picture(values: Tensor) -> Image.Image:
    """Return the gates of channels as bars, in order: dark is 0, white the largest.

    Args:
        values: [C].
    """
    values = values.float().cpu()
    shown = (values / (float(values.abs().max()) or 1.0)).clamp(0, 1)
    row = (shown * 255).round().to(torch.uint8).reshape(1, -1)
    width = max(1, SIDE // row.shape[1])
    strip = row.repeat_interleave(width, 1).expand(24, -1).contiguous()
    return Image.fromarray(strip.numpy(), "L")


def data_address(picture: Image.Image) -> str:
    """Return a picture as a data: address."""
    small = picture.copy()
    if picture.height > 24:
        small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    if picture.mode == "RGB":
        small.save(file, "JPEG", quality=85)
        kind = "jpeg"
    else:
        small.save(file, "PNG")
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
