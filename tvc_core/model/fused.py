"""Which patches another tool has computed across: it made one layer of what they stood between.

Fusing puts one module in the place of the first layer and an identity in that of each one after it.
A patch in the middle, which is not linear, would run on the result of them all.
"""

from __future__ import annotations

from torch import nn

from ..surgery.patches import placed_patches
from ..surgery.positions import Position
from ..surgery.sites import find_module, wrapped_module
from .fingerprint import kind_of
from .state import HybridState

__all__ = ["fused_across"]


def fused_across(network: nn.Module, state: HybridState) -> list[str]:
    """Return in words the patches that stand in the middle of what is one layer now."""
    found = [
        (home, _reason(network, state, path, patch.position))
        for home, path, patch in placed_patches(network)
    ]
    return [f"{home} ({reason})" for home, reason in found if reason]


def _reason(network: nn.Module, state: HybridState, path: str, position: Position) -> str:
    parent_path, _, name = path.rpartition(".")
    parent = find_module(network, parent_path) if parent_path else network
    if parent is None:
        return ""
    children = (wrapped_module(parent) or parent)._modules
    if nn.Identity not in map(type, children.values()):
        return ""  # this is asked before each pass, and mostly nothing was fused
    row = _Row(children, state.modules, f"{parent_path}." if parent_path else "", name)
    at = row.names.index(name)
    if position.runs_before and row.is_folded(at):
        return f"{path!r} was folded into a layer before it"
    if position.runs_after and (folded := row.folded_after(at)):
        host = row.host(at if row.is_gone(at) else at + 1)
        into = path if host is None else row.prefix + row.names[host]
        return f"{row.prefix + folded!r} was folded into {into!r}, on whose output it runs"
    return ""


class _Row:
    """The children of a module in their order, without those that the build had as identities.

    Args:
        children: of the module, by name.
        built: what every module of the network was in the build, by path.
        prefix: the module's path and a dot; "" for the root.
        name: of the child that has the patch, which is in the row in any case.
    """

    def __init__(
        self, children: dict[str, nn.Module | None], built: dict[str, str], prefix: str, name: str
    ) -> None:
        self.prefix = prefix
        lines = {each: built.get(prefix + each, "") for each in children}
        self.names = [e for e in children if e == name or not lines[e].startswith("Identity(")]
        self.built = [lines[each] for each in self.names]
        self.now = [children[each] for each in self.names]

    def is_gone(self, at: int) -> bool:
        """Return whether an identity took the place of a layer."""
        return type(self.now[at]) is nn.Identity and bool(self.built[at])

    def host(self, at: int) -> int | None:
        """Return the last layer before one that is not gone."""
        return next((i for i in reversed(range(at)) if not self.is_gone(i)), None)

    def is_folded(self, at: int) -> bool:
        """Return whether a layer that is gone is part of one before it.

        The norm of a convolution that had a bias leaves no trace in it, so it counts as folded;
        other layers do where the one before them became a module of another class.
        """
        if not self.is_gone(at):
            return False
        if "BatchNorm" in self.built[at]:
            return True
        host = self.host(at)
        module = None if host is None else self.now[host]
        was = "" if host is None else self.built[host].partition("(")[0]
        return module is not None and was not in ("", kind_of(module))

    def folded_after(self, at: int) -> str | None:
        """Return which layer became part of one, or of what that one is part of."""
        if "bias=False" in self.built[at]:
            norms = [i for i, line in enumerate(self.built) if "BatchNorm" in line and i != at]
            gone = next((i for i in norms if self.is_gone(i)), None)
            if gone is not None:
                return self.names[gone] if _has_bias(self.now[at]) else None
        follows = at + 1 < len(self.names) and self.is_folded(at + 1)
        return self.names[at + 1] if follows else None


def _has_bias(module: nn.Module | None) -> bool:
    modules = [] if module is None else list(module.modules())
    return any(getattr(each, "bias", None) is not None for each in modules)
