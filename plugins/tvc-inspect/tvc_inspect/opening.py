"""Build or read what a command is given: a recipe, a saved file, or a backbone's name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tvc_core import HybridBuilder, HybridModel, ParameterError, Recipe, RecipeDocument, load_recipe

__all__ = ["check_out", "open_model", "written_whole"]

_RECIPES = (".yaml", ".yml", ".lock")
_FILES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def open_model(
    given: str, *, pretrained: bool | None = None, changes: Mapping[str, Any] | None = None
) -> tuple[HybridModel, str]:
    """Return a model, and one sentence on what is to be known of its weights, or "".

    Args:
        given: the path of a recipe (.yaml, .yml, .lock) or of a file that `HybridModel.save` wrote,
            or the name of a backbone.
        pretrained: with the weights that the recipe says, or a backbone's default ones. None: those
            of a recipe, and of a bare backbone none. A saved file has its own.
        changes: of the recipe or the backbone, as `load_recipe` takes them.

    Raises:
        ParameterError: changes of a saved file.
        TvcError: it cannot be read or built.
    """
    builder, changes = HybridBuilder(), changes or {}
    suffix = Path(given).suffix
    if suffix in _FILES:
        if changes:
            raise ParameterError(f"{given} is a saved model, and --set changes recipes only")
        return builder.load(given), ""
    if suffix in _RECIPES:
        recipe = load_recipe(given, changes=changes, registry=builder.registry)
        if pretrained is False and recipe.weights is not None:
            return builder.build(recipe, weights=None), "built without its pretrained weights"
        return builder.build(recipe), ""
    weights = "DEFAULT" if pretrained else None
    document = RecipeDocument(data={"backbone": {"name": given, "weights": weights}})
    document = Recipe.changed_document(document, changes, builder.registry)
    recipe = Recipe.from_document(document, registry=builder.registry)
    return builder.build(recipe), "" if recipe.weights is not None else (
        "a backbone's name alone is built with random weights; --weights takes its pretrained ones"
    )


def check_out(path: Path, force: bool) -> None:
    """Say before any work that a file cannot be written.

    Raises:
        ParameterError: its folder is not there or cannot be written to, or the file exists.
    """
    if path.is_dir():
        raise ParameterError(f"--out: {str(path)!r} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ParameterError(f"--out: the folder {str(path.parent)!r} does not exist")
    if path.exists() and not force:
        raise ParameterError(f"--out: {str(path)!r} exists; --force puts the new file in its place")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ParameterError(
            f"--out: the folder {str(path.parent)!r} cannot be written to: "
            f"{error.strerror or error}"
        ) from error


@contextmanager
def _beside(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that takes the place of another when all is written."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def written_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file whole or not at all.

    Raises:
        ParameterError: it cannot be written; what was there before still is.
    """
    try:
        with _beside(path) as file:
            write(file)
    except OSError as error:
        raise ParameterError(f"{path} cannot be written: {error.strerror or error}") from error
