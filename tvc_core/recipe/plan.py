"""Bind every name of a recipe to the spec that it stands for. Unknown and ambiguous names stop
here; no torch yet.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import (
    ParameterError,
    RecipeError,
    TvcError,
    UnknownNameError,
    did_you_mean,
    join_names,
)
from ..registry import Named, Registry
from ..specs import PATCH_KEYS, BackboneSpec, BlockSpec, InitializerSpec, PatchOpSpec, WeightsSpec
from .schema import PatchEntry, Recipe, check_recipe

__all__ = ["PatchPlan", "Plan", "make_plan", "qualified_entry"]


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
            "DEFAULT".
        backbone: the network.
        weights: the pretrained set, None for random weights.
        weights_class: the enum class that the user named with the weights, as in
            "ResNet50_Weights.IMAGENET1K_V2".
        patches: in the order in which they are applied.
        options: keyword arguments of the backbone's factory.
    """

    recipe: Recipe
    backbone: Named[BackboneSpec]
    weights: WeightsSpec | None
    weights_class: str | None = None
    patches: tuple[PatchPlan, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def image_side(self) -> int | None:
        """Side of the image that the options ask for; None where they ask for none, or for one that
        is not square [pixels].
        """
        size = self.options.get(self.backbone.spec.size_option)
        if isinstance(size, (tuple, list)) and len(set(size)) == 1:
            size = size[0]
        return size if isinstance(size, int) else None


def make_plan(
    recipe: Recipe, registry: Registry, backbone: Named[BackboneSpec] | None = None
) -> Plan:
    """Bind a recipe's names in a registry.

    Args:
        recipe: what the user wrote.
        registry: where names are looked up.
        backbone: what the backbone's name stands for, where the registry does not know it.

    Raises:
        UnknownNameError: a backbone, weights set, operation, block or initializer that nobody
            offers.
        AmbiguousNameError: a short name with several owners.
        RecipeError: an operation without its block, an option that an operation does not take, or a
            value of the wrong kind.
        ParameterError: an option that the backbone does not take, or an image size where it has no
            place.
    """
    check_recipe(recipe)
    with _placed(recipe, "backbone"):
        backbone = backbone or registry.resolve(BackboneSpec, recipe.backbone)
    with _placed(recipe, "options"):
        _check_options(recipe.options, backbone)
    with _placed(recipe, "weights"):
        weights = _bind_weights(recipe.weights, backbone)
    with _placed(recipe, "image_size"):
        options = _options(recipe, backbone)
    patches = tuple(_bind_patch(entry, registry) for entry in recipe.patches)
    qualified = replace(
        recipe,
        backbone=backbone.qualified,
        weights=weights.name if weights else None,
        patches=tuple(qualified_entry(patch) for patch in patches),
    )
    given = recipe.weights
    weights_class = (
        type(given).__name__
        if isinstance(given, enum.Enum)
        else str(given or "").rpartition(".")[0] or None
    )
    return Plan(
        recipe=qualified,
        backbone=_knowing_branches(_taking(backbone, recipe.options), registry),
        weights=weights,
        weights_class=weights_class,
        patches=patches,
        options=options,
    )


def _taking(backbone: Named[BackboneSpec], options: Mapping[str, Any]) -> Named[BackboneSpec]:
    """Return the backbone as its option for the channels of the image makes it."""
    channels = options.get(backbone.spec.channels_option)
    if channels is None:
        return backbone
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise ParameterError(
            f"{backbone.spec.channels_option} is a number of channels, at least 1, not {channels!r}"
        )
    return Named(backbone.owner, replace(backbone.spec, num_channels=channels))


def _knowing_branches(backbone: Named[BackboneSpec], registry: Registry) -> Named[BackboneSpec]:
    """Return the backbone; one that declares no residual branches, such as a user's own network,
    knows the classes that any other backbone declares.
    """
    if backbone.spec.branches:
        return backbone
    others = registry.all(BackboneSpec)
    known = {name: end for offer in others for name, end in offer.spec.branches.items()}
    return Named(backbone.owner, replace(backbone.spec, branches=known))


@contextmanager
def _placed(recipe: Recipe, key: str) -> Iterator[None]:
    """Put file and line of one of a recipe's values in front of what is wrong with it."""
    try:
        yield
    except TvcError as error:
        if key not in recipe.lines:
            raise
        raise type(error)(f"{recipe.lines[key]}: {error}") from error


def _check_options(options: Mapping[str, Any], backbone: Named[BackboneSpec]) -> None:
    for option in options:
        if option not in backbone.spec.options:
            known = join_names(backbone.spec.options)
            hint = did_you_mean(option, backbone.spec.options)
            raise ParameterError(
                f"Unknown option {option!r} of the backbone {backbone.qualified!r}.{hint} It "
                f"takes: {known}."
            )


def _options(recipe: Recipe, backbone: Named[BackboneSpec]) -> dict[str, Any]:
    """Return the keyword arguments of the factory: the recipe's options, and its image size under
    that name.
    """
    options, size, spec = dict(recipe.options), recipe.image_size, backbone.spec
    if size is None:
        return options
    if (name := spec.size_option) in spec.options:
        if options.setdefault(name, size) != size:
            raise ParameterError(
                f"image_size is {size}, and the option {name} is {options[name]}: give one of them"
            )
        return options
    if not spec.fixed_size:
        raise ParameterError(
            f"image_size={size} is not needed: {backbone.qualified} takes images of any size from "
            f"{spec.min_size} pixels. "
            "Leave image_size out and resize the images."
        )
    sizes = {weights.crop_size for weights in spec.weights} or {spec.min_size}
    other = (
        " Its option input_size builds it for another size, without pretrained weights."
        if "input_size" in spec.options
        else ""
    )
    raise ParameterError(
        f"image_size={size} cannot be had: {backbone.qualified} takes images of "
        f"{join_names(map(str, sorted(sizes)))} pixels "
        f"only, since no rule resamples its position weights. Resize the images.{other}"
    )


def _bind_weights(given: Any, backbone: Named[BackboneSpec]) -> WeightsSpec | None:
    spec = backbone.spec
    if given is None:
        return None
    name = given.name if isinstance(given, enum.Enum) else given.rpartition(".")[2]
    if name == "DEFAULT":
        if spec.default_weights is None:
            raise UnknownNameError(
                f"The backbone {backbone.qualified!r} has no pretrained weights: pass weights=None."
            )
        name = spec.default_weights
    found = spec.find_weights(name)
    if found is None:
        names = [weights.name for weights in spec.weights]
        raise UnknownNameError(
            f"Unknown weights {str(given)!r} of the backbone "
            f"{backbone.qualified!r}.{did_you_mean(name, names)} "
            f"It has {join_names(names)}; 'DEFAULT' stands for {spec.default_weights}, None for "
            "random weights."
        )
    return found


def _bind_patch(entry: PatchEntry, registry: Registry) -> PatchPlan:
    try:
        op = registry.resolve(PatchOpSpec, entry.op)
        block = registry.resolve(BlockSpec, entry.block) if entry.block is not None else None
        init = registry.resolve(InitializerSpec, entry.init) if entry.init is not None else None
    except UnknownNameError as error:
        raise type(error)(f"{entry.where}: {error}") from error
    allowed = [*(PATCH_KEYS if op.spec.takes_block else ("name",)), *op.spec.options]
    given = {"type": entry.block, "params": entry.params or None, "init": entry.init}
    for key in [*(key for key, value in given.items() if value is not None), *entry.options]:
        if key not in allowed:
            hint = did_you_mean(key, allowed)
            raise RecipeError(
                f"{entry.where}: unknown key {key!r} of {op.qualified}.{hint} It takes: "
                f"{join_names(allowed)}"
            )
    if op.spec.takes_block and block is None:
        raise RecipeError(
            f"{entry.where}: {op.spec.name} needs a block: write {{'{op.spec.name}': 'se'}}, or "
            "give 'type'"
        )
    return PatchPlan(entry=entry, op=op, block=block, init=init)


def qualified_entry(patch: PatchPlan) -> PatchEntry:
    """Return a patch as a recipe has it, with qualified names."""
    return replace(
        patch.entry,
        op=patch.op.qualified,
        block=patch.block.qualified if patch.block else None,
        init=patch.init.qualified if patch.init else None,
        where="",
    )
