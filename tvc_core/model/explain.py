"""Say in words what a hybrid is, from what is really in it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from ..errors import BackboneError
from ..recipe import Plan
from ..specs import FROM_MODULE
from ..surgery.anatomy import PartInfo
from ..surgery.head import dropout_of, last_layer, num_classes_of
from ..surgery.input import InputRecord
from ..surgery.patches import installed_patches
from ..weights.torchvision import transforms_of
from .hybrid import HybridModel

__all__ = ["explain", "transforms"]


def explain(model: HybridModel) -> str:
    """Return the report behind `HybridModel.explain`."""
    facts = model._hybrid
    plan, anatomy = facts.plan, facts.anatomy
    own = "the module's own" if plan.backbone.owner == FROM_MODULE else "none (random)"
    weights = plan.weights.name if plan.weights else own
    if not facts.verified:
        weights += ", file hash not compared (TVC_VERIFY_WEIGHTS=0)"
    lines = [
        f"{plan.recipe.name or type(model).__name__}: {plan.backbone.qualified}",
        f"weights: {weights}",
    ]
    if plan.options:
        lines.append(
            "options: " + ", ".join(f"{name}={value!r}" for name, value in plan.options.items())
        )
    if facts.input is not None:
        lines.append("input: " + _input_line(facts.input))
    lines += _patch_lines(model)
    path, layer = last_layer(model, anatomy.head)
    dropout = dropout_of(model, anatomy.head)
    lines.append(
        f"head: {path} ({type(layer).__name__}), {num_classes_of(layer)} classes, dropout "
        f"{dropout or 0.0:g}"
    )
    lines.append(_table(model.parts()))
    return "\n".join(lines)


def transforms(plan: Plan) -> nn.Module:
    """Return the preprocessing behind `HybridModel.transforms`."""
    spec = plan.backbone.spec
    weights = plan.weights
    if plan.backbone.owner == FROM_MODULE:
        raise BackboneError(
            f"the model was made from a module of your own ({spec.name}), so only you know how its "
            "images were prepared"
        )
    if weights is None:
        if spec.default_weights is None:
            raise BackboneError(
                f"{plan.backbone.qualified} has no pretrained weights, so nothing says how to "
                "prepare images for it"
            )
        weights = spec.find_weights(spec.default_weights)
        assert weights is not None
        message = (
            "the model has no pretrained weights; transforms() gives the preprocessing of "
            f"the default weights, {weights.name}"
        )
        warnings.warn(message, UserWarning, stacklevel=3)
    if (channels := plan.recipe.in_channels or spec.num_channels) != len(weights.mean):
        known = (
            f"mean {weights.mean}, standard deviation {weights.std}, crop {weights.crop_size} "
            "pixels"
        )
        raise BackboneError(
            f"the model takes {channels} channels, and the preprocessing of {weights.name} knows "
            f"{len(weights.mean)} ({known}): prepare the images yourself"
        )
    size = plan.image_side or weights.crop_size
    resize = round(weights.resize_size * size / weights.crop_size)
    return transforms_of(replace(weights, crop_size=size, resize_size=resize))


def _input_line(record: InputRecord) -> str:
    policy = record.policy if isinstance(record.policy, str) else ", ".join(map(str, record.policy))
    return (
        f"{record.channels} channels at {record.path}, whose weights follow from those for "
        f"{record.before} by {policy}"
    )


def _patch_lines(model: HybridModel) -> list[str]:
    facts = model._hybrid
    present = {id(patch): (target, patch.position) for target, patch in installed_patches(model)}
    modules = dict(model.named_modules())
    inside = {id(module) for module in modules.values()}
    lines: list[str] = []
    known: set[int] = set()
    for record in facts.records:
        what = f"{record.target}: {record.op.partition(':')[2]}"
        params = ", ".join(f"{name}={value!r}" for name, value in record.params.items())
        block = f"{record.block or 'its own module'}{f'({params})' if params else ''}"
        if record.replaced is not None:
            lines.append(
                f"  {what} {record.replaced} by {block}, now "
                f"{type(modules.get(record.target)).__name__}"
            )
            continue
        for path in record.paths:
            patch = modules.get(path)
            if patch is None:
                lines.append(f"  {what} {block}: no longer in the model (was {path})")
                continue
            if id(patch) not in present:
                lines.append(
                    f"  {what} {block}: at {path}, but never run: its hook on {record.target} is "
                    "gone"
                )
                continue
            known.add(id(patch))
            place, position = present[id(patch)]
            order = position.describe(place, block)
            if not patch.enabled:
                order += ", switched off"
            gate = getattr(patch, "alpha", None)
            if gate is not None:
                start = f"identity start, gate now {gate.item():.3g}"
            elif patch.neutral:
                start = "identity start by itself"
            else:
                start = "published start"
            lines.append(f"  {what}, {order}, at {path}, {start}")
    for identity, (target, position) in present.items():
        if identity not in known:
            where = (
                "that no record explains"
                if identity in inside
                else "that is not in the model's tree, so it is not saved"
            )
            lines.append(f"  {target}: runs a block {position.label} it {where}")
    if not lines:
        return ["patches: none"]
    shape = "x".join(str(size) for size in facts.probe_shape)
    difference = (
        "step 0: largest logit difference to the unpatched backbone "
        f"{facts.step0_difference:g} (image {shape})"
    )
    return [f"patches: {len(lines)}", *lines, difference]


def _table(parts: Sequence[PartInfo]) -> str:
    lines = [f"{'part':<10} {'parameters':>12} {'trainable':>12}  modules"]
    lines += [
        f"{p.name:<10} {p.num_parameters:>12,} {p.num_trainable:>12,}  {' '.join(p.paths)}"
        for p in parts
    ]
    return "\n".join(lines)
