"""Advice about the names and keys of a recipe, by what is installed."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ..errors import UnknownNameError, did_you_mean, join_names, short_repr, what_there_is
from ..specs import BackboneSpec, BlockSpec, PatchOpSpec
from . import words
from .names import lacks

__all__ = [
    "misplaced", "needs_block", "no_image_size", "refuse_missing", "sizes_of", "unknown_weights",
]  # fmt: skip


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


def misplaced(
    registry: Any, key: str, entry: Any, op: Any, block: Any, allowed: Iterable[str]
) -> str:
    """Say where a key belongs that stands beside the block: to the block's parameters, to the
    block's name, or to another operation. The block is not imported, so that it may be a parameter
    is a guess.

    Args:
        registry: a Registry, which stands above this floor.
        key: what the operation does not know.
        entry: the PatchEntry that has it.
        op: the operation, resolved.
        block: the block, resolved, or None.
        allowed: the keys that it may be.
    """
    value, known = entry.options.get(key), what_there_is(key, allowed)
    if key in ("block", "kind"):
        return f" The block is the type: {{{op.spec.name!r}: {{'type': {value!r}}}}}."
    with suppress(UnknownNameError):
        name = registry.resolve(BlockSpec, key).spec.name
        wanted = {"type": name} | ({"params": value} if value else {})
        return f" {name!r} is a block: write {{{op.spec.name!r}: {wanted!r}}}."
    takers = [other.spec.name for other in registry.all(PatchOpSpec) if key in other.spec.options]
    if takers:
        return f" Of {join_names(takers)} it is an option."
    if block is None or not op.spec.takes_block or did_you_mean(key, allowed):
        return known
    params = f"{{'type': {short_repr(entry.block)}, 'params': {{{key!r}: {short_repr(value)}}}}}"
    write = f"{{{op.spec.name!r}: {params}}}"
    return f" If it is a parameter of {block.spec.name}, write {write}.{known}"


def needs_block(op: str, name: str | None) -> str:
    """Say how the block of an operation is given; a patch may have a `name` in its place."""
    needs = f"{op} needs a block: write {{'{op}': 'se'}}, or give 'type'"
    named = f"; 'name' names its place, and the block is the type: {{'type': {name!r}}}"
    return needs + (named if name else "")


def no_image_size(name: str, spec: BackboneSpec, size: Any) -> str:
    """Say why a backbone without an option for it is not built for an image size."""
    takes = f"{name} takes images of"
    if not spec.fixed_size:
        sizes = f"{takes} any size from {spec.min_size} pixels"
        return f"image_size={size} is not needed: {sizes}. Resize the images."
    return (
        f"image_size={size} is not available: {takes} {join_names(map(str, sizes_of(spec)))} "
        "pixels only, since no rule resamples its position weights. Resize the images."
    )


def sizes_of(spec: BackboneSpec) -> list[int]:
    """Return the sides of images that a backbone of fixed size takes, none of another [pixels]."""
    if not spec.fixed_size:
        return []
    return sorted({weights.crop_size for weights in spec.weights} or {spec.min_size})


def unknown_weights(given: str, backbone: str, spec: BackboneSpec) -> str:
    """Say which weights a backbone has in place of those that it does not have."""
    weights_class, _, name = given.rpartition(".")
    names = [weights.name for weights in spec.weights]
    hint = words.on_weights(given) or did_you_mean(name, names)
    if name in names:
        hint = f" {weights_class} belongs to another network."
    default = f"; 'DEFAULT' stands for {spec.default_weights}" if names else ""
    return f"Unknown weights {given!r} of {backbone}.{hint} It has {join_names(names)}{default}."
