"""Weights in several files: folders, and the index of what is in which part."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from ..errors import WeightsError, join_names
from .container import MOST_HEADER

__all__ = ["file_in_folder", "parts_of", "refuse_distributed", "refuse_part"]

_USUAL = (
    "model.safetensors.index.json", "model.safetensors", "open_clip_model.safetensors",
    "pytorch_model.bin.index.json", "pytorch_model.bin", "open_clip_pytorch_model.bin",
)  # fmt: skip
"""What the file is called in folders of the Hugging Face hub, the safe format first."""


def file_in_folder(folder: Path) -> Path:
    """Return the file that holds a folder's weights, by the names that are usual for it.

    Raises:
        WeightsError: there is none, or the folder is a distributed checkpoint.
    """
    refuse_distributed(folder)
    for name in _USUAL:
        if (folder / name).is_file():
            return folder / name
    found = join_names(sorted(file.name for file in folder.iterdir()), most=8)
    raise WeightsError(f"{folder}: a folder without a model.safetensors. In it: {found}")


def refuse_distributed(path: Path) -> None:
    """Refuse a distributed checkpoint of torch: its folder, its index, or one of its parts.

    Raises:
        WeightsError: it is one.
    """
    is_part = path.name == ".metadata" or path.suffix == ".distcp"
    folder = path.parent if is_part else path
    if is_part or (folder / ".metadata").is_file():
        quoted = shlex.quote(str(folder))
        raise WeightsError(
            f"{folder}: a distributed checkpoint of torch, whose index is a pickle, which can run "
            "code, so tvc does not open it. If you trust it, convert it by torch's own tool: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {quoted} model.pth"
        )


def refuse_part(path: Path) -> None:
    """Refuse one part of many: half a model would be loaded.

    Raises:
        WeightsError: the name is that of a part, such as model-00001-of-00002.safetensors.
    """
    found = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})(\.\w+)", path.name)
    if found and int(found.group(2)) > 1:
        index = path.with_name(f"{found.group(1)}{found.group(3)}.index.json")
        there = "" if index.exists() else ", which is missing beside it"
        raise WeightsError(
            f"{path}: one of {int(found.group(2))} parts of a sharded file; pass its index, "
            f"{index.name}{there}"
        )


def parts_of(index: Path) -> tuple[list[Path], list[str]]:
    """Return the files that an index names, which stand in its folder, and the names of the
    tensors in them.

    Raises:
        WeightsError: it is no index, or names files elsewhere.
    """
    try:
        if index.stat().st_size > MOST_HEADER:
            raise WeightsError(f"{index}: more than {MOST_HEADER} bytes, which no index has")
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        parts = sorted(set(weight_map.values()))
        plain = all(isinstance(part, str) and re.fullmatch(r"[\w.-]+", part) for part in parts)
        if not parts or not plain:
            raise WeightsError(f"{index}: its parts are not named as files of its own folder")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{index}: no index of a sharded file: {error!r}") from error
    return [index.with_name(part) for part in parts], list(weight_map)
