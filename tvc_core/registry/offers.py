"""What a name was resolved to, and what its plugin's code then gives: factories, and the members of
families. Only what describes a member may import torch.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..errors import PluginError, foreign
from ..specs import BackboneFamilySpec, BackboneSpec, Kind, Spec

__all__ = ["Named", "S", "describe", "members_of"]

S = TypeVar("S", bound="Spec | Kind")


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

    def load(self, entry: str = "factory") -> Any:
        """Import and return what the spec's factory points at, or what another entry of it does.

        Raises:
            PluginError: the import fails, or the module has no such attribute.
        """
        given = getattr(self.spec, entry)
        if not isinstance(given, str):
            return given
        what = f"{self.spec.kind} {self.qualified!r}: its {entry} {given!r} cannot be loaded"
        with _plugin(self, what):
            found = pkgutil.resolve_name(given)
            if not callable(found):
                raise TypeError(f"it is of type {type(found).__name__}, which cannot be called")
        return found


def describe(family: Named[BackboneFamilySpec], name: str) -> BackboneSpec:
    """Return what a family says of its member of this name, "family/member".

    Raises:
        PluginError: it fails, or returns something other than the member's spec.
        TvcError: what the family itself raises on purpose: UnknownNameError where there is no such
            member, BackboneError where there is one that it cannot offer.
    """
    factory = family.load()
    with _plugin(family, f"backbone {family.owner}:{name}: its family cannot describe it"):
        spec = factory(name.partition("/")[2])
        if not isinstance(spec, BackboneSpec):
            raise TypeError(f"it returned {type(spec).__name__}, not a BackboneSpec")
        if spec.name != name:
            raise ValueError(f"it returned the description of {spec.name!r}")
    return spec


def members_of(family: Named[BackboneFamilySpec]) -> tuple[str, ...]:
    """Return the names of a family's members, as its plugin lists them.

    Raises:
        PluginError: it fails, or gives something other than names.
    """
    list_members = family.load("members")
    with _plugin(family, f"backbone family {family.qualified}: its members cannot be listed"):
        found = list_members()
        names = () if isinstance(found, (str, bytes)) else tuple(found)
        if isinstance(found, (str, bytes)) or not all(isinstance(name, str) for name in names):
            raise TypeError("they are not a list of names")
    return names


def _plugin(offer: Named[Any], what: str) -> foreign:
    """Make everything that is raised inside a fault of the plugin."""
    advice = f"This is a fault of the distribution {offer.owner!r}."
    return foreign(PluginError, what, advice=advice)
