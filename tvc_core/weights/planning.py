"""Decide what becomes of every tensor, before anything is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import WeightsError
from .convert import UnfitError, convert
from .draft import Draft, Place, make_draft, places, versions
from .entries import Checkpoint
from .fitting import Policy, fit_channels, head_of, head_rows
from .names import Names, solve
from .order import by_order
from .patterns import Pattern, Rename, matcher, renamed
from .report import Mismatch, Remark

__all__ = ["MATCHES", "LoadPlan", "Wishes", "plan_load"]

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
class LoadPlan:
    """What is to become of every tensor; the buckets are those of `LoadReport`.

    Args:
        own: where the model's tensors stand.
        values: what is to be written, by the model's keys.
        rows: of `values` that fill only some rows: which.
        extra: what modules are to keep beside their tensors, by their names.
        draft: of the model, after it has loaded the checkpoint.
    """

    own: dict[str, Place]
    draft: Draft
    values: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)
    converted: list[Remark] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)
    refused: list[Remark] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    migrated: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    casts: Counter[str] = field(default_factory=Counter)
    rules: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    prefix: str = ""

    @property
    def new(self) -> list[str]:
        """Keys that the checkpoint fills not at all, or not in all rows."""
        left = [each.key for each in self.mismatched] + [each.key for each in self.refused]
        filled = {memory(self.own[key].tensor) for key in self.values}
        new = (key for key in (*self.missing, *left) if memory(self.own[key].tensor) not in filled)
        return [*new, *self.rows]

    def size(self, keys: Iterable[str]) -> int:
        """Return how large tensors of the model are [bytes]."""
        tensors = (self.values.get(key, self.own[key].tensor) for key in keys)
        return sum(0 if is_lazy(t) else t.numel() * t.element_size() for t in tensors)


@dataclass(kw_only=True)
class _Named:
    """Tensors under names as near to the model's as is known, and how they came to them."""

    tensors: dict[str, Tensor]
    keys: dict[str, str]
    reshaped: dict[str, str] = field(default_factory=dict)
    by_order: bool = False
    names: Names | None = None
    rules: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    prefix: str = ""


def plan_load(model: nn.Module, checkpoint: Checkpoint, wishes: Wishes) -> LoadPlan:
    """Decide what becomes of every tensor of a checkpoint and of a model, which is not changed.

    Raises:
        WeightsError: names fit in two ways, or a module cannot load the checkpoint.
        ParameterError: the policy for channels does not fit.
    """
    own = places(model)
    exclude = matcher(wishes.exclude)
    include = None if wishes.include is None else matcher(wishes.include)
    excluded = {
        key
        for key in own
        if any(expression.search(key) for _, expression in exclude)
        or not (include is None or any(expression.search(key) for _, expression in include))
    }
    if excluded:  # a tensor is left alone under all of its names
        alone = {memory(own[key].tensor) for key in excluded}
        excluded = {key for key, place in own.items() if memory(place.tensor) in alone}
    named, draft = _try(model, checkpoint, _name(checkpoint, own, excluded, wishes), own)
    plan = LoadPlan(own=own, draft=draft, rules=named.rules)
    seen = [*own, *checkpoint.tensors, *named.tensors]
    plan.unmatched = named.unmatched + [
        text
        for text, expression in (*exclude, *(include or ()))
        if not any(map(expression.search, seen))
    ]
    arrived = _arrived(plan, named, excluded)
    _fit(model, plan, checkpoint, wishes, arrived)
    _follow_aliases(plan)
    _account(model, plan, checkpoint, named)
    return plan


def _name(
    checkpoint: Checkpoint, own: Mapping[str, Place], excluded: set[str], wishes: Wishes
) -> Iterator[_Named]:
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
    named = _Named(tensors=tensors, keys=keys, unmatched=unmatched, prefix=prefix)
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
    for found in solve(shapes, wanted, lambda a, b: _equal(tensors[a], tensors[b])):
        yield replace(
            named,
            names=found,
            rules=found.explained(),
            tensors={name: tensors[key] for name, key in found.names.items()},
            keys={name: keys[key] for name, key in found.names.items()},
        )


def _name_by_order(named: _Named, own: Mapping[str, Place], excluded: set[str]) -> _Named:
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


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _try(
    model: nn.Module, checkpoint: Checkpoint, candidates: Iterable[_Named], own: Mapping[str, Place]
) -> tuple[_Named, Draft]:
    """Return the names with which a draft of the model gets the most, and this draft; the first of
    several.
    """
    best: tuple[_Named, Draft] | None = None
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
    model: nn.Module, checkpoint: Checkpoint, named: _Named
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


