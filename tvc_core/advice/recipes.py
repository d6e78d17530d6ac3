"""Advice about the names and keys of a recipe, by what is installed."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ..errors import PluginError, UnknownNameError, join_names
from ..specs import BlockSpec, PatchOpSpec
from .factories import parameters_of
from .names import lacks

__all__ = ["misplaced", "refuse_missing"]


def refuse_missing(registry: Any, names: Iterable[tuple[type[Any], str | None]]) -> None:
    """Name all plugins at once that are not installed, where there are several: whoever installs
    one after another needs as many tries.

    Args:
        registry: a Registry, which stands above this floor.
        names: kinds and names; None for what is not given.

    Raises:
        UnknownNameError: the names are of several plugins that are not installed.
    """
    lacking: dict[str, list[str]] = {}
    for kind, name in names:
        if name and (owner := lacks(registry, kind, name)):
            lacking.setdefault(owner, []).append(repr(name))
    if len(lacking) > 1:
        each = "; ".join(f"{owner} (of {join_names(of)})" for owner, of in lacking.items())
        raise UnknownNameError(
            f"{len(lacking)} plugins are not installed: {each}. Install them together: pip install "
            f"{' '.join(lacking)}. What was made in code, such as a LocalPlugin, is handed over: "
            "HybridBuilder(plugins=[plugin])."
        )


def misplaced(registry: Any, key: str, entry: Any, op: Any, block: Any) -> str:
    """Say where a key belongs that stands beside the block: to the block's parameters, to the
    block's name, or to another operation. Imports the block, since only its code knows.

    Args:
        registry: a Registry, which stands above this floor.
        key: what the operation does not know.
        entry: the PatchEntry that has it.
        op: the operation, resolved.
        block: the block, resolved, or None.
    """
    value = entry.options.get(key)
    with suppress(PluginError):
        if block and key in (parameters_of(block.load(), skip=1) or ()):
            wanted = {"type": entry.block, "params": {key: value}}
            return (
                f" It is a parameter of {block.spec.name}: write {{{op.spec.name!r}: {wanted!r}}}."
            )
    if key in ("block", "kind"):
        return f" The block is the type: {{{op.spec.name!r}: {{'type': {value!r}}}}}."
    with suppress(UnknownNameError):
        name = registry.resolve(BlockSpec, key).spec.name
        wanted = {"type": name} | ({"params": value} if value else {})
        return f" {name!r} is a block: write {{{op.spec.name!r}: {wanted!r}}}."
    takers = [other.spec.name for other in registry.all(PatchOpSpec) if key in other.spec.options]
    return f" Of {join_names(takers)} it is an option." if takers else ""
