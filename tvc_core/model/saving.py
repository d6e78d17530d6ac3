"""One file for a whole model: tensors in safetensors format, and the recipe, freeze state and class
names beside them.

The file's metadata has one entry "tvc": a JSON object with the format version, the recipe with
qualified names, the freeze state, the class names, the step-0 difference, whether the hash of the
pretrained weights had been compared, and the SHA-256 of all of these and of every tensor's name,
type, shape and bytes. A reader MUST refuse a file whose hash differs, and MUST NOT import anything
that the file names.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import WeightsError
from ..from_module import described
from ..specs import FROM_MODULE
from ..surgery.head import dropout_of
from .hybrid import HybridModel

__all__ = ["FORMAT", "KEYS", "MODULE_KEY", "digest", "save"]

FORMAT = 1
KEYS = ("format", "recipe", "freeze", "class_names", "step0_difference", "verified", "sha256")
MODULE_KEY = "module"
"""Only in files of models that were made from a user's own module: what `from_module` was told
about it.
"""


def save(model: HybridModel, path: Path) -> None:
    """Write a model, whole or not at all: into a file beside it first, which then takes its
    place.
    """
    facts = model._hybrid
    recipe = facts.plan.recipe.to_mapping()
    head: dict[str, Any] = {"num_classes": model.num_classes}
    dropout = dropout_of(model, facts.anatomy.head)
    if dropout is not None and 0 <= dropout < 1:
        head["dropout"] = dropout
    recipe["head"] = {**recipe.get("head", {}), **head}
    recipe["head"].pop("class_names", None)
    content: dict[str, Any] = {
        "format": FORMAT,
        "recipe": recipe,
        "freeze": model.freeze_state(),
        "class_names": None if model.class_names is None else list(model.class_names),
        "step0_difference": repr(facts.step0_difference),
        "verified": facts.verified,
    }
    if facts.plan.backbone.owner == FROM_MODULE:
        content[MODULE_KEY] = described(facts.plan.backbone.spec, model)
    tensors = {
        name: t.detach().to("cpu").contiguous().clone() for name, t in model.state_dict().items()
    }
    try:
        content["sha256"] = digest(content, tensors)
        metadata = {"tvc": json.dumps(content, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: the recipe has a value that cannot be written as JSON: {error}"
        ) from error
    data = safetensors.torch.save(tensors, metadata=metadata)
    _write(path, data)


def digest(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a file's content and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(
            tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        )
    return digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                temporary.chmod(0o666 & ~_umask())
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise WeightsError(
            f"{path}: the model cannot be written: {error.strerror or error}"
        ) from error
    # the file is whole and in its place; not every file system can sync a folder
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
