"""Say in what two models differ: recipes, files, hybrids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvc_core import HybridBuilder, Recipe, Registry, load_recipe

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

    Where two recipes read differently, both networks are built without their weights, so that
    patterns are compared by what they mean; where they read the same, torch is not imported.

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
    if found:
        found = _as_built(a, b, recipes, found, registry)
    if weights:
        found += _of_tensors(a, b, registry)
    return found


def _recipe(given: Any, registry: Registry) -> Recipe:
    """Return the recipe of one side, with every name qualified."""
    if isinstance(given, (str, Path)) and Path(given).suffix in (".yaml", ".yml", ".lock"):
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


def _facts(recipe: Recipe) -> dict[str, Any]:
    """Return what a recipe says of the model, in its full form."""
    data = recipe.to_mapping()
    kept = {key: value for key, value in data.items() if key not in _OF_NO_MODEL}
    return {key: value for key, value in kept.items() if key not in recipe.sections}


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
    patches = [_patches(model) for model in models]
    outside = [each for each in found if not each.path.startswith("backbone.patches")]
    shapes = [_shapes(model) for model in models]
    kept = [each for each in outside if shapes[0] != shapes[1] or not _is_default(each, models)]
    return [*kept, *_differences(patches[0], patches[1], "patches")]


def _built(given: Any, recipe: Recipe, registry: Registry) -> Any:
    if not isinstance(given, (str, Path, Recipe)):
        return given
    if recipe.backbone.partition(":")[0] == "module":
        return None
    builder = HybridBuilder(registry=registry)
    return builder.build(recipe, weights=None)


def _patches(model: Any) -> dict[str, Any]:
    """Return the patches of a model by the modules that they are at."""
    found: dict[str, Any] = {}
    for record in model.patch_records:
        facts = {name: getattr(record, name) for name in ("op", "block", "params", "init")}
        said = {name: value for name, value in facts.items() if value}
        found.setdefault(record.target, []).append(said)
    return {target: each if len(each) > 1 else each[0] for target, each in found.items()}


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _is_default(difference: Difference, models: list[Any]) -> bool:
    """Tell whether one side only says what the other has anyway: 1000 classes of 1000."""
    if difference.path == "head.num_classes":
        return models[0].num_classes == models[1].num_classes and None in (
            difference.a, difference.b,
        )  # fmt: skip
    return False


def _of_tensors(a: Any, b: Any, registry: Registry) -> list[Difference]:
    from tvc_core import diff_weights  # imports torch

    builder = HybridBuilder(registry=registry)
    sides = []
    for each in (a, b):
        if isinstance(each, (str, Path)):
            is_recipe = Path(each).suffix in (".yaml", ".yml", ".lock")
            sides.append(builder.build(each) if is_recipe else builder.load(each))
        else:
            sides.append(builder.build(each) if isinstance(each, Recipe) else each)
    diff = diff_weights(*sides)
    found = [Difference(path=c.key, a="", b=str(c).partition(": ")[2]) for c in diff.changed]
    found += [Difference(path=key, a="a tensor", b=None) for key in diff.only_in_a]
    found += [Difference(path=key, a=None, b="a tensor") for key in diff.only_in_b]
    return found + [Difference(path=str(key), a="", b="of another shape") for key in diff.unlike]


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
