"""Collect what commands show, as plain data: one dictionary a thing. torch is imported where a
factory has to be.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import inspect
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvc_core import (
    AmbiguousNameError,
    BackboneFamilySpec,
    BackboneSpec,
    BlockSpec,
    InitializerSpec,
    Kind,
    PatchOpSpec,
    PluginInfo,
    Registry,
    Spec,
    UnknownNameError,
    WeightsSpec,
)

from .docstrings import described_parameters
from .first_party import normalized

if TYPE_CHECKING:
    from tvc_core import HybridModel  # at run time this would import torch

__all__ = [
    "SORTS",
    "backbone_facts",
    "file_facts",
    "find",
    "is_file",
    "is_pattern",
    "kind_of",
    "kinds_of",
    "list_facts",
    "model_facts",
    "near_pattern",
    "offers_of",
    "plugin_facts",
    "stated_facts",
    "thing_facts",
]

SORTS = {
    "name": ("name", 1),
    "params": ("num_params", 1),
    "gflops": ("gflops", 1),
    "acc": ("acc1", -1),
}
"""What backbones can be sorted by: the fact, and -1 where the largest comes first."""

_FIGURES = ("num_params", "gflops", "acc1", "license")
"""What is said of a set of weights, and in a listing of the one that is shown."""
_SINGULAR = {"families": "family"}
_SAME = dict.fromkeys(
    ("operation", "operations", "patch_op", "patch_ops", "patch_operation", "patch_operations"),
    "ops",
)
"""Words of the documentation for a kind that has a short one."""

_SYNONYMS = {
    **dict.fromkeys(("model", "models", "network", "networks"), "backbones"),
    **dict.fromkeys(("patch", "patches"), "ops"),
    **dict.fromkeys(("module", "modules", "layer", "layers"), "blocks"),
    **dict.fromkeys(("init", "inits"), "initializers"),
}

_CORE = ("backbones", "blocks", "ops", "initializers")
"""The words of the core's kinds, in the order in which they are shown."""


def kinds_of(registry: Registry) -> dict[str, type[Any]]:
    """Return the kinds that there are, by the words of the command line; those of families, whose
    members are backbones, left out. A word that two plugins use is qualified.
    """
    offers = [offer for offer in registry.all(Kind) if offer.spec.spec is not BackboneFamilySpec]
    counts = Counter(offer.spec.plural for offer in offers)
    words = {
        offer.spec.plural
        if counts[offer.spec.plural] == 1
        else f"{offer.owner}:{offer.spec.plural}": offer.spec.spec
        for offer in offers
    }
    others = sorted(word for word in words if word not in _CORE)
    return {word: words[word] for word in (*_CORE, *others)}


