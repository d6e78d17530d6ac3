"""Open a file that `save` wrote: what it says is checked before its tensors are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from ..advice.words import on_file
from ..errors import WeightsError
from .container import Entry, Header, read_header, read_tensors, strict_json
from .content import check_content
from .digest import check_digest
from .looking import open_file, reading
from .verified import unchanged

__all__ = ["OwnFile", "open_own", "own_file"]


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
    with reading(path):
        file = open_file(path)
    with file:
        with reading(path):
            found = _own(file, path)
        yield found


def _own(file: BinaryIO, path: Path) -> OwnFile:
    try:
        header = read_header(file, path)
    except WeightsError as error:
        file.seek(0)
        if other := on_file(path, file.read(4096), "model"):
            raise WeightsError(
                f"{path}: not a model that HybridModel.save wrote.{other}"
            ) from error
        raise
    if "tvc" not in header.metadata:
        file.seek(0)
        raise WeightsError(
            f"{path}: not a model that HybridModel.save wrote: it has no recipe."
            + on_file(path, file.read(4096), "model")
        )
    return own_file(file, path, header)


def own_file(file: BinaryIO, path: Path, header: Header) -> OwnFile:
    """Return an open file of which the header is known, with what it says checked.

    Raises:
        WeightsError: it says what cannot be.
    """
    try:
        content = strict_json(header.metadata["tvc"])
        check_content(content)
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(
            f"{path}: not a model that HybridModel.save wrote, or damaged: {str(error)[:400]}"
        ) from error
    sha256 = content.pop("sha256")
    return OwnFile(path, content, header.entries, sha256, file)
