"""What is installed under which name: the only place where a name becomes a spec. Imports
no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from ..advice.names import ambiguous_name, unknown_member, unknown_name, unknown_owner
from ..errors import AmbiguousNameError, UnknownNameError, did_you_mean, join_names, short_repr
from ..specs import BackboneFamilySpec, BackboneSpec, Kind, Spec, normalize
from . import offers
from .discovery import PluginInfo, load_plugins
from .offers import Named, S

__all__ = ["Registry"]


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
        preferred = [prefer] if isinstance(prefer, str) else prefer
        self.prefer = tuple(self.check_owner(owner) for owner in preferred)
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
        # What is listed can be typed: the short name where it means this offer, else the qualified
        # one. Installing another plugin with the same name changes the list, and never what a name
        # that is still listed means.
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
        found = [one for (kind, _), each in self._table.items() if kind is wanted for one in each]
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
            what = f"Unknown {wanted.kind} {short_repr(name)}"
            raise UnknownNameError(f"{what}: a name is a string, not {type(name).__name__}.")
        # A colon divides owner and name, a slash makes it a family's member: no other name has
        # either, so the form of a name tells whom to ask. ":se" has no owner, and is looked up as
        # it is, so that the error shows what was written.
        owner, _, short = name.rpartition(":") if name[:1] != ":" else ("", "", name)
        if wanted is BackboneSpec and "/" in short:
            return self._resolve_member(name, owner, short)  # type: ignore[return-value]
        return self._choose(wanted, owner, short, f"{wanted.kind} {name!r}")

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
        every: list[Named[Any]] = [*self.all(BackboneSpec), *self.all(BackboneFamilySpec)]
        _check_known("origin", origin, {offer.spec.origin for offer in every})
        owner = None if owner is None else self.check_owner(owner)
        members = owner is not None or origin is not None or "/" in (pattern or "")
        listed: list[str] = []
        for offer in every:
            if origin not in (None, offer.spec.origin) or owner not in (None, offer.owner):
                continue
            if isinstance(offer.spec, BackboneFamilySpec):
                listed += self.members(offer, pattern) if members else []
            elif _matches(pattern, offer.spec.name, offer.qualified):
                listed.append(self.label(offer))
        return listed

    def list_families(self) -> list[str]:
        """Return the names of families, whose members are named "family/member":
        list_backbones("family/*") lists them.
        """
        return self.names("backbone family")

    def list_blocks(self, category: str | None = None) -> list[str]:
        """Return the names of blocks, naturally sorted.

        Args:
            category: such as "attention".

        Raises:
            UnknownNameError: no installed block has this category.
        """
        offers: list[Named[Any]] = self.all("block")
        _check_known("category", category, {offer.spec.category for offer in offers})
        return [self.label(offer) for offer in offers if category in (None, offer.spec.category)]

    def list_patch_ops(self) -> list[str]:
        """Return the names of patch operations."""
        return self.names("patch op")

    def list_initializers(self) -> list[str]:
        """Return the names of weight initializers."""
        return self.names("initializer")

    def members(self, family: Named[BackboneFamilySpec], pattern: str | None = None) -> list[str]:
        """Return the names of a family's members, "family/member", naturally sorted.

        Args:
            family: one of `all(BackboneFamilySpec)`.
            pattern: shell-style pattern for a name, the part of it after the slash, or the
                qualified name.

        Raises:
            PluginError: the family cannot list them.
        """
        short, full = family.spec.name, family.qualified
        return [
            f"{self.label(family)}/{member}"
            for member in sorted(self._all_members(family), key=_natural)
            if _matches(pattern, member, f"{short}/{member}", f"{full}/{member}")
        ]

    def check_owner(self, owner: str) -> str:
        """Return the normalized name of an installed plugin's distribution.

        Raises:
            UnknownNameError: no such plugin is installed.
        """
        owners = [info.owner for info in self.plugins]
        if (name := normalize(owner)) in owners:
            return name
        hint = unknown_owner(name, owners)
        raise UnknownNameError(f"No plugin {owner!r} is installed. {hint}")

    # -- parts -------------------------------------------------------------------------------------

    def _class_of(self, kind: type[Any] | str) -> type[Any]:
        return kind if hasattr(kind, "kind") else self.resolve(Kind, kind).spec.spec  # type: ignore

    def _choose(
        self, kind: type[Any], owner: str, short: str, what: str, ending: str = ""
    ) -> Named[Any]:
        """Return the offer that a name stands for; `owner` is empty for a short name.

        Args:
            kind: class of its specs.
            owner: first half of the name.
            short: second half of the name.
            what: what errors call it.
            ending: what follows the name that is looked up here in what the user writes.
        """
        owner = normalize(owner)
        found = [one for one in self._table.get((kind, short), []) if owner in ("", one.owner)]
        if not found:
            missing = f": there is no family {short!r}" if ending and not owner else ""
            said = unknown_name(self, kind, owner, short, ending)
            raise UnknownNameError(f"Unknown {what}{missing}. {said}")
        if (meant := self._meant(found)) is not None:
            return meant
        how = ambiguous_name(kind, [offer.qualified for offer in found], ending)
        raise AmbiguousNameError(f"The {what} is offered by {len(found)} plugins: {how}")

    def _meant(self, found: list[Named[Any]]) -> Named[Any] | None:
        """Return the only offer, or the one whose owner is preferred."""
        by_owner = {offer.owner: offer for offer in found}
        preferred = next((by_owner[owner] for owner in self.prefer if owner in by_owner), None)
        return found[0] if len(found) == 1 else preferred

    def _resolve_member(self, name: str, owner: str, short: str) -> Named[BackboneSpec]:
        family, slash, member = short.partition("/")
        what = f"backbone {name!r}"
        chosen = self._choose(BackboneFamilySpec, owner, family, what, slash + member)
        key = chosen.owner, short
        if key not in self._described:
            try:
                self._described[key] = Named(chosen.owner, offers.describe(chosen, short))
            except UnknownNameError as error:
                said = unknown_member(self, member, chosen, str(error))
                raise UnknownNameError(f"Unknown {what}: {said}") from error
        return self._described[key]

    def _all_members(self, family: Named[BackboneFamilySpec]) -> tuple[str, ...]:
        key = family.owner, family.spec.name
        if key not in self._members:
            self._members[key] = offers.members_of(family)
        return self._members[key]


def _matches(pattern: str | None, *names: str) -> bool:
    """Tell whether a shell-style pattern means something that has these names."""
    return pattern is None or any(fnmatchcase(name, pattern) for name in names)


def _check_known(what: str, given: str | None, known: set[str]) -> None:
    if given is not None and given not in known:
        hint = f"{did_you_mean(given, known)} There is {join_names(sorted(known))}."
        raise UnknownNameError(f"no installed plugin has the {what} {given!r}.{hint}")


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which resnet18 comes before resnet101."""
    # Numbers compare as numbers. Each part is a triple that begins with its kind, since Python
    # compares no number with a text.
    parts = filter(None, re.split(r"(\d+)", name))
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
