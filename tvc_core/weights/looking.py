"""Open a file for reading, and say what it is: by its first bytes, or why that fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..advice.words import on_file, on_missing
from ..errors import WeightsError
from .shards import refuse_distributed

__all__ = [
    "HEAD", "foreign_kind", "has_safetensors_header", "open_file", "reading", "records_in",
    "why_not_opened",
]  # fmt: skip

_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")

HEAD = 100_000
"""How much of a file is looked at [bytes]."""


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
    start = head[:100].lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return (
            "the pointer of Git LFS (it begins with 'version https://git-lfs') that stands for a "
            "file; fetch the file by 'git lfs pull'"
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        shown = head.lstrip().split(b"\n")[0][:40].decode("ascii", "replace")
        return f"a web page (it begins with {shown!r}), which a server or a proxy has sent instead"
    if head.startswith(b"\x1f\x8b"):
        return "compressed by gzip; unpack it first"
    if start.startswith((b"{", b"[")):
        return "JSON; the index of a sharded file is known by its name, ending in .index.json"
    return ""


def why_not_opened(path: Path, head: bytes, error: Exception) -> str:
    """Return in tvc's words why torch does not open a file, and what to do; torch's own text
    advises to run what is in the file.

    Args:
        path: the file.
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
        return "it is truncated or damaged. Copy or download it again"
    if head[:1] == b"\x80":
        return "it is damaged, or holds more than tensors, and tvc never runs code from a file"
    if other := on_file(path, head, "tensors"):
        return f"it is not a file of torch.save.{other}".removesuffix(".")
    return f"it is damaged, or not a file of torch.save ({type(error).__name__})"
