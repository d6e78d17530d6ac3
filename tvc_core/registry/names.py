"""What is installed under which name: the only place where a name becomes a spec. Imports
no torch.
"""

from __future__ import annotations

import fnmatch
import importlib
import re
from collections.abc import Iterable
from typing import Any, TypeVar

from .. import builtin
from ..errors import (
    AmbiguousNameError,
    PluginError,
    UnknownNameError,
    describe_error,
    did_you_mean,
    join_names,
    near_names,
)
from ..specs import (
    FROM_MODULE,
    BackboneFamilySpec,
    BackboneSpec,
    BlockSpec,
    Factory,
    InitializerSpec,
    PatchOpSpec,
    Spec,
    normalize,
)
from . import families, hints
from .discovery import PluginInfo, core_plugin, installed_plugins, local_plugin

__all__ = ["Named", "PluginInfo", "Registry"]

S = TypeVar("S", bound=Spec)

_LISTED_BY = {
    BackboneSpec: "HybridBuilder.list_backbones()",
    BackboneFamilySpec: "HybridBuilder.list_families()",
    BlockSpec: "HybridBuilder.list_blocks()",
    PatchOpSpec: "HybridBuilder.list_patch_ops()",
    InitializerSpec: "HybridBuilder.list_initializers()",
}


class Named(tuple[str, S]):
    """A spec together with its owner: what a name was resolved to."""

    __slots__ = ()

    def __new__(cls, owner: str, spec: S) -> Named[S]:  # noqa: D102
        return super().__new__(cls, (owner, spec))  # type: ignore[type-var]

    def __getnewargs__(self) -> tuple[str, S]:
        return (self.owner, self.spec)

    @property
    def owner(self) -> str:
        """Normalized name of the distribution."""
        return self[0]

    @property
    def spec(self) -> S:
        """The spec itself."""
        return self[1]  # type: ignore[return-value]

    @property
    def qualified(self) -> str:
        """The name that means the same whatever else is installed, "owner:name"."""
        return f"{self.owner}:{self.spec.name}"

    def load(self) -> Any:
        """Import and return what the spec's factory points at.

        Raises:
            PluginError: the import fails, or the module has no such attribute.
        """
        return self._load(self.spec.factory)

    def _load(self, factory: Factory) -> Any:
        if not isinstance(factory, str):
            return factory
        module, _, attribute = factory.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may raise SystemExit or worse
            raise PluginError(
                f"{self.spec.kind} {self.qualified!r}: its factory {factory!r} cannot be loaded: "
                f"{describe_error(error)}. This is a fault of the distribution {self.owner!r}."
            ) from error
        if not callable(found):
            raise PluginError(
                f"{self.spec.kind} {self.qualified!r}: its factory {factory!r} is of type "
                f"{type(found).__name__}, which cannot "
                f"be called. This is a fault of the distribution {self.owner!r}."
            )
        return found


