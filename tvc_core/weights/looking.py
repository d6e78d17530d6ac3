"""Open a file for reading, and say what it is: by its first bytes, or why that fails."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from ..advice.words import on_file, on_missing
from ..errors import WeightsError, join_names, short_repr
from .shards import refuse_distributed

__all__ = [
    "HEAD", "foreign_kind", "has_safetensors_header", "open_file", "path_of", "reading",
    "records_in", "why_not_opened",
]  # fmt: skip

_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")

HEAD = 100_000
"""How much of a file is looked at [bytes]."""


def path_of(given: Any, what: str) -> Path:
    """Return a path that a user gives, as such.

    Raises:
        WeightsError: it is none; `what` says what takes one.
    """
    if isinstance(given, (str, PathLike)):
        return Path(given)
    raise WeightsError(f"{what} takes the path of a file, not {short_repr(given)}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Read a file inside; what the system refuses names the path.

    Raises:
        WeightsError: it is not there, or cannot be read.
    """
    try:
        yield
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        reason = getattr(error, "strerror", None) or error
        hint = on_missing(path, _SUFFIXES) if isinstance(error, OSError) else ""
        raise WeightsError(f"{path}: cannot be read: {reason}{hint and f'.{hint}'}") from error


def open_file(path: Path) -> BinaryIO:
    """Open a file of weights.

    Raises:
        WeightsError: it is no regular file, or part of a distributed checkpoint.
        OSError: it is not there, or cannot be read.
    """
    refuse_distributed(path)
    if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
        raise WeightsError(
            f"{path}: no regular file, so nothing is read from it.{on_missing(path, _SUFFIXES)}"
        )
    return path.open("rb")


def has_safetensors_header(head: bytes, size: int) -> bool:
    """Tell whether a file of `size` bytes begins as safetensors do: with the length of a header in
    JSON.
    """
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and head[8:9] == b"{" and 2 <= length <= size - 8


def records_in(file: BinaryIO, size: int) -> int:
    """Return how many records a zip archive says at its end that it has; 0 for no archive.

    torch.save writes one for each storage, and its reader takes 0.1 ms for each.
    """
    file.seek(max(0, size - 98))  # the end of the directory, in the form for large files as well
    end = file.read(98)
    file.seek(0)
    for mark, place, length in ((b"PK\6\6", 32, 8), (b"PK\5\6", 10, 2)):
        if (start := end.rfind(mark)) >= 0:
            return int.from_bytes(end[start + place : start + place + length], "little")
    return 0


def foreign_kind(head: bytes) -> str:
    """Return what a file is that holds no weights and is often taken for one that does, else an
    empty string.
    """
    start = head[:100].lstrip(b"\xef\xbb\xbf \t\r\n").lower()  # the first three mark UTF-8
    if head.startswith(b"version https://git-lfs"):
        return (
            "the pointer of Git LFS (it begins with 'version https://git-lfs') that stands for a "
            "file; fetch the file by 'git lfs pull'"
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        shown = head.lstrip().split(b"\n")[0][:40].decode("ascii", "replace")
        return f"a web page (it begins with {shown!r}), which a server or a proxy has sent instead"
    if start.startswith((b"{", b"[")):
        return "JSON; the index of a sharded file is known by its name, ending in .index.json"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    return next((what for magic, what in _FOREIGN.items() if head.startswith(magic)), "")


_FOREIGN = {
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"\xfd7zXZ\0": "compressed by xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstandard; unpack it first",
    b"BZh": "compressed by bzip2; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it first",
    b"\x89HDF": "HDF5, as Keras writes; convert it to safetensors",
    b"GGUF": "GGUF, as llama.cpp reads; convert it to safetensors",
    b"\x93NUMPY": "an array of numpy, which has no names; save a state dict by torch.save",
}
"""What files begin with that hold no state dict, and what they are."""


def _other_archive(file: BinaryIO) -> str:
    """Return what a zip archive is that torch.save did not write, else an empty string."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()[:1000]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return ""
    if any(name.rpartition("/")[2] in ("data.pkl", "constants.pkl") for name in names):
        return ""
    if names and all(name.endswith(".npy") for name in names):
        return (
            "arrays of numpy (.npz), whose names are seldom torch's. Load it by numpy and pass "
            "{name: torch.from_numpy(array) for name, array in numpy.load(path).items()}"
        )
    found = join_names(names, most=3)
    return f"a zip archive that torch.save did not write; in it: {found}. Unpack it first"


def why_not_opened(path: Path, file: BinaryIO, head: bytes, error: Exception) -> str:
    """Return in tvc's words why torch does not open a file, and what to do; torch's own text
    advises to run what is in the file.

    Args:
        path: where the file was found.
        file: the open file.
        head: its first bytes.
        error: what torch raised.
    """
    text = " ".join(str(error).split())
    if found := re.search(r"(?:GLOBAL|global:?|class|function) ([A-Za-z_][\w.]*\.[\w.]*\w)", text):
        return (
            f"it holds more than tensors, an object of {found[1]}, whose code would run, and tvc "
            "never runs code from a file. Where the file can be trusted, load it with torch and "
            "pass what is in it, as checkpoint['model'], or save its tensors alone: "
            "torch.save(network.state_dict(), path)"
        )
    if "TorchScript" in text:
        return "it is a TorchScript archive, which is a program; save its state_dict() instead"
    if not head:
        return "it is empty"
    if head[:4] == b"PK\x03\x04":
        other = _other_archive(file)
        return (
            f"it is {other}" if other else "it is truncated or damaged. Copy or download it again"
        )
    if head[:1] == b"\x80":
        return (
            "it is damaged, or a pickle that torch.save did not write, as detectron2's .pkl files "
            "are, and tvc never runs code from a file"
        )
    if other := on_file(path, head, "tensors"):
        return f"it is not a file of torch.save.{other}".removesuffix(".")
    shown = bytes(head[:16])
    return f"it is damaged, or not a file of torch.save: it begins with {shown!r}"
