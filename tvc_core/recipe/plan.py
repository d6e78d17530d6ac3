"""Bind every name of a recipe to the spec that it stands for. Unknown and ambiguous names stop
here, and so does what a recipe must not reach; no torch yet.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from ..advice.recipes import misplaced, refuse_missing
from ..advice.words import on_weights
from ..errors import (
    ParameterError,
    UnknownNameError,
    did_you_mean,
    join_names,
    short_repr,
    what_there_is,
)
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
from .place import Place
from .rules import IMAGE_SIZE, SIZE, file_name, is_file
from .schema import PatchEntry, Recipe, Weights

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
            "DEFAULT", without what only code may set.
        backbone: the network.
        weights: the pretrained set, None for random weights.
        weights_class: the enum class that the user named with the weights, as in
            "ResNet50_Weights.IMAGENET1K_V2".
        patches: in the order in which they are applied.
        options: keyword arguments of the backbone's factory.
        weights_file: the user's own file that the weights are read from.
    """

    recipe: Recipe
    backbone: Named[BackboneSpec]
    weights: WeightsSpec | None
    weights_class: str | None = None
    patches: tuple[PatchPlan, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    weights_file: Path | None = None


def make_plan(
    recipe: Recipe,
    registry: Registry,
    backbone: Named[BackboneSpec] | None = None,
    *,
    by_code: bool | Collection[str] = False,
) -> Plan:
    """Bind a recipe's names in a registry.

    Args:
        recipe: what the user wrote.
        registry: where names are looked up.
        backbone: what the backbone's name stands for, where the registry does not know it.
        by_code: the recipe stands for arguments in a program, which may open addresses and paths. A
            recipe that was written down reaches nothing but files of weights in its own folder: it
            must not set what a spec names as `code_only`. Or the keys that a program has set.

    Raises:
        UnknownNameError: a backbone, weights set, operation, block or initializer that no plugin
            offers.
        AmbiguousNameError: a short name with several owners.
        RecipeError: an operation without its block, an option that an operation does not take, or
            one that only code may set.
        ParameterError: an option that the backbone does not take, or an image size where it has no
            place.
    """
    by = dict.fromkeys(("options", "patches", "weights"), by_code is True)
    by |= dict.fromkeys([] if isinstance(by_code, bool) else by_code, True)
    # Missing distributions first, all of them in one error: a recipe from elsewhere often needs
    # several, and installing them one error after the other is tedious. Then each name in the order
    # in which it stands in the recipe, and each error with its place there.
    with recipe.where.before_errors():
        refuse_missing(registry, _names(recipe, backbone is None))
    with _in_file(recipe, "backbone"):
        backbone = backbone or registry.resolve(BackboneSpec, recipe.backbone)
    if not by["options"]:
        _refuse_code_only(backbone, recipe.options, recipe.place("options"))
    with _in_file(recipe, "options"):
        _check_options(recipe.options, backbone)
        known = _with_facts(backbone, recipe.options, registry)
    with _in_file(recipe, "weights"):
        file = _own_file(recipe, by["weights"]) if is_file(recipe.weights) else None
        weights = _bind_weights(recipe.weights, backbone) if file is None else _own(file, backbone)
    with _in_file(recipe, "image_size"):
        options = _options(recipe, backbone)
    patches = tuple(_bind_patch(entry, registry, by["patches"]) for entry in recipe.patches)
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
    )
    return Plan(
        recipe=qualified,
        backbone=known,
        weights=weights,
        weights_class=None if file is not None else _weights_class(recipe.weights),
        patches=patches,
        options=options,
        weights_file=file,
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


def _in_file(recipe: Recipe, key: str) -> AbstractContextManager[None]:
    """Put file and line of one of a recipe's values before what is wrong with it."""
    in_file = recipe.where.marks is not None
    return recipe.place(key).before_errors() if in_file else nullcontext()


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
    backbone: Named[BackboneSpec], options: Mapping[str, Any], registry: Registry
) -> Named[BackboneSpec]:
    """Return the backbone with the channels of the image that its option sets. One that declares no
    residual branches, such as a user's own network, knows the classes that any other declares.
    """
    spec = backbone.spec
    name, facts = spec.channels_option, {}
    if (channels := options.get(name)) is not None:
        facts["num_channels"] = SIZE.check(name, channels, ParameterError)
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
    if size is None:
        return options
    name, what = spec.size_option, f"{backbone.qualified} takes images of"
    if name in spec.options:
        if IMAGE_SIZE.check(name, options.setdefault(name, size), ParameterError) != size:
            both = f"image_size is {size}, and the option {name} is {options[name]}"
            raise ParameterError(f"{both}: give one of them")
        return options
    if not spec.fixed_size:
        sizes = f"{what} any size from {spec.min_size} pixels"
        raise ParameterError(f"image_size={size} is not needed: {sizes}. Resize the images.")
    trained = sorted({weights.crop_size for weights in spec.weights} or {spec.min_size})
    hint = " Its option input_size builds it for another size, without pretrained weights."
    raise ParameterError(
        f"image_size={size} is not available: {what} {join_names(map(str, trained))} pixels only, "
        "since no rule resamples its position weights. Resize the images."
        f"{hint if 'input_size' in spec.options else ''}"
    )


