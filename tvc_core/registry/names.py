"""What is installed under which name: the only place where a name becomes a spec. Imports
no torch.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Generic, TypeVar

from ..errors import (
    AmbiguousNameError,
    PluginError,
    UnknownNameError,
    did_you_mean,
    foreign,
    join_names,
    near_names,
)
from ..hookspecs import KINDS
from ..specs import (
    FROM_MODULE,
    BackboneFamilySpec,
    BackboneSpec,
    BlockSpec,
    Factory,
    InitializerSpec,
    Kind,
    PatchOpSpec,
    Spec,
    normalize,
)
from . import families, hints
from .discovery import PluginInfo, load_plugins

__all__ = ["Named", "PluginInfo", "Registry"]

S = TypeVar("S", bound="Spec | Kind")

_LISTED_BY: dict[type[Any], str] = {
    kind.spec: f"HybridBuilder.list_{kind.plural.replace('ops', 'patch_ops')}()" for kind in KINDS
}


@dataclass(frozen=True)
class Named(Generic[S]):
    """A spec together with its owner: what a name was resolved to.

    Args:
        owner: normalized name of the distribution.
        spec: the spec itself.
    """

    owner: str
    spec: S

    @property
    def qualified(self) -> str:
        """The name that means the same whatever else is installed, "owner:name"."""
        return f"{self.owner}:{self.spec.name}"

    def load(self) -> Any:
        """Import and return what the spec's factory points at.

        Raises:
            PluginError: the import fails, or the module has no such attribute.
        """
        return load_factory(self, self.spec.factory) if isinstance(self.spec, Spec) else self.spec


def load_factory(named: Named[Any], factory: Factory) -> Any:
    """Import and return what a factory of a spec points at.

    Raises:
        PluginError: the import fails, or the module has no such attribute.
    """
    if not isinstance(factory, str):
        return factory
    what = f"{named.spec.kind} {named.qualified!r}: its factory {factory!r}"
    fault = f"This is a fault of the distribution {named.owner!r}."
    module, _, attribute = factory.partition(":")
    with foreign(PluginError, f"{what} cannot be loaded", advice=fault):
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    if not callable(found):
        kind = type(found).__name__
        raise PluginError(f"{what} is of type {kind}, which cannot be called. {fault}")
    return found


class Registry:
    """An immutable table of names, made from a list of plugins.

    A kind is given by the class of its specs, or by its name: `BlockSpec` or "block". `Kind` stands
    for the kinds themselves.

    Args:
        plugins: in-process plugins (modules, classes or objects with hook implementations).
        installed: also load what is installed (the entry-point group `tvc.plugins`).
        prefer: owners that win a short name which several offer, first one first.

    Raises:
        PluginError: an in-process plugin is faulty, two have one owner, or TVC_STRICT=1 and an
            installed one is faulty.
        UnknownNameError: `prefer` names an owner that is not there.
    """

    def __init__(
        self, plugins: Iterable[Any] = (), *, installed: bool = True, prefer: Iterable[str] = ()
    ) -> None:
        self.plugins: tuple[PluginInfo, ...] = tuple(load_plugins(plugins, installed=installed))
        self.prefer = tuple(map(normalize, [prefer] if isinstance(prefer, str) else prefer))
        owners = {info.owner for info in self.plugins}
        for owner in (owner for owner in self.prefer if owner not in owners):
            near = did_you_mean(owner, owners)
            raise UnknownNameError(
                f"prefer names {owner!r}, which is not an installed plugin.{near}"
            )
        self._table: dict[tuple[type[Any], str], list[Named[Any]]] = {}
        for info in self.plugins:
            for each in info.offers:
                self._table.setdefault((type(each), each.name), []).append(Named(info.owner, each))
        self._described: dict[tuple[str, str], Named[BackboneSpec]] = {}
        self._members: dict[tuple[str, str], tuple[str, ...]] = {}

    def names(self, kind: type[Spec] | type[Kind] | str) -> list[str]:
        """Return a name for everything of a kind, naturally sorted; what the short name does not
        stand for is qualified.

        Raises:
            UnknownNameError: no plugin defines a kind of this name.
        """
        return [self.label(offer) for offer in self.all(kind)]

    def label(self, offer: Named[Any]) -> str:
        """Return the short name if it stands for this offer here, else the qualified name."""
        kind, name = type(offer.spec), offer.spec.name
        if kind is BackboneSpec and "/" in name:  # its family's name decides
            kind, name = BackboneFamilySpec, name.partition("/")[0]
        means = self._meant(self._table[kind, name])
        short = means is not None and offer.owner == means.owner
        return offer.spec.name if short else offer.qualified

    def all(self, kind: type[S] | str) -> list[Named[S]]:
        """Return everything of a kind with its owner, sorted by name, then owner; of families not
        the members.

        Raises:
            UnknownNameError: no plugin defines a kind of this name.
        """
        wanted = self._class_of(kind)
        found = [offer for key, each in self._table.items() if key[0] is wanted for offer in each]
        return sorted(found, key=lambda offer: (_natural(offer.spec.name), offer.owner))

    def resolve(self, kind: type[S] | str, name: object) -> Named[S]:
        """Return the spec that a short name ("se") or a qualified name ("tvc-attention:se") stands
        for.

        The member of a family ("acme/net") is described by the family, once, which may import
        torch.

        Raises:
            UnknownNameError: no plugin offers it. The message has near names and who would provide
                it.
            AmbiguousNameError: several plugins offer the short name, and `prefer` does not settle
                it.
            PluginError: a family fails to describe its member.
        """
        wanted: type[Any] = self._class_of(kind)
        if not isinstance(name, str):
            raise UnknownNameError(
                f"Unknown {wanted.kind} {name!r}: a name is a string, not {type(name).__name__}."
            )
        owner, _, short = name.rpartition(":")
        if wanted is BackboneSpec and "/" in short:
            return self._resolve_member(name, normalize(owner), short)  # type: ignore[return-value]
        offers = self._offers(wanted, owner if ":" in name else None, short)
        if not offers:
            advice = self._advice(wanted, normalize(owner), short)
            raise UnknownNameError(f"Unknown {wanted.kind} {name!r}. {advice}")
        is_offered = f"The {wanted.kind} {name!r} is offered by {len(offers)} plugins"
        return self._meant(offers) or self._ambiguous(is_offered, "", offers)

    # -- lists -------------------------------------------------------------------------------------

    def list_backbones(
        self, pattern: str | None = None, origin: str | None = None, owner: str | None = None
    ) -> list[str]:
        """Return the names of backbones, naturally sorted.

        The members of families ("timm/resnet50") are listed where the pattern has a slash, or
        `owner` or `origin` is theirs.

        Args:
            pattern: shell-style pattern, such as "resnet*" or "timm/resnet*".
            origin: whose networks, such as "torchvision".
            owner: the distribution that offers them, such as "tvc-resnet".

        Raises:
            UnknownNameError: no installed backbone has this origin, or no such plugin is installed.
        """
        offers: list[Named[Any]] = [*self.all(BackboneSpec), *self.all(BackboneFamilySpec)]
        _check_known("origin", origin, {offer.spec.origin for offer in offers})
        owner = owner and self.check_owner(owner)
        asked = owner is not None or origin is not None or "/" in (pattern or "")
        listed: list[str] = []
        for offer in offers:
            names = (offer.spec.name, offer.qualified)
            if origin not in (None, offer.spec.origin) or owner not in (None, offer.owner):
                continue
            if isinstance(offer.spec, BackboneFamilySpec):
                listed += self.members(offer, pattern) if asked else []
            elif pattern is None or any(fnmatchcase(name, pattern) for name in names):
                listed.append(self.label(offer))
        return listed

    def list_families(self) -> list[str]:
        """Return the names of families, whose members are named "family/member":
        list_backbones("family/*") lists them.
        """
        return self.names(BackboneFamilySpec)

    def list_blocks(self, category: str | None = None) -> list[str]:
        """Return the names of blocks, naturally sorted.

        Args:
            category: such as "attention".

        Raises:
            UnknownNameError: no installed block has this category.
        """
        offers = self.all(BlockSpec)
        _check_known("category", category, {offer.spec.category for offer in offers})
        return [self.label(offer) for offer in offers if category in (None, offer.spec.category)]

    def list_patch_ops(self) -> list[str]:
        """Return the names of patch operations."""
        return self.names(PatchOpSpec)

    def list_initializers(self) -> list[str]:
        """Return the names of weight initializers."""
        return self.names(InitializerSpec)

    def members(self, family: Named[BackboneFamilySpec], pattern: str | None = None) -> list[str]:
        """Return the names of a family's members, "family/member", naturally sorted.

        Args:
            family: one of `all(BackboneFamilySpec)`.
            pattern: shell-style pattern for a name, the part of it after the slash, or the
                qualified name.

        Raises:
            PluginError: the family cannot list them.
        """
        short, owner, name = self.label(family), family.owner, family.spec.name
        members = self._all_members(family)
        found = [member for member in members if families.matches(pattern, owner, name, member)]
        return [f"{short}/{member}" for member in sorted(found, key=_natural)]

    def check_owner(self, owner: str) -> str:
        """Return the normalized name of an installed plugin's distribution.

        Raises:
            UnknownNameError: no such plugin is installed.
        """
        name, owners = normalize(owner), {info.owner for info in self.plugins}
        if name in owners:
            return name
        near = near_names(name, [*owners, *hints.distributions()], most=1)
        text = f"No plugin {owner!r} is installed."
        if not near:
            text += f" There is {join_names(sorted(owners))}."
        elif near[0] in owners:
            text += f" Did you mean {near[0]!r}?"
        elif near[0] == name:
            text += f" pip install {name}."
        else:
            text += f" Did you mean {near[0]!r}? It is not installed either: pip install {near[0]}."
        raise UnknownNameError(text)

    # -- parts -------------------------------------------------------------------------------------

    def _class_of(self, kind: type[Any] | str) -> type[Any]:
        return self.resolve(Kind, kind).spec.spec if isinstance(kind, str) else kind

    def _offers(self, kind: type[Any], owner: str | None, name: str) -> list[Named[Any]]:
        offers = self._table.get((kind, name), [])
        return [each for each in offers if owner is None or each.owner == normalize(owner)]

    def _meant(self, offers: list[Named[Any]]) -> Named[Any] | None:
        """Return the only offer, or the one whose owner is preferred."""
        by_owner = {offer.owner: offer for offer in offers}
        preferred = next((by_owner[owner] for owner in self.prefer if owner in by_owner), None)
        return offers[0] if len(offers) == 1 else preferred

    def _ambiguous(self, what: str, ending: str, offers: list[Named[Any]]) -> Any:
        choices = " or ".join(repr(f"{offer.qualified}{ending}") for offer in offers)
        prefer = f", or build with HybridBuilder(prefer=({offers[0].owner!r},))"
        prefer = prefer if type(offers[0].spec) in _LISTED_BY else ""
        raise AmbiguousNameError(f"{what}: write {choices}{prefer}.")

    def _resolve_member(self, name: str, owner: str, short: str) -> Named[BackboneSpec]:
        family, _, member = short.partition("/")
        offers = self._offers(BackboneFamilySpec, owner or None, family)
        if not offers:
            advice = self._advice(BackboneFamilySpec, owner, family)
            raise UnknownNameError(
                f"Unknown backbone {name!r}: there is no family {family!r}. {advice}"
            )
        of_family = f"The backbone {name!r} is of a family that {len(offers)} plugins offer"
        chosen = self._meant(offers) or self._ambiguous(of_family, f"/{member}", offers)
        key = chosen.owner, short
        if key not in self._described:
            try:
                spec = families.describe(family, chosen.owner, chosen.load(), member)
            except UnknownNameError as error:
                raise families.unknown_member(
                    name, self.label(chosen), error, self._all_members(chosen)
                ) from error
            self._described[key] = Named(chosen.owner, spec)
        return self._described[key]

    def _all_members(self, family: Named[BackboneFamilySpec]) -> tuple[str, ...]:
        key = family.owner, family.spec.name
        if key not in self._members:
            members = load_factory(family, family.spec.members)
            self._members[key] = families.check_members(family.spec.name, family.owner, members)
        return self._members[key]

    def _advice(self, kind: type[Any], owner: str, short: str) -> str:
        """Return what to do about a name that no plugin offers; `owner` is empty for a short
        name.
        """
        if owner == normalize(FROM_MODULE):
            return (
                "It is a network that was handed over in code, which no recipe builds: make it and "
                "use HybridBuilder.from_module."
            )
        provider = hints.provider(kind.kind, short)
        known = {info.owner: info for info in self.plugins}
        if provider and provider not in known and owner in ("", provider):
            return f"{provider} provides it and is not installed: pip install {provider}"
        info = known.get(owner or provider or "")
        if info is not None and info.status != "active":
            why = info.error or "by TVC_DISABLE or TVC_ONLY"
            return (
                f"{info.owner} {info.version} is installed but {info.status}: {why}. 'tvc "
                "plugins' shows all plugins."
            )
        if offers := [offer.qualified for offer in self._table.get((kind, short), [])]:
            return f"{owner!r} does not offer it; there is {join_names(offers)}."
        parts = []
        if owner in hints.distributions() and info is None:
            parts.append(f"{owner} is not installed: pip install {owner}.")
        elif owner and info is None:
            parts += [f"There is no plugin {owner!r}.", did_you_mean(owner, known).strip()]
        others = sorted({other.kind for other, name in self._table if name == short})
        parts += [f"There is the {other} {short!r}." for other in others]
        names = self.names(kind)
        installable = hints.table(kind.kind, without=names)
        parts.append(did_you_mean(short, [*names, *installable]).strip())
        parts += [
            f"{name} is in {installable[name]}, which is not installed."
            for name in near_names(short, installable, most=1)
        ]
        listed = "Kind" if kind is Kind else repr(kind.kind)
        lists = _LISTED_BY.get(kind, f"Registry().names({listed})")
        parts.append(f"Installed are {len(names)}: {join_names(names)}. {lists} lists them.")
        faulty = [info.owner for info in self.plugins if info.status in ("failed", "incompatible")]
        if faulty:
            parts.append(
                f"Nothing of {join_names(faulty)} could be loaded; 'tvc plugins' says why."
            )
        return " ".join(part for part in parts if part)


def _check_known(what: str, given: str | None, known: set[str]) -> None:
    if given is not None and given not in known:
        raise UnknownNameError(
            f"no installed plugin has the {what} {given!r}.{did_you_mean(given, known)} "
            f"There is {join_names(sorted(known))}."
        )


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which resnet18 comes before resnet101."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]
