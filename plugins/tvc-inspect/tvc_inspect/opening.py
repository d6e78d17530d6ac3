"""Build or read what a command is given: a recipe, a saved file, or a backbone's name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvc_core import (
    HybridBuilder,
    HybridModel,
    ParameterError,
    Recipe,
    RecipeDocument,
    load_recipe,
    write_file,
)

__all__ = ["open_model", "write_out"]

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


def write_out(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        ParameterError: it cannot be written; what was there before still is.
    """
    try:
        write_file(path, [content])
    except OSError as error:
        raise ParameterError(f"{path} cannot be written: {error.strerror or error}") from error
