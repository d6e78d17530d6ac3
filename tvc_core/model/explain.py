"""Say in words what a hybrid is, from what is really in it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..errors import count_of, join_names
from ..specs import FROM_MODULE
from ..surgery.head import dropout_of, find_classifier, find_heads, num_classes_of
from ..surgery.head_layers import HeadMLP
from ..surgery.input import InputRecord
from ..surgery.patch import Patch
from ..surgery.patches import installed_patches, placed_patches
from ..surgery.sites import find_module, plain_name
from .fingerprint import kind_of
from .freeze_report import freeze_report
from .heads import head_info
from .settling import place
from .state import HybridState, PatchRecord

__all__ = ["explain"]


def explain(network: nn.Module, state: HybridState) -> str:
    """Return the text of `HybridModel.explain`."""
    # The text is read from the live model wherever that can tell, and not from the plan: patches
    # are first put in their places, and each line on a patch, a head or a part counts what is there
    # now. What was asked for and is not there any more is then seen by the reader.
    plan = state.plan
    lost = place(network, state)
    own = "the module's own" if plan.backbone.owner == FROM_MODULE else "none (random)"
    weights = plan.weights.name if plan.weights else own
    if not state.verified:
        weights += ", file hash not compared (TVC_VERIFY_WEIGHTS=0)"
    lines = [
        f"{plan.recipe.name or type(network).__name__}: {plan.backbone.qualified}",
        f"weights: {weights}",
    ]
    if plan.options:
        given = ", ".join(f"{name}={value!r}" for name, value in plan.options.items())
        lines.append(f"options: {given}")
    if state.input is not None:
        lines.append("input: " + _input_line(state.input))
    if state.left_out is not None:
        lines.append(f"left out: {state.left_out}")
    lines += _patch_lines(network, state)
    lines += [f"  cannot run: {each}" for each in lost]
    lines += _head_lines(network, state)
    lines.append(_table(network, state))
    return "\n".join(lines)


def _head_lines(network: nn.Module, state: HybridState) -> Iterator[str]:
    head = state.anatomy.head
    if not (infos := head_info(network, state)):
        yield f"head: {head} ({type(network.get_submodule(head)).__name__}), no last layer"
    heads = find_heads(network, head)
    for info in infos:
        what = f"head {info.name}" if info.name else "head"
        kind = type(network.get_submodule(info.module)).__name__
        hidden = _widths(network, [head, heads[info.name]] if info.name else [head])
        own = dropout_of(network, heads[info.name]) if info.name else None
        dropout = own or dropout_of(network, head) or 0.0
        line = f"{what}: {info.module} ({kind}), {hidden}{count_of(info.num_classes, 'class')}"
        if kept := state.kept_classes.get(info.name):
            line += f" ({len(kept)} with the weights of before: {join_names(kept, most=3)})"
        yield f"{line}, dropout {dropout:g}"


def _widths(network: nn.Module, paths: list[str]) -> str:
    """Return the widths of the hidden layers within, and their activation, in words."""
    places = [find_classifier(network, path) for path in paths]
    mlps = [place[1] for place in places if place is not None and isinstance(place[1], HeadMLP)]
    layers = [layer for mlp in mlps for layer in mlp[:-1]]
    widths = [str(num_classes_of(layer)) for layer in layers if num_classes_of(layer)]
    between = [each for each in layers if not num_classes_of(each)]
    kinds = {type(each).__name__ for each in between if not isinstance(each, nn.Dropout)}
    if not widths:
        return ""
    return f"hidden layers of {', '.join(widths)} with {' and '.join(sorted(kinds))}, "


def _input_line(record: InputRecord) -> str:
    policy = record.policy if isinstance(record.policy, str) else ", ".join(map(str, record.policy))
    return (
        f"{record.channels} channels at {record.path}, whose weights follow from those for "
        f"{record.before} by {policy}"
    )


def _patch_lines(network: nn.Module, state: HybridState) -> list[str]:
    running = {id(patch): plain_name(path) for path, patch in installed_patches(network)}
    placed = {home: patch for home, _, patch in placed_patches(network)}
    lines: list[str] = []
    for record in state.records:
        what = f"  {record.target}: {record.op.partition(':')[2]}"
        params = ", ".join(f"{name}={value!r}" for name, value in record.params.items())
        block = f"{record.block or 'its own module'}{f'({params})' if params else ''}"
        if record.replaced is not None:
            now = type(find_module(network, record.target)).__name__
            lines.append(f"{what} {record.replaced} by {block}, now {now}{_weights(record)}")
            continue
        if record.thawed:
            count = f"{len(record.thawed)} parameters"
            lines.append(f"{what}, {count} learn where their part is frozen")
        for home in record.paths:
            patch = placed.get(home)
            if patch is None:
                lines.append(f"{what} {block}: no longer in the model (was {home})")
                continue
            if id(patch) not in running:
                lines.append(f"{what} {block}: at {home}, but never run: its target is gone")
                continue
            path = running[id(patch)]
            order = patch.position.describe(path, block) + _exchanged(network, state, path)
            if not patch.enabled:
                order += ", switched off"
            lines.append(f"{what}, {order}, at {home}, {_start(patch)}")
    known = {home for record in state.records for home in record.paths}
    inside = {id(patch): home for home, patch in placed.items()}
    for path, patch in installed_patches(network):
        if id(patch) not in inside:
            where = "that is not in the model's tree, so it is not saved"
            lines.append(f"  {path}: runs a block {patch.position.label} it {where}")
        elif inside[id(patch)] not in known:
            lines.append(
                f"  {path}: runs a block {patch.position.label} it that no record explains"
            )
    if not lines:
        return ["patches: none"]
    shape = "x".join(str(size) for size in state.probe_shape)
    difference = (
        "step 0: largest logit difference from the unpatched backbone "
        f"{state.step0_difference:g} (image {shape})"
    )
    return [f"patches: {len(lines)}", *lines, difference]


def _weights(record: PatchRecord) -> str:
    """Say what a replacement keeps of the weights that stood there."""
    found = {"keeps": record.kept, "changes": record.changed, "loses": record.lost}
    said = [f"{verb} {join_names(names, most=6)}" for verb, names in found.items() if names]
    return "".join(f"; {each}" for each in said)


def _start(patch: Patch) -> str:
    if patch.alpha is not None:
        now = "on meta" if patch.alpha.is_meta else f"{patch.alpha.item():.3g}"
        return f"identity start, gate now {now}"
    return "identity start by itself" if patch.neutral else "published start"


def _exchanged(network: nn.Module, state: HybridState, path: str) -> str:
    """Say that another module stands at a target than when the model was built."""
    module = network.get_submodule(path)
    before = state.modules.get(path, "").partition("(")[0]
    synchronized = type(module).__name__.startswith("Sync")  # the same kind to a file
    if not before or (before == kind_of(module) and not synchronized):
        return ""
    return f" (a {type(module).__name__} now, exchanged after the build)"


def _table(network: nn.Module, state: HybridState) -> str:
    return "\n".join(_rows(network, state))


def _rows(network: nn.Module, state: HybridState) -> Iterator[str]:
    yield f"{'part':<10} {'parameters':>12} {'trainable':>12}  modules"
    for part in freeze_report(network, state).parts:
        paths = " ".join(path for name, path in state.anatomy.items() if name == part.name)
        yield f"{part.name:<10} {part.num_parameters:>12,} {part.num_trainable:>12,}  {paths}"
