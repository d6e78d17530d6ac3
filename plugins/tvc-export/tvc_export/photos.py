"""Read photos, prepared as the model's weights ask, with their classes where the names say them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tvc_core import HybridModel, ParameterError, foreign, join_names

from .claims import Claims

__all__ = ["Photo", "check_photos", "find_photos", "read_photos"]

_SUFFIXES = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photo as the model gets it.

    Args:
        name: of its file, inside the folder.
        image: [C, H, W].
        label: its class, where all photos say theirs.
    """

    name: str
    image: Tensor
    label: int | None


def find_photos(folder: Path) -> list[Path]:
    """Return the photos in a folder and in those inside it, by name. A UserWarning names files that
    are none.

    Raises:
        ParameterError: there is no such folder, or no photo in it.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise ParameterError(f"{folder}: {what}, and a folder of photos is needed")
    files = sorted(
        each
        for each in folder.rglob("*")
        if each.is_file() and not any(part[0] == "." for part in each.relative_to(folder).parts)
    )
    found = [each for each in files if each.suffix.lower() in _SUFFIXES]
    if not found:
        raise ParameterError(
            f"{folder}: there are no photos in it; files with these suffixes are: "
            f"{join_names(_SUFFIXES)}"
        )
    if others := [each.name for each in files if each not in found]:
        warnings.warn(
            f"{folder}: no photos by their suffix, and not used: {join_names(others, most=4)}",
            UserWarning,
            stacklevel=2,
        )
    return found


def read_photos(folder: Path, model: HybridModel) -> list[Photo]:
    """Return the photos in a folder, prepared for a model.

    A photo's class is the folder that it lies in, by the class's name or number, or else the number
    that its name begins with, as in 0105_koala.jpg. It counts where all photos say theirs, and the
    model has one head: of several, nothing says which head's class that is.

    Raises:
        ParameterError: there are none, or one cannot be read; the message names it and says why.
        BackboneError: nothing says how photos are prepared for this model.
    """
    prepare = model.transforms()
    files = find_photos(folder)
    labels = list(_labels(files, folder, model))
    known = None not in labels and len(model.head_info) == 1
    images = [_read(each, prepare) for each in files]
    return [
        Photo(name=file.relative_to(folder).as_posix(), image=image, label=label if known else None)
        for file, image, label in zip(files, images, labels, strict=True)
    ]


def check_photos(photos: Iterable[Photo], claims: Claims, what: str) -> None:
    """Refuse photos that are prepared in a size outside of what is claimed.

    Args:
        photos: prepared.
        claims: of the file.
        what: has them, such as "the export is for".

    Raises:
        ParameterError: one is; the message names it, its size and the claims.
    """
    for photo in photos:
        shape = (1, *photo.image.shape)
        if why := claims.why_not(shape):
            raise ParameterError(
                f"{photo.name}: is prepared for the model as {list(shape)}, and {what} {claims}: "
                f"{why}. By default an export is for the size of the model's preprocessing; --size "
                "says another one, and --dynamic batch,hw lets sizes vary"
            )


def _labels(files: Sequence[Path], folder: Path, model: HybridModel) -> Iterator[int | None]:
    names = list(model.class_names or ())
    for file in files:
        inside, number = file.parent, re.match(r"(\d{1,6})_", file.name)
        label: int | None = None
        if inside != folder:
            if inside.name in names:
                label = names.index(inside.name)
            elif inside.name.isdecimal():
                label = int(inside.name)
        elif number:
            label = int(number[1])
        yield label if label is not None and label < model.num_classes else None


def _read(path: Path, prepare: Any) -> Tensor:
    from PIL import Image

    with foreign(ParameterError, f"{path}: the photo cannot be used"):
        try:
            with Image.open(path) as photo:
                image: Tensor = prepare(photo)
        except ParameterError as error:
            raise ParameterError(f"{path}: the photo cannot be used: {error}") from error
    return image.to(torch.float32).contiguous()
