"""Start a backbone from a file of the user's own."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import HeadError, WeightsError, count_of, join_names
from .recipe import Plan
from .specs import WeightsSpec
from .surgery.head import find_last_layer, num_classes_of, set_num_classes
from .surgery.sites import has_module
from .weights.container import is_own
from .weights.content import BASE_KEY, prepared_as, was_set
from .weights.deferred import lend
from .weights.entries import Checkpoint
from .weights.files import state_dict_for
from .weights.limits import Room
from .weights.naming import Wishes
from .weights.ownfile import OwnFile, open_own
from .weights.partial import load_checkpoint
from .weights.preparing import OwnWeights
from .weights.published import Layouts

__all__ = ["FileFilling", "fill_from_file"]


def fill_from_file(
    network: nn.Module, plan: Plan, path: Path, entry: str | None = None
) -> WeightsSpec:
    """Fill a backbone with the tensors of a file, its head included, which gets the file's number
    of classes first; return what the weights are.

    A UserWarning names what the backbone has no place for.

    Args:
        network: the backbone, unpatched.
        plan: what is built.
        path: the file.
        entry: what holds the tensors in there, where it is a training checkpoint.

    Raises:
        WeightsError: the file cannot be read, or something other than the head is missing or does
            not fit.
        HeadError: the file has no head, and the recipe asks for no new one.
    """
    state, content = _read(network, path, entry)
    head, layouts = plan.backbone.spec.head, None
    if plan.backbone.spec.migrate:
        layouts = Layouts(plan.backbone, network)
    others = [path for path in plan.backbone.spec.auxiliary if has_module(network, path)]
    rows = _fit_head(network, head, state, layouts)
    for other in others:  # one that the file lacks is trained on the same classes
        _fit_head(network, other, state, layouts, otherwise=rows)
    checkpoint = Checkpoint.of(state, str(path))
    try:
        report = load_checkpoint(network, checkpoint, Wishes(layouts=layouts), None, False, 0.4)
    except WeightsError as error:  # what it says to do is said to partial_load
        raise WeightsError(
            f"{path}: {str(error).rstrip('.')}. That is for partial_load: build the network with "
            "weights=None, with in_channels, stages and the like of the file's network, then "
            "tvc_core.partial_load(model, path)"
        ) from error
    in_head = _inside(report.missing, [head])
    in_others = _inside(report.missing, others)
    missing = [key for key in report.missing if key not in {*in_head, *in_others}]
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing:
        raise WeightsError(
            f"{path}: lacks {count_of(len(missing), 'tensor')} of {plan.backbone.qualified}: "
            f"{join_names(missing, most=4)}. To start from a part of a network: build it with "
            "weights=None, then tvc_core.partial_load(model, path)"
        )
    if in_head and not plan.recipe.has_new_classes:
        raise HeadError(
            f"{path}: has no head ({join_names(in_head, most=4)} are missing), so the model's "
            "outputs would mean nothing: pass num_classes for a new one, or 0 for features"
        )
    if in_others:
        warnings.warn(
            f"{path}: has no values for {count_of(len(in_others), 'tensor')} of the auxiliary "
            f"heads ({join_names(others)}), which only training uses: they start at random",
            UserWarning,
            stacklevel=2,
        )
    if report.unexpected:
        warnings.warn(
            f"{path}: {count_of(len(report.unexpected), 'tensor')} not loaded, for which "
            f"{plan.backbone.qualified} has no place: {join_names(report.unexpected, most=4)}",
            UserWarning,
            stacklevel=2,
        )
    assert plan.weights is not None
    return _described(plan.weights, None if in_head else rows, content, path)


def _read(
    network: nn.Module, path: Path, entry: str | None
) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Return a file's tensors, and what tvc wrote beside them."""
    if not is_own(path):
        return state_dict_for(network, path, entry), {}
    if entry is not None:
        raise WeightsError(f"{path}: a model that HybridModel.save wrote, which has no entries")
    with open_own(path) as file:
        Room.of(network).check(path, file.size)
        if BASE_KEY in file.content:
            raise WeightsError(
                f"{path}: holds only what differs from its base: read it by tvc_core.load, and "
                "save the model whole"
            )
        state = file.read()
        lend(state.values())
        return state, file.content


