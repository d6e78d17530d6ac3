"""Give the tensors of a checkpoint the model's names, and let a draft of the model load them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import WeightsError
from .draft import Draft, Place, make_draft, versions
from .entries import Checkpoint
from .fitting import Policy, squeezed
from .order import by_order, fits_by_order
from .patterns import Pattern, Rename, renamed
from .prefixes import Names, solve
from .published import Layouts

__all__ = ["MATCHES", "Named", "Wishes", "equal", "name_and_draft"]

MATCHES = ("name", "order")


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How a checkpoint is to be loaded; the arguments of `partial_load`."""

    exclude: Iterable[Pattern] = ()
    include: Iterable[Pattern] | None = None
    prefix: str | None = None
    rename: Rename | None = None
    match: str = "name"
    channels: Policy | None = None
    layouts: Layouts | None = None


@dataclass(kw_only=True)
class Named:
    """Tensors under names as near to the model's as is known, and how they came to them.

    Args:
        tensors: by these names.
        keys: the checkpoint's names of those that it has.
        extra: the same for what modules keep beside their tensors.
        meant: names that the user gave.
        reshaped: names of those that have another shape than there, and what was done.
        made: names of those that a backbone's migration has computed.
        consumed: the checkpoint's names of tensors that this migration took.
        by_order: they were matched by order and shape.
        layout: the backbone whose migration they have passed.
        front: what was taken off before that.
    """

    tensors: dict[str, Tensor]
    keys: dict[str, str]
    extra: dict[str, str] = field(default_factory=dict)
    meant: set[str] = field(default_factory=set)
    reshaped: dict[str, str] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    consumed: set[str] = field(default_factory=set)
    layout: str = ""
    front: str = ""
    by_order: bool = False
    names: Names | None = None
    rules: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    prefix: str = ""


def name_and_draft(
    model: nn.Module,
    checkpoint: Checkpoint,
    own: Mapping[str, Place],
    excluded: set[str],
    wishes: Wishes,
) -> tuple[Named, Draft]:
    """Return the names with which a draft of the model gets the most, and this draft; the first of
    several.

    Raises:
        WeightsError: names fit in two ways, or a module cannot load the checkpoint.
    """
    start = _start(checkpoint, wishes)
    fault, found = None, None
    try:
        found = _try(model, checkpoint, _names(start, own, excluded, wishes), own)
    except WeightsError as error:
        fault = error
    is_whole = found is not None and not (found[1].missed or found[1].misshaped)
    if wishes.layouts is None or wishes.match != "name" or is_whole:
        if found is None:
            assert fault is not None
            raise fault
        return found[:2]
    most = found[2] if found else 0
    for migrated in wishes.layouts.read(start.tensors):
        named = replace(
            start,
            tensors=migrated.tensors,
            keys={name: start.keys[key] for name, key in migrated.keys.items()},
            reshaped=migrated.reshaped,
            made=migrated.made,
            consumed={start.keys[key] for key in migrated.gone},
            layout=wishes.layouts.backbone.qualified,
            front=migrated.front,
        )
        with suppress(WeightsError):
            again = _try(model, checkpoint, _names(named, own, excluded, wishes), own)
            if again[2] > most:
                found, most = again, again[2]
    if found is None or (fault is not None and 2 * most < len(own)):
        assert fault is not None
        raise fault
    return found[:2]


