"""Load what fits from a checkpoint, and account for every tensor on both sides.

The phases, a file each: read (`files`, `entries`), name (`patterns`, `prefixes`, `order`, called
by `naming`), migrate (`draft`), match and convert (`planning`, `fitting`, `convert`), check
(`checks`), change (`commit`, `fill`), report. Nothing is changed before all has been checked.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from ..errors import ParameterError, WeightsError, foreign, join_names, near_names, short_repr
from ..registry import Named, Registry
from ..specs import InitializerSpec
from ..surgery.home import out_of_inference
from ..written.rules import CHANNEL_POLICY
from .checks import check_plan
from .commit import Transaction
from .entries import Checkpoint, pick_entry
from .files import open_checkpoint
from .fill import new_values
from .fitting import Policy, class_names_of, given_names
from .naming import MATCHES, Wishes
from .patterns import Pattern, Rename
from .planning import LoadPlan, plan_load
from .published import layouts_of
from .report import LoadReport, Mismatch, Remark

__all__ = [
    "LoadReport",
    "Mismatch",
    "Remark",
    "load_checkpoint",
    "partial_load",
    "transfer_weights",
]


def partial_load(
    model: nn.Module,
    state_dict: Mapping[str, Any] | str | Path,
    ignore_mismatch: bool = False,
    init_new_layers: str | None = None,
    exclude_patterns: Iterable[Pattern] = (),
    *,
    include_patterns: Iterable[Pattern] | None = None,
    entry: str | Sequence[str] | None = None,
    prefix: str | None = None,
    rename: Rename | None = None,
    match: str = "name",
    in_channels_policy: Policy | None = None,
    class_names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    min_loaded: float = 0.4,
    registry: Registry | None = None,
) -> LoadReport:
    """Fill every tensor of a model that a checkpoint fits, and report on all others. On an error,
    or an interrupt, nothing has changed.

    What modules do to old files in torch's `load_state_dict` is done here as well, so no less is
    loaded than there. Where that does not fill a hybrid, what the plugin of its backbone knows of
    published layouts is tried.

    Args:
        model: any module; its tensors are filled in place, those on the meta device exchanged.
        state_dict: a state dict, a training checkpoint, or the path of a file: safetensors (also
            sharded, by its index or folder), or what torch.save wrote.
        ignore_mismatch: tensors of another shape, with values that cannot be right, or of a head
            with other classes are reported instead of raising.
        init_new_layers: name of an initializer ("kaiming", "xavier", "zero", "identity") for what
            the checkpoint did not fill; None leaves it as it is. What makes a patch start as the
            identity is never touched.
        exclude_patterns: keys of the model to leave alone. Words and dots match whole dotted
            segments anywhere ("fc" matches fc.weight, not fc1.weight); with `*`, `?` or `[...]`
            they are globs, as the targets of patches; "re:..." is a regular expression.
        include_patterns: keys to load, by the same rules; None for all.
        entry: of a training checkpoint, what holds the state dict: "model", "state.model_ema".
        prefix: what the checkpoint's names begin with before the model's; other names are
            unexpected. None finds it, "" takes names as they are.
        rename: old to new names, before everything else: a mapping of tensors, modules or
            "re:..." to replacements, or a function of a name that returns None to leave it out.
        match: "name", or "order" for one architecture under other names, as timm's and
            torchvision's: by order and shape.
        in_channels_policy: weights for a first convolution of another number of channels, as for
            the builder.
        class_names: of the checkpoint's outputs, where the file does not have them; of several
            heads, a mapping by head. Where the model has other ones, rows are matched by name.
        min_loaded: share of the model's tensors, and of their bytes, below which it is an error, 0
            to 1; what is excluded, and patches that the checkpoint lacks, do not count.
        registry: where `init_new_layers` is looked up; by default what is installed.

    Raises:
        WeightsError: something does not fit and `ignore_mismatch` is false, less than `min_loaded`
            would be loaded, names fit in two ways, class names are not those of the outputs, or
            the file is faulty.
        ParameterError: the policy does not fit, or the initializer fails.
        UnknownNameError: no such initializer.
    """
    _check_module(model, "what partial_load fills")
    given = None if class_names is None else given_names(class_names, model)
    if isinstance(state_dict, (str, Path)):
        checkpoint = open_checkpoint(model, state_dict, entry)
    else:
        content = pick_entry(state_dict, entry, "the checkpoint")
        checkpoint = Checkpoint.of(content, "the checkpoint")
    wishes = Wishes(
        exclude=_listed(exclude_patterns),
        include=None if include_patterns is None else _listed(include_patterns),
        prefix=prefix,
        rename=rename,
        match=match,
        channels=in_channels_policy,
        layouts=layouts_of(model),
    )
    if given is not None:
        checkpoint = replace(checkpoint, class_names=given, are_names_given=True)
    return load_checkpoint(
        model, checkpoint, wishes, _resolved(init_new_layers, registry), ignore_mismatch, min_loaded
    )


def transfer_weights(
    source: nn.Module,
    target: nn.Module,
    exclude_patterns: Iterable[Pattern] = (),
    ignore_mismatch: bool = True,
    init_new_layers: str | None = None,
    *,
    include_patterns: Iterable[Pattern] | None = None,
    layer_mapping: Mapping[str, str] | None = None,
    match: str = "name",
    in_channels_policy: Policy | None = None,
    min_loaded: float = 0.4,
    registry: Registry | None = None,
) -> LoadReport:
    """Copy every tensor of one model that fits another, and report on all others.

    Args:
        source: the model to read; its class names are compared with the target's.
        target: the model to fill in place.
        layer_mapping: paths of layers or tensors of the source, and where they go in the target,
            to which nothing else goes then; the others go by their names.
        exclude_patterns, ignore_mismatch, init_new_layers, include_patterns, match,
            in_channels_policy, min_loaded, registry: as for `partial_load`.

    Raises:
        WeightsError: as for `partial_load`; or a path of `layer_mapping` is not there.
    """
    for model, side in ((source, "source"), (target, "target")):
        _check_module(model, f"the {side} of transfer_weights")
    with foreign(WeightsError, "the source's state_dict() fails"):
        state = source.state_dict()
    checkpoint = Checkpoint.of(state, "the source", class_names_of(source))
    wishes = Wishes(
        exclude=_listed(exclude_patterns),
        include=None if include_patterns is None else _listed(include_patterns),
        rename=None if layer_mapping is None else _mapped(layer_mapping, state, target),
        match=match,
        channels=in_channels_policy,
        layouts=layouts_of(target),
    )
    initializer = _resolved(init_new_layers, registry)
    return load_checkpoint(target, checkpoint, wishes, initializer, ignore_mismatch, min_loaded)


def _check_module(model: object, what: str) -> None:
    if not isinstance(model, nn.Module):
        hint = ". A state dict goes into a model by partial_load(model, state_dict)"
        is_state = isinstance(model, Mapping)
        raise WeightsError(f"{what} is a model, not {short_repr(model)}{hint if is_state else ''}")


def _listed(patterns: Iterable[Pattern] | Pattern) -> list[Pattern]:
    is_one = isinstance(patterns, str) or not isinstance(patterns, Iterable)
    return [patterns] if is_one else list(patterns)  # type: ignore[list-item, arg-type]


def _resolved(name: str | None, registry: Registry | None) -> Named[InitializerSpec] | None:
    return None if name is None else (registry or Registry()).resolve(InitializerSpec, name)


def _mapped(mapping: Mapping[str, str], state: Mapping[str, Any], target: nn.Module) -> Rename:
    """Return new names of tensors for a mapping of layers; what it puts somewhere displaces what
    the source has there itself.
    """
    if not isinstance(mapping, Mapping):
        raise WeightsError(f"layer_mapping is a mapping of paths to paths, not {mapping!r}")
    with foreign(WeightsError, "the target's state_dict() fails"):
        there = list(target.state_dict())
    for paths, keys, side in (
        (mapping.keys(), list(state), "source"),
        (mapping.values(), there, "target"),
    ):
        known = {".".join(k.split(".")[:i]) for k in keys for i in range(1, k.count(".") + 2)}
        for path in paths:
            if not isinstance(path, str) or path not in known:
                near = join_names(near_names(str(path), known, most=3))
                raise WeightsError(
                    f"layer_mapping: {path!r} is no layer with tensors of the {side}; near are "
                    f"{near}"
                )
    for old, new in mapping.items():
        if (old in state) != (new in there):
            tensor, layer = (old, new) if old in state else (new, old)
            raise WeightsError(
                f"layer_mapping: {old!r} cannot go to {new!r}, since {tensor!r} is a tensor and "
                f"{layer!r} is a layer: map layers to layers, or tensors to tensors"
            )
    names: dict[str, str | None] = {}
    for key in state:
        inside = [path for path in mapping if key == path or key.startswith(f"{path}.")]
        if inside:
            old = max(inside, key=len)
            names[key] = mapping[old] + key[len(old) :]
    by_name: dict[str | None, str] = {}
    for key, name in names.items():
        if by_name.setdefault(name, key) != key:
            raise WeightsError(
                f"layer_mapping puts two tensors, {by_name[name]!r} and {key!r}, to {name!r}"
            )
    for key in state:
        if key not in names and any(f"{key}.".startswith(f"{new}.") for new in mapping.values()):
            names[key] = None
    return names


def load_checkpoint(
    model: nn.Module,
    checkpoint: Checkpoint,
    wishes: Wishes,
    initializer: Named[InitializerSpec] | None,
    ignore_mismatch: bool,
    min_loaded: float,
) -> LoadReport:
    """Load a checkpoint; the rest of `partial_load`, after its arguments were read."""
    if wishes.channels is not None:
        CHANNEL_POLICY.check("in_channels_policy", wishes.channels, ParameterError)
    if wishes.match not in MATCHES:
        raise WeightsError(f"match is 'name' or 'order', not {wishes.match!r}")
    if not isinstance(ignore_mismatch, bool):
        raise WeightsError(
            f"ignore_mismatch is True or False, not {ignore_mismatch!r}; exclude_patterns leaves "
            "out tensors by name"
        )
    if isinstance(min_loaded, bool) or not isinstance(min_loaded, (int, float)):
        raise WeightsError(f"min_loaded is a number from 0 to 1, not {min_loaded!r}")
    if not 0 <= min_loaded <= 1:
        raise WeightsError(f"min_loaded is a number from 0 to 1, not {min_loaded!r}")
    with out_of_inference(), Transaction() as transaction:
        if threading.active_count() == 1:  # else another thread may have drawn numbers since
            state = torch.get_rng_state()
            transaction.call(lambda: None, lambda: torch.set_rng_state(state))
        plan = plan_load(model, checkpoint, wishes)
        if plan.draft.exchanged:  # the model gets the layers of the old file first
            for module, name, child in plan.draft.exchanged:
                transaction.set_child(module, name, child)
            _set_fields(transaction, plan)
            plan = plan_load(model, checkpoint, wishes)
        check_plan(model, plan, checkpoint, wishes, ignore_mismatch, min_loaded)
        new = {} if initializer is None else new_values(model, plan.new, plan.own, initializer)
        with foreign(WeightsError, "the model cannot take the weights, and is unchanged"):
            _change(transaction, model, plan, new)
        report = _report(plan, new)
        transaction.done()
    return report


def _set_fields(transaction: Transaction, plan: LoadPlan) -> None:
    for module, name, value in plan.draft.changed:
        transaction.set_field(module, name, value)


def _change(
    transaction: Transaction, model: nn.Module, plan: LoadPlan, new: Mapping[str, Tensor]
) -> None:
    """Write the values, and compare what stands there afterwards."""
    _set_fields(transaction, plan)
    for key, rows in plan.rows.items():
        base = new.get(key, plan.own[key].tensor.detach()).clone()
        base[rows] = plan.values[key].to(base)
        plan.values[key] = base
    values = {**new, **plan.values}
    written: dict[int, str] = {}
    for key, value in values.items():
        place = plan.own[key]
        other = written.setdefault(id(place.tensor), key)
        if other == key:
            kept = place.tensor  # its identity is a key while it lives
            transaction.write(place, value)
            if place.tensor is not kept:
                _follow(transaction, plan, kept, key)
    for key in plan.loaded:
        if key in values and not _arrived(plan.own[key].tensor, values[key]):
            raise WeightsError(
                f"{key!r} does not have the values that were written to it: its memory is shared "
                "with another tensor, or in itself"
            )
    hybrid: Any = model.__dict__.get("_hybrid")
    if hybrid is not None:  # statistics that are held while frozen are the loaded ones now
        transaction.set_field(hybrid, "statistics", {})
    _set_extra(transaction, model, plan)
    _run_post_hooks(model, _IncompatibleKeys(list(plan.missing), list(plan.unexpected)))


def _follow(transaction: Transaction, plan: LoadPlan, old: Tensor, key: str) -> None:
    """Let the other names of a tensor that was exchanged have the new one."""
    for place in plan.own.values():
        if place.tensor is old:
            transaction.alias(place, plan.own[key])


def _arrived(tensor: Tensor, value: Tensor) -> bool:
    found = tensor.detach().to(value.device)
    if found.is_meta:
        return False
    if torch.equal(found, value):
        return True
    both = (found == value) | ((found != found) & (value != value))  # NaN
    return found.shape == value.shape and bool(both.all())


def _set_extra(transaction: Transaction, model: nn.Module, plan: LoadPlan) -> None:
    for path, value in plan.extra.items():
        module = model.get_submodule(path)
        before = copy.deepcopy(module.get_extra_state())
        transaction.call(
            lambda module=module, value=value: module.set_extra_state(value),  # type: ignore[misc]
            lambda module=module, before=before: module.set_extra_state(before),  # type: ignore[misc]
        )


def _run_post_hooks(module: nn.Module, keys: Any) -> None:
    for child in module._modules.values():
        if child is not None:
            _run_post_hooks(child, keys)
    for hook in getattr(module, "_load_state_dict_post_hooks", {}).values():
        hook(module, keys)


def _report(plan: LoadPlan, new: Mapping[str, Tensor]) -> LoadReport:
    filled = [*plan.loaded, *(each.key for each in plan.converted)]
    return LoadReport(
        loaded=tuple(plan.loaded),
        converted=tuple(plan.converted),
        mismatched=tuple(plan.mismatched),
        refused=tuple(plan.refused),
        missing=tuple(plan.missing),
        excluded=tuple(plan.excluded),
        unexpected=tuple(plan.unexpected),
        migrated=tuple(plan.migrated),
        initialized=tuple(key for key in new if key not in plan.values),
        unmatched_patterns=tuple(plan.unmatched),
        prefix=plan.prefix,
        rules=tuple(plan.rules),
        casts=tuple(f"{cast}: {count} tensors" for cast, count in sorted(plan.casts.items())),
        sources=dict(plan.sources),
        num_bytes=plan.size(plan.own),
        loaded_bytes=plan.size(filled),
    )
