"""Decide what becomes of every tensor, before anything is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .convert import UnfitError, convert
from .draft import Draft, Place, places
from .entries import Checkpoint
from .fitting import check_given_names, class_names_of, fit_channels, head_rows, named_layers
from .naming import Named, Wishes, equal, name_and_draft
from .patterns import matcher
from .report import Mismatch, Remark

__all__ = ["LoadPlan", "plan_load"]


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

    def drop(self, key: str) -> None:
        """Do not write a value after all; the key is to be put into another bucket."""
        del self.values[key]
        self.rows.pop(key, None)
        self.loaded = [each for each in self.loaded if each != key]
        self.converted = [each for each in self.converted if each.key != key]

    def size(self, keys: Iterable[str]) -> int:
        """Return how large tensors of the model are [bytes]."""
        tensors = (self.values.get(key, self.own[key].tensor) for key in keys)
        return sum(0 if is_lazy(t) else t.numel() * t.element_size() for t in tensors)


def plan_load(model: nn.Module, checkpoint: Checkpoint, wishes: Wishes) -> LoadPlan:
    """Decide what becomes of every tensor of a checkpoint and of a model, which is not changed.

    Raises:
        WeightsError: names fit in two ways, or a module cannot load the checkpoint.
        ParameterError: the policy for channels does not fit.
    """
    own = places(model)
    exclude = matcher(wishes.exclude)
    include = None if wishes.include is None else matcher(wishes.include)

    def is_left_out(key: str) -> bool:
        if any(expression.search(key) for _, expression in exclude):
            return True
        return include is not None and not any(e.search(key) for _, e in include)

    excluded = set(filter(is_left_out, own))
    if excluded:  # a tensor is left alone under all of its names
        alone = {memory(own[key].tensor) for key in excluded}
        excluded = {key for key, place in own.items() if memory(place.tensor) in alone}
    named, draft = name_and_draft(model, checkpoint, own, excluded, wishes)
    plan = LoadPlan(own=own, draft=draft, rules=named.rules)
    seen = [*own, *checkpoint.tensors, *named.tensors, *checkpoint.extra, *named.extra]
    plan.unmatched = named.unmatched + [
        text
        for text, expression in (*exclude, *(include or ()))
        if not any(map(expression.search, seen))
    ]
    arrived = _arrived(plan, named, excluded)
    _fit(model, plan, checkpoint, wishes, arrived)
    _leave_biases(plan)
    _follow_aliases(plan)
    _account(plan, checkpoint, named)
    _keep_extra(model, plan, checkpoint, named, is_left_out)
    plan.unexpected.sort()
    return plan


def _arrived(
    plan: LoadPlan, named: Named, excluded: set[str]
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
        if source is not None and source in named.keys:
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
            maker = type(place.module).__name__ if source is None else named.layout
            is_made = source is None or source in named.made
            notes = [f"made by the migration of {maker}"] if is_made else []
            if source in named.reshaped:
                notes.append(named.reshaped[source])
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
    layers, names = named_layers(model), class_names_of(model)
    if checkpoint.are_names_given:
        heads = {key: layers[own[key].path] for key in arrived if own[key].path in layers}
        check_given_names(arrived, heads, plan.sources, checkpoint)
    for key in own:
        if key not in arrived:
            continue
        tensor, notes = arrived[key]
        place, rows = own[key], None
        if (head := layers.get(place.path)) is not None:
            theirs = checkpoint.names_of(plan.sources.get(key), head)
            rows = head_rows(tensor, place.tensor, names.get(head), theirs)
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


def _leave_biases(plan: LoadPlan) -> None:
    """Leave a bias alone whose weight does not fit: it was learned with that one."""
    left = {each.key for each in plan.mismatched}
    weights = {(id(place.module), place.name): key for key, place in plan.own.items()}
    for key in (key for key in plan.own if key in plan.values):
        place = plan.own[key]
        stem, is_bias = place.name.removesuffix("bias"), place.name.endswith("bias")
        weight = weights.get((id(place.module), f"{stem}weight"))
        if is_bias and weight in left:
            shape = tuple(place.tensor.shape)
            reason = f"it goes with {weight}, which is not loaded"
            plan.mismatched.append(Mismatch(key, shape, shape, reason))
            plan.drop(key)


def _follow_aliases(plan: LoadPlan) -> None:
    """Count a tensor as loaded that is loaded under its other name; refuse two values for one."""
    # A tied tensor (the two embeddings of a language model, say) stands in the state dict under
    # each of its names, and a checkpoint may have all of them or one. One is enough: the other name
    # is then loaded as well. If it has several with different values, writing both would leave what
    # was written last, so all but the first are refused.
    first: dict[Any, str] = {}
    for key in (key for key in plan.own if key in plan.values):
        other = first.setdefault(memory(plan.own[key].tensor), key)
        if other != key and not equal(plan.values[key], plan.values[other]):
            plan.drop(key)
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


def _account(plan: LoadPlan, checkpoint: Checkpoint, named: Named) -> None:
    """Account for what is left of the checkpoint."""
    # Each key of the checkpoint gets exactly one place in the report. Used: it is a source. Not
    # used, and no module asked for it: unexpected. Not used although a module took it: a migration
    # has merged it into others or dropped it. Extra state is not a tensor and goes by the path of
    # its module.
    fronts = {
        source.removesuffix(key) for key, source in plan.sources.items() if source.endswith(key)
    }
    plan.prefix = fronts.pop() if len(fronts) == 1 else ""
    used = set(plan.sources.values())
    missed = {named.keys[name] for name in plan.draft.missed if name in named.keys}
    known = {*named.keys.values(), *named.consumed}
    for key in sorted(checkpoint.tensors):
        if key not in used:
            is_unknown = key in missed or key not in known
            (plan.unexpected if is_unknown else plan.migrated).append(key)


def _keep_extra(
    model: nn.Module,
    plan: LoadPlan,
    checkpoint: Checkpoint,
    named: Named,
    is_left_out: Callable[[str], bool],
) -> None:
    """Sort what the checkpoint's modules keep beside their tensors."""
    modules = dict(model.named_modules())
    plan.unexpected += checkpoint.extra.keys() - named.extra.values()
    for name, key in named.extra.items():
        path = name.rpartition(".")[0]
        if named.names and name not in named.meant:
            path = named.names.module_path(path)
        owner, new = modules.get(path), f"{path}._extra_state".lstrip(".")
        if owner is None or type(owner).set_extra_state is nn.Module.set_extra_state:
            plan.unexpected.append(key)
            continue
        plan.sources[new] = key
        if not is_left_out(new):
            plan.extra[path] = checkpoint.extra[key]