def _arrived(
    plan: LoadPlan, named: _Named, excluded: set[str]
) -> dict[str, tuple[Tensor, list[str]]]:
    """Sort the keys that have no tensor, and return the tensors of the others, each with what
    became of it so far.
    """
    draft, found = plan.draft, {}
    reached = {id(p.module) for p in plan.own.values() if p.key in draft.arrived}
    for key, place in plan.own.items():
        tensor = draft.arrived.get(place.key)
        misshaped, reason = draft.misshaped.get(place.key, (None, ""))
        given = tensor if tensor is not None else misshaped
        source = None if given is None else draft.source(given, place.key)
        if source is not None:
            plan.sources[key] = named.keys[source]
        if key in excluded:
            plan.excluded.append(key)
        elif given is None and place.key in draft.supplied and id(place.module) in reached:
            kind = type(place.module).__name__
            plan.converted.append(Remark(key, f"kept: old files of {kind} do not have it"))
        elif given is None:
            plan.missing.append(key)
        elif reason:
            plan.refused.append(Remark(key, reason))
        else:
            kind = type(place.module).__name__
            notes = [f"made by the migration of {kind}"] if source is None else []
            if key in named.reshaped:
                notes.append(named.reshaped[key])
            found[key] = (given, notes)
    return found


def _fit(
    model: nn.Module,
    plan: LoadPlan,
    checkpoint: Checkpoint,
    wishes: Wishes,
    arrived: dict[str, tuple[Tensor, list[str]]],
) -> None:
    """Bring what arrived into the shapes and types of the model's."""
    draft, own = plan.draft, plan.own
    misshaped = {key: t for key, (t, _) in arrived.items() if own[key].key in draft.misshaped}
    if wishes.channels is not None and (fitted := fit_channels(misshaped, own, wishes.channels)):
        key, weight, note = fitted
        arrived[key] = (weight, [note])
        del misshaped[key]
    head, names = head_of(model), checkpoint.class_names
    for key in own:
        if key not in arrived:
            continue
        tensor, notes = arrived[key]
        place, rows = own[key], None
        if head is not None and names is not None:
            rows = head_rows(key, tensor, place, head, names)
        if rows is None and key in misshaped:
            plan.mismatched.append(Mismatch(key, tuple(tensor.shape), tuple(place.tensor.shape)))
            continue
        if rows is not None and not rows[0]:
            shapes = (tuple(tensor.shape), tuple(place.tensor.shape))
            plan.mismatched.append(Mismatch(key, *shapes, "it has none of the model's classes"))
            continue
        if rows is not None:
            tensor, notes = tensor[rows[1]], [*notes, rows[2]]
        try:
            made = convert(place.name, tensor, place.tensor, is_parameter=place.is_parameter)
        except UnfitError as error:
            plan.refused.append(Remark(key, str(error)))
            continue
        if rows is not None and len(rows[0]) < place.tensor.shape[0]:
            plan.rows[key] = rows[0]
        plan.values[key] = made.tensor
        notes = [*notes, made.how] if made.how else notes
        if notes:
            plan.converted.append(Remark(key, "; ".join(notes)))
        else:
            plan.loaded.append(key)
            if made.cast:
                plan.casts[made.cast] += 1


def _follow_aliases(plan: LoadPlan) -> None:
    """Count a tensor as loaded that is loaded under its other name; refuse two values for one."""
    first: dict[Any, str] = {}
    for key in (key for key in plan.own if key in plan.values):
        other = first.setdefault(memory(plan.own[key].tensor), key)
        if other != key and not _equal(plan.values[key], plan.values[other]):
            del plan.values[key]
            plan.loaded = [each for each in plan.loaded if each != key]
            plan.converted = [each for each in plan.converted if each.key != key]
            reason = f"it is {other!r} under another name, for which there are other values"
            plan.refused.append(Remark(key, reason))
    for key in list(plan.missing):
        if memory(plan.own[key].tensor) in first:
            plan.missing.remove(key)
            plan.loaded.append(key)
    order = {key: index for index, key in enumerate(plan.own)}
    plan.loaded.sort(key=order.__getitem__)


def memory(tensor: Tensor) -> Any:
    """Return what tells whether two tensors of a model are one under two names."""
    if tensor.is_meta or is_lazy(tensor):
        return id(tensor)
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride())


def _account(model: nn.Module, plan: LoadPlan, checkpoint: Checkpoint, named: _Named) -> None:
    """Account for what is left of the checkpoint."""
    fronts = {
        source.removesuffix(key) for key, source in plan.sources.items() if source.endswith(key)
    }
    plan.prefix = fronts.pop() if len(fronts) == 1 else ""
    used = set(plan.sources.values())
    missed = {named.keys[name] for name in plan.draft.missed}
    known = set(named.keys.values())
    for key in sorted(checkpoint.tensors):
        if key not in used:
            is_unknown = key in missed or key not in known
            (plan.unexpected if is_unknown else plan.migrated).append(key)
    modules = dict(model.named_modules())
    for key, value in checkpoint.extra.items():
        name = key[len(named.prefix) :] if key.startswith(named.prefix) else key
        path = name.rpartition(".")[0]
        path = named.names.module_path(path) if named.names else path
        owner = modules.get(path)
        takes = owner is not None and type(owner).set_extra_state is not nn.Module.set_extra_state
        if takes:
            plan.extra[path] = value
            plan.sources[f"{path}._extra_state" if path else "_extra_state"] = key
        else:
            plan.unexpected.append(key)
    plan.unexpected.sort()