def _inside(keys: Iterable[str], heads: Iterable[str]) -> list[str]:
    return [key for key in keys if any(f"{key}.".startswith(f"{head}.") for head in heads)]


def _fit_head(
    network: nn.Module,
    head: str,
    state: Mapping[str, Tensor],
    layouts: Layouts | None,
    *,
    otherwise: int | None = None,
) -> int | None:
    """Give a head as many outputs as a file has for it, or else `otherwise`; return how many the
    file has.
    """
    last = find_last_layer(network, head)
    if last is None:
        return None
    rows = _rows(state, last[0])
    if rows is None and layouts is not None:
        each = (_rows(migrated.tensors, last[0]) for migrated in layouts.read(state))
        rows = next((found for found in each if found is not None), None)
    wanted = otherwise if rows is None else rows
    if wanted is not None and wanted != num_classes_of(last[1]):
        set_num_classes(network, head, wanted)
    return rows


def _rows(state: Mapping[str, Tensor], layer: str) -> int | None:
    """Return the outputs of a layer in a state dict, with or without a prefix."""
    name = f"{layer}.weight"
    found = {key: each for key, each in state.items() if f".{key}".endswith(f".{name}")}
    weight = found.get(name, next(iter(found.values()), None))
    return None if weight is None or weight.ndim < 2 else weight.shape[0]


def _described(
    weights: WeightsSpec, rows: int | None, content: Mapping[str, Any], path: Path
) -> WeightsSpec:
    names = content.get("class_names")
    names = tuple(names) if isinstance(names, list) and len(names) == rows else ()
    said = {k: v for k, v in (content.get("preprocessing") or {}).items() if k != "name"}
    try:
        own = was_set(content)
        prepared = weights if own is not None else prepared_as(weights, said)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: the preprocessing inside is not valid: {error}") from error
    known = {each.name: getattr(prepared, each.name) for each in fields(WeightsSpec)}
    known |= {"num_classes": rows, "class_names": names, "license": content.get("license") or ""}
    return OwnWeights(**known, preprocessing=own)


class FileFilling:
    """Gives a backbone that is being built the tensors that the file has for it, so that they are
    neither initialized nor copied.

    Args:
        file: the file.
    """

    def __init__(self, file: OwnFile) -> None:
        self.file = file
        self.tensors: dict[str, Tensor] = {}
        """What was read and is not the backbone's."""
        self._filled: dict[str, Tensor] = {}

    def __call__(self, network: nn.Module) -> None:
        """Fill a network."""
        # The file is read before the patches are in, so before all names and shapes have been
        # compared: of a file that is mostly another network's, nothing is read here.
        own, entries = network.state_dict(keep_vars=True), self.file.entries
        fits = [
            key
            for key, tensor in own.items()
            if key in entries
            and (entries[key].dtype, entries[key].shape) == (tensor.dtype, tuple(tensor.shape))
            and not tensor.is_meta
        ]
        if 2 * len(fits) < len(own):
            return
        with torch._C.DisableTorchFunction():
            self.tensors = self.file.read()
        lend(self.tensors[key] for key in fits)
        with torch.no_grad():
            for key in fits:
                own[key].copy_(self.tensors.pop(key))
        self._filled = {key: own[key] for key in fits}
        self._versions = {key: own[key]._version for key in fits}

    def lacking(self, own: Mapping[str, Tensor]) -> list[str]:
        """Return the names of the tensors that do not have the file's values, or may have others by
        now.
        """
        same = {
            key
            for key, tensor in self._filled.items()
            if key in own
            and own[key].data_ptr() == tensor.data_ptr()
            and tensor._version == self._versions[key]
        }
        return [key for key in own if key not in same]
