"""Say what is in a file of weights, without building anything from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .advice.names import lacks
from .errors import UnknownNameError
from .recipe import Recipe
from .registry import Registry
from .specs import FROM_MODULE, BackboneSpec, BlockSpec, InitializerSpec, PatchOpSpec
from .weights.container import is_own
from .weights.content import BASE_KEY, MODULE_KEY
from .weights.files import read_state_dict
from .weights.looking import path_of
from .weights.ownfile import OwnFile, open_own

__all__ = ["FileInfo", "describe_file", "info_of"]


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """What is in a file of weights.

    Args:
        path: the file.
        kind: "model" (written by `save`), "delta" (written by `save` with a `base`) or "tensors".
        num_bytes: size of the file [bytes].
        tensors: names, and the shape of each.
        num_values: of all tensors together [values].
        sha256: of a model's content and tensors, which `describe_file` has compared with it; else
            empty.
        format: version of tvc's format; 0 for tensors.
        recipe: of a model; else None, as what follows.
        class_names: one for each output, or for each of several heads; None where no one gave any.
        freeze: what is frozen, as `freeze_state` returns it.
        by_hand: parameters that are "frozen" or "trainable" otherwise than that says.
        license: of the weights that the model started from.
        preprocessing: of its images, by the fields of `WeightsSpec` that say it: those of the
            weights that it started from, by default of the backbone's default ones; empty where
            there are none. Where it was set, by those of `Preprocessing`.
        versions: of the distributions that wrote it.
        metadata: the user's own facts.
        module: the class of the user's own module that it was made from.
        base: of a delta: the name of the file that it belongs to, or backbone and weights.
        missing: names that it needs and that nothing installed offers, each with what offers it.
    """

    path: Path
    kind: str
    num_bytes: int
    tensors: Mapping[str, tuple[int, ...]]
    num_values: int
    sha256: str = ""
    format: int = 0
    recipe: Recipe | None = None
    class_names: tuple[str, ...] | Mapping[str, tuple[str, ...]] | None = None
    freeze: Mapping[str, Any] = field(default_factory=dict)
    by_hand: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    license: str | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    module: str | None = None
    base: str | None = None
    missing: tuple[str, ...] = ()


def describe_file(path: str | Path, *, registry: Registry | None = None) -> FileInfo:
    """Return what is in a file of weights. Nothing is built, and nothing in the file is run.

    Args:
        path: the file: one that `HybridModel.save` wrote, or any other of weights.
        registry: where names are looked up; by default what is installed.

    Raises:
        WeightsError: it cannot be read, is damaged, or is none of these.
        RecipeError: the recipe inside is not valid.
    """
    path = path_of(path, "describe_file")
    if is_own(path):
        with open_own(path) as file:
            file.read()  # compares the hash
            return info_of(file, registry or Registry())
    tensors = {name: tuple(tensor.shape) for name, tensor in read_state_dict(path).items()}
    return FileInfo(
        path=path,
        kind="tensors",
        num_bytes=path.stat().st_size,
        tensors=tensors,
        num_values=sum(map(math.prod, tensors.values())),
    )


def info_of(file: OwnFile, registry: Registry) -> FileInfo:
    """Return what an open file of tvc's own says."""
    content = file.content
    recipe = Recipe.from_mapping(content["recipe"], source=str(file.path))
    names = content["class_names"]
    tensors = {name: entry.shape for name, entry in file.entries.items()}
    base, module = content.get(BASE_KEY), content.get(MODULE_KEY)
    return FileInfo(
        path=file.path,
        kind="model" if base is None else "delta",
        num_bytes=file.path.stat().st_size,
        tensors=tensors,
        num_values=sum(map(math.prod, tensors.values())),
        sha256=file.sha256,
        format=content["format"],
        recipe=recipe,
        class_names={name: tuple(each) for name, each in names.items()}
        if isinstance(names, dict)
        else tuple(names or ()) or None,
        freeze=content["freeze"],
        by_hand={kind: tuple(each) for kind, each in content.get("by_hand", {}).items()},
        license=content.get("license"),
        preprocessing=content.get("preprocessing") or {},
        versions=content.get("versions", {}),
        metadata=content.get("metadata", {}),
        module=None if module is None else module["type"],
        base=None if base is None else base.get("name") or _backbone(base["recipe"]),
        missing=tuple(dict.fromkeys(_missing(recipe, registry))),
    )


def _backbone(recipe: Mapping[str, Any]) -> str:
    found = Recipe.from_mapping(recipe)
    return f"{found.backbone} with {found.weights}"


def _missing(recipe: Recipe, registry: Registry) -> Iterator[str]:
    needed: list[tuple[type[Any], Any]] = []
    if not recipe.backbone.startswith(f"{FROM_MODULE}:"):
        needed.append((BackboneSpec, recipe.backbone))
    for entry in recipe.patches:
        needed += [(PatchOpSpec, entry.op), (BlockSpec, entry.block), (InitializerSpec, entry.init)]
    statuses = {info.owner: info.status for info in registry.plugins}
    for kind, name in needed:
        if name is None:
            continue
        try:
            registry.resolve(kind, name)
        except UnknownNameError:
            owner = lacks(registry, kind, name) or name.rpartition(":")[0]
            hint = f"pip install {owner}"
            if owner in statuses:
                hint = f"the plugin {owner} is {statuses[owner]}"
            yield f"{kind.kind} {name} ({hint})"
