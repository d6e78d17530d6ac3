"""Open a file that `save` wrote: what it says is checked before its tensors are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from ..advice.words import on_file, on_missing
from ..errors import WeightsError
from ..weights.container import Entry, read_header, read_tensors, strict_json
from ..weights.digest import check_digest
from ..weights.verified import unchanged
from .content import check_content

__all__ = ["OwnFile", "open_own"]


@dataclass(frozen=True)
class OwnFile:
    """An open file.

    Args:
        path: where it is.
        content: what it says beside its tensors, without the hash.
        entries: what its header says of its tensors.
        sha256: of content and tensors, as it says.
    """

    path: Path
    content: Mapping[str, Any]
    entries: Mapping[str, Entry]
    sha256: str
    _file: BinaryIO

    @property
    def size(self) -> int:
        """Size of its tensors [bytes]."""
        return sum(entry.size for entry in self.entries.values())

    def read(self) -> dict[str, Tensor]:
        """Return the tensors, after content and tensors have been compared with the hash.

        Raises:
            WeightsError: they have another one, or the file changed while it was read.
        """
        with unchanged(self._file, self.path):
            tensors = read_tensors(self._file, self.entries, self.path)
            check_digest(self.path, self.content, tensors, self.sha256)
        return tensors


@contextmanager
def open_own(path: Path) -> Iterator[OwnFile]:
    """Open a file and check what it says; nothing of its size is read before.

    Raises:
        WeightsError: it cannot be read, `save` did not write it, or it says what cannot be.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
            raise WeightsError(f"{path}: the model cannot be read: no regular file")
        file = path.open("rb")
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        hint = on_missing(path, (".safetensors",)) if isinstance(error, OSError) else ""
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(
            f"{path}: the model cannot be read: {reason}{hint and f'.{hint}'}"
        ) from error
    with file:
        try:
            own = _own(path, file)
        except OSError as error:
            raise WeightsError(f"{path}: the model cannot be read: {error.strerror}") from error
        yield own


def _own(path: Path, file: BinaryIO) -> OwnFile:
    try:
        header = read_header(file, path)
    except WeightsError as error:
        file.seek(0)
        if other := on_file(path, file.read(4096), "model"):
            raise WeightsError(
                f"{path}: not a model that HybridModel.save wrote.{other}"
            ) from error
        raise
    text = header.metadata.get("tvc")
    if text is None:
        file.seek(0)
        raise WeightsError(
            f"{path}: not a model that HybridModel.save wrote: it has no recipe."
            + on_file(path, file.read(4096), "model")
        )
    try:
        content = strict_json(text)
        check_content(content)
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(
            f"{path}: not a model that HybridModel.save wrote, or damaged: {error}"
        ) from error
    sha256 = content.pop("sha256")
    return OwnFile(path, content, header.entries, sha256, file)
