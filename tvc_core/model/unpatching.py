"""Take patches out of a hybrid, for good or for a while.

A patch that is switched off or taken out also loses its flag, which compiled graphs guard on: they
are made again. A module that was replaced is kept beside the network, in the hybrid's facts: it is
in no state dict and in no file of `save`, but deepcopy and pickle carry it. It costs the memory of
its weights, on the device where the model was built.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace

import torch

from ..errors import HeadError, PatchError, TargetError, did_you_mean, join_names
from ..recipe import PatchEntry, PatchPlan, qualified_entry
from ..surgery.head import last_layer, num_classes_of, set_dropout
from ..surgery.patches import Patch, detach, free_name, restore_module, rollback_on_error
from ..surgery.sites import Probe, has_module
from ..surgery.targets import expand
from . import freezing
from .checkpointing import set_checkpointing
from .features import find_bridge
from .hybrid import HybridModel, PatchRecord
from .measuring import measure

__all__ = ["unpatch", "without"]


def unpatch(model: HybridModel, target: str | None = None) -> None:
    """Do the work of `HybridModel.unpatch`."""
    facts = model._hybrid
    chosen = _chosen(model, target)
    if not chosen:
        return
    restored = [record.target for record in chosen if record.replaced is not None]
    for path in restored:
        if path not in facts.originals:
            raise PatchError(
                f"{path!r} was replaced, and what stood there is not known: files keep no replaced "
                "modules. Build the backbone "
                "anew with HybridBuilder"
            )
    paths = [path for record in chosen for path in record.paths]
    freezing.refuse_under_ddp(model, paths, "would wait for gradients of what is gone")
    patches = _patches(model, chosen)
    classes, before = model.num_classes, facts.__dict__.copy()
    try:
        with rollback_on_error(model):
            for record in reversed(chosen):
                for home in _homes(record):
                    if has_module(model, home):
                        detach(model, home)
                if record.replaced is not None:
                    checkpointed = "forward" in model.get_submodule(record.target).__dict__
                    restore_module(model, record.target, facts.originals[record.target])
                    if checkpointed:
                        set_checkpointing(model, [record.target], True)
            path, layer = last_layer(model, facts.anatomy.head)
            if (old := num_classes_of(layer)) != classes:
                raise HeadError(
                    f"the {path!r} that was replaced had {old} outputs, and the head has {classes} "
                    "now: call "
                    f"reset_classifier({old}) before unpatch, then reset_classifier({classes})"
                )
            if restored:
                facts.taps.place(model, path)
            _forget(model, chosen)
            _measure(model)
    except BaseException:
        facts.__dict__.update(before)
        raise
    for patch in patches:
        patch.switch(False)
    if restored:
        head, dropout = facts.anatomy.head, facts.plan.recipe.dropout
        if dropout is not None and any(f"{head}.".startswith(f"{path}.") for path in restored):
            set_dropout(model, head, dropout)
        model._set_freeze(facts.freeze)


@contextmanager
def without(model: HybridModel, target: str | None = None) -> Iterator[HybridModel]:
    """Do the work of `HybridModel.without`."""
    chosen = _chosen(model, target)
    replaced = [record.target for record in chosen if record.replaced is not None]
    if replaced:
        raise PatchError(
            f"{join_names(replaced)} was replaced, and a replacement cannot be switched off: what "
            "stood there is kept apart, "
            "untrained, on no device of the model's. Use unpatch, on a copy.deepcopy of the model "
            "if it is to stay patched"
        )
    patches = _patches(model, chosen)
    for patch in patches:
        patch.switch(False)
    try:
        yield model
    finally:
        for patch in patches:
            patch.switch(True)


def _chosen(model: HybridModel, target: str | None) -> list[PatchRecord]:
    """Return the records of the patches at a target, which may be a pattern; of all where it is
    None.
    """
    facts = model._hybrid
    if target is None:
        return list(facts.records)
    paths = {target}
    with suppress(TargetError):  # what is said below says more: it lists the targets
        paths.update(expand(model, target, facts.anatomy, facts.plan.backbone.qualified))
    chosen = [record for record in facts.records if record.target in paths]
    if not chosen:
        targets = list(dict.fromkeys(record.target for record in facts.records))
        raise TargetError(
            f"nothing is patched at {target!r}.{did_you_mean(target, targets)} Patched are: "
            f"{join_names(targets)}"
        )
    return chosen


def _homes(record: PatchRecord) -> list[str]:
    """Return where the inserted blocks of a record live."""
    return [path for path in record.paths if path != record.target]


def _patches(model: HybridModel, records: list[PatchRecord]) -> list[Patch]:
    """Return the patches of records as far as they are still in the model."""
    modules = dict(model.named_modules())
    found = (modules.get(path) for record in records for path in _homes(record))
    return [patch for patch in found if isinstance(patch, Patch)]


def _forget(model: HybridModel, chosen: list[PatchRecord]) -> None:
    """Let records, plan and recipe say what is left."""
    facts = model._hybrid
    left = [
        (record, plan)
        for record, plan in zip(facts.records, facts.patches, strict=True)
        if record not in chosen
    ]
    facts.records, facts.patches = (
        tuple(record for record, _ in left),
        tuple(plan for _, plan in left),
    )
    recipe = replace(facts.plan.recipe, patches=tuple(_entries(model, left)))
    facts.plan = replace(facts.plan, patches=facts.patches, recipe=recipe)
    facts.originals = {
        path: module
        for path, module in facts.originals.items()
        if path in {r.target for r in facts.records}
    }
    if all(record.starts_as_identity for record in facts.records):
        facts.step0_difference = 0.0


def _entries(model: HybridModel, left: list[tuple[PatchRecord, PatchPlan]]) -> Iterator[PatchEntry]:
    """Yield patches as a recipe has them. One that got a number since a patch that is gone had its
    name keeps it, as a name.
    """
    taken: dict[str, set[str]] = {}
    for record, plan in left:
        entry = qualified_entry(plan)
        for home in _homes(record):
            node, _, leaf = home.rpartition(".")
            names = taken.setdefault(node, set())
            if leaf != free_name(plan.name, model.get_submodule(node.partition(".")[2]), names):
                entry = replace(entry, name=leaf)
            names.add(leaf)
        yield entry


def _measure(model: HybridModel) -> None:
    """Measure stages, levels and the way to the head again."""
    facts = model._hybrid
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    image = torch.randn(facts.probe_shape, generator=torch.Generator().manual_seed(0))
    probe = Probe(image.to(dtype=like.dtype, device=like.device))
    # by model.compile(): not for a look
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        _, facts.readers, facts.stages, facts.levels = measure(
            model, facts.anatomy, facts.taps, facts.records, probe
        )
        facts.bridge = find_bridge(model, facts.anatomy.taps[-1], facts.anatomy.head, probe)
