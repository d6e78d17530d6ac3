"""Files of images as 8 bits of red, green and blue; what is no image is refused by its name."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from tvc_core import ParameterError, as_rgb, foreign, join_names

from ..data_schema import FORMATS
from ..errors import DataError

__all__ = ["SUFFIXES", "check_header", "decode", "read_bytes", "read_image"]

SUFFIXES = {
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"), "png": (".png",), "webp": (".webp",),
    "bmp": (".bmp", ".dib"), "gif": (".gif",), "tiff": (".tif", ".tiff"),
    "ppm": (".ppm", ".pgm", ".pbm", ".pnm"),
}  # fmt: skip
"""How the names of files of each format end."""

MAX_PIXELS = 100_000_000

MAX_RATIO = 1000
"""Of the sides of an image. Resized by its short side it would take as many times more memory than
what is cut out of it: a line of one pixel, of a few bytes in a file, tens of GiB.
"""

_BEGINNINGS = {
    b"%PDF": "a PDF", b"<svg": "an SVG", b"<?xm": "an XML file", b"<!DO": "an HTML page",
    b"<htm": "an HTML page", b"PK\x03\x04": "a ZIP archive", b"\x1f\x8b": "a gzip archive",
    b"RIFF": "a RIFF file", b"version https://git-lfs": "a pointer of Git LFS: run 'git lfs pull'",
}  # fmt: skip
"""What a file that is no image may be instead."""


def read_image(
    path: str | Path, *, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = FORMATS
) -> Tensor:
    """Return a file's image, uint8 [3, H, W], as `tvc_core.as_rgb` reads it: upright, and of
    several frames the first.

    Args:
        path: the file.
        max_pixels: a larger image is refused before it is decoded.
        formats: which may be decoded.

    Raises:
        DataError: it cannot be read, is not an image of these formats, is damaged or too large.
    """
    where = str(path)
    return decode(read_bytes(where), where, max_pixels=max_pixels, formats=formats)


def read_bytes(path: str) -> bytes:
    """Return the content of a regular file.

    Raises:
        DataError: it is none, or cannot be read.
    """
    try:
        # without waiting, which opening a pipe does until someone writes into it
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:  # noqa: PTH123  an open handle
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise DataError(f"{path}: is not a file, so there is no image in it")
            return file.read()
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read: {said}") from error


def decode(
    content: bytes, where: str, *, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = FORMATS
) -> Tensor:
    """Return an image, uint8 [3, H, W]; see `read_image`.

    Args:
        content: of the file.
        where: what errors call it.
        max_pixels: a larger image is refused before it is decoded.
        formats: which may be decoded.

    Raises:
        DataError: as for `read_image`.
    """
    picture = _open(content, where, max_pixels, formats)
    with foreign(DataError, f"{where}: the image is damaged"):
        picture.load()
        try:
            array = np.array(as_rgb(picture))
        except ParameterError as error:
            raise DataError(f"{where}: {error}") from error
    return torch.from_numpy(array).movedim(-1, 0)


def check_header(
    content: bytes, where: str, *, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = FORMATS
) -> None:
    """Look at the header of an image, and decode nothing.

    Raises:
        DataError: it is not an image of these formats, or too large.
    """
    _open(content, where, max_pixels, formats)


def _open(content: bytes, where: str, max_pixels: int, formats: Sequence[str]) -> Any:
    if not content:
        raise DataError(f"{where}: the file is empty")
    try:
        with foreign(DataError, f"{where}: the image is damaged"), warnings.catch_warnings():
            # what is too large is said below, by our own limit
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = _identified(content, where, [name.upper() for name in formats])
    except DataError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            said = str(error.__cause__).partition(",")[0]
            raise DataError(f"{where}: too large, by Pillow's own limit: {said}") from error
        raise
    width, height = picture.size
    if width * height > max_pixels:
        raise DataError(
            f"{where}: {width} x {height} pixels, more than {max_pixels:,} (data.max_pixels)"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise DataError(
            f"{where}: {width} x {height} pixels, one side more than {MAX_RATIO:,} times the other"
        )
    return picture


def _identified(content: bytes, where: str, formats: list[str]) -> Any:
    try:
        return Image.open(io.BytesIO(content), formats=formats)
    except UnidentifiedImageError:
        pass
    allowed = join_names([name.lower() for name in formats])
    try:
        others = [name.upper() for name in FORMATS if name.upper() not in formats]
        found = Image.open(io.BytesIO(content), formats=others).format if others else None
    except UnidentifiedImageError:
        found = None
    if found is not None:
        said = f"a {found} image"
    elif content[4:8] == b"ftyp":
        said = "an AVIF or HEIF image, or a video"
    else:
        start = content[:40].lstrip()
        said = next((what for magic, what in _BEGINNINGS.items() if start.startswith(magic)), "")
    said = f"this is {said}, and" if said else "no image, or a damaged one:"
    raise DataError(f"{where}: {said} what may be read is {allowed}") from None
