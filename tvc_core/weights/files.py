"""Open weight files: the hash is compared first, and nothing in a file is ever run.

What a file is, its first bytes say, not its name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import WeightsError
from .digest import digest_of
from .entries import Checkpoint, check_state_dict, pick_entry

__all__ = ["hash_in_name", "open_checkpoint", "read_state_dict", "verification_is_off"]

SWITCH = "TVC_VERIFY_WEIGHTS"
MOST_TENSORS = 100_000
MOST_HEADER = 10 << 20
"""Of a safetensors file: its header [bytes]."""

_warned = False


def verification_is_off() -> bool:
    """Tell whether TVC_VERIFY_WEIGHTS=0 skips the comparison of hashes."""
    return os.environ.get(SWITCH, "1").strip() == "0"


def hash_in_name(name: str) -> str | None:
    """Return the start of the SHA-256 that an official file name carries, as in
    resnet50-11ad3fa6.pth.
    """
    found = re.search(r"-([a-f0-9]{8,64})\.[A-Za-z0-9]+$", name)
    return found.group(1) if found else None


def read_state_dict(
    path: str | Path, *, sha256: str | None = None, entry: str | Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file, from one that torch.save wrote, or from the index
    of a sharded one.

    Files of torch.save are opened with `weights_only=True`, always: there is no other way to open
    them here. Files that `HybridModel.save` wrote are compared with the hash inside.

    Args:
        path: the file, or the folder with `model.safetensors.index.json` or `model.safetensors`.
        sha256: start of the SHA-256 that the file must have, in hexadecimal. TVC_VERIFY_WEIGHTS=0
            skips only this.
        entry: of a training checkpoint, the entry that holds the state dict: its name, or the way
            to it, as "state.model".

    Raises:
        WeightsError: the file cannot be read, has another hash, is damaged, or holds no state dict.
    """
    content, _ = _open(Path(path), sha256)
    return check_state_dict(pick_entry(content, entry, str(path)), str(path))


def open_checkpoint(path: str | Path, entry: str | Sequence[str] | None = None) -> Checkpoint:
    """Read a file as `read_state_dict` does, with what else it says.

    Raises:
        WeightsError: as there.
    """
    content, own = _open(Path(path), None)
    names = own.get("class_names") if own else None
    names = names if isinstance(names, list) and all(isinstance(n, str) for n in names) else None
    return Checkpoint.of(pick_entry(content, entry, str(path)), str(path), names)


def _open(path: Path, sha256: str | None) -> tuple[Any, dict[str, Any] | None]:
    try:
        if path.is_dir():
            path = _in_folder(path)
        if path.name.endswith(".index.json"):
            return _sharded(path), None
        _refuse_shard(path)
        return _read(path, sha256)
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(f"{path}: the weights cannot be read: {reason}") from error


def _read(path: Path, sha256: str | None) -> tuple[Any, dict[str, Any] | None]:
    if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
        raise WeightsError(f"{path}: no regular file, so no weights are read from it")
    with path.open("rb") as file:
        if sha256 is not None:
            _compare(file, path, sha256)
        return _load(file, path)


def _compare(file: BinaryIO, path: Path, sha256: str) -> None:
    global _warned
    if verification_is_off():
        if not _warned:
            warnings.warn(
                f"{SWITCH}=0: weight files are used without comparing their hash",
                UserWarning,
                stacklevel=7,
            )
            _warned = True
        return
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    file.seek(0)
    found = digest.hexdigest()
    if not found.startswith(sha256.lower()):
        raise WeightsError(
            f"{path}: its SHA-256 starts with {found[: len(sha256)]}, its name promises {sha256}: "
            "the file is damaged or not "
            f"the official one. Delete it and build again to download it, or set {SWITCH}=0 to use "
            "it all the same."
        )


def _load(file: BinaryIO, path: Path) -> tuple[Any, dict[str, Any] | None]:
    """Return the content, and what tvc wrote beside the tensors."""
    head = file.read(64)
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    if path.suffix.lower() == ".safetensors" or _has_safetensors_header(head, size):
        return _load_safetensors(file, path, size, head)
    if foreign := _foreign(head):
        raise WeightsError(f"{path}: cannot be opened as weights: it is {foreign}")
    try:
        return torch.load(file, map_location="cpu", weights_only=True), None
    except OSError:
        raise
    except Exception as error:
        # damaged files raise nearly anything: UnicodeDecodeError, IndexError, KeyError, ...
        raise WeightsError(
            f"{path}: cannot be opened as weights: {_why(error)}; tvc never runs code from a file."
        ) from error


