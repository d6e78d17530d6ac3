"""Open a saved model: read the file, check it, build what its recipe describes, and fill it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from .advice.words import on_file, on_missing
from .assemble import assemble
from .errors import (
    FreezeError,
    HeadError,
    RecipeError,
    StageError,
    UnknownNameError,
    WeightsError,
    describe_error,
    join_names,
    short_repr,
)
from .from_module import module_backbone
from .local import OWN
from .model.fingerprint import fingerprint
from .model.hybrid import HybridModel
from .model.saving import KEYS, MODULE_KEY, how_to_load
from .recipe import Recipe, make_plan
from .registry import Registry
from .specs import BlockSpec
from .surgery.gates import restore_gates
from .surgery.patches import rollback_on_error
from .weights.digest import digest_of

__all__ = ["load", "open_model"]


def load(
    path: str | Path, *, module: nn.Module | None = None, registry: Registry | None = None
) -> HybridModel:
    """Read a model that `HybridModel.save` wrote, and return it in eval mode.

    Nothing in the file is run; its names are looked up in the registry.

    Args:
        path: the file.
        module: for a model that `HybridBuilder.from_module` made: a new network of the same kind,
            which becomes the model.
        registry: where names are looked up; by default what is installed.

    Raises:
        WeightsError: the file is damaged, was not written by `save`, or needs a module (or does
            not, and one was given).
        UnknownNameError: it needs a plugin that is not installed.
    """
    return open_model(path, registry or Registry(), module)


def open_model(
    path: str | Path, registry: Registry, module: nn.Module | None = None
) -> HybridModel:
    """Read a model as `load` does, by the names of a registry."""
    if not isinstance(path, (str, PathLike)):
        what = "load takes the path of a file that HybridModel.save wrote"
        hint = ". A state dict goes into a model by partial_load" if isinstance(path, dict) else ""
        raise WeightsError(f"{what}, not {short_repr(path)}{hint}")
    path = Path(path)
    tensors, content = _read(path)
    _check_module(path, content, module)
    with nullcontext() if module is None else rollback_on_error(module):
        return _load(path, registry, module, tensors, content)


def _check_module(path: Path, content: Mapping[str, Any], module: nn.Module | None) -> None:
    own = content.get(MODULE_KEY)
    if own is not None and module is None:
        raise WeightsError(
            f"{path}: made from a module of your own ({own.get('type')}), which no file can "
            "rebuild: make a new one and "
            f"pass it: tvc_core.load({str(path)!r}, module=network)"
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
    # A file is data, and everything in it could be wrong: the recipe is read under the rules for
    # recipes, which reach nothing. Then the model is built without its pretrained weights, whose
    # place the file's tensors take, and compared with the file key by key and shape by shape before
    # one tensor is copied. What cannot be told from tensors (classes, freezing, the step-0
    # difference) comes last.
    try:
        recipe = Recipe.from_mapping(content["recipe"], source=str(path))
    except RecipeError as error:
        raise WeightsError(f"{path}: the recipe inside is not valid: {error}") from error
    if content["format"] < 3:
        recipe = _with_starts_of_their_own(recipe)
    backbone = None if module is None else module_backbone(module, **content[MODULE_KEY])
    _check_own(path, recipe, registry)
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
    # Copying would convert a bfloat16 file back to float32 without a word. Where the types differ,
    # the file's tensors become the model's. Otherwise they are copied, so that the parameters stay
    # the objects that the build made and tied tensors stay tied.
    assign = any(own[name].dtype != tensors[name].dtype for name in own)
    # keeps the metadata of the state dict, without which MNASNet refuses to load
    own.update(tensors)
    model.load_state_dict(own, assign=assign)
    try:
        model.class_names = content["class_names"] or None
        model.load_freeze_state(content["freeze"])
    except (FreezeError, HeadError, StageError) as error:
        raise WeightsError(f"{path}: {error}") from error
    state = model._hybrid
    state.originals = {}  # their weights are not in the file
    state.step0_difference = float(content["step0_difference"])
    state.verified = bool(content["verified"])
    state.metadata = dict(content.get("metadata") or {})
    state.modules = fingerprint(model)
    model.eval()
    return model


def _check_own(path: Path, recipe: Recipe, registry: Registry) -> None:
    """Refuse to look for blocks of the user's own unless they were handed over."""
    known = {offer.qualified for offer in registry.all(BlockSpec)}
    names = [str(entry.block) for entry in recipe.patches if entry.block not in known]
    own = [name.partition(":")[2] for name in names if name.startswith(f"{OWN}:")]
    if own:
        raise UnknownNameError(
            f"{path}: the blocks {join_names(dict.fromkeys(own))} are classes or modules of the "
            f"code that built the model. {how_to_load(dict.fromkeys(own), path)}"
        )


def _with_starts_of_their_own(recipe: Recipe) -> Recipe:
    """Return the recipe of an older file for what it was built as: its replacements took nothing
    over, such as the eps of a normalization, which is in no tensor.
    """
    patches = (
        replace(entry, init="tvc-core:paper")
        if entry.op == "tvc-core:replace" and entry.init is None
        else entry
        for entry in recipe.patches
    )
    return replace(recipe, patches=tuple(patches))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        hint = on_missing(path, (".safetensors",))
        raise WeightsError(
            f"{path}: the model cannot be read: {error.strerror or error}{hint and f'.{hint}'}"
        ) from error
    if other := on_file(path, data, "model"):
        raise WeightsError(f"{path}: not a model that HybridModel.save wrote.{other}")
    try:
        tensors = safetensors.torch.load(data)
        # The safetensors format: eight bytes with the length of the header, the header in JSON,
        # then the tensors. The library returns the tensors only, and tvc's part is a text in the
        # header's metadata.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        text = header.get("__metadata__", {}).get("tvc")
        content: dict[str, Any] = json.loads(text)
    except Exception as error:  # a damaged file raises nearly anything
        raise WeightsError(
            f"{path}: not a model that HybridModel.save wrote, or damaged: {describe_error(error)}"
        ) from error
    version = content.get("format") if isinstance(content, dict) else None
    keys = KEYS.get(version) if type(version) is int else None
    if keys is None or set(content) - {MODULE_KEY} != set(keys):
        known = " or ".join(map(str, KEYS))
        raise WeightsError(f"{path}: damaged, or of another format than {known}: {version!r}")
    if content.pop("sha256") != digest_of(content, tensors):
        raise WeightsError(
            f"{path}: damaged: its content does not have the hash that it was written with"
        )
    return tensors, content
