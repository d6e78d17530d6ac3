"""Read a file of torch.save again by a table of its tensors, made when it was read first.

torch's reader goes through the file's pickle in Python, which for a small network takes longer than
all the rest. The table says of each tensor what it is and where its bytes are; so the file is read
once, into the memory of the tensors. A table belongs to one state of one file, and what it
gives was compared with what torch's reader gives, bit for bit, before it was kept.
"""

from __future__ import annotations

import operator
import os
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..remembered import recall, remember
from .verified import is_steady, state_of

__all__ = ["bytes_of", "read_at", "read_by_table", "remember_table", "table_of"]

_MOST = 100_000
_GAP = 4096
"""Between tensors that are read together [bytes]."""
_MOST_SPANS = 1024
_MOST_BYTES = 1 << 30
"""What one call of the system may read, with gaps as spans."""
_NUMPY = frozenset(
    ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
)
"""Types of tensors that are also numpy's."""


def read_by_table(file: BinaryIO) -> OrderedDict[str, Tensor] | None:
    """Return a state dict as torch's reader would; None where there is no table for this file."""
    table = recall("tables", state_of(file))
    if not isinstance(table, dict):
        return None
    with suppress(Exception):  # torch's reader says what is wrong with the file
        return _read(file, table)
    file.seek(0)
    return None


def remember_table(file: BinaryIO, path: Path, content: Any) -> None:
    """Keep a table of a file that torch's reader has just read, if one can be made.

    Args:
        file: the open file.
        path: where it was found.
        content: what torch's reader gave.
    """
    state = state_of(file)
    if not is_steady(state) or type(content) not in (dict, OrderedDict):
        return
    with suppress(Exception):  # without a table the next read takes longer, that is all
        table = _table(path, content)
        file.seek(0)
        if table is not None and _alike(_read(file, table), content):
            remember("tables", state, table)


def table_of(file: BinaryIO) -> list[Any] | None:
    """Return key, type, shape and offset [bytes] of each tensor in a file; None where that is not
    known.
    """
    table = recall("tables", state_of(file))
    return table["tensors"] if isinstance(table, dict) else None


Row = tuple[str, Sequence[int], int]
"""Type, shape and offset of a tensor."""


def read_at(file: BinaryIO, rows: Iterable[Row]) -> list[Tensor]:
    """Return new tensors with the bytes that are at these places of a file.

    Raises:
        ValueError: the file ends before, or a place is none.
    """
    found = []
    spans: list[tuple[int, Any]] = []
    for kind, shape, offset in rows:
        tensor = torch.empty(shape, dtype=getattr(torch, kind), device="cpu")
        found.append(tensor)
        spans.append((offset, tensor.numpy() if kind in _NUMPY else bytes_of(tensor).numpy()))
    spans.sort(key=operator.itemgetter(0))
    if spans and spans[0][0] < 0:  # to the system -1 is where the last call has ended
        raise ValueError("a tensor begins before its file")
    for run in _runs(spans):
        _fill(file, run)
    return found


def _runs(spans: Iterable[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    """Yield spans that lie close together in the file, as many as one call of the system takes."""
    run: list[tuple[int, Any]] = []
    end = size = 0
    for offset, memory in spans:
        if run and (
            not 0 <= offset - end <= _GAP or 2 * len(run) >= _MOST_SPANS or size > _MOST_BYTES
        ):
            yield run
            run, size = [], 0
        run.append((offset, memory))
        end, size = offset + memory.nbytes, size + memory.nbytes
    if run:
        yield run


def _fill(file: BinaryIO, run: list[tuple[int, Any]]) -> None:
    """Read a run of spans by one call of the system; what that does not give, one by one."""
    if hasattr(os, "preadv"):
        parts, begin = [], run[0][0]
        end, rest = begin, bytearray(_GAP)  # what lies between two tensors goes there
        for offset, memory in run:
            if offset > end:
                parts.append(memoryview(rest)[: offset - end])
            parts.append(memory)
            end = offset + memory.nbytes
        if os.preadv(file.fileno(), parts, begin) == end - begin:
            return
    for offset, memory in run:
        file.seek(offset)
        whole = memoryview(memory.reshape(-1).view("uint8"))
        if file.readinto(whole) != memory.nbytes:  # type: ignore[attr-defined]
            raise ValueError(f"the file ends inside of the tensor at {offset}")


def _read(file: BinaryIO, table: Mapping[str, Any]) -> OrderedDict[str, Tensor]:
    tensors = read_at(file, [row[1:] for row in table["tensors"]])
    found = OrderedDict(zip((row[0] for row in table["tensors"]), tensors, strict=True))
    if table["metadata"] is not None:
        # `load_state_dict` writes into it
        metadata = OrderedDict((path, dict(about)) for path, about in table["metadata"].items())
        found._metadata = metadata  # type: ignore[attr-defined]
    return found


def _table(path: Path, content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return where a file's tensors are, by a reader that maps the file; None where that is not
    plain.
    """
    tensors = list(content.values())
    plain = all(type(t) is Tensor and t.is_contiguous() and t.numel() for t in tensors)
    if not plain or not 0 < len(tensors) <= _MOST:
        return None
    # A file of torch.save is a zip archive that stores each storage as an uncompressed record. Read
    # with mmap=True, all storages lie in one mapping of the file, so the distance of two addresses
    # is their distance in the file, and one known offset gives all others. That one is where the
    # first record's bytes begin: after its local header of 30 bytes, a name and an extra field,
    # whose lengths are at bytes 26 and 28 of the header. If storages and records differ in number,
    # something is stored otherwise, and there is no table. What a table gives is compared with
    # torch's result before it is ever used.
    mapped = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    starts = sorted({t.untyped_storage().data_ptr() for t in mapped.values()})
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        records = sorted(i.header_offset for i in archive.infolist() if "/data/" in i.filename)
        file.seek(records[0])
        header = file.read(30)
        first = records[0] + 30 + sum(int.from_bytes(header[k : k + 2], "little") for k in (26, 28))
    if len(starts) != len(records):
        return None
    rows = [
        [key, str(t.dtype).removeprefix("torch."), list(t.shape), t.data_ptr() - starts[0] + first]
        for key, t in mapped.items()
    ]
    return {"tensors": rows, "metadata": getattr(content, "_metadata", None)}


def _alike(found: Mapping[str, Tensor], content: Mapping[str, Tensor]) -> bool:
    def same(a: Tensor, b: Tensor) -> bool:
        return a.dtype == b.dtype and a.shape == b.shape and bytes_of(a).equal(bytes_of(b))

    metadata = getattr(content, "_metadata", None)
    return (
        list(found) == list(content)
        and all(same(found[key], content[key]) for key in content)
        and (metadata is None) == (getattr(found, "_metadata", None) is None)
    )


def bytes_of(tensor: Tensor) -> Tensor:
    """Return the memory of a contiguous tensor, as bytes."""
    return tensor.reshape(-1).view(torch.uint8)
