"""Read a file of torch.save again by a table of its tensors, made when it was read first.

torch's reader goes through the file's pickle in Python, which for a small network takes longer than
all the rest. The table says of each tensor what it is and where its bytes are; so the file is read
once, into the memory of the tensors. A table belongs to one state of one file, and what it
gives was compared with what torch's reader gives, bit for bit, before it was kept.
"""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..remembered import recall, remember
from .verified import is_steady, state_of

__all__ = ["read_by_table", "remember_table"]

_MOST = 100_000


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


def _read(file: BinaryIO, table: Mapping[str, Any]) -> OrderedDict[str, Tensor]:
    found: OrderedDict[str, Tensor] = OrderedDict()
    for key, kind, shape, offset in table["tensors"]:
        tensor = torch.empty(shape, dtype=getattr(torch, kind))
        memory: Any = _bytes(tensor).numpy()
        file.seek(offset)
        if file.readinto(memoryview(memory)) != memory.nbytes:  # type: ignore[attr-defined]
            raise ValueError(f"the file ends inside of {key!r}")
        found[key] = tensor
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
        return a.dtype == b.dtype and a.shape == b.shape and _bytes(a).equal(_bytes(b))

    metadata = getattr(content, "_metadata", None)
    return (
        list(found) == list(content)
        and all(same(found[key], content[key]) for key in content)
        and (metadata is None) == (getattr(found, "_metadata", None) is None)
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
