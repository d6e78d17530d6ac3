"""Advice about a name that no plugin offers, or that several do."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ..errors import TvcError, did_you_mean, join_names, near_names, sentence
from ..specs import FROM_MODULE, OWN, BackboneFamilySpec, BackboneSpec, Kind, normalize
from . import hints, words

__all__ = ["ambiguous_name", "lacks", "unknown_member", "unknown_name", "unknown_owner"]

_LISTED_BY = {
    "backbone family": "HybridBuilder.list_families()",
    "kind": "Registry().names(Kind)",
    **{
        kind: f"HybridBuilder.list_{kind.replace(' ', '_')}s()"
        for kind in ("backbone", "block", "patch op", "initializer")
    },
}


def unknown_name(registry: Any, kind: type[Any], owner: str, short: str, ending: str = "") -> str:
    """Return what to do about a name that no plugin offers.

    Args:
        registry: a Registry, which stands above this floor.
        kind: class of the specs that were looked for.
        owner: first half of the name; empty for a short name.
        short: second half of the name.
        ending: what follows the name of a family.
    """
    known = {info.owner: info for info in registry.plugins}
    installable = hints.table(kind.kind)
    provider = installable.get(short)
    backbone = kind is BackboneSpec or bool(ending)
    given = f"{owner}:{short}{ending}" if owner else f"{short}{ending}"
    elsewhere = backbone and not provider and owner not in known
    if elsewhere and (member := _in_families(registry, given)):
        return member
    info = known.get(owner or provider or "")
    if owner == normalize(FROM_MODULE):
        return (
            "It is a network that was handed over in code, which no recipe builds: make it and "
            "use HybridBuilder.from_module."
        )
    if owner == OWN and owner not in known and kind.kind == "block":
        return (
            "It is a class or module of the code that made this: hand over what makes it, plugin = "
            f"LocalPlugin({OWN!r}); plugin.block(name={short!r})(...); "
            "HybridBuilder(plugins=[plugin])"
        )
    if provider and provider not in known and owner in ("", provider):
        return f"{provider} provides it and is not installed: pip install {provider}"
    if info is not None and info.status != "active":
        why = sentence(info.error or "by TVC_DISABLE or TVC_ONLY")
        what = f"{info.owner} {info.version} is installed but {info.status}"
        return f"{what}: {why} 'tvc plugins' shows all plugins."
    if there := [offer.qualified for offer in registry.all(kind) if offer.spec.name == short]:
        offered = join_names(f"{name}{ending}" for name in there)
        return f"{owner!r} does not offer it; there is {offered}."
    parts, names = [], registry.names(kind)
    if owner in hints.distributions() and info is None:
        parts.append(f"{owner} is not installed: pip install {owner}.")
    elif owner and info is None:
        hand_over = "If it was made in code: HybridBuilder(plugins=[plugin]) has it."
        parts.append(f"There is no plugin {owner!r}.{did_you_mean(owner, known)} {hand_over}")
    every_kind = [offer.spec.spec for offer in registry.all(Kind)]
    others = sorted(
        other.kind
        for other in every_kind
        if any(offer.spec.name == short for offer in registry.all(other))
    )
    parts += [f"There is the {other} {short!r}." for other in others]
    absent = [name for name in installable if name not in names]
    every = [*names, *absent] if info or not owner else []  # not of a plugin that is not there
    meant = hints.block_meant(short) if kind.kind == "block" else short
    meant = meant if meant in every else short
    near_by = did_you_mean(meant, every)
    if backbone:
        backbones = registry.names(BackboneSpec)
        near_by = words.on_name(f"{short}{ending}", backbones) or near_by
    elif kind.kind == "block":
        near_by = near_by or words.on_block(short, names)
    elif kind.kind == "patch op":
        near_by += words.on_operation(short) if not near_by or short in words.POSITION_WORDS else ""
    parts.append(near_by.strip())
    if near := near_names(meant, absent if every else [], most=1):
        parts.append(f"{near[0]} is in {installable[near[0]]}, which is not installed.")
    lists = _LISTED_BY.get(kind.kind, f"Registry().names({kind.kind!r})")
    parts.append(f"Installed are {len(names)}: {join_names(names)}. {lists} lists them.")
    faulty = [info.owner for info in registry.plugins if info.status in ("failed", "incompatible")]
    if faulty:
        of = join_names(faulty)
        parts.append(f"Nothing of {of} could be loaded; 'tvc plugins' says why.")
    return " ".join(part for part in parts if part)


def _in_families(registry: Any, given: str) -> str:
    """Return which member of a family the name of another library stands for, or what to
    install for it. Only what can be built is named, so the member is looked up.
    """
    for family in registry.all(BackboneFamilySpec):
        label = registry.label(family)
        for bare in words.bare_names(given, label):
            with suppress(TvcError):  # of a family that fails there is nothing to say
                if f"{label}/{bare.partition('.')[0]}" in registry.members(family):
                    registry.resolve(BackboneSpec, f"{label}/{bare}")
                    return f"Did you mean '{label}/{bare}'?"
    for label, provider in hints.table(BackboneFamilySpec.kind).items():
        for bare in words.bare_names(given, label):
            if bare != given and label not in registry.names(BackboneFamilySpec):
                what = f"{provider} provides '{label}/{bare}' and is not installed"
                return f"{what}: pip install {provider}"
    return ""


def ambiguous_name(kind: type[Any], qualified: list[str], ending: str) -> str:
    """Return how to say which plugin's offer is meant.

    Args:
        kind: class of the specs.
        qualified: the names of all offers.
        ending: what follows the name of a family.
    """
    choices = " or ".join(repr(f"{name}{ending}") for name in qualified)
    built = kind.kind in _LISTED_BY and kind is not Kind
    owner = qualified[0].partition(":")[0]
    prefer = f", or build with HybridBuilder(prefer=({owner!r},))" if built else ""
    return f"write {choices}{prefer}."


def unknown_member(registry: Any, name: str, family: Any, said: str) -> str:
    """Return what to do about a member that a family does not have.

    Args:
        registry: a Registry, which stands above this floor.
        name: of the member, without its family.
        family: resolved.
        said: what the family itself says.
    """
    label, members = registry.label(family), registry.members(family)
    said = sentence(" ".join(said.split()) or f"the family {label!r} has no such member")
    hint = "" if "?" in said else did_you_mean(f"{label}/{name}", members)
    short = join_names((each.rpartition("/")[2] for each in members), most=4)
    there_is = f"The family has {len(members)} members: {short}."
    return f"{said}{hint} {there_is} HybridBuilder.list_backbones('{label}/*') lists them."


_ORIGINS = ("torchvision", "timm")


def unknown_owner(owner: str, owners: list[str]) -> str:
    """Return what to do about a distribution that is not installed; `owners` are."""
    if owner in _ORIGINS:
        return f"It is where networks come from: list_backbones(origin={owner!r}) lists them."
    near = next(iter(near_names(owner, [*owners, *hints.distributions()], most=1)), "")
    if not near:
        return f"There is {join_names(sorted(owners))}."
    meant = [f"Did you mean {near!r}?"] if near != owner else []
    install = [] if near in owners else [f"It can be installed: pip install {near}"]
    return " ".join(meant + install)


def lacks(registry: Any, kind: type[Any], name: str) -> str:
    """Return the distribution that a name needs and that is not installed, or nothing: the name
    says it, or is that of a first-party plugin.
    """
    owner, _, short = name.rpartition(":")
    family, slash, _ = short.partition("/")
    kind, short = (BackboneFamilySpec, family) if slash else (kind, short)
    if not owner and not any(offer.spec.name == short for offer in registry.all(kind)):
        owner = hints.table(kind.kind).get(short, "")
    owner = normalize(owner)
    return "" if owner in {info.owner for info in registry.plugins} else owner
