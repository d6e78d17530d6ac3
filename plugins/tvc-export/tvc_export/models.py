"""What MODEL stands for on the command line: a saved file, a recipe, or a backbone's name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvc_core import (
    HybridBuilder,
    HybridModel,
    ParameterError,
    Recipe,
    RecipeDocument,
    WeightsError,
    did_you_mean,
    load_recipe,
)

from .privacy import without_folders

__all__ = ["facts_of", "read_model"]


def read_model(
    given: str, changes: Mapping[str, str] | None = None, builder: HybridBuilder | None = None
) -> HybridModel:
    """Return the model that a word of the command line stands for.

    Args:
        given: the path of a file that `save` wrote (.safetensors) or of a recipe (.yaml, .yml), or
            the name of a backbone, which gets its default weights.
        changes: of the recipe, as `load_recipe` takes them.
        builder: that builds it.

    Raises:
        WeightsError: there is no such file; the message says near names.
        ParameterError: changes of a saved file.
        TvcError: what building raises.
    """
    builder, path = builder or HybridBuilder(), Path(given)
    is_file = path.suffix in (".safetensors", ".yaml", ".yml")
    if is_file and not path.is_file():
        folder = path.parent
        near = [each.name for each in folder.iterdir()] if folder.is_dir() else []
        raise WeightsError(f"{path}: there is no such file.{did_you_mean(path.name, near)}")
    if path.suffix == ".safetensors":
        if changes:
            raise ParameterError(f"{path} is a saved model, and --set changes recipes only")
        return builder.load(path)
    if is_file:
        recipe = load_recipe(path, changes=dict(changes or {}), registry=builder.registry)
        return builder.build(recipe)
    document = RecipeDocument(data={"backbone": {"name": given, "weights": "DEFAULT"}})
    document = Recipe.changed_document(document, dict(changes or {}), builder.registry)
    return builder.build(Recipe.from_document(document, registry=builder.registry))


def facts_of(model: HybridModel) -> dict[str, Any]:
    """Return recipe, classes and preprocessing of a model as plain data."""
    import warnings

    from tvc_core import BackboneError

    recipe = json.loads(json.dumps(model.recipe.to_mapping(), default=str))
    classes: Any = model.class_names
    if classes is None:
        named = {each.name: each.class_names for each in model.head_info}
        classes = named if any(named.values()) else None
    preprocessing = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of random weights: those of the default ones are meant
        try:
            prepare: Any = model.transforms()
        except BackboneError:  # nothing says how
            prepare = None
    if prepare is not None:
        preprocessing = {
            "resize": _plain(prepare.resize_size),
            "crop": _plain(prepare.crop_size),
            "interpolation": prepare.interpolation.value,
            "mean": _plain(prepare.mean),
            "std": _plain(prepare.std),
        }
        if model.preprocessing is not None:
            preprocessing["fit"] = model.preprocessing.fit
    return {
        "recipe": without_folders(recipe),
        "classes": json.loads(json.dumps(classes)),
        "preprocessing": preprocessing,
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
