"""Say in what two models differ: recipes, files, hybrids."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvc_core import HybridBuilder, Recipe, RecipeError, Registry, load_recipe

__all__ = ["Difference", "compare"]

_OF_NO_MODEL = ("version", "name", "description", "requires", "seed", "max_params")
"""Keys of a recipe that change nothing in what is built."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Something in which two models differ.

    Args:
        path: of the recipe ("head.num_classes"), or of a tensor.
        a, b: what each has; None where it has nothing there.
    """

    path: str
    a: Any
    b: Any

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.a)} -> {_shown(self.b)}"


def compare(
    a: Any, b: Any, *, weights: bool = False, registry: Registry | None = None
) -> list[Difference]:
    """Return in what two models differ, whatever their texts look like: short and qualified names,
    values left out and spelled out are the same.

    Where the recipes differ in what may mean the same, such as patterns of targets, or the number
    of classes that a network has anyway, both are built, without their weights. Otherwise torch is
    not imported.

    Args:
        a, b: each the path of a recipe or of a file that `HybridModel.save` wrote, a `Recipe`, or a
            hybrid.
        weights: also compare the tensors, which builds both models with their weights.
        registry: where names are looked up; by default what is installed.

    Raises:
        TvcError: one of them cannot be read or built.
    """
    registry = registry or Registry()
    recipes = [_recipe(each, registry) for each in (a, b)]
    found = [*_differences(_facts(recipes[0]), _facts(recipes[1]))]
    if _may_mean_the_same(recipes, found):
        found = _as_built(a, b, recipes, found, registry)
    if weights:
        found += _of_tensors(a, b, registry)
    return found


def changed(path: Path, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a file with other values in it, for `compare`.

    Raises:
        RecipeError: the file is no recipe, or the changes do not fit.
    """
    if not _is_recipe_file(path):
        raise RecipeError(f"--set changes recipes (.yaml), and {path} is none")
    return load_recipe(path, changes=changes)


def _may_mean_the_same(recipes: list[Recipe], found: list[Difference]) -> bool:
    """Tell whether recipes that read differently may build the same: they name the same network,
    and say in other words which modules are patched, which stages are meant, or what it has anyway.
    """
    if not found or recipes[0].backbone != recipes[1].backbone:
        return False
    targets = {entry.target for recipe in recipes for entry in recipe.patches}
    patches = any(each.path.startswith("backbone.patches") for each in found)
    return (patches and not all(map(_PLAIN.fullmatch, targets))) or any(
        each.path.startswith(_SPELLED) or (each.path in _BUILT and None in (each.a, each.b))
        for each in found
    )


def _recipe(given: Any, registry: Registry) -> Recipe:
    """Return the recipe of one side, with every name qualified."""
    if _is_recipe_file(given):
        given = load_recipe(given, registry=registry)
    elif isinstance(given, (str, Path)):
        from tvc_core import WeightsError, describe_file  # imports torch

        info = describe_file(given, registry=registry)
        if info.recipe is None:
            raise WeightsError(f"{given}: has tensors only; tvc diff compares models and recipes")
        return info.recipe
    if isinstance(given, Recipe):
        return HybridBuilder(registry=registry).resolve(given)
    recipe: Recipe = given.recipe  # a hybrid
    return recipe


def _is_recipe_file(given: Any) -> bool:
    """Tell whether one side is a recipe, by the suffix of its file."""
    is_path = isinstance(given, (str, Path))
    return is_path and Path(given).suffix in (".yaml", ".yml", ".lock")


def _facts(recipe: Recipe) -> dict[str, Any]:
    """Return what a recipe says of the model, in its full form."""
    data = recipe.to_mapping()
    kept = {key: value for key, value in data.items() if key not in _OF_NO_MODEL}
    facts = {key: value for key, value in kept.items() if key not in recipe.sections}
    return {"backbone": {}, "head": {}, **facts}


