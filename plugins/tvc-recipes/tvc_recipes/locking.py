"""Write down what a recipe is built with, and refuse to build it with anything else.

A lock is a recipe itself: every name qualified, nothing to extend, and a section `lock` with the
versions of the distributions and the hash of the weights.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

from tvc_core import (
    HybridBuilder,
    Recipe,
    RecipeDocument,
    Registry,
    WeightsError,
    load_recipe,
    short_repr,
)

from .checking import check_data
from .keys import LOCK

__all__ = ["check", "lock_recipe"]


def lock_recipe(
    path: str | Path,
    *,
    changes: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
    folder: str | Path | None = None,
) -> Recipe:
    """Return a recipe with every name qualified and a section `lock`: the versions of all
    distributions that have a part in the model, and of what these require, and the hash of the
    weights, which are downloaded where they are not there yet.

    Args:
        path: the file.
        changes: as `tvc_core.load_recipe` takes them.
        registry: where names are looked up; by default what is installed.
        folder: where the lock will be written; by default beside the recipe. A file of weights is
            named from there.

    Raises:
        TvcError: the recipe is wrong, its weights are not available or not under `folder`, or only
            its plugin knows where they are.
    """
    registry = registry or Registry()
    recipe = load_recipe(path, changes=changes, registry=registry)
    resolved = HybridBuilder(registry=registry).resolve(recipe)
    lock: dict[str, Any] = {"plugins": dict(sorted(_versions(_owners(resolved))))}
    if resolved.weights is not None:
        if own := recipe.own_weights:
            file, entry = own
            named = _named_from(Path(path).parent if folder is None else Path(folder), file, recipe)
            resolved = replace(resolved, weights=named if entry is None else f"{named}#{entry}")
        else:
            file = _weights_file(recipe, resolved, registry)
        with recipe.place("weights").before_errors():
            lock["weights"] = {"file": file.name, "sha256": _sha256(file)}
    return replace(resolved, sections={**resolved.sections, "lock": lock})


def check(document: RecipeDocument, registry: Registry) -> RecipeDocument:
    """Return a locked recipe without its lock, if what it says holds here.

    Args:
        document: the recipe.
        registry: where sections are looked up; none is here.

    Raises:
        RecipeError: a distribution has another version or is missing, or the weights have another
            hash; all of them are named.
    """
    lock, place = document.data["lock"], document.place / "lock"
    check_data(lock, LOCK, place)
    plugins, weights = lock["plugins"], lock.get("weights", {})
    here = dict(_versions(plugins))
    wrong = [
        f"{short_repr(name)} is {here.get(name, 'not installed')}, locked at {short_repr(version)}"
        for name, version in plugins.items()
        if here.get(name) != version
    ]
    for file in _places(weights["file"], document) if weights else ():
        if (found := _sha256(file)) != weights["sha256"]:
            wrong.append(
                f"the weights {short_repr(str(file))} have the hash {found[:16]}..., locked at "
                f"{weights['sha256'][:16]}..."
            )
        break
    if wrong:
        raise place.error(
            f"what the recipe was locked with has changed: {'; '.join(wrong)}. Put it back, or "
            "lock the recipe again: tvc lock"
        )
    data = {key: value for key, value in document.data.items() if key != "lock"}
    return replace(document, data=data)


def _owners(recipe: Recipe) -> set[str]:
    """Return the distributions that have a part in what a resolved recipe builds."""
    names = {recipe.backbone, *(entry.op for entry in recipe.patches)}
    names |= {entry.block for entry in recipe.patches if isinstance(entry.block, str)}
    names |= {entry.init for entry in recipe.patches if entry.init}
    owners = {name.partition(":")[0] for name in names} | {"tvc-core"}
    required = {
        re.split(r"[\s\[<>=!~;(]", requirement, maxsplit=1)[0]
        for owner in owners
        for requirement in _requires(owner)
        if "extra ==" not in requirement
    }
    return owners | required


def _requires(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:  # a plugin made in code
        return []


def _versions(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        with suppress(metadata.PackageNotFoundError, ValueError):
            yield name, metadata.version(name)


def _named_from(folder: Path, file: Path, recipe: Recipe) -> str:
    """Return a file of weights as a recipe in a folder names it."""
    name = PurePath(os.path.relpath(file.resolve(), folder.resolve())).as_posix()
    if PurePath(name).parts[0] == "..":
        raise recipe.place("weights").error(
            f"a recipe names files in its own folder, and {file} is not in that of the lock, "
            f"{folder}: put it there, or write the lock where it is"
        )
    return name if "/" in name else f"./{name}"


def _weights_file(recipe: Recipe, resolved: Recipe, registry: Registry) -> Path:
    from tvc_core import weights_file  # imports torch

    file = weights_file(resolved.backbone, str(resolved.weights), registry=registry)
    if file is None:
        raise recipe.place("weights").error(
            f"only the plugin of {resolved.backbone} knows where these weights are, so a lock "
            "cannot hold their hash. Build the model, save its weights beside the recipe and name "
            "that file; or write weights: null"
        )
    return file


def _places(name: str, document: RecipeDocument) -> Iterator[Path]:
    """Yield where the file of weights is here: where the recipe has it, or in a cache."""
    name, folder = PurePath(name).name, Path(document.place.source).parent
    backbone = document.data.get("backbone")
    own = str(backbone.get("weights")) if isinstance(backbone, Mapping) else ""
    paths = (own, own.partition("#")[0])  # of FILE#ENTRY the file
    folders = [(folder / path).parent for path in paths if PurePath(path).name == name][:1]
    shared = os.environ.get("TVC_WEIGHTS_PATH", "").split(os.pathsep)
    # Path.expanduser fails where there is no such home; torch leaves the name as it is
    for entry in map(os.path.expanduser, filter(None, shared)):
        folders += [Path(entry), Path(entry) / "hub" / "checkpoints"]
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))  # noqa: PTH118
    folders.append(Path(os.path.expanduser(home)) / "hub" / "checkpoints")  # noqa: PTH111
    yield from (folder / name for folder in folders if (folder / name).is_file())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()