class Registry:
    """An immutable table of names, made from a list of plugins.

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
        core = core_plugin(builtin)
        reserved = frozenset((spec.kind, spec.name) for spec in core.specs)
        infos = [core]
        if installed:
            infos += installed_plugins(reserved)
        for plugin in plugins:
            info = local_plugin(plugin, reserved)
            if any(info.owner == other.owner for other in infos):
                raise PluginError(
                    f"two plugins have the owner {info.owner!r}; give one another TVC_OWNER"
                )
            infos.append(info)
        self.plugins: tuple[PluginInfo, ...] = tuple(
            sorted(infos, key=lambda info: (info.owner, info.module))
        )
        owners = {info.owner for info in infos}
        self.prefer = tuple(
            normalize(owner) for owner in ([prefer] if isinstance(prefer, str) else prefer)
        )
        for owner in self.prefer:
            if owner not in owners:
                raise UnknownNameError(
                    f"prefer names {owner!r}, which is not an installed "
                    f"plugin.{did_you_mean(owner, owners)}"
                )
        self._table: dict[tuple[str, str], list[Named[Any]]] = {}
        for info in self.plugins:
            for spec in info.specs:
                self._table.setdefault((spec.kind, spec.name), []).append(Named(info.owner, spec))
        self._described: dict[tuple[str, str], Named[BackboneSpec]] = {}
        self._members: dict[tuple[str, str], tuple[str, ...]] = {}

    def names(self, kind: type[Spec]) -> list[str]:
        """Return a name for everything of a kind, naturally sorted; what the short name does not
        stand for is qualified.
        """
        return [self.label(offer) for offer in self.all(kind)]

    def label(self, offer: Named[Any]) -> str:
        """Return the short name if it stands for this offer here, else the qualified name."""
        kind, name = offer.spec.kind, offer.spec.name
        if isinstance(offer.spec, BackboneSpec) and "/" in name:  # its family's name decides
            kind, name = BackboneFamilySpec.kind, name.partition("/")[0]
        offers = self._table[kind, name]
        means = offers[0] if len(offers) == 1 else self._preferred(offers)
        return (
            offer.spec.name if means is not None and offer.owner == means.owner else offer.qualified
        )

    def all(self, kind: type[S]) -> list[Named[S]]:
        """Return everything of a kind with its owner, sorted by name, then owner; of families not
        the members.
        """
        found = [
            offer
            for (table_kind, _), offers in self._table.items()
            if table_kind == kind.kind
            for offer in offers
        ]
        return sorted(found, key=lambda offer: (_natural(offer.spec.name), offer.owner))

    def members(self, family: Named[BackboneFamilySpec], pattern: str | None = None) -> list[str]:
        """Return the names of a family's members, "family/member", naturally sorted.

        Args:
            family: one of `all(BackboneFamilySpec)`.
            pattern: shell-style pattern for a name, the part of it behind the slash, or the
                qualified name.

        Raises:
            PluginError: the family cannot list them.
        """
        owner, name = family.owner, family.spec.name
        short = self.label(family)
        found = [
            member
            for member in self._all_members(family)
            if families.matches(pattern, owner, name, member)
        ]
        return [f"{short}/{member}" for member in sorted(found, key=_natural)]

    # -- listings for users ------------------------------------------------------------------------

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
        offers, families = self.all(BackboneSpec), self.all(BackboneFamilySpec)
        every: list[Named[Any]] = [*offers, *families]
        _check_known("origin", origin, {offer.spec.origin for offer in every})
        owner = owner and normalize(owner)
        _check_known("plugin", owner, {info.owner for info in self.plugins})

        def asked(offer: Named[Any]) -> bool:
            return origin in (None, offer.spec.origin) and owner in (None, offer.owner)

        listed = [
            self.label(offer)
            for offer in filter(asked, offers)
            if pattern is None
            or any(
                fnmatch.fnmatchcase(name, pattern) for name in (offer.spec.name, offer.qualified)
            )
        ]
        if owner is not None or origin is not None or "/" in (pattern or ""):
            for family in filter(asked, families):
                listed += self.members(family, pattern)
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

    def resolve(self, kind: type[S], name: object) -> Named[S]:
        """Return the spec that a short name ("se") or a qualified name ("tvc-attention:se") stands
        for.

        The member of a family ("acme/net") is described by the family, once, which may import
        torch.

        Raises:
            UnknownNameError: nobody offers it. The message has near names and who would provide it.
            AmbiguousNameError: several plugins offer the short name, and `prefer` does not settle
                it.
            PluginError: a family fails to describe its member.
        """
        if not isinstance(name, str):
            raise UnknownNameError(
                f"Unknown {kind.kind} {name!r}: a name is a string, not {type(name).__name__}."
            )
        owner, qualified, short = name.rpartition(":")
        if issubclass(kind, BackboneSpec) and "/" in short:
            return self._resolve_member(name, normalize(owner), short)  # type: ignore[return-value]
        offers = self._table.get((kind.kind, short), [])
        if qualified:
            offers = [offer for offer in offers if offer.owner == normalize(owner)]
        if not offers:
            raise UnknownNameError(
                f"Unknown {kind.kind} {name!r}. {self._advice(kind, normalize(owner), short)}"
            )
        if len(offers) == 1:
            return offers[0]
        preferred = self._preferred(offers)
        if preferred is None:
            choices = " or ".join(repr(offer.qualified) for offer in offers)
            raise AmbiguousNameError(
                f"The {kind.kind} {name!r} is offered by {len(offers)} plugins: write {choices}, "
                f"or build with HybridBuilder(prefer=({offers[0].owner!r},))."
            )
        return preferred

    def _resolve_member(self, name: str, owner: str, short: str) -> Named[BackboneSpec]:
        family, _, member = short.partition("/")
        offers = self._table.get((BackboneFamilySpec.kind, family), [])
        offers = [offer for offer in offers if not owner or offer.owner == owner]
        if not offers:
            advice = self._advice(BackboneFamilySpec, owner, family)
            raise UnknownNameError(
                f"Unknown backbone {name!r}: there is no family {family!r}. {advice}"
            )
        chosen = offers[0] if len(offers) == 1 else self._preferred(offers)
        if chosen is None:
            choices = " or ".join(repr(f"{offer.qualified}/{member}") for offer in offers)
            raise AmbiguousNameError(
                f"The backbone {name!r} is of a family that {len(offers)} plugins offer: write "
                f"{choices}, "
                f"or build with HybridBuilder(prefer=({offers[0].owner!r},))."
            )
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
        owner, spec = family
        key = owner, spec.name
        if key not in self._members:
            self._members[key] = families.check_members(
                spec.name, owner, family._load(spec.members)
            )
        return self._members[key]

    def _preferred(self, offers: list[Named[S]]) -> Named[S] | None:
        by_owner = {offer.owner: offer for offer in offers}
        return next((by_owner[owner] for owner in self.prefer if owner in by_owner), None)

    def _advice(self, kind: type[Spec], owner: str, short: str) -> str:
        """Return what to do about a name that nobody offers; `owner` is empty for a short name."""
        if owner == normalize(FROM_MODULE):
            return (
                "It is a network of somebody's own, which no recipe builds: make it and use "
                "HybridBuilder.from_module."
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
        offers = [offer.qualified for offer in self._table.get((kind.kind, short), [])]
        if offers:
            return f"{owner!r} does not offer it; there is {join_names(offers)}."
        parts = []
        if owner and info is None:
            first_party = owner in hints.distributions()
            parts.append(
                f"{owner} is not installed: pip install {owner}."
                if first_party
                else f"There is no plugin {owner!r}."
            )
            parts.append("" if first_party else did_you_mean(owner, known).strip())
        others = sorted({table_kind for table_kind, name in self._table if name == short})
        parts += [f"There is the {other} {short!r}." for other in others]
        names = self.names(kind)
        installable = {
            name: hints.provider(kind.kind, name)
            for name in hints.known(kind.kind)
            if name not in names
        }
        parts.append(did_you_mean(short, [*names, *installable]).strip())
        parts += [
            f"{name} is in {installable[name]}, which is not installed."
            for name in near_names(short, installable, most=1)
        ]
        parts.append(
            f"Installed are {len(names)}: {join_names(names)}. {_LISTED_BY[kind]} lists them."
        )
        faulty = [info.owner for info in self.plugins if info.status in ("failed", "incompatible")]
        if faulty:
            parts.append(
                f"Nothing of {join_names(faulty)} could be loaded; 'tvc plugins' says why."
            )
        return " ".join(part for part in parts if part)


def _check_known(what: str, given: str | None, known: set[str]) -> None:
    if given is not None and given not in known:
        hint = did_you_mean(given, known)
        raise UnknownNameError(
            f"no installed plugin has the {what} {given!r}.{hint} There is "
            f"{join_names(sorted(known))}."
        )


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which resnet18 comes before resnet101."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]
