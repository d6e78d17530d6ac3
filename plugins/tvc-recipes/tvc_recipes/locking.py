"""Write down what a recipe is built with, and refuse to build it with anything else.

A lock is a recipe itself: every name qualified, nothing to extend, and a section `lock` with the
versions of the distributions and the hash of the weights.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from tvc_core import HybridBuilder, Recipe, RecipeDocument, Registry, load_recipe

__all__ = ["check", "lock_recipe"]

_ALWAYS = ("tvc-core", "torch", "torchvision")


def lock_recipe(
    path: str | Path, *, changes: Mapping[str, Any] | None = None, registry: Registry | None = None
) -> Recipe:
    """Return a recipe with every name qualified and a section `lock`. The weights are downloaded
    where they are not there yet.

    Args:
        path: the file.
        changes: as `tvc_core.load_recipe` takes them.
        registry: where names are looked up; by default what is installed.

    Raises:
        TvcError: the recipe is wrong, or its weights are not available.
    """
    registry = registry or Registry()
    recipe = load_recipe(path, changes=changes, registry=registry)
    resolved = HybridBuilder(registry=registry).resolve(recipe)
    owners = {resolved.backbone, *(entry.op for entry in resolved.patches)}
    owners |= {entry.block for entry in resolved.patches if isinstance(entry.block, str)}
    owners |= {entry.init for entry in resolved.patches if entry.init}
    names = {*_ALWAYS, *(str(name).partition(":")[0] for name in owners)}
    lock: dict[str, Any] = {"plugins": dict(sorted(_versions(names)))}
    if (file := _weights_file(recipe, resolved, Path(path).parent, registry)) is not None:
        lock["weights"] = {"file": file.name, "sha256": _sha256(file)}
    return replace(resolved, sections={**resolved.sections, "lock": lock})


def check(document: RecipeDocument) -> RecipeDocument:
    """Return a locked recipe without its lock, if what it says holds here.

    Raises:
        RecipeError: a distribution has another version or is missing, or the weights have another
            hash; all of them are named.
    """
    lock, place = document.data["lock"], document.place / "lock"
    if not isinstance(lock, Mapping):
        raise place.error("lock is a mapping, as `tvc lock` writes it")
    plugins = lock.get("plugins", {})
    weights = lock.get("weights", {})
    if not isinstance(plugins, Mapping) or not isinstance(weights, Mapping):
        raise place.error("plugins and weights are mappings, as `tvc lock` writes them")
    here = dict(_versions(plugins))
    wrong = [
        f"{name} is {here.get(name, 'not installed')}, locked at {version}"
        for name, version in plugins.items()
        if here.get(name) != version
    ]
    name, wanted = weights.get("file"), weights.get("sha256")
    for file in _places(name, document) if isinstance(name, str) else ():
        if (found := _sha256(file)) != wanted:
            wrong.append(f"the weights {file} have the hash {found[:16]}, locked at {wanted!s:.16}")
        break
    if wrong:
        raise place.error(
            f"what the recipe was locked with has changed: {'; '.join(wrong)}. Put it back, or "
            "lock the recipe again: tvc lock"
        )
    data = {key: value for key, value in document.data.items() if key != "lock"}
    return replace(document, data=data)


def _versions(names: Any) -> Iterator[tuple[str, str]]:
    for name in names:
        try:
            yield str(name), metadata.version(str(name))
        except (metadata.PackageNotFoundError, ValueError):
            continue


def _weights_file(
    recipe: Recipe, resolved: Recipe, folder: Path, registry: Registry
) -> Path | None:
    if resolved.weights is None:
        return None
    own = folder / str(recipe.weights)
    if own.is_file():
        return own
    from tvc_core import weights_file  # imports torch

    return weights_file(resolved.backbone, str(resolved.weights), registry=registry)


def _places(name: str, document: RecipeDocument) -> Iterator[Path]:
    """Yield where the file of weights is here: beside the recipe, or in a cache."""
    name = Path(name).name
    folders = [Path(document.place.source).parent]
    shared = os.environ.get("TVC_WEIGHTS_PATH", "").split(os.pathsep)
    for entry in filter(None, shared):
        folders += [Path(entry).expanduser(), Path(entry).expanduser() / "hub" / "checkpoints"]
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))  # noqa: PTH118
    folders.append(Path(home).expanduser() / "hub" / "checkpoints")
    yield from (folder / name for folder in folders if (folder / name).is_file())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
