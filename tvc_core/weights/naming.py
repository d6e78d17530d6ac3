"""Give the tensors of a checkpoint the model's names, and let a draft of the model load them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import WeightsError
from .draft import Draft, Place, make_draft, versions
from .entries import Checkpoint
from .fitting import Policy
from .order import by_order
from .patterns import Pattern, Rename, renamed
from .prefixes import Names, solve

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


@dataclass(kw_only=True)
class Named:
    """Tensors under names as near to the model's as is known, and how they came to them."""

    tensors: dict[str, Tensor]
    keys: dict[str, str]
    reshaped: dict[str, str] = field(default_factory=dict)
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
    return _try(model, checkpoint, _name(checkpoint, own, excluded, wishes), own)


def equal(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors have the same type and values."""
    return a.dtype == b.dtype and torch.equal(a, b)


def _name(
    checkpoint: Checkpoint, own: Mapping[str, Place], excluded: set[str], wishes: Wishes
) -> Iterator[Named]:
    """Rename, take the prefix off, and solve the rest, step by step."""
    new, unmatched = renamed(checkpoint.tensors, wishes.rename)
    prefix = wishes.prefix or ""
    if not isinstance(prefix, str):
        raise WeightsError(f"prefix is a string such as 'module.', not {prefix!r}")
    if prefix:
        new = {k: n[len(prefix) :] for k, n in new.items() if n.startswith(prefix)}
        if not new:
            raise WeightsError(
                f"{checkpoint.name}: no key begins with the prefix {prefix!r}; the first keys are "
                f"{', '.join(list(checkpoint.tensors)[:3])}"
            )
    keys = {name: key for key, name in new.items()}
    tensors = {name: checkpoint.tensors[key] for name, key in keys.items()}
    named = Named(tensors=tensors, keys=keys, unmatched=unmatched, prefix=prefix)
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
    for found in solve(shapes, wanted, lambda a, b: equal(tensors[a], tensors[b])):
        yield replace(
            named,
            names=found,
            rules=found.explained(),
            tensors={name: tensors[key] for name, key in found.names.items()},
            keys={name: keys[key] for name, key in found.names.items()},
        )


def _name_by_order(named: Named, own: Mapping[str, Place], excluded: set[str]) -> Named:
    shapes = {name: tuple(value.shape) for name, value in named.tensors.items()}
    wanted = {
        key: tuple(place.tensor.shape)
        for key, place in own.items()
        if key not in excluded and not is_lazy(place.tensor)
    }
    found = by_order(shapes, wanted)
    tensors = {}
    for key, name in found.items():
        value, shape = named.tensors[name], wanted[key]
        if tuple(value.shape) != shape:
            named.reshaped[key] = f"reshaped from {list(value.shape)} to {list(shape)}"
        tensors[key] = value.reshape(shape)
    named.keys = {key: named.keys[name] for key, name in found.items()}
    named.by_order = True
    named.tensors, named.rules = tensors, [f"by order and shape ({len(found)} tensors)"]
    return named


def _try(
    model: nn.Module, checkpoint: Checkpoint, candidates: Iterable[Named], own: Mapping[str, Place]
) -> tuple[Named, Draft]:
    """Return the names with which a draft of the model gets the most, and this draft; the first of
    several.
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
                return named, draft
    if best is None:
        assert fault is not None
        raise fault
    return best


def _metadata(
    model: nn.Module, checkpoint: Checkpoint, named: Named
) -> Iterator[Mapping[str, Any]]:
    """Yield the versions of modules that the checkpoint may have been written by.

    A file without versions may be an old one, which migrations know by that, or one that was saved
    without them, as safetensors does; so both are tried.
    """
    if not named.by_order and checkpoint.metadata is None:
        yield {}
    elif not named.by_order and checkpoint.metadata is not None:
        paths = named.names.module_path if named.names else lambda path: path
        front = named.prefix
        cut = {
            path.removeprefix(front) if f"{path}." != front else "": version
            for path, version in checkpoint.metadata.items()
        }
        yield {paths(path): version for path, version in cut.items()}
    yield versions(model)