def kind_of(registry: Registry, word: str) -> type[Any]:
    """Return the kind that a word of the command line stands for: "blocks", "acme:losses", "kinds".

    Raises:
        UnknownNameError: no plugin defines it.
        AmbiguousNameError: several plugins do.
    """
    words = {**kinds_of(registry), "kinds": Kind, "families": BackboneFamilySpec}
    owner, _, plural = word.rpartition(":")
    singular = {_SINGULAR.get(each, each.removesuffix("s")): each for each in words}
    same = _SAME.get(re.sub("[- ]", "_", word.lower()), word)
    if (known := singular.get(word, word if word in words else same)) in words:
        return words[known]
    owners = [offer.owner for offer in registry.all(Kind) if offer.spec.plural == plural]
    for offer in registry.all(Kind):
        if (normalized(owner), plural) == (offer.owner, offer.spec.plural):
            return offer.spec.spec
    if owners and not owner:
        choices = " or ".join(repr(f"{each}:{plural}") for each in owners)
        raise AmbiguousNameError(
            f"The kind {word!r} is defined by {len(owners)} plugins: write {choices}."
        )
    near = [_SYNONYMS[word]] if word in _SYNONYMS else difflib.get_close_matches(word, words, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else _other_command(registry, word)
    raise UnknownNameError(f"Unknown kind {word!r}.{hint} There is {', '.join(words)}.")


def _other_command(registry: Registry, word: str) -> str:
    """Return which command shows what `tvc list` does not list."""
    if word in ("plugin", "plugins"):
        return " 'tvc plugins' lists plugins."
    if word in ("weights", "weight"):
        return " 'tvc show NAME' lists the weights of a backbone."
    categories = {offer.spec.category for offer in registry.all(BlockSpec)}
    if word in categories:
        return f" 'tvc list blocks --category {word}' lists these blocks."
    with contextlib.suppress(UnknownNameError):
        find(registry, word, None)
        return f" 'tvc show {word}' shows it."
    return " For backbones by pattern write a '*', as in tvc list 'resnet*'."


def is_pattern(word: str) -> bool:
    """Tell whether a word of the command line is a pattern of names, as only these have wildcards
    or the slash of a family.
    """
    return any(character in word for character in "*?[/")


def is_file(registry: Registry, name: str) -> bool:
    """Tell whether a word of the command line is a file, by its suffix or its path separator, which
    members of families have as well.
    """
    if Path(name).suffix in (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".yaml", ".yml"):
        return True
    family = name.rpartition(":")[2].partition("/")[0]
    families = {offer.spec.name for offer in registry.all(BackboneFamilySpec)}
    return ("/" in name or os.sep in name) and (family not in families or Path(name).is_file())


def file_facts(path: str, registry: Registry) -> dict[str, Any]:
    """Return what is in a file of weights.

    Raises:
        WeightsError: it cannot be read, or is damaged.
        UnknownNameError: it is a recipe.
    """
    if Path(path).suffix in (".yaml", ".yml"):
        raise UnknownNameError(f"{path!r} is a recipe: 'tvc build {path}' builds and explains it.")
    from tvc_core import describe_file  # imports torch

    info = describe_file(path, registry=registry)
    found = {entry.name: getattr(info, entry.name) for entry in fields(info)}
    return {
        **found,
        "path": str(info.path),
        "num_tensors": len(info.tensors),
        "recipe": None if info.recipe is None else info.recipe.to_mapping(),
        "yaml": None if info.recipe is None else info.recipe.to_yaml(),
    }


def near_pattern(registry: Registry, kind: type[Any], pattern: str) -> str:
    """Return what a pattern that matches nothing may have been meant for."""
    family, slash, member = pattern.partition("/")
    names = registry.names(kind)
    if slash and kind is BackboneSpec:
        families = {registry.label(offer): offer for offer in registry.all(BackboneFamilySpec)}
        if family not in families:
            return f"The families are {', '.join(families) or 'none'}."
        if not member:
            return f"All of the family are '{family}/*'."
        names = registry.members(families[family])
    bare = re.sub(r"\[.*?\]|[*?]", "", pattern)
    near = [name for name in names if bare and bare.lower() in name.lower()][:1]
    if near and not is_pattern(member or pattern.replace("/", "")):
        return f"Names that have it are '*{bare.rpartition('/')[2]}*'."
    if any(fnmatch.fnmatchcase(name, pattern.lower()) for name in names):
        return f"Did you mean {pattern.lower()!r}?"
    near = near or difflib.get_close_matches(bare.lower(), names, n=3)
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else ""


def list_facts(
    registry: Registry,
    kind: type[Any],
    *,
    origin: str | None = None,
    owner: str | None = None,
    category: str | None = None,
    pattern: str | None = None,
    sort: str = "name",
    every_set: bool = False,
) -> list[dict[str, Any]]:
    """Return one dictionary for each thing of a kind, naturally sorted by name.

    Args:
        registry: where to look.
        kind: the class of its specs.
        origin, owner, category, pattern: leave out what does not match.
        sort: one of `SORTS`; what says nothing of it comes last.
        every_set: one dictionary for each set of weights of a backbone, not for its default set.

    Raises:
        UnknownNameError: nothing that is installed has this origin, owner or category.
    """
    names = registry.names(kind)
    kept = set(names)
    members: list[str] = []
    if kind is BackboneSpec:
        listed = registry.list_backbones(pattern, origin=origin, owner=owner)
        members = [name for name in listed if name not in kept]
        kept &= set(listed)
    elif pattern is not None:
        kept = {name for name in kept if fnmatch.fnmatchcase(name, pattern)}
    if kind is BlockSpec:
        kept &= set(registry.list_blocks(category))
    # a name that several plugins offer is listed in its qualified form, which is not the spec's own
    found = [
        {**_spec_facts(registry.resolve(kind, name)), "name": name}
        for name in names
        if name in kept
    ]
    found += [_member_facts(registry, name) for name in members]
    owner = registry.check_owner(owner) if owner is not None else None
    found = [fact for fact in found if owner is None or fact["plugin"] == owner]
    if every_set:
        found = [
            {**fact, "shown_weights": chosen["name"], **{key: chosen[key] for key in _FIGURES}}
            for fact in found
            for chosen in fact["weights"] or [{"name": None, **dict.fromkeys(_FIGURES)}]
        ]
    if sort == "name":
        return found
    key, sign = SORTS[sort]
    unknown = [fact for fact in found if fact[key] is None]
    known = [fact for fact in found if fact[key] is not None]
    return sorted(known, key=lambda fact: sign * fact[key]) + unknown


def find(registry: Registry, name: str, kind: str | None) -> Any:
    """Return the spec that a name stands for, with its owner.

    Args:
        registry: where to look.
        name: short or qualified.
        kind: a word of the command line; None looks among all kinds.

    Raises:
        UnknownNameError: nothing has the name.
        AmbiguousNameError: several things have it.
    """
    if kind is not None:
        return registry.resolve(kind_of(registry, kind), name)
    found: dict[str, Any] = {}
    errors: list[UnknownNameError] = []
    kinds = kinds_of(registry)
    for word, spec_type in kinds.items():
        try:
            found[word] = registry.resolve(spec_type, name)
        except AmbiguousNameError:
            raise
        except UnknownNameError as error:
            errors.append(error)
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        meanings = " and ".join(
            f"the {named.spec.kind} {named.qualified!r}" for named in found.values()
        )
        words = " or ".join(f"--kind {word}" for word in found)
        raise AmbiguousNameError(f"{name!r} is {meanings}: add {words}.")
    if normalized(name) in {info.owner for info in registry.plugins}:
        raise UnknownNameError(
            f"{name!r} is a plugin: 'tvc list blocks --owner {name}' lists its blocks, and so on "
            "for other kinds; 'tvc plugins' shows it."
        )
    if name in kinds:
        raise UnknownNameError(f"{name!r} is a kind: 'tvc list {name}' lists what there is.")
    raise _most_helpful(name, errors)


def thing_facts(named: Any) -> dict[str, Any]:
    """Return what there is to say of anything but a backbone; of the core's kinds with the
    parameters of its factory.

    Raises:
        PluginError: the factory cannot be loaded.
    """
    spec = named.spec
    facts = {"kind": spec.kind, **_spec_facts(named)}
    if isinstance(spec, PatchOpSpec):
        known = {each["name"]: each for each in _parameters(named.load()) or ()}
        facts["parameters"] = [
            {"type": None, "summary": "", **known.get(name, {}), **stated}
            for name, value in spec.options.items()
            for stated in [{"name": name, "default": value, "required": False}]
        ]
    elif isinstance(spec, (BlockSpec, InitializerSpec)):
        facts["parameters"] = _parameters(named.load())
    return facts


def stated_facts(named: Any) -> dict[str, Any]:
    """Return what a backbone's spec says of it, which builds no network."""
    spec: BackboneSpec = named.spec
    return {
        "kind": spec.kind,
        **_spec_facts(named),
        "options": dict(spec.options),
        "stem": spec.stem,
        "stages": spec.stage_paths,
        "head": spec.head,
    }


def backbone_facts(
    named: Any, registry: Registry, size: int | None, target: str | None = None
) -> dict[str, Any]:
    """Return what there is to say of a backbone, with every path measured, or those that a target
    means.

    Raises:
        BackboneError: the network cannot be built or does not accept an image of this size.
        TargetError: nothing is at `target`.
    """
    from tvc_core import describe_backbone  # imports torch

    paths = describe_backbone(named.qualified, size=size, target=target, registry=registry)
    return {
        **stated_facts(named),
        "image": paths[0].image if paths else None,
        "paths": [
            {
                "path": path.path,
                "type": path.type,
                "part": path.part,
                "in_channels": path.in_channels,
                "out_channels": path.out_channels,
                "height": path.height,
                "width": path.width,
                "layout": path.layout,
                "calls": path.calls,
                "problem": path.problem,
            }
            for path in paths
        ],
    }


def model_facts(model: HybridModel) -> dict[str, Any]:
    """Return what there is to say of a model that was built."""
    return {
        "recipe": model.recipe.to_mapping(),
        "num_classes": model.num_classes,
        "parameters": model.count_parameters(),
        "trainable_parameters": model.count_parameters(trainable_only=True),
        "patches": [
            {
                "target": record.target,
                "op": record.op,
                "block": record.block,
                "params": dict(record.params),
                "init": record.init,
                "starts_as_identity": record.starts_as_identity,
                "paths": record.paths,
                "replaced": record.replaced,
            }
            for record in model.patch_records
        ],
        # a replacement can make the difference infinite, for which JSON has no number
        "step0_difference": model.step0_difference
        if math.isfinite(model.step0_difference)
        else None,
        "explain": model.explain(),
    }


def plugin_facts(info: PluginInfo, registry: Registry) -> dict[str, Any]:
    """Return what there is to say of a plugin, with a count for each kind that there is."""
    return {
        "plugin": info.owner,
        "version": info.version or _version_of(info.owner),
        "status": info.status,
        "module": info.module,
        "api": ".".join(str(number) for number in info.api) if info.api else None,
        **{word: _count(info, spec_type) for word, spec_type in kinds_of(registry).items()},
        "families": _count(info, BackboneFamilySpec),
        "kinds": [kind.name for kind in info.kinds],
        "seconds": round(info.seconds, 3),
        "side_effects": info.side_effects,
        "error": info.error or None,
        "traceback": info.traceback or None,
    }


def offers_of(info: PluginInfo) -> dict[str, list[str]]:
    """Return the names that a plugin offers, by kind."""
    offers: dict[str, list[str]] = {}
    for each in info.offers:
        offers.setdefault(each.kind, []).append(each.name)
    return offers


def _count(info: PluginInfo, spec_type: type[Any]) -> int:
    return sum(type(spec) is spec_type for spec in info.specs)


def _spec_facts(named: Any) -> dict[str, Any]:
    """Return what a spec says by itself, which costs no import."""
    spec = named.spec
    facts: dict[str, Any] = {"name": spec.name, "qualified": named.qualified, "plugin": named.owner}
    if isinstance(spec, Kind):
        return facts | {"plural": spec.plural, "hook": spec.hook.__name__}
    if isinstance(spec, BackboneSpec):
        facts |= {"family": spec.family, "origin": spec.origin}
        weights = [_weights_facts(each) for each in spec.weights]
        shown = next((each for each in weights if each["name"] == spec.default_weights), {})
        facts |= {
            "weights": weights,
            "default_weights": spec.default_weights,
            "shown_weights": spec.default_weights,
            **{key: shown.get(key) for key in _FIGURES},
        }
    elif isinstance(spec, BlockSpec):
        facts |= {
            "category": spec.category,
            "layouts": spec.layouts,
            "preserves_shape": spec.preserves_shape,
        }
    elif isinstance(spec, PatchOpSpec):
        facts |= {"takes_block": spec.takes_block, "options": dict(spec.options)}
    elif not isinstance(spec, InitializerSpec):  # of another plugin's kind
        own = {field.name for field in fields(spec)} - {field.name for field in fields(Spec)}
        facts |= {name: getattr(spec, name) for name in sorted(own)}
    return facts | {"summary": spec.summary, "source": spec.source}


def _member_facts(registry: Registry, name: str) -> dict[str, Any]:
    """Return what is known of a family's member without describing it, which would import what it
    comes from.
    """
    family, _, member = name.rpartition("/")
    named = registry.resolve(BackboneFamilySpec, family)
    facts = {
        "name": name,
        "qualified": f"{named.qualified}/{member}",
        "plugin": named.owner,
        "family": named.spec.name,
    }
    return facts | {
        "origin": named.spec.origin,
        **dict.fromkeys(("weights", "default_weights", "shown_weights", *_FIGURES)),
        "summary": "",
        "source": "",
    }


def _weights_facts(weights: WeightsSpec) -> dict[str, Any]:
    return {
        "name": weights.name,
        "num_params": weights.num_params,
        "gflops": weights.gflops,
        "acc1": weights.acc1,
        "license": weights.license or None,
        "crop_size": weights.crop_size,
        "resize_size": weights.resize_size,
        "squash": weights.squash,
        "test_crop_size": weights.test_crop_size,
        "test_resize_size": weights.test_resize_size,
        "interpolation": weights.interpolation,
        "mean": weights.mean,
        "std": weights.std,
        "num_classes": weights.num_classes,
        "recipe": weights.recipe,
        "url": weights.url or None,
    }


def _parameters(factory: Callable[..., Any]) -> list[dict[str, Any]] | None:
    """Return a factory's parameters after the first, which is the core's, as its signature and its
    docstring say; None where only its source would tell.
    """
    try:
        found = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # some callables written in C have no signature
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in found):
        return None
    named = [p for p in found[1:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    described = described_parameters(factory)
    return [
        {
            "name": p.name,
            "type": None if p.annotation is p.empty else _type_text(p.annotation),
            "default": None if p.default is p.empty else p.default,
            "required": p.default is p.empty,
            "summary": _first_sentence(described.get(p.name, "")),
        }
        for p in named
    ]


def _type_text(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s+(?=[A-Z])", text, maxsplit=1)[0]


def _version_of(distribution: str) -> str | None:
    """Return the version of a distribution that announces itself without one, as the core does."""
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _most_helpful(name: str, errors: list[UnknownNameError]) -> UnknownNameError:
    """Return the error that knows a near name or who provides this one, else one that speaks for
    all kinds.
    """
    for hint in (
        "provides it",
        "is installed but",
        "does not offer it",
        "The family has",
        "There is a ",
        "Did you mean",
    ):
        for error in errors:
            if hint in str(error):
                return error
    return UnknownNameError(
        f"Unknown name {name!r}: no installed plugin offers a backbone, block, patch op or "
        "initializer of this name, or something of another kind. 'tvc list' shows the backbones, "
        "'tvc list blocks' the blocks, and 'tvc list kinds' what else can be listed."
    )