def _differences(a: Any, b: Any, path: str = "") -> Iterator[Difference]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(key for key in b if key not in a)]:
            word = f".{key}" if str(key).replace("_", "").isalnum() else f"[{key!r}]"
            yield from _differences(a.get(key), b.get(key), f"{path}{word}".removeprefix("."))
        if list(a) != list(b) and set(a) == set(b) and path == "backbone.patches":
            yield Difference(path=f"{path} (order)", a=list(a), b=list(b))
    elif a != b or type(a) is not type(b):
        yield Difference(path=path, a=a, b=b)


def _as_built(
    a: Any, b: Any, recipes: list[Recipe], found: list[Difference], registry: Registry
) -> list[Difference]:
    """Return the differences of recipes that are there in what is built, and those of patches by
    the modules that they mean.
    """
    models = [_built(each, recipe, registry) for each, recipe in zip((a, b), recipes, strict=True)]
    if None in models:  # a network of the user's own: the recipe is all there is
        return found
    outside = [each for each in found if not each.path.startswith("backbone.patches")]
    kept = [each for each in outside if not _same_in(models, each)]
    patches = [_patches(model) for model in models]
    return [*kept, *_differences(patches[0], patches[1], "backbone.patches")]


def _same_in(models: list[Any], difference: Difference) -> bool:
    """Tell whether two models agree in what their recipes say differently."""
    facts = _BUILT.get(difference.path.partition("[")[0])
    return facts is not None and facts(models[0]) == facts(models[1])


def _shapes(model: Any) -> Any:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _trainable(model: Any) -> Any:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def _dropouts(model: Any) -> Any:
    found = model.named_modules()
    return {name: each.p for name, each in found if type(each).__name__.startswith("Dropout")}


_BUILT: dict[str, Callable[[Any], Any]] = {
    "head.num_classes": _shapes,
    "head.dropout": _dropouts,
    "backbone.stages": _shapes,
    "backbone.in_channels": _shapes,
    "backbone.image_size": _shapes,
    "unfreeze_stages": _trainable,
    "freeze_backbone": _trainable,
    "grad_checkpointing": lambda model: model.recipe.grad_checkpointing,
}
"""What of a model says whether two values of a key mean the same."""

_SPELLED = ("backbone.stages", "unfreeze_stages", "grad_checkpointing", "freeze_backbone")
_PLAIN = re.compile(r"\w+(\.\w+)*")


def _built(given: Any, recipe: Recipe, registry: Registry) -> Any:
    if not isinstance(given, (str, Path, Recipe)):
        return given
    if recipe.backbone.partition(":")[0] == "module":
        return None
    builder = HybridBuilder(registry=registry)
    return builder.build(recipe, weights=None)


def _patches(model: Any) -> dict[str, Any]:
    """Return the patches of a model by the modules that they are at, as a recipe has them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in model.patch_records:
        facts = {"type": record.block, "params": dict(record.params), "init": record.init}
        said = {name: value for name, value in facts.items() if value}
        found.setdefault(record.target, []).append({record.op: {**said, **record.options}})
    return {target: each if len(each) > 1 else each[0] for target, each in found.items()}


def _of_tensors(a: Any, b: Any, registry: Registry) -> list[Difference]:
    from tvc_core import diff_weights  # imports torch

    builder = HybridBuilder(registry=registry)
    sides = []
    for each in (a, b):
        if isinstance(each, Recipe) or _is_recipe_file(each):
            sides.append(builder.build(each))
        else:
            sides.append(builder.load(each) if isinstance(each, (str, Path)) else each)
    diff = diff_weights(*sides)
    found = [Difference(path=c.key, a="", b=str(c).partition(": ")[2]) for c in diff.changed]
    found += [Difference(path=key, a="a tensor", b=None) for key in diff.only_in_a]
    found += [Difference(path=key, a=None, b="a tensor") for key in diff.only_in_b]
    return found + [Difference(path=str(key), a="", b="of another shape") for key in diff.unlike]


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
