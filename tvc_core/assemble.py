"""From a plan to a hybrid: backbone, input, patches, proof, head, freezing, in this order.

Each step is a function that takes what the step before gave. Until `_insert` nothing in the network
has changed but its input layer, and whatever fails afterwards is rolled back: so a network that a
user handed over is as it was. What the code of plugins does to the process meanwhile is put back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from .backbone import build_backbone
from .errors import HeadError, PatchError
from .model.bridge import find_bridge
from .model.classes import become_hybrid
from .model.features import Taps
from .model.fingerprint import fingerprint
from .model.hybrid import HybridModel
from .model.measuring import measure
from .model.state import Feature, HybridState, Installed, PatchRecord
from .quarantine.process_state import run_preserved
from .recipe import Plan
from .recipe.rules import check_class_names
from .surgery.anatomy import Anatomy
from .surgery.head import exchange_heads, fill_empty, find_last_layer, num_classes_of, set_dropout
from .surgery.input import InputRecord, change_input
from .surgery.patches import attach, rollback_on_error, set_module
from .surgery.prepare import Prepared, prepare
from .surgery.sites import Probe
from .surgery.training_proof import prove_trains
from .weights.files import verification_is_off
from .weights.preprocessing import image_side
from .weights.torchvision import class_names_of

__all__ = ["assemble"]


def assemble(plan: Plan, *, pretrained: bool = True) -> HybridModel:
    """Build the hybrid that a plan describes.

    Args:
        plan: a recipe with every name bound.
        pretrained: load the plan's weights; false leaves them random, for a state dict that
            follows.

    Raises:
        TvcError: something does not fit; nothing that existed before has changed.
    """
    return run_preserved(_build, plan, pretrained)


def _build(plan: Plan, pretrained: bool) -> HybridModel:
    network = build_backbone(plan, pretrained=pretrained)
    with rollback_on_error(network):
        return _assemble(plan, network, pretrained)


def _assemble(plan: Plan, network: nn.Module, pretrained: bool) -> HybridModel:
    anatomy = Anatomy.of(network, plan.backbone.spec)
    if plan.recipe.unfreeze_stages is not None:
        anatomy.stage_indices(plan.recipe.unfreeze_stages)
    if pretrained:
        _check_classifier(plan, network, anatomy)
    probe, changed = _look(plan, network)
    prepared, before = prepare(network, plan.patches, anatomy, probe, plan.backbone.spec.name)
    originals = {
        patch.site.path: network.get_submodule(patch.site.path)
        for patch in prepared
        if patch.replacement is not None
    }
    installed = tuple(_insert(network, patch) for patch in prepared)
    proof = _prove(network, anatomy, installed, probe, before)
    new_layers, class_names = _set_head(plan, network, anatomy)
    if pretrained:  # a file has passed it, or is older than the proof and loads all the same
        prove_trains(network, prepared, originals, probe)
    state = HybridState(
        plan=plan,
        anatomy=anatomy,
        taps=proof.taps,
        bridge=find_bridge(network, anatomy.taps[-1], anatomy.head, probe),
        features=proof.features,
        patches=installed,
        originals=originals,
        step0_difference=proof.difference,
        probe_shape=tuple(probe.image.shape),
        verified=not (pretrained and plan.weights is not None and verification_is_off()),
        class_names=class_names,
        new_layers=new_layers,
        input=changed,
        modules=fingerprint(network),
    )
    model = become_hybrid(network, state)
    if given := plan.recipe.freeze_backbone:
        also = {} if given is True else given
        model.freeze_backbone(unfreeze_stages=plan.recipe.unfreeze_stages, **also)
    return model


def _check_classifier(plan: Plan, network: nn.Module, anatomy: Anatomy) -> None:
    """Refuse weights without a classifier for a network that has one, unless it gets a new one."""
    weights, spec = plan.weights, plan.backbone.spec
    if weights is None or weights.num_classes is not None:
        return
    found = find_last_layer(network, anatomy.head)
    if plan.recipe.num_classes is None and found and num_classes_of(found[1]):
        raise HeadError(
            f"the weights {weights.name!r} of {spec.name!r} have no classifier, so its outputs "
            "would mean nothing: pass num_classes for a new one, or num_classes=0 for features"
        )
    fill_empty(network, anatomy.head)


def _look(plan: Plan, network: nn.Module) -> tuple[Probe, InputRecord | None]:
    """Find an image that the network accepts, with the channels that it is to take."""
    trained_at = plan.weights.crop_size if plan.weights is not None else None
    probe = Probe.of(network, plan.backbone.spec, likely=image_side(plan) or trained_at)
    channels, policy = plan.recipe.in_channels, plan.recipe.in_channels_policy
    if channels is None or (policy is None and channels == probe.image.shape[1]):
        return probe, None
    changed, probe = change_input(network, probe, channels, policy or "mean")
    return probe, changed


def _insert(network: nn.Module, prepared: Prepared) -> Installed:
    """Put a prepared patch into the network."""
    path, plan = prepared.site.path, prepared.plan
    new: tuple[str, ...] = ()
    if prepared.replacement is not None:
        old = set(network.get_submodule(path).modules())
        found = prepared.replacement.named_modules(prefix=path)
        new = tuple(name for name, module in found if module not in old)
        set_module(network, path, prepared.replacement)
    homes = [attach(network, each.site.path, plan.name, each.patch) for each in prepared.insertions]
    record = PatchRecord(
        target=path,
        op=plan.op.qualified,
        block=plan.block.qualified if plan.block else None,
        params=dict(plan.entry.params),
        init=plan.init.qualified if plan.init else None,
        starts_as_identity=prepared.starts_as_identity,
        paths=tuple(homes) if homes else (path,),
        replaced=prepared.site.type_name if prepared.replacement is not None else None,
        new=new,
    )
    return Installed(plan=plan, record=record)


@dataclass(frozen=True)
class _Proof:
    taps: Taps
    features: tuple[Feature, ...]
    difference: float


def _prove(
    network: nn.Module,
    anatomy: Anatomy,
    installed: Iterable[Installed],
    probe: Probe,
    before: torch.Tensor | None,
) -> _Proof:
    """Run the patched network: every patch runs, and what is to start as the backbone does."""
    records = [each.record for each in installed]
    last = find_last_layer(network, anatomy.head)
    taps = Taps(network, anatomy.taps, last[0] if last else None)
    logits, features = measure(network, anatomy, taps, records, probe)
    difference = 0.0 if before is None else _difference(before, logits)
    if all(record.starts_as_identity for record in records) and difference != 0.0:
        targets = ", ".join(record.target for record in records)
        raise PatchError(
            f"the patches at {targets} were to start as the identity, but the logits differ by "
            f"{difference:.3g}: a block puts out values that are not finite, or an operation does "
            "more than it declares"
        )
    return _Proof(taps, features, difference)


def _difference(before: torch.Tensor, after: torch.Tensor) -> float:
    """Return the largest absolute difference; two values that are both nan do not differ."""
    if before.shape != after.shape:
        return float("inf")
    if before.is_meta:
        return 0.0
    differs = ~((before == after) | (before.isnan() & after.isnan()))
    if not bool(differs.any()):
        return 0.0
    return float((before.float() - after.float())[differs].abs().max())


def _set_head(
    plan: Plan, network: nn.Module, anatomy: Anatomy
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Give the head its classes and its dropout; return the auxiliary heads' new layers, and the
    names of the classes.
    """
    recipe, weights = plan.recipe, plan.weights
    found = find_last_layer(network, anatomy.head)
    classes = num_classes_of(found[1]) if found else 0
    names = class_names_of(weights) if weights and weights.num_classes == classes else None
    new_layers: tuple[str, ...] = ()
    wanted = recipe.num_classes
    if wanted is not None and wanted != classes:
        new_layers = exchange_heads(network, anatomy, wanted)
        names = None
    if recipe.class_names is not None:
        outputs = classes if wanted is None else wanted
        names = check_class_names(recipe.class_names, outputs, HeadError)
    if recipe.dropout is not None:
        set_dropout(network, anatomy.head, recipe.dropout)
    return new_layers, names