def _why(error: Exception) -> str:
    """Return what torch says of a file that it refuses, without its advice to open it unsafely."""
    text = " ".join(str(error).split())
    named = re.search(r"(?:GLOBAL|global:?|class|function) ([A-Za-z_][\w.]*\.[\w.]*\w)", text)
    if "TorchScript" in text:
        return "a TorchScript archive, which is a program; save its state_dict() instead"
    if isinstance(error, EOFError):
        return "truncated, damaged, or empty"
    if named:
        return (
            f"holds more than tensors: objects of {named.group(1)}. If you trust the file, load it "
            "with torch and pass what is in it: the state dict, as checkpoint['model'], or the "
            "module's state_dict()"
        )
    return f"truncated, damaged, or more than tensors ({type(error).__name__}: {text[:120]})"


def _foreign(head: bytes) -> str:
    """Return what a file is that holds no weights, by its first bytes."""
    start = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return (
            "the pointer of Git LFS (it begins with 'version https://git-lfs') that stands for a "
            "file; fetch the file by 'git lfs pull'"
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        shown = head.split(b"\n")[0][:40].decode("ascii", "replace")
        return f"a web page (it begins with {shown!r}); the download has failed: delete it"
    if head.startswith(b"\x1f\x8b"):
        return "compressed by gzip; unpack it first"
    if start.startswith((b"{", b"[")):
        return "JSON; the index of a sharded file is known by its name, ending in .index.json"
    return ""


def _has_safetensors_header(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and head[8:9] == b"{" and 2 <= length <= size - 8


def _load_safetensors(
    file: BinaryIO, path: Path, size: int, head: bytes
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    import safetensors.torch

    if not _has_safetensors_header(head, size):
        is_other = _foreign(head) or ("a file of torch.save" if head[:2] == b"PK" else "")
        raise WeightsError(
            f"{path}: not a safetensors file, or damaged" + (f": it is {is_other}" * bool(is_other))
        )
    length = int.from_bytes(head[:8], "little")
    if length > MOST_HEADER:
        raise WeightsError(f"{path}: its header has {length} bytes; at most {MOST_HEADER} are read")
    data = file.read(8 + length)
    number = data.count(b'"data_offsets"')  # before the header is parsed
    if number > MOST_TENSORS:
        raise WeightsError(f"{path}: {number} tensors; files of at most {MOST_TENSORS} are read")
    try:
        header = json.loads(data[8:])
        text = (header.get("__metadata__") or {}).get("tvc")
        own = None if text is None else json.loads(text)
        tensors = safetensors.torch.load(data + file.read())
    except Exception as error:
        # safetensors raises its own and built-in errors, depending on the damage
        raise WeightsError(f"{path}: not a safetensors file, or damaged: {error}") from error
    if own is None:
        return tensors, None
    if not isinstance(own, dict) or own.pop("sha256", None) != digest_of(own, tensors):
        raise WeightsError(
            f"{path}: damaged: its content does not have the hash that it was written with"
        )
    return tensors, own


def _in_folder(folder: Path) -> Path:
    """Return the file that holds a folder's weights, by the names that are usual for it."""
    if (folder / ".metadata").is_file():
        raise WeightsError(
            f"{folder}: a distributed checkpoint of torch, whose index is a pickle that tvc does "
            "not open. Convert it by torch's own tool: python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} model.pth"
        )
    for name in ("model.safetensors.index.json", "model.safetensors"):
        if (folder / name).is_file():
            return folder / name
    found = sorted(file.name for file in folder.iterdir())[:8]
    raise WeightsError(f"{folder}: a folder, without a model.safetensors: it has {found}")


def _refuse_shard(path: Path) -> None:
    """Refuse one part of many: half a model would be loaded."""
    found = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})(\.\w+)", path.name)
    if found and int(found.group(2)) > 1:
        index = path.with_name(f"{found.group(1)}{found.group(3)}.index.json")
        there = "" if index.exists() else ", which is missing beside it"
        raise WeightsError(
            f"{path}: one of {int(found.group(2))} parts of a sharded file; pass its index, "
            f"{index.name}{there}"
        )


def _sharded(path: Path) -> dict[str, Tensor]:
    """Read all parts that an index names; they stand in its folder."""
    try:
        if path.stat().st_size > MOST_HEADER:
            raise WeightsError(f"{path}: more than {MOST_HEADER} bytes, which no index has")
        weight_map = json.loads(path.read_text("utf-8"))["weight_map"]
        parts = sorted(set(weight_map.values()))
        plain = all(isinstance(part, str) and re.fullmatch(r"[\w.-]+", part) for part in parts)
        if not parts or not plain:
            raise WeightsError(f"{path}: its parts are not named as files of its own folder")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: no index of a sharded file: {error!r}") from error
    tensors: dict[str, Tensor] = {}
    for part in parts:
        content, _ = _read(path.with_name(part), None)
        if not isinstance(content, Mapping):
            raise WeightsError(f"{path.with_name(part)}: holds no state dict")
        tensors |= content
    lacking = [name for name in weight_map if name not in tensors]
    if lacking:
        raise WeightsError(f"{path}: its parts lack {len(lacking)} tensors, such as {lacking[0]!r}")
    return tensors
