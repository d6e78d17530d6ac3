"""Collect what commands show, as plain data: one dictionary a thing. torch is imported where a
factory has to be.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvc_core import (
    AmbiguousNameError,
    BackboneFamilySpec,
    BackboneSpec,
    BlockSpec,
    InitializerSpec,
    PatchOpSpec,
    PluginInfo,
    Registry,
    UnknownNameError,
    WeightsSpec,
)

if TYPE_CHECKING:
    from tvc_core import HybridModel  # at run time this would import torch

__all__ = [
    "KINDS",
    "backbone_facts",
    "find",
    "list_facts",
    "model_facts",
    "normalized",
    "offers_of",
    "plugin_facts",
    "thing_facts",
]

AnySpec = type[BackboneSpec] | type[BlockSpec] | type[PatchOpSpec] | type[InitializerSpec]

KINDS: dict[str, AnySpec] = {
    "backbones": BackboneSpec,
    "blocks": BlockSpec,
    "ops": PatchOpSpec,
    "initializers": InitializerSpec,
}
"""The word of the command line for each kind of thing that plugins offer."""


def list_facts(
    registry: Registry,
    kind: str,
    *,
    origin: str | None = None,
    plugin: str | None = None,
    category: str | None = None,
    pattern: str | None = None,
) -> list[dict[str, Any]]:
    """Return one dictionary for each thing of a kind, naturally sorted by name; `pattern` is for
    backbones.

    Raises:
        UnknownNameError: nothing that is installed has this origin, plugin or category.
    """
    names = registry.names(KINDS[kind])
    kept = set(names)
    members: list[str] = []
    if kind == "backbones":
        listed = registry.list_backbones(pattern, origin=origin, owner=plugin)
        members = [name for name in listed if name not in kept]
        kept &= set(listed)
    elif plugin is not None:
        registry.list_backbones(owner=plugin)  # for the error about a plugin that is not there
    if kind == "blocks":
        kept &= set(registry.list_blocks(category))
    # a name that several plugins offer is listed in its qualified form, which is not the spec's own
    found = [
        {**_spec_facts(registry.resolve(KINDS[kind], name)), "name": name}
        for name in names
        if name in kept
    ]
    found += [_member_facts(registry, name) for name in members]
    owner = normalized(plugin) if plugin is not None else None
    return [fact for fact in found if owner is None or fact["plugin"] == owner]


def find(registry: Registry, name: str, kind: str | None) -> tuple[AnySpec, Any]:
    """Return the kind and the resolved spec that a name stands for.

    Args:
        registry: where to look.
        name: short or qualified.
        kind: a word of `KINDS`; None looks among all of them.

    Raises:
        UnknownNameError: nothing has the name.
        AmbiguousNameError: several things have it.
    """
    if kind is not None:
        return KINDS[kind], registry.resolve(KINDS[kind], name)
    found: dict[str, Any] = {}
    errors: list[UnknownNameError] = []
    for word, spec_type in KINDS.items():
        try:
            found[word] = registry.resolve(spec_type, name)
        except AmbiguousNameError:
            raise
        except UnknownNameError as error:
            errors.append(error)
    if len(found) == 1:
        [(word, named)] = found.items()
        return KINDS[word], named
    if found:
        meanings = " and ".join(
            f"the {named.spec.kind} {named.qualified!r}" for named in found.values()
        )
        words = " or ".join(f"--kind {word}" for word in found)
        raise AmbiguousNameError(f"{name!r} is {meanings}: add {words}.")
    raise _most_helpful(name, errors)


def thing_facts(named: Any) -> dict[str, Any]:
    """Return what there is to say of a block, patch op or initializer, with the parameters of its
    factory.

    Raises:
        PluginError: the factory cannot be loaded.
    """
    spec = named.spec
    facts = {"kind": spec.kind, **_spec_facts(named)}
    if isinstance(spec, PatchOpSpec):
        facts["parameters"] = [
            {"name": name, "default": value, "required": False}
            for name, value in spec.options.items()
        ]
        return facts
    facts["parameters"] = _parameters(named.load())
    return facts


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

    spec: BackboneSpec = named.spec
    paths = describe_backbone(named.qualified, size=size, target=target, registry=registry)
    return {
        "kind": spec.kind,
        **_spec_facts(named),
        "weights": [_weights_facts(weights) for weights in spec.weights],
        "options": dict(spec.options),
        "stem": spec.stem,
        "stages": spec.stage_paths,
        "head": spec.head,
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


def plugin_facts(info: PluginInfo) -> dict[str, Any]:
    """Return what there is to say of a plugin."""
    return {
        "plugin": info.owner,
        "version": info.version or _version_of(info.owner),
        "status": info.status,
        "module": info.module,
        "api": ".".join(str(number) for number in info.api) if info.api else None,
        **{word: info.count(spec_type.kind) for word, spec_type in KINDS.items()},
        "families": info.count(BackboneFamilySpec.kind),
        "seconds": round(info.seconds, 3),
        "side_effects": info.side_effects,
        "error": info.error or None,
        "traceback": info.traceback or None,
    }


def offers_of(info: PluginInfo) -> dict[str, list[str]]:
    """Return the names that a plugin offers, by kind."""
    offers: dict[str, list[str]] = {}
    for spec in info.specs:
        offers.setdefault(spec.kind, []).append(spec.name)
    return offers


def normalized(distribution: str) -> str:
    """Return a distribution's name in the form that owners have (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _spec_facts(named: Any) -> dict[str, Any]:
    """Return what a spec says by itself, which costs no import."""
    spec = named.spec
    facts: dict[str, Any] = {"name": spec.name, "qualified": named.qualified, "plugin": named.owner}
    if isinstance(spec, BackboneSpec):
        facts |= {"family": spec.family, "origin": spec.origin}
        facts |= {
            "weights": [weights.name for weights in spec.weights],
            "default_weights": spec.default_weights,
        }
    elif isinstance(spec, BlockSpec):
        facts |= {
            "category": spec.category,
            "layouts": spec.layouts,
            "preserves_shape": spec.preserves_shape,
        }
    elif isinstance(spec, PatchOpSpec):
        facts |= {"takes_block": spec.takes_block, "options": dict(spec.options)}
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
        "weights": None,
        "default_weights": None,
        "summary": "",
        "source": "",
    }


def _weights_facts(weights: WeightsSpec) -> dict[str, Any]:
    return {
        "name": weights.name,
        "crop_size": weights.crop_size,
        "resize_size": weights.resize_size,
        "interpolation": weights.interpolation,
        "mean": weights.mean,
        "std": weights.std,
        "num_classes": weights.num_classes,
        "recipe": weights.recipe,
    }


def _parameters(factory: Callable[..., Any]) -> list[dict[str, Any]] | None:
    """Return a factory's parameters behind the first, which is the core's; None where only its
    source would tell.
    """
    try:
        found = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # some callables written in C have no signature
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in found):
        return None
    named = [p for p in found[1:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [
        {
            "name": p.name,
            "default": None if p.default is p.empty else p.default,
            "required": p.default is p.empty,
        }
        for p in named
    ]


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
    for hint in ("provides it", "is installed but", "does not offer it", "Did you mean"):
        for error in errors:
            if hint in str(error):
                return error
    return UnknownNameError(
        f"Unknown name {name!r}: no installed plugin offers a backbone, block, patch op or "
        "initializer of this name. "
        "'tvc list' shows the backbones, and 'tvc list blocks', 'tvc list ops' and 'tvc list "
        "initializers' the others."
    )
