"""Millions of names in two arrays, which worker processes share without copying them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

__all__ = ["Names"]


class Names(Sequence[str]):
    """A sequence of names, kept as bytes and their ends: a list of objects takes some 100 bytes
    more for each, and every process that only counts references to them gets a copy of its own.

    Args:
        names: text; what no encoding can hold is kept as a file system would.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self.content = np.frombuffer(b"".join(encoded), np.uint8)
        self.ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    @staticmethod
    def from_arrays(content: np.ndarray, ends: np.ndarray) -> Names:
        """Return the names that `content` (uint8) and `ends` (int64 [N + 1]) hold."""
        names = Names()
        names.content, names.ends = content, ends
        return names

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Names: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        index = int(index)
        index += len(self) if index < 0 else 0
        if not 0 <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        start, end = self.ends[index : index + 2]
        return self.content[start:end].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def take(self, indices: Any) -> Names:
        """Return the names at these indices, in their order."""
        indices = np.asarray(indices, np.int64)
        starts, sizes = self.ends[indices], np.diff(self.ends)[indices]
        ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        # for each byte of the result, where it comes from
        source = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], sizes)
        return Names.from_arrays(self.content[source], ends)

    @property
    def nbytes(self) -> int:
        """What they take [bytes]."""
        return int(self.content.nbytes + self.ends.nbytes)
