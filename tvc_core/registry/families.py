"""Open-ended names: "family/member" becomes a backbone when it is used. Only what describes a
member may import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from ..errors import PluginError, UnknownNameError, did_you_mean, foreign, join_names
from ..specs import BackboneSpec

__all__ = ["check_members", "describe", "matches", "unknown_member"]


def describe(family: str, owner: str, factory: Callable[[str], Any], member: str) -> BackboneSpec:
    """Return what a family says of a member.

    Args:
        family: short name of the family.
        owner: the distribution that offers it.
        factory: `describe` of its spec.
        member: the name after the slash.

    Raises:
        PluginError: it fails, or returns something else than the member's spec.
        TvcError: what the family itself raises on purpose: UnknownNameError where there is no such
            member, BackboneError where there is one that it cannot offer.
    """
    name, fault = f"{family}/{member}", f"This is a fault of the distribution {owner!r}."
    what = f"backbone {owner}:{name}"
    with foreign(PluginError, f"{what}: its family cannot describe it", advice=fault):
        spec = factory(member)
    if not isinstance(spec, BackboneSpec):
        given = type(spec).__name__
        raise PluginError(f"{what}: its family returned {given}, not a BackboneSpec. {fault}")
    if spec.name != name:
        raise PluginError(f"{what}: its family returned the description of {spec.name!r}. {fault}")
    return spec


def check_members(family: str, owner: str, members: Callable[[], Any]) -> tuple[str, ...]:
    """Return the names of a family's members, as its plugin lists them.

    Raises:
        PluginError: it fails, or gives something else than names.
    """
    fault = f"This is a fault of the distribution {owner!r}."
    what = f"backbone family {owner}:{family}: its members"
    with foreign(PluginError, f"{what} cannot be listed", advice=fault):
        found = members()
        names = () if isinstance(found, (str, bytes)) else tuple(found)
    if isinstance(found, (str, bytes)) or not all(isinstance(name, str) for name in names):
        raise PluginError(f"{what} are not a list of names. {fault}")
    return names


def matches(pattern: str | None, owner: str, family: str, member: str) -> bool:
    """Tell whether a shell-style pattern means a member: "net*", "family/net*" or
    "owner:family/net*".
    """
    name = f"{family}/{member}"
    return pattern is None or any(
        fnmatchcase(each, pattern) for each in (name, member, f"{owner}:{name}")
    )


def unknown_member(
    name: str, family: str, said: object, members: tuple[str, ...]
) -> UnknownNameError:
    """Return the error for a member that its family does not know, with what the family `said`."""
    reason = " ".join(str(said).split()).rstrip(".") or f"the family {family!r} has no such member"
    names = [f"{family}/{member}" for member in members]
    near = "" if "?" in reason else did_you_mean(f"{family}/{name.partition('/')[2]}", names)
    return UnknownNameError(
        f"Unknown backbone {name!r}: {reason}{'' if reason.endswith('?') else '.'}{near} The "
        f"family has {len(members)} "
        f"members: {join_names(members, most=4)}. HybridBuilder.list_backbones('{family}/*') lists "
        "them."
    )
