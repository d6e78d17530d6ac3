"""Say in what two models differ: recipes, files, hybrids."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tvc_core import BlockSpec, HybridBuilder, Recipe, RecipeError, Registry, TvcError, load_recipe

from .signatures import block_parameters

__all__ = ["Difference", "compare"]

_OF_NO_MODEL = ("version", "name", "description", "requires", "seed", "max_params")
"""Keys of a recipe that change nothing in what is built."""

_FREEZE = {"head": "all", "freeze_patches": False, "normalization": "frozen"}
"""What `freeze_backbone: true` says."""


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
        return f"{self.path}: {_shown(self.a, self.b)} -> {_shown(self.b, self.a)}"


def compare(
    a: Any, b: Any, *, weights: bool = False, registry: Registry | None = None
) -> list[Difference]:
    """Return in what two models differ, whatever their texts look like: short and qualified names,
    values left out and spelled out are the same. Of files and hybrids, what is frozen, class names
    and preprocessing are as they are now.

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
    states = [_state(each, registry) for each in (a, b)]
    recipes = [
        _recipe(each, registry) if state is None else state.recipe
        for each, state in zip((a, b), states, strict=True)
    ]
    names = [_names(*each) for each in zip(recipes, states, strict=True)]
    if None not in names:
        recipes = [_named(recipe, each or {}) for recipe, each in zip(recipes, names, strict=True)]
    facts = [_facts(recipe, registry) for recipe in recipes]
    found = [*_differences(facts[0], facts[1])]
    if _may_mean_the_same(recipes, found):
        found = _as_built(a, b, recipes, found, registry)
    if states[0] is not None and states[1] is not None:
        found += _differences(states[0].beside(), states[1].beside())
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
    """Return a recipe with every name qualified."""
    if not isinstance(given, Recipe):
        given = load_recipe(given, registry=registry)
    return HybridBuilder(registry=registry).resolve(given)


@dataclass(frozen=True, kw_only=True)
class _State:
    """A model as it is now; a file and a hybrid keep some of that beside their recipes.

    Args:
        recipe: with what is frozen now.
        class_names: by the name of the head; "" is a model's only one.
        preprocessing: as it was set; empty where it is that of the weights.
        by_hand: parameters that are frozen, or not, otherwise than the freeze state says.
    """

    recipe: Recipe
    class_names: Mapping[str, Sequence[str]]
    preprocessing: Mapping[str, Any]
    by_hand: Iterable[str]

    def beside(self) -> dict[str, Any]:
        """Return what no recipe says."""
        facts = {"preprocessing": dict(self.preprocessing), "by_hand": sorted(self.by_hand)}
        return {name: value for name, value in facts.items() if value}


def _state(given: Any, registry: Registry) -> _State | None:
    """Return the state of a file or a hybrid; None for a recipe, which has none."""
    if isinstance(given, Recipe) or _is_recipe_file(given):
        return None
    if isinstance(given, (str, Path)):
        from tvc_core import WeightsError, describe_file  # imports torch

        info = describe_file(given, registry=registry)
        if info.recipe is None:
            raise WeightsError(f"{given}: has tensors only; tvc diff compares models and recipes")
        names = info.class_names or {}
        return _State(
            recipe=_frozen(info.recipe, info.freeze),
            class_names=names if isinstance(names, Mapping) else {"": names},
            preprocessing=info.preprocessing if "size" in info.preprocessing else {},
            by_hand=[name for each in info.by_hand.values() for name in each],
        )
    return _State(
        recipe=_frozen(given.recipe, given.freeze_state()),
        class_names={head.name: head.class_names for head in given.head_info if head.class_names},
        preprocessing=given.preprocessing.to_mapping() if given.preprocessing else {},
        by_hand=[name for part in given.freeze_report().parts for name in part.unexpected],
    )


def _frozen(recipe: Recipe, state: Mapping[str, Any]) -> Recipe:
    """Return a recipe that freezes what a freeze state does."""
    names = {"freeze_patches": "patches"}
    said = {key: state[names.get(key, key)] for key in _FREEZE}
    settings = {key: value for key, value in said.items() if value != _FREEZE[key]}
    frozen = settings or bool(state["stem"] or state["stages"])
    learn = tuple(i for i in range(state["num_stages"]) if i not in state["stages"])
    return replace(
        recipe, freeze_backbone=frozen, unfreeze_stages=learn if frozen and learn else None
    )


