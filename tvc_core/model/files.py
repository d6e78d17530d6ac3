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
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import FreezeError, HeadError, RecipeError, StageError, WeightsError, join_names
from ..from_module import described, module_backbone
from ..recipe import Recipe, make_plan
from ..registry import Registry
from ..specs import FROM_MODULE
from ..surgery.gates import restore_gates
from ..surgery.head import dropout_of
from ..surgery.patches import rollback_on_error
from .hybrid import HybridModel

__all__ = ["load", "save"]

FORMAT = 1
_KEYS = ("format", "recipe", "freeze", "class_names", "step0_difference", "verified", "sha256")
_MODULE_KEY = "module"
"""Only in files of models that were made from somebody's own module: what `from_module` was told
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
        content[_MODULE_KEY] = described(facts.plan.backbone.spec, model)
    tensors = {
        name: t.detach().to("cpu").contiguous().clone() for name, t in model.state_dict().items()
    }
    try:
        content["sha256"] = _digest(content, tensors)
        metadata = {"tvc": json.dumps(content, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: the recipe has a value that cannot be written as JSON: {error}"
        ) from error
    data = safetensors.torch.save(tensors, metadata=metadata)
    _write(path, data)


def load(
    path: Path, registry: Registry | None = None, module: nn.Module | None = None
) -> HybridModel:
    """Read a model that `save` wrote."""
    tensors, content = _read(path)
    _check_module(path, content, module)
    with nullcontext() if module is None else rollback_on_error(module):
        return _load(path, registry or Registry(), module, tensors, content)


def _check_module(path: Path, content: Mapping[str, Any], module: nn.Module | None) -> None:
    own = content.get(_MODULE_KEY)
    if own is not None and module is None:
        raise WeightsError(
            f"{path}: made from a module of somebody's own ({own.get('type')}), which no file can "
            "rebuild: make a new one and "
            f"pass it: HybridModel.load({str(path)!r}, module=network)"
        )
    if own is None and module is not None:
        raise WeightsError(
            f"{path}: rebuilds its own backbone, {content['recipe']['backbone']['name']}; leave "
            "module out"
        )


def _load(
    path: Path,
    registry: Registry,
    module: nn.Module | None,
    tensors: dict[str, Tensor],
    content: dict[str, Any],
) -> HybridModel:
    from ..assemble import assemble

    try:
        recipe = Recipe.from_mapping(content["recipe"], source=str(path))
    except RecipeError as error:
        raise WeightsError(f"{path}: the recipe inside is not valid: {error}") from error
    backbone = None if module is None else module_backbone(module, **content[_MODULE_KEY])
    model = assemble(make_plan(recipe, registry, backbone), pretrained=False)
    restore_gates(model, tensors)
    own = model.state_dict()
    if own.keys() != tensors.keys():
        lost, extra = [k for k in own if k not in tensors], [k for k in tensors if k not in own]
        raise WeightsError(
            f"{path}: does not fit its own recipe: lacks {join_names(lost, most=4)}; has also "
            f"{join_names(extra, most=4)}"
        )
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise WeightsError(
                f"{path}: {name} has the shape {list(tensors[name].shape)}, its recipe gives "
                f"{list(tensor.shape)}"
            )
    assign = any(own[name].dtype != tensors[name].dtype for name in own)
    # keeps the metadata of the state dict, without which MNASNet refuses to load
    own.update(tensors)
    model.load_state_dict(own, assign=assign)
    try:
        model.class_names = content["class_names"]
        model.load_freeze_state(content["freeze"])
    except (FreezeError, HeadError, StageError) as error:
        raise WeightsError(f"{path}: {error}") from error
    model._hybrid.originals = {}  # their weights are not in the file
    model._hybrid.step0_difference, model._hybrid.verified = (
        float(content["step0_difference"]),
        bool(content["verified"]),
    )
    return model


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{path}: the model cannot be read: {error.strerror or error}"
        ) from error
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        text = header.get("__metadata__", {}).get("tvc")
        content = json.loads(text) if text is not None else None
    except Exception as error:  # a damaged file raises nearly anything
        raise WeightsError(
            f"{path}: not a model that HybridModel.save wrote, or damaged: {error}"
        ) from error
    if content is None:
        raise WeightsError(
            f"{path}: holds tensors but no recipe: HybridModel.save did not write it. Build the "
            "model, then use partial_load."
        )
    if (
        not isinstance(content, dict)
        or set(content) - {_MODULE_KEY} != set(_KEYS)
        or content["format"] != FORMAT
    ):
        given = content.get("format") if isinstance(content, dict) else None
        raise WeightsError(f"{path}: damaged, or of another format than {FORMAT}: {given!r}")
    if content.pop("sha256") != _digest(content, tensors):
        raise WeightsError(
            f"{path}: damaged: its content does not have the hash that it was written with"
        )
    return tensors, content


def _digest(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
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
