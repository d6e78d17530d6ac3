"""Checkpoints: tensors in safetensors format with JSON beside them in one file, written whole and
durably, with a digest over all of it. Nothing in a file is run.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import TrainingError

__all__ = ["Checkpoint", "Checkpoints", "read_checkpoint", "write_checkpoint"]

FORMAT = 1
_MOST_JSON = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a training between two steps.

    Args:
        content: plain data: position, rows, sums, key.
        tensors: by names such as "model.fc.weight", "ema.fc.weight", "optimizer.fc.weight.exp_avg".
    """

    content: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def below(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with a prefix and a dot, without it."""
        start = f"{prefix}."
        return {k[len(start) :]: t for k, t in self.tensors.items() if k.startswith(start)}


class Checkpoints:
    """The checkpoints of a run: the last two, and the best.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def best(self) -> Path:
        """The checkpoint with the best figure."""
        return self.folder / "best.safetensors"

    def at(self, step: int) -> Path:
        """Return the file of a step."""
        return self.folder / f"step-{step:09d}.safetensors"

    def files(self) -> list[Path]:
        """Return the files of steps, newest first."""
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)

    def write(self, step: int, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and remove all but the last two.

        Raises:
            TrainingError: it cannot be written; those before are still there.
        """
        write_checkpoint(self.at(step), checkpoint)
        for old in self.files()[2:]:
            old.unlink(missing_ok=True)

    def newest(self) -> tuple[Path, Checkpoint] | None:
        """Return the newest checkpoint that is whole; None where there is none.

        Warns of each newer one that is damaged.

        Raises:
            TrainingError: there are some, and all are damaged.
        """
        problems, files = [], self.files()
        for number, path in enumerate(files):
            try:
                found = read_checkpoint(path)
                for old in files[number + 2 :]:  # it was killed before it removed them
                    old.unlink(missing_ok=True)
                return path, found
            except TrainingError as error:
                problems.append(str(error))
                warnings.warn(
                    f"{error}. Training goes on from the one before", UserWarning, stacklevel=2
                )
        if problems:
            raise TrainingError(
                f"no checkpoint in {self.folder} is whole: {problems[0]}. Start over in another "
                "folder"
            )
        return None

    def clean(self) -> None:
        """Remove what writing left that was killed."""
        for path in self.folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all, so that it is there after a loss of power.

    Raises:
        TrainingError: it cannot be written, such as on a full disk.
    """
    tensors = _own_memory(checkpoint.tensors)
    content = {**checkpoint.content, "format": FORMAT}
    content["sha256"] = _digest(content, tensors)
    text = json.dumps(content, allow_nan=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, beside, {"tvc-train": text})
        for place in (beside, None):
            if place is None:
                beside.replace(path)
            descriptor = os.open(place or path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TrainingError(
            f"{path} cannot be written: {reason}. The checkpoints before it are whole; make room, "
            "and go on with --resume"
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, and hold it against its digest.

    Raises:
        TrainingError: it cannot be read, is damaged, or is of another format.
    """
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("tvc-train", "")
            if not text or len(text) > _MOST_JSON:
                raise TrainingError(f"{path} was not written by tvc train")
            content = json.loads(text)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
    except (OSError, SafetensorError, ValueError, RecursionError, RuntimeError) as error:
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        raise TrainingError(f"{path} is damaged: what stands beside its tensors is no mapping")
    said = content.pop("sha256", None)
    if said != _digest(content, tensors):
        raise TrainingError(f"{path} is damaged: its content has another hash than it says")
    if content.pop("format", None) != FORMAT:
        raise TrainingError(f"{path} is of another format than this version of tvc-train reads")
    return Checkpoint(content=content, tensors=tensors)


def _digest(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        if tensor.numel():
            digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return digest.hexdigest()


def _own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors on the CPU, none of which shares memory with another."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        each = tensor.detach().to("cpu").contiguous()
        storage = each.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != each.numel() * each.element_size():
            each = each.clone()
        seen.add(each.untyped_storage().data_ptr())
        found[name] = each
    return found
