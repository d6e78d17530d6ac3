"""The safetensors format: a header that says what is in the file, and the tensors' bytes.

The header is read alone, counted and checked, so that a reader can compare it with what it wants
before memory is taken. Files are written here as well, since a header with two entries of metadata
comes out of safetensors' own writer in an order that differs from run to run.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..errors import WeightsError, short_repr

__all__ = [
    "MOST_TENSORS",
    "Entry",
    "Header",
    "is_own",
    "pack",
    "read_header",
    "read_tensors",
    "strict_json",
]

MOST_HEADER = 10 << 20
"""Length of a header or an index [bytes]; safetensors' own reader stops at ten times as many."""

MOST_TENSORS = 100_000

_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "I32": "int32",
    "U32": "uint32", "I64": "int64", "U64": "uint64", "F16": "float16", "BF16": "bfloat16",
    "F32": "float32", "F64": "float64", "C64": "complex64", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, each) for name, each in _NAMES.items() if hasattr(torch, each)
}
_WRITTEN = {dtype: name for name, dtype in _DTYPES.items()}


class Entry(NamedTuple):
    """What a header says of a tensor.

    Args:
        dtype: of the tensor.
        shape: of the tensor.
        start: where its bytes begin in the file.
        size: of it [bytes].
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its tensors."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


def read_header(file: BinaryIO, path: Path, most: int = MOST_TENSORS) -> Header:
    """Return the header of an open file.

    Args:
        file: at its beginning.
        path: where it was found.
        most: tensors that it may have.

    Raises:
        WeightsError: the file is no regular one, the header is too long or has too many tensors, or
            says what cannot be.
    """
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise WeightsError(f"{path}: no regular file, so nothing is read from it")
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= status.st_size - 8:
        raise WeightsError(f"{path}: not a safetensors file, or damaged: its header is not there")
    if length > MOST_HEADER:
        raise WeightsError(
            f"{path}: its header has {length} bytes, and at most {MOST_HEADER} are read"
        )
    # A header comes from whoever made the file, so it is bounded before it is believed. Its length
    # is compared with the file's; the tensors are counted in its raw text, since a parser would
    # first build a dictionary for each; and only then it is parsed. `_check_places` makes sure that
    # no two tensors share bytes and that every byte after the header is a tensor's, so a hash of
    # all tensors covers all of them.
    data = file.read(length)
    count = data.count(b'"data_offsets"')  # before a list of them takes time and memory
    most = min(most, MOST_TENSORS)
    if count > most:
        raise WeightsError(f"{path}: {count} tensors, and at most {most} are read here")
    try:
        found = strict_json(data.decode("utf-8"))
        metadata = found.pop("__metadata__", {})
        texts = all(isinstance(each, str) for each in (*metadata, *metadata.values()))
        if not texts:
            raise ValueError("its metadata are not text")
        entries = {name: _entry(name, each, 8 + length) for name, each in found.items()}
        _check_places(entries.values(), 8 + length, status.st_size)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{path}: not a safetensors file, or damaged: {str(error)[:200]}"
        ) from error
    return Header(entries, metadata)


def is_own(path: Path) -> bool:
    """Tell whether a file says that tvc wrote it; what cannot be read does not."""
    try:
        with path.open("rb") as file:
            return "tvc" in read_header(file, path).metadata
    except (OSError, ValueError, WeightsError):
        return False


def strict_json(text: str) -> Any:
    """Return what JSON text says; a key that stands twice is a ValueError."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice in its JSON")
        return found

    return json.loads(text, object_pairs_hook=once)


def _entry(name: str, said: Mapping[str, Any], begin: int) -> Entry:
    dtype, shape, (start, end) = _DTYPES[said["dtype"]], said["shape"], said["data_offsets"]
    for number in (*shape, start, end):
        if type(number) is not int or not 0 <= number < 2**48:
            raise ValueError(f"{short_repr(name)} has a size that cannot be")
    if len(said) != 3 or math.prod(shape) * dtype.itemsize != end - start:
        raise ValueError(f"{short_repr(name)} has another size than its shape says")
    return Entry(dtype, tuple(shape), begin + start, end - start)


def _check_places(entries: Iterable[Entry], begin: int, size: int) -> None:
    """Refuse holes and overlaps: every byte of the file belongs to one tensor."""
    for entry in sorted(entries, key=lambda each: (each.start, each.size)):
        if entry.start != begin:
            raise ValueError("its tensors do not lie one after another")
        begin += entry.size
    if begin != size:
        raise ValueError(f"it has {size:,} bytes, and its header speaks of {begin:,}")


def read_tensors(file: BinaryIO, entries: Mapping[str, Entry], path: Path) -> dict[str, Tensor]:
    """Return tensors whose bytes are read once, into their own memory.

    Raises:
        WeightsError: the file ends before, or there is no memory for it.
    """
    tensors: dict[str, Tensor] = {}
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        try:
            tensor = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
        except RuntimeError as error:
            raise WeightsError(
                f"{path}: there is no memory for {short_repr(name)}, of {entry.size:,} bytes"
            ) from error
        if entry.size:
            file.seek(entry.start)
            memory: Any = tensor.reshape(-1).view(torch.uint8).numpy()
            if file.readinto(memory) != entry.size:  # type: ignore[attr-defined]
                raise WeightsError(f"{path}: was cut off while it was read")
        tensors[name] = tensor
    return {name: tensors[name] for name in entries}


def pack(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a file, the same for the same tensors and metadata: the header, then each
    tensor, those of large numbers first, as safetensors' own writer sorts them.

    Raises:
        TypeError: the format has no name for a tensor's type.
    """
    # Wide types first, so that each tensor begins at a multiple of the size of its numbers, and a
    # reader that maps the file can use the bytes where they are. The header is filled up with
    # spaces to a multiple of 8 bytes for the same reason. By name within a type, so that equal
    # models give equal files.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _WRITTEN:
            raise TypeError(f"{name} is of {tensor.dtype}, which safetensors has no name for")
        end = begin + tensor.numel() * tensor.dtype.itemsize
        header[name] = {
            "dtype": _WRITTEN[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER or len(tensors) > MOST_TENSORS:
        raise ValueError(
            f"a header of {len(text):,} bytes for {len(tensors):,} tensors, of which "
            f"{MOST_HEADER:,} and {MOST_TENSORS:,} can be read back"
        )
    yield len(text).to_bytes(8, "little")
    yield text
    for name in order:
        tensor = tensors[name].detach().cpu().contiguous()
        if tensor.numel():
            yield memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
