"""Open weight files: the hash is compared first, and nothing in a file is ever run.

What a file is, its first bytes say, not its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from ..errors import WeightsError
from ..specs import WeightsSpec
from .cache import cached_file
from .container import MOST_TENSORS, read_header, read_tensors
from .content import BASE_KEY
from .deferred import lend
from .entries import Checkpoint, check_state_dict, pick_entry
from .limits import Room
from .looking import (
    HEAD,
    foreign_kind,
    has_safetensors_header,
    open_file,
    path_of,
    reading,
    records_in,
    why_not_opened,
)
from .ownfile import own_file
from .shards import file_in_folder, parts_of, refuse_part
from .tables import read_by_table, remember_table
from .verified import compare_hash, unchanged, verification_is_off

__all__ = ["open_checkpoint", "read_state_dict", "state_dict_for", "verification_is_off"]


Content = tuple[Any, Mapping[str, Any] | None]
"""What is in a file, and what tvc wrote beside the tensors."""


def read_state_dict(
    path: str | Path | WeightsSpec,
    *,
    sha256: str | None = None,
    entry: str | Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file, from one that torch.save wrote, or from the index
    of a sharded one.

    Files of torch.save are opened with `weights_only=True`, always: there is no other way to open
    them here. Files that `HybridModel.save` wrote are compared with the hash inside.

    Args:
        path: the file, or the folder with `model.safetensors.index.json` or `model.safetensors`;
            or a pretrained set with a `url`, whose file is downloaded on first use and compared
            with the set's `sha256` each time.
        sha256: start of the SHA-256 that the file must have, in hexadecimal. TVC_VERIFY_WEIGHTS=0
            skips only this.
        entry: of a training checkpoint, the entry that holds the state dict: its name, or the way
            to it, as "state.model".

    Raises:
        WeightsError: the file cannot be downloaded or read, has another hash, is damaged, or holds
            no state dict; or the pretrained set has no `url`.
    """
    if isinstance(path, WeightsSpec):
        if not path.url:
            raise WeightsError(f"WeightsSpec {path.name!r} has no url, so nothing says which file")
        sha256 = sha256 or path.sha256
        path = cached_file(path.url, path.sha256)
    return _state_dict(path_of(path, "read_state_dict"), sha256, entry, None)


def state_dict_for(model: nn.Module, path: Path, entry: str | None) -> dict[str, Tensor]:
    """Read a state dict for a model that it fills whole.

    Raises:
        WeightsError: as `read_state_dict`; or it is many times as large as the model.
    """
    return _state_dict(path, None, entry, Room.of(model), lambda name: f"weights='{path}#{name}'")


def _state_dict(
    path: Path,
    sha256: str | None,
    entry: str | Sequence[str] | None,
    room: Room | None,
    say: Callable[[str], str] = "entry={!r}".format,
) -> dict[str, Tensor]:
    with torch._C.DisableTorchFunction():  # reading is no mode's business, deferred.py's least
        content, _ = _entry(path, sha256, entry, room)
        state = check_state_dict(content, str(path), say)
        lend(state.values())
    return state


def open_checkpoint(
    model: nn.Module, path: str | Path, entry: str | Sequence[str] | None = None
) -> Checkpoint:
    """Read a file for a model as `read_state_dict` does, with what else it says.

    Raises:
        WeightsError: as there; or it is many times as large as the model.
    """
    content, own = _entry(Path(path), None, entry, Room.of(model))
    names = own.get("class_names") if own else None
    return Checkpoint.of(content, str(path), names)


def _entry(
    path: Path, sha256: str | None, entry: str | Sequence[str] | None, room: Room | None
) -> Content:
    content, own = _open(path, sha256, room)
    found = pick_entry(content, entry, str(path))
    if room is not None and isinstance(found, Mapping):
        room.check(path, 0, len(found))
    return found, own


def _open(path: Path, sha256: str | None, room: Room | None) -> Content:
    with reading(path):
        if path.is_dir():
            path = file_in_folder(path)
        if path.name.endswith(".index.json"):
            return _sharded(path, room), None
        refuse_part(path)
        return _read(path, sha256, room)


def _sharded(index: Path, room: Room | None) -> dict[str, Tensor]:
    parts, names = parts_of(index)
    tensors: dict[str, Tensor] = {}
    for part in parts:
        content, _ = _read(part, None, room)
        if not isinstance(content, Mapping):
            raise WeightsError(f"{part}: holds no state dict")
        tensors |= content
        if room is not None:
            room.check(index, sum(tensor.nbytes for tensor in tensors.values()))
    lacking = [name for name in names if name not in tensors]
    if lacking:
        raise WeightsError(
            f"{index}: its parts lack {len(lacking)} tensors, such as {lacking[0]!r}"
        )
    return tensors


def _read(path: Path, sha256: str | None, room: Room | None) -> Content:
    with open_file(path) as file, unchanged(file, path):
        if sha256 is not None:
            compare_hash(file, path, sha256)
        return _load(file, path, room)


def _load(file: BinaryIO, path: Path, room: Room | None) -> Content:
    head = file.read(HEAD)
    size = os.fstat(file.fileno()).st_size
    if room is not None:
        room.check(path, size, records_in(file, size) if head[:2] == b"PK" else 0)
    file.seek(0)
    if path.suffix.lower() == ".safetensors" or has_safetensors_header(head, size):
        return _load_safetensors(file, path, size, head, room)
    if (known := read_by_table(file)) is not None:
        return known, None
    if foreign := foreign_kind(head):
        raise WeightsError(f"{path}: cannot be opened as weights: it is {foreign}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        remember_table(file, path, content)
        return content, None
    except OSError:
        raise
    except Exception as error:
        # damaged files raise nearly anything: UnicodeDecodeError, IndexError, KeyError, ...
        raise WeightsError(
            f"{path}: cannot be opened as weights: {why_not_opened(path, file, head, error)}"
        ) from error


def _load_safetensors(
    file: BinaryIO, path: Path, size: int, head: bytes, room: Room | None
) -> Content:
    if not has_safetensors_header(head, size):
        is_other = foreign_kind(head) or ("a file of torch.save" if head[:2] == b"PK" else "")
        raise WeightsError(
            f"{path}: not a safetensors file, or damaged" + (f": it is {is_other}" * bool(is_other))
        )
    header = read_header(file, path, MOST_TENSORS if room is None else room.count)
    if "tvc" not in header.metadata:
        return read_tensors(file, header.entries, path), None
    own = own_file(file, path, header)
    tensors = own.read()
    if BASE_KEY in own.content:
        raise WeightsError(
            f"{path}: holds only what differs from another file, its base: tvc_core.load reads both"
        )
    return tensors, own.content