def _bind_weights(given: Weights, backbone: Named[BackboneSpec]) -> WeightsSpec | None:
    if given is None:
        return None
    spec, what = backbone.spec, f"the backbone {backbone.qualified!r}"
    name = given.name if isinstance(given, enum.Enum) else str(given).rpartition(".")[2]
    if name == "DEFAULT":
        if spec.default_weights is None:
            raise UnknownNameError(f"{what} has no pretrained weights: pass weights=None.")
        name = spec.default_weights
    if (found := spec.find_weights(name)) is None:
        names = [weights.name for weights in spec.weights]
        hint = on_weights(given) or did_you_mean(name, names)
        default = f"; 'DEFAULT' stands for {spec.default_weights}" if names else ""
        raise UnknownNameError(
            f"Unknown weights {str(given)!r} of {what}.{hint} It has {join_names(names)}{default}."
        )
    return found


def _own_file(recipe: Recipe, by_code: bool) -> Path:
    """Return the path of the user's own file of weights. What a recipe names is in its folder."""
    path = Path(str(recipe.weights))
    if by_code:
        return path
    folder = Path() if recipe.where.marks is None else Path(recipe.where.source).parent
    is_outside = path.is_absolute() or ".." in path.parts
    if recipe.where.marks is not None:  # a link may lead elsewhere
        is_outside = is_outside or not (folder / path).resolve().is_relative_to(folder.resolve())
    if is_outside:
        raise recipe.place("weights").error(
            f"the weights {short_repr(str(path))} are outside of the recipe's folder, where it "
            "must not reach. Put the file there, or name it in Python: "
            "HybridBuilder().build(recipe, weights=path)"
        )
    return folder / path


def _own(file: Path, backbone: Named[BackboneSpec]) -> WeightsSpec:
    """Return what is known of a file before it is read: images are prepared as usual."""
    spec = backbone.spec
    usual = spec.find_weights(spec.default_weights) or WeightsSpec(name="own")
    unknown: dict[str, Any] = dict.fromkeys(("num_params", "gflops", "acc1", "num_classes"))
    unknown |= dict.fromkeys(("recipe", "license", "url", "sha256"), "")
    name = file_name(PurePath(file.name))
    return replace(usual, name=name, class_names=(), options={}, **unknown)


def _weights_class(given: Weights) -> str | None:
    if isinstance(given, enum.Enum):
        return type(given).__name__
    return str(given or "").rpartition(".")[0] or None


# -- patches ---------------------------------------------------------------------------------------


def _block(given: Any, registry: Registry) -> Named[BlockSpec]:
    """Return the spec of a block's name, or of what stands in its place."""
    if callable(given):
        return Named(OWN, own_block(given))
    return registry.resolve(BlockSpec, given)


def _check_own(patches: Iterable[PatchPlan]) -> None:
    """Refuse two different blocks of one's own under one name, which no file could tell apart."""
    known: dict[str, Any] = {}
    for patch in patches:
        if patch.block is not None and patch.block.owner == OWN and callable(patch.entry.block):
            name, made = patch.block.spec.name, patch.entry.block
            made = type(made) if is_module(made) else made
            if known.setdefault(name, made) != made:
                raise patch.entry.where.error(
                    f"two different blocks of your own are called {name!r}, by which the model "
                    "records them: rename one"
                )


def _bind_patch(entry: PatchEntry, registry: Registry, by_code: bool) -> PatchPlan:
    if entry.target in registry.names(PatchOpSpec) and entry.op not in registry.names(PatchOpSpec):
        right = {entry.op: {entry.target: entry.block}}
        raise entry.where.error(f"the target comes first, then the operation: write {right!r}")
    with entry.where.key.before_errors():
        op = registry.resolve(PatchOpSpec, entry.op)
    with entry.where.down("type").before_errors():
        block = None if entry.block is None else _block(entry.block, registry)
    with entry.where.down("init").before_errors():
        init = None if entry.init is None else registry.resolve(InitializerSpec, entry.init)
    allowed = [*(PATCH_KEYS if op.spec.takes_block else ("name",)), *op.spec.options]
    given = {"type": entry.block, "params": entry.params, "init": entry.init}
    for key in [*(key for key, value in given.items() if value), *entry.options]:
        if key not in allowed:
            hint = misplaced(registry, key, entry, op, block) or what_there_is(key, allowed)
            raise entry.where.down(key).key.error(f"unknown key {key!r} of {op.qualified}.{hint}")
    if op.spec.takes_block and block is None:
        name, hint = op.spec.name, ""
        if entry.name:
            hint = (
                f"; 'name' names its place, and the block is the type: {{'type': {entry.name!r}}}"
            )
        needs = f"{name} needs a block: write {{'{name}': 'se'}}, or give 'type'"
        raise entry.where.error(f"{needs}{hint}")
    if not by_code:
        _refuse_code_only(op, entry.options, entry.where)
        if block is not None:
            _refuse_code_only(block, entry.params, entry.where.down("params"))
    return PatchPlan(entry=entry, op=op, block=block, init=init)
