"""Bind every name of a recipe to the spec that it stands for. Unknown and ambiguous names stop
here, and so does what a recipe must not reach; no torch yet.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import importlib_metadata

from ..advice import recipes as advice
from ..errors import ParameterError, UnknownNameError, what_there_is
from ..local import is_module, own_block
from ..registry import Named, Registry
from ..specs import (
    OWN,
    PATCH_KEYS,
    BackboneSpec,
    BlockSpec,
    InitializerSpec,
    PatchOpSpec,
    WeightsSpec,
)
from ..written.place import Place
from ..written.rules import IMAGE_SIZE, SIZE, file_name, requirement
from .schema import PatchEntry, Recipe, Weights

__all__ = ["REACHING", "PatchPlan", "Plan", "make_plan", "qualified_entry"]

REACHING = ("options", "patches", "weights")
"""The keys of a recipe whose values may open an address or a path."""


@dataclass(frozen=True, kw_only=True)
class PatchPlan:
    """A patch with every name bound."""

    entry: PatchEntry
    op: Named[PatchOpSpec]
    block: Named[BlockSpec] | None
    init: Named[InitializerSpec] | None

    @property
    def name(self) -> str:
        """The last part of the path under which the block is to live; a number follows where it is
        taken and not given.
        """
        return self.entry.name or (self.block or self.op).spec.name


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe with every name bound.

    Args:
        recipe: what the user wrote, with qualified names and the weights' own name instead of
            "DEFAULT", without what only code may set.
        backbone: the network.
        weights: the pretrained set, None for random weights.
        patches: in the order in which they are applied.
        options: keyword arguments of the backbone's factory.
        own_weights: the user's own file that the weights are read from, and what holds them in
            there, where it is a training checkpoint.
    """

    recipe: Recipe
    backbone: Named[BackboneSpec]
    weights: WeightsSpec | None
    patches: tuple[PatchPlan, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    own_weights: tuple[Path, str | None] | None = None


def make_plan(
    recipe: Recipe,
    registry: Registry,
    backbone: Named[BackboneSpec] | None = None,
    *,
    by_code: Collection[str] = (),
) -> Plan:
    """Bind a recipe's names in a registry.

    Args:
        recipe: what the user wrote.
        registry: where names are looked up.
        backbone: what the backbone's name stands for, where the registry does not know it.
        by_code: keys whose values a program has set, which may open addresses and paths. What was
            written down reaches nothing but files of weights in its own folder: it must not set
            what a spec names as `code_only`.

    Raises:
        UnknownNameError: a backbone, weights set, operation, block or initializer that no plugin
            offers.
        AmbiguousNameError: a short name with several owners.
        RecipeError: an operation without its block, an option that an operation does not take, or
            one that only code may set.
        ParameterError: an option that the backbone does not take, or an image size where it has no
            place.
    """

    by_code = {*by_code, *recipe.by_code}

    def at(key: str) -> AbstractContextManager[None]:
        return recipe.place(key).before_errors(in_files_only=True)

    # Missing distributions first, all of them in one error: a recipe from elsewhere often needs
    # several, and installing them one error after the other is tedious. Then each name in the order
    # in which it stands in the recipe, and each error with its place there.
    with recipe.where.before_errors():
        advice.refuse_missing(registry, _names(recipe, backbone is None))
    _check_required(recipe)
    with at("backbone"):
        backbone = backbone or registry.resolve(BackboneSpec, recipe.backbone)
    if "options" not in by_code:
        _refuse_code_only(backbone, recipe.options, recipe.place("options"))
    with at("options"):
        _check_options(recipe.options, backbone)
        known = _with_facts(backbone, recipe, registry)
    with at("weights"):
        own = replace(recipe, by_code=frozenset(by_code)).own_weights
        weights = _own(own[0], backbone) if own else _bind_weights(recipe.weights, backbone)
    with at("image_size"):
        options = _options(recipe, backbone)
    patches = tuple(_bind_patch(each, registry, "patches" in by_code) for each in recipe.patches)
    _check_own(patches)
    # The recipe that the model keeps, and that `save` writes, says what was meant, not what was
    # typed: qualified names mean the same whatever else is installed where the file is opened.
    # Options that open an address or a path are left out, since a recipe must not set them; the
    # weights that came from there are in the file.
    qualified = replace(
        recipe,
        backbone=backbone.qualified,
        weights=weights.name if weights else None,
        patches=tuple(qualified_entry(patch) for patch in patches),
        options=_for_recipes(backbone, recipe.options),
        where=Place("recipe"),
        by_code=frozenset(),
    )
    return Plan(
        recipe=qualified,
        backbone=known,
        weights=weights,
        patches=patches,
        options=options,
        own_weights=own,
    )


def qualified_entry(patch: PatchPlan) -> PatchEntry:
    """Return a patch as a recipe has it: with qualified names, without what only code may set."""
    return replace(
        patch.entry,
        op=patch.op.qualified,
        block=patch.block.qualified if patch.block else None,
        params=_for_recipes(patch.block, patch.entry.params),
        init=patch.init.qualified if patch.init else None,
        options=_for_recipes(patch.op, patch.entry.options),
        where=Place("a patch"),
    )


def _names(recipe: Recipe, by_name: bool) -> Iterator[tuple[type[Any], str | None]]:
    """Yield every name of a recipe with its kind; of a network handed over, `by_name` is false."""
    yield BackboneSpec, recipe.backbone if by_name else None
    for entry in recipe.patches:
        block = entry.block if isinstance(entry.block, str) else None
        yield from ((PatchOpSpec, entry.op), (BlockSpec, block), (InitializerSpec, entry.init))


def _check_required(recipe: Recipe) -> None:
    """Refuse a recipe whose distributions are not there in the versions that it requires."""
    wrong = []
    for text in recipe.requires or ():
        name, conditions = requirement(text)
        try:
            version = importlib_metadata.version(name)
        except importlib_metadata.PackageNotFoundError:
            wrong.append(f"{name} is not installed")
            continue
        if not all(_holds(version, *each) for each in conditions):
            wrong.append(f"{text} is required, and {version} is installed")
    if wrong:
        install = " ".join(repr(text) for text in recipe.requires or ())
        problem = f"{'; '.join(wrong)}. To install what the recipe requires: pip install {install}"
        raise recipe.place("requires").error(problem)


def _holds(version: str, comparison: str, wanted: str) -> bool:
    # of "2.14.0+cu126" and "2.14.0rc1" what is before the letters
    releases = [re.split(r"[^\d.]", text, maxsplit=1)[0] for text in (version, wanted)]
    numbers = [[int(part) for part in re.findall(r"\d+", release)] for release in releases]
    least, most = sorted(numbers, key=len)
    least += [0] * (len(most) - len(least))  # 1.0 is 1.0.0
    have, want = numbers
    return {
        ">=": have >= want, "<=": have <= want, ">": have > want, "<": have < want,
        "==": have == want, "!=": have != want,
    }[comparison]  # fmt: skip


# -- a recipe reaches nothing ----------------------------------------------------------------------


def _refuse_code_only(offer: Named[Any], given: Iterable[str], place: Place) -> None:
    for name in given:
        if name in offer.spec.code_only:
            reaches = f"{name!r} of {offer.qualified} opens an address or a path"
            raise place.down(name).key.error(
                f"{reaches}, so a recipe must not set it. Leave it out, or build in Python with "
                "HybridBuilder().from_backbone(...), whose arguments may"
            )


def _for_recipes(offer: Named[Any] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options or parameters without those that only code may set."""
    code_only = offer.spec.code_only if offer is not None else ()
    return {name: value for name, value in given.items() if name not in code_only}


# -- backbone --------------------------------------------------------------------------------------


def _with_facts(
    backbone: Named[BackboneSpec], recipe: Recipe, registry: Registry
) -> Named[BackboneSpec]:
    """Return the backbone with the channels of the image that its option sets. One that declares no
    residual branches, such as a user's own network, knows the classes that any other declares.
    """
    spec, given, facts = backbone.spec, recipe.in_channels, {}
    if (value := recipe.options.get(name := spec.channels_option)) is not None:
        facts["num_channels"] = SIZE.check(name, value, ParameterError)
        if given not in (None, value):
            raise ParameterError(f"in_channels is {given} and {name} is {value}: give one of them")
    if not spec.branches:
        others = [offer.spec.branches for offer in registry.all(BackboneSpec)]
        facts["branches"] = {path: end for each in others for path, end in each.items()}
    return Named(backbone.owner, replace(spec, **facts)) if facts else backbone


def _check_options(options: Mapping[str, Any], backbone: Named[BackboneSpec]) -> None:
    for option in options:
        if option not in backbone.spec.options:
            known = what_there_is(option, backbone.spec.options)
            what = f"option {option!r} of the backbone {backbone.qualified!r}"
            error = ParameterError(f"Unknown {what}.{known}.")
            error.below = (option,)
            raise error


def _options(recipe: Recipe, backbone: Named[BackboneSpec]) -> dict[str, Any]:
    """Return the keyword arguments of the factory: the recipe's options, and its image size under
    that name.
    """
    options, size, spec = dict(recipe.options), recipe.image_size, backbone.spec
    name = spec.size_option
    if size is not None and name in spec.options:
        if IMAGE_SIZE.check(name, options.setdefault(name, size), ParameterError) != size:
            both = f"image_size is {size}, and the option {name} is {options[name]}"
            raise ParameterError(f"{both}: give one of them")
    elif size is not None and size not in advice.sizes_of(spec):  # for which it is built
        raise ParameterError(advice.no_image_size(backbone.qualified, spec, size))
    return options


def _bind_weights(given: Weights, backbone: Named[BackboneSpec]) -> WeightsSpec | None:
    if given is None:
        return None
    spec, what = backbone.spec, f"the backbone {backbone.qualified!r}"
    if isinstance(given, enum.Enum):
        given = f"{type(given).__name__}.{given.name}"
    weights_class, _, name = str(given).rpartition(".")
    if name == "DEFAULT":
        if spec.default_weights is None:
            raise UnknownNameError(f"{what} has no pretrained weights: pass weights=None.")
        name = spec.default_weights
    # torchvision names the classes of its weights after the networks: ResNet50_Weights
    own = f"{spec.name}_weights" if spec.origin == "torchvision" else ""
    found = spec.find_weights(name)
    if found is None or weights_class.lower() not in ("", own):
        raise UnknownNameError(advice.unknown_weights(str(given), what, spec))
    return found


def _own(file: Path, backbone: Named[BackboneSpec]) -> WeightsSpec:
    """Return what is known of a file before it is read: images are prepared as usual."""
    usual = backbone.spec.find_weights(backbone.spec.default_weights) or WeightsSpec(name="own")
    unknown: dict[str, Any] = dict.fromkeys(("num_params", "gflops", "acc1", "num_classes"))
    unknown |= dict.fromkeys(("recipe", "license", "url", "sha256"), "")
    name = file_name(PurePath(file.name))
    return replace(usual, name=name, class_names=(), options={}, **unknown)


# -- patches ---------------------------------------------------------------------------------------


def _check_own(patches: Iterable[PatchPlan]) -> None:
    """Refuse two different blocks of one's own under one name, which no file could tell apart."""
    known: dict[str, Any] = {}
    for patch in patches:
        made = patch.entry.block
        if patch.block is not None and callable(made):
            name, made = patch.block.spec.name, type(made) if is_module(made) else made
            if known.setdefault(name, made) != made:
                raise patch.entry.where.error(
                    f"two different blocks of your own are called {name!r}, by which the model "
                    "records them: rename one"
                )


def _bind_patch(entry: PatchEntry, registry: Registry, by_code: bool) -> PatchPlan:
    operations, made = registry.names(PatchOpSpec), entry.block
    if entry.target in operations and entry.op not in operations:
        right = {entry.op: {entry.target: made}}
        raise entry.where.error(f"the target comes first, then the operation: write {right!r}")
    block = init = None
    with entry.where.key.before_errors():
        op = registry.resolve(PatchOpSpec, entry.op)
    if made is not None:
        with entry.where.down("type").before_errors():
            own = callable(made)
            block = Named(OWN, own_block(made)) if own else registry.resolve(BlockSpec, made)
    if entry.init is not None:
        with entry.where.down("init").before_errors():
            init = registry.resolve(InitializerSpec, entry.init)
    allowed = [*(PATCH_KEYS if op.spec.takes_block else ("name",)), *op.spec.options]
    given = {"type": made, "params": entry.params, "init": entry.init}
    for key in [*(key for key, value in given.items() if value), *entry.options]:
        if key not in allowed:
            hint = advice.misplaced(registry, key, entry, op, block, allowed)
            raise entry.where.down(key).key.error(f"unknown key {key!r} of {op.qualified}.{hint}")
    if op.spec.takes_block and block is None:
        raise entry.where.error(advice.needs_block(op.spec.name, entry.name))
    if not by_code:
        _refuse_code_only(op, entry.options, entry.where)
        if block is not None:
            _refuse_code_only(block, entry.params, entry.where.down("params"))
    return PatchPlan(entry=entry, op=op, block=block, init=init)