def _names(recipe: Recipe, state: _State | None) -> Mapping[str, Sequence[str]] | None:
    """Return class names by head; None where they are those of the weights, which a recipe does not
    say.
    """
    if state is not None:
        return state.class_names
    heads = {name: head.get("class_names") for name, head in (recipe.heads or {}).items()}
    found = {name: each for name, each in {**heads, "": recipe.class_names}.items() if each}
    return found if found or heads or recipe.num_classes is not None else None


def _named(recipe: Recipe, names: Mapping[str, Sequence[str]]) -> Recipe:
    """Return a recipe with these class names."""
    heads = recipe.heads and {
        name: {
            **{key: value for key, value in head.items() if key != "class_names"},
            **({"class_names": list(names[name])} if name in names else {}),
        }
        for name, head in recipe.heads.items()
    }
    return replace(recipe, heads=heads, class_names=tuple(names[""]) if "" in names else None)


def _is_recipe_file(given: Any) -> bool:
    """Tell whether one side is a recipe, by the suffix of its file."""
    is_path = isinstance(given, (str, Path))
    return is_path and Path(given).suffix in (".yaml", ".yml", ".lock")


def _facts(recipe: Recipe, registry: Registry) -> dict[str, Any]:
    """Return what a recipe says of the model, without what would be so anyway."""
    data = recipe.to_mapping()
    kept = {key: value for key, value in data.items() if key not in _OF_NO_MODEL}
    facts = {key: value for key, value in kept.items() if key not in recipe.sections}
    backbone, head = dict(facts.get("backbone", {})), dict(facts.get("head", {}))
    if "patches" in backbone:
        backbone["patches"] = _less(backbone["patches"], registry)
    if "heads" in head:
        head["heads"] = {name: {**each} for name, each in head["heads"].items()}
    heads = (head, *head.get("heads", {}).values())
    frozen = facts.get("freeze_backbone")
    if isinstance(frozen, Mapping):
        said = {key: value for key, value in frozen.items() if value != _FREEZE.get(key)}
        facts["freeze_backbone"] = said or True
    for each, key, default in (
        (backbone, "in_channels_policy", "mean"),
        *((each, "activation", "relu") for each in heads),
        *((each, "dropout", 0) for each in heads if each.get("hidden")),
    ):
        if each.get(key) == default:
            del each[key]
    return {**facts, "backbone": backbone, "head": head}


def _less(patches: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    """Return patches without settings that are the defaults."""
    found: dict[str, Any] = {}
    for target, entries in patches.items():
        listed = entries if isinstance(entries, list) else [entries]
        less = [{op: _less_of(op, said, registry) for op, said in e.items()} for e in listed]
        found[target] = less if isinstance(entries, list) else less[0]
    return found


def _less_of(op: str, said: Any, registry: Registry) -> Any:
    """Return what is said of one patch, without settings that are its block's defaults."""
    if not isinstance(said, Mapping) or not isinstance(said.get("type"), str):
        return said
    try:
        block = registry.resolve(BlockSpec, said["type"]).spec
    except TvcError:  # one of the user's own, or not installed
        return said
    kept = dict(said)
    if op in ("tvc-core:wrap", "tvc-core:inject"):
        if kept.get("position") == (*block.positions, "after")[0]:
            del kept["position"]
        if kept.get("init") == "tvc-core:identity" and not block.starts_as:
            del kept["init"]
    if block.in_place_of or block.for_target or not isinstance(kept.get("params"), Mapping):
        return kept  # what is not given may be taken from the target
    takes = block_parameters(block) or {}
    params = {
        key: value
        for key, value in kept.pop("params").items()
        if key not in takes or _spelled(value) != _spelled(takes[key].default)
    }
    return {**kept, "params": params} if params else kept


def _spelled(value: Any) -> tuple[type, Any]:
    return (list, [*value]) if isinstance(value, (list, tuple)) else (type(value), value)


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
    less = [_less(each, registry) for each in patches]
    return [*kept, *_differences(less[0], less[1], "backbone.patches")]


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
    for key, _, kinds in (text.partition(": ") for text in diff.unlike):
        first, _, second = kinds.partition(" and ")
        found.append(Difference(path=key, a=first, b=second))
    return found


def _shown(value: Any, other: Any) -> str:
    """Return a value in words; a long text from near the place on where it differs from another."""
    text, beside = ("nothing" if each is None else str(each) for each in (value, other))
    if len(text) <= 200:
        return text
    same = next((i for i, (x, y) in enumerate(zip(text, beside, strict=False)) if x != y), 0)
    start = same - 40 if same > 150 else 0
    end = start + 194
    return f"{'...' * bool(start)}{text[start:end]}{'...' * (end < len(text))}"