def equal(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors have the same type and values."""
    return a.dtype == b.dtype and torch.equal(a, b)


def _start(checkpoint: Checkpoint, wishes: Wishes) -> Named:
    """Rename, and take the prefix off."""
    new, meant, unmatched = renamed([*checkpoint.tensors, *checkpoint.extra], wishes.rename)
    prefix = wishes.prefix or ""
    if not isinstance(prefix, str):
        raise WeightsError(f"prefix is a string such as 'module.', not {prefix!r}")
    if prefix:
        new = {k: n[len(prefix) :] for k, n in new.items() if n.startswith(prefix)}
        meant = {name[len(prefix) :] for name in meant if name.startswith(prefix)}
        if not new.keys() & checkpoint.tensors.keys():
            raise WeightsError(
                f"{checkpoint.name}: no key begins with the prefix {prefix!r}; the first keys are "
                f"{', '.join(list(checkpoint.tensors)[:3])}"
            )
    keys = {name: key for key, name in new.items() if key in checkpoint.tensors}
    extra = {name: key for key, name in new.items() if key in checkpoint.extra}
    tensors = {name: checkpoint.tensors[key] for name, key in keys.items()}
    return Named(
        tensors=tensors, keys=keys, extra=extra, meant=meant, unmatched=unmatched, prefix=prefix
    )


def _names(
    named: Named, own: Mapping[str, Place], excluded: set[str], wishes: Wishes
) -> Iterator[Named]:
    """Solve names, step by step."""
    tensors, keys = named.tensors, named.keys
    if wishes.match == "order":
        yield _name_by_order(named, own, excluded)
        return
    if wishes.prefix == "":
        yield named
        return
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    wanted = {
        key: shapes.get(key, (-1,)) if is_lazy(place.tensor) else tuple(place.tensor.shape)
        for key, place in own.items()
    }
    held = _held(named, own)
    wanted |= dict.fromkeys(held & own.keys(), (-1,))  # nothing else is to get there
    rules = []
    if named.layout:
        below = f" below {named.front!r}" if named.front else ""
        rules.append(f"as {named.layout} was published{below} ({len(tensors)} tensors)")
    try:
        for found in solve(shapes, wanted, lambda a, b: equal(tensors[a], tensors[b]), held):
            old = found.names
            yield replace(
                named,
                names=found,
                rules=[*rules, *found.explained()],
                tensors={name: tensors[key] for name, key in old.items()},
                keys={name: keys[key] for name, key in old.items() if key in keys},
                reshaped={n: named.reshaped[k] for n, k in old.items() if k in named.reshaped},
                made={name for name, key in old.items() if key in named.made},
            )
    except WeightsError as error:
        if count := fits_by_order(shapes, wanted):
            raise WeightsError(
                f"{error} By order and shape {count} of {len(own)} fit: match='order'."
            ) from error
        raise


def _held(named: Named, own: Mapping[str, Place]) -> set[str]:
    """Return names that the user gave and that say where in the model a tensor goes: they stand,
    whether or not it fits.
    """
    meant = named.meant & named.tensors.keys()
    if not meant:
        return set()
    layers = {key[: match.start()] for key in own for match in re.finditer(r"\.", key)}
    return {name for name in meant if name in own or name.rpartition(".")[0] in layers}


def _name_by_order(named: Named, own: Mapping[str, Place], excluded: set[str]) -> Named:
    shapes = {name: tuple(value.shape) for name, value in named.tensors.items()}
    wanted = {
        key: tuple(place.tensor.shape) for key, place in own.items() if not is_lazy(place.tensor)
    }
    # what the user has put somewhere is there, whatever the order says of the others
    put = {name: name for name in shapes if name in named.meant and name in wanted}
    given = {name: shape for name, shape in shapes.items() if name not in put}
    free = {key: shape for key, shape in wanted.items() if key not in put}
    try:
        found = put | by_order(given, free)
    except WeightsError:
        if excluded.isdisjoint(free):
            raise  # else the model may have what is excluded where the checkpoint has nothing
        found = put | by_order(given, {k: s for k, s in free.items() if k not in excluded})
    tensors = {}
    for key, name in found.items():
        value, shape = named.tensors[name], wanted[key]
        if tuple(value.shape) != shape and squeezed(value.shape) == squeezed(shape):
            named.reshaped[key] = f"reshaped from {list(value.shape)} to {list(shape)}"
            value = value.reshape(shape)
        tensors[key] = value
    named.keys = {key: named.keys[name] for key, name in found.items()}
    named.by_order = True
    named.tensors, named.rules = tensors, [f"by order and shape ({len(found)} tensors)"]
    return named


def _try(
    model: nn.Module, checkpoint: Checkpoint, candidates: Iterable[Named], own: Mapping[str, Place]
) -> tuple[Named, Draft, int]:
    """Return the names with which a draft of the model gets the most, this draft, and how many
    tensors that are; the first of several.
    """
    # Which names are right is decided by trying, since a migration may rename on its own: `solve`
    # gives the checkpoint's names first and then names that are nearer and nearer to the model's,
    # and after one step too many an old file's names may no longer be those that the migration
    # looks for. So a draft is loaded for each, and the one that fills the most tensors counts.
    best: tuple[Named, Draft] | None = None
    most, fault = -1, None
    for named in candidates:
        for metadata in _metadata(model, checkpoint, named):
            try:
                draft = make_draft(model, named.tensors, metadata)
            except WeightsError as error:
                fault = fault or error
                continue
            keys = draft.arrived.keys() | draft.supplied
            got = sum(place.key in keys for place in own.values())
            if got > most:
                best, most = (named, draft), got
            if got == len(own) or draft.exchanged:
                return named, draft, len(own)
    if best is None:
        assert fault is not None
        raise fault
    return (*best, most)


def _metadata(
    model: nn.Module, checkpoint: Checkpoint, named: Named
) -> Iterator[Mapping[str, Any]]:
    """Yield the versions of modules that the checkpoint may have been written by.

    A file without versions may be an old one, which migrations know by that, or one that was saved
    without them, as safetensors does; so both are tried.
    """
    if not named.by_order and (named.layout or checkpoint.metadata is None):
        yield {}  # where another has renamed, the checkpoint's paths are not the model's
    elif not named.by_order and checkpoint.metadata is not None:
        paths = named.names.module_path if named.names else lambda path: path
        front = named.prefix
        cut = {
            path.removeprefix(front) if f"{path}." != front else "": version
            for path, version in checkpoint.metadata.items()
        }
        yield {paths(path): version for path, version in cut.items()}
    yield versions(model)
