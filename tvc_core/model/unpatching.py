"""Take patches out of a hybrid, for good or for a while.

A patch that is switched off or taken out also loses its flag, which compiled graphs guard on: they
are made again. A module that was replaced is kept beside the network, in the hybrid's facts: it is
in no state dict and in no file of `save`, but deepcopy and pickle carry it. It costs the memory of
its weights, on the device where the model was built.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from torch import nn

from ..errors import HeadError, PatchError, TargetError, did_you_mean, join_names
from ..quarantine.process_state import run_preserved
from ..recipe import PatchEntry, qualified_entry
from ..surgery import calls
from ..surgery.head import find_classifier, find_last_layer, num_classes_of, set_dropout
from ..surgery.head_layers import HeadMLP, Heads
from ..surgery.marks import check_hybrid
from ..surgery.noise import image_for
from ..surgery.patch import Patch
from ..surgery.patches import (
    CONTAINERS,
    detach,
    free_name,
    placed_patches,
    restore_module,
    rollback_on_error,
)
from ..surgery.sites import Probe, has_module
from ..surgery.targets import expand
from . import freezing
from .checkpointing import Checkpointed, set_checkpointing
from .fingerprint import fingerprint
from .remeasuring import measure_again, misfits_noted
from .settling import place
from .state import HybridState, Installed, num_classes, state_of

__all__ = [
    "chosen_patches", "drop_closed_patches", "switched_off", "take_out", "unpatch", "without",
]  # fmt: skip


def unpatch(network: nn.Module, state: HybridState, target: str | None = None) -> None:
    """Do the work of `HybridModel.unpatch`."""
    if chosen := chosen_patches(network, state, target):
        take_out(network, state, chosen)


def drop_closed_patches(model: nn.Module) -> tuple[str, ...]:
    """Take out of a hybrid the patches that do nothing since their gates are exactly 0.

    The outputs stay the same bit for bit, and inference costs what it costs without them.

    Args:
        model: a hybrid.

    Returns:
        Where the blocks that are gone lived, such as "patches.layer3.se".

    Raises:
        ParameterError: `model` is not a hybrid.
        FreezeError: the model is wrapped in DistributedDataParallel.
    """
    check_hybrid(model, "drop_closed_patches")
    state = state_of(model)
    chosen = [
        each
        for each in state.patches
        if each.record.replaced is None
        and (patches := _patches(model, [each]))
        and all(patch.alpha is not None and not patch.alpha.any() for patch in patches)
    ]
    gone = tuple(home for each in chosen for home in each.homes)
    if chosen:
        run_preserved(take_out, model, state, chosen)
    return gone


def take_out(network: nn.Module, state: HybridState, chosen: list[Installed]) -> None:
    """Take patches out.

    Everything is tried inside the rollback, which puts network and state back: taking blocks out,
    giving replaced modules back, measuring what is left. The patches lose their flag last, since
    compiled graphs guard on it and nothing can fail after that.
    """
    # What can be refused is refused before anything changes. After that the network is put back by
    # the rollback (modules, hooks, flags), and the state by its copy.
    restored = [each.record.target for each in chosen if each.record.replaced is not None]
    for path in restored:
        if path not in state.originals:
            raise PatchError(
                f"{path!r} was replaced, and what stood there is not known: files keep no replaced "
                "modules. Build the backbone again with HybridBuilder"
            )
    homes = [path for each in chosen for path in each.record.paths]
    thawed = [name for each in chosen for name in each.record.thawed]
    freezing.refuse_under_ddp(network, homes + thawed, "would wait for gradients of what is gone")
    patches = _patches(network, chosen)
    before = state.__dict__.copy()
    try:
        with rollback_on_error(network):
            classes = num_classes(network, state)
            _take_out(network, state, chosen)
            _check_head(network, state, classes)
            _drop_records(network, state, chosen)
            place(network, state)
            _measure(network, state)
            _restore_dropout(network, state, restored)
            state.modules = _known_modules(network, state, restored)
            freezing.adopt(network, state, [*restored, *thawed])
            for patch in patches:
                patch.switch("removed", False)
    except BaseException:
        for patch in patches:
            patch.switch("removed", True)
        state.__dict__.clear()
        state.__dict__.update(before)
        raise


@contextmanager
def without(
    network: nn.Module, state: HybridState, target: str | None = None
) -> Iterator[nn.Module]:
    """Do the work of `HybridModel.without`."""
    chosen = chosen_patches(network, state, target)
    replaced = [each.record.target for each in chosen if each.record.replaced is not None]
    if replaced:
        raise PatchError(
            f"{join_names(replaced)} was replaced, and a replacement cannot be switched off: what "
            "stood there is kept apart, untrained, on no device of the model's. Use unpatch, on a "
            "copy.deepcopy of the model if it is to stay patched"
        )
    with switched_off(_patches(network, chosen)):
        yield network


@contextmanager
def switched_off(patches: list[Patch]) -> Iterator[None]:
    """Switch patches off in this thread. A compiled graph has no threads: it follows the flag."""
    # A token for each `with`, since contexts may be nested and threads may switch the same patch at
    # once. A patch keeps the tokens of all threads, a thread those that are its own, and a patch is
    # off in a thread where the two have one in common. The plain flag `enabled` is false as long as
    # there is any token at all: that is what compiled graphs guard on, and they are made again when
    # it changes.
    token, here = object(), calls.switched_off()

    def switch_on() -> None:
        here[:] = [other for other in here if other is not token]
        for patch in patches:
            patch.switch(token, True)

    try:
        try:
            here.append(token)
            for patch in patches:
                patch.switch(token, False)
            yield
        finally:
            switch_on()
    finally:  # an interrupt may come in the middle of it
        switch_on()


def chosen_patches(network: nn.Module, state: HybridState, target: str | None) -> list[Installed]:
    """Return the patches at a target, which may be a pattern; all where it is None."""
    if target is None:
        return list(state.patches)
    if not isinstance(target, str):
        raise TargetError(f"a target is the path of a module, or a pattern, not {target!r}")
    paths = {target}
    with suppress(TargetError):  # what is said below says more: it lists the targets
        paths.update(expand(network, target, state.anatomy, state.plan.backbone.qualified))
    chosen = [each for each in state.patches if each.record.target in paths]
    if not chosen:
        targets = list(dict.fromkeys(record.target for record in state.records))
        raise TargetError(
            f"nothing is patched at {target!r}.{did_you_mean(target, targets)} Patched are: "
            f"{join_names(targets)}"
        )
    return chosen


def _patches(network: nn.Module, chosen: Iterable[Installed]) -> list[Patch]:
    """Return the inserted blocks of patches as far as they are still in the model."""
    placed = {home: patch for home, _, patch in placed_patches(network)}
    return [placed[home] for each in chosen for home in each.homes if home in placed]


def _take_out(network: nn.Module, state: HybridState, chosen: list[Installed]) -> None:
    # The last one first, since a later patch may hang on what an earlier one has put in.
    # Checkpointing stands on a module as its attribute `forward`, so it would be gone with the
    # replacement: the module that comes back gets it again.
    for each in reversed(chosen):
        for home in each.homes:
            if has_module(network, home):
                detach(network, home)
        target = each.record.target
        if each.record.replaced is not None:
            forward = network.get_submodule(target).__dict__.get("forward")
            restore_module(network, target, state.originals[target])
            if isinstance(forward, Checkpointed):
                set_checkpointing(network, [target], True)


def _check_head(network: nn.Module, state: HybridState, classes: int) -> None:
    """Refuse a last layer that comes back with other outputs than the head has now, or without the
    layers that the recipe has in its place.
    """
    recipe, place = state.plan.recipe, find_classifier(network, state.anatomy.head)
    if (recipe.hidden or recipe.heads) and not (place and isinstance(place[1], (HeadMLP, Heads))):
        raise HeadError(
            f"what was replaced at the head {state.anatomy.head!r} cannot come back: its hidden "
            "layers or several heads stand in the replacement. Build the model without that patch"
        )
    found = find_last_layer(network, state.anatomy.head)
    if found and (old := num_classes_of(found[1])) != classes:
        raise HeadError(
            f"the {found[0]!r} that was replaced had {old} outputs, and the head has {classes} "
            f"now: call reset_classifier({old}) before unpatch, then reset_classifier({classes})"
        )


def _drop_records(network: nn.Module, state: HybridState, chosen: list[Installed]) -> None:
    """Let state and recipe say what is left."""
    state.patches = tuple(each for each in state.patches if each not in chosen)
    recipe = replace(state.plan.recipe, patches=tuple(_entries(network, state.patches)))
    plans = tuple(each.plan for each in state.patches)
    state.plan = replace(state.plan, patches=plans, recipe=recipe)
    left = {record.target for record in state.records}
    state.originals = {path: module for path, module in state.originals.items() if path in left}
    if all(record.starts_as_identity for record in state.records):
        state.step0_difference = 0.0


def _entries(network: nn.Module, left: Iterable[Installed]) -> Iterator[PatchEntry]:
    """Yield patches as a recipe has them.

    A block that had got a number, since a patch that is gone had its name, keeps it as its name: so
    the recipe builds the same keys. Which name it would get now is found by handing names out again
    in the same order.
    """
    taken: dict[str, set[str]] = {}
    for each in left:
        entry = qualified_entry(each.plan)
        for home in each.homes:
            node, _, leaf = home.rpartition(".")
            names = taken.setdefault(node, set())
            target = network.get_submodule(node.partition(".")[2])
            if leaf != free_name(each.plan.name, target, names):
                entry = replace(entry, name=leaf)
            names.add(leaf)
        yield entry


def _restore_dropout(network: nn.Module, state: HybridState, restored: Iterable[str]) -> None:
    """Give a head that came back the dropout that the recipe asked for."""
    head, dropout = state.anatomy.head, state.plan.recipe.dropout
    if dropout is not None and any(f"{head}.".startswith(f"{path}.") for path in restored):
        set_dropout(network, head, dropout)


def _known_modules(
    network: nn.Module, state: HybridState, restored: Iterable[str]
) -> dict[str, str]:
    """Return the fingerprint of what is left: what came back is as it is now."""
    # `save` compares the model with its fingerprint from the build. What a patch has taken with it
    # leaves the fingerprint, and what came back is written down as it is now. All else keeps its
    # line, so that a change by another tool is still a change.
    homes = {home for home, _, _ in placed_patches(network)}
    kept = {
        path: line
        for path, line in state.modules.items()
        if not any(f"{path}.".startswith(f"{other}.") for other in restored)
        and (not _is_inserted(path) or any(f"{path}.".startswith(f"{home}.") for home in homes))
    }
    for path in restored:
        kept |= fingerprint(network, path)
    return kept


def _is_inserted(path: str) -> bool:
    return path.partition(".")[0] in CONTAINERS


def _measure(network: nn.Module, state: HybridState) -> None:
    """Measure the features and the way to the head again."""
    probe = Probe(image_for(network, state.probe_shape))
    with misfits_noted(network, {}):  # of a network changed by hand, patches go one by one
        measure_again(network, state, probe)
