"""From a plan to a hybrid: backbone, patches, proof, head, freezing, in this order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .errors import BackboneError, PatchError, TvcError, describe_error
from .model.features import Taps, find_bridge
from .model.hybrid import (
    HybridModel,
    HybridState,
    PatchRecord,
    become_hybrid,
    check_class_names,
    exchange_heads,
)
from .model.measuring import measure
from .recipe import Plan
from .surgery.anatomy import Anatomy
from .surgery.head import last_layer, num_classes_of, set_dropout
from .surgery.input import InputRecord, change_input
from .surgery.patches import attach, rollback_on_error, set_module
from .surgery.prepare import Prepared, prepare
from .surgery.sites import Probe
from .surgery.training_proof import prove_trains
from .weights.files import verification_is_off
from .weights.torchvision import check_weights_class, class_names_of

__all__ = ["assemble", "build_backbone"]


def assemble(plan: Plan, *, pretrained: bool = True) -> HybridModel:
    """Build the hybrid that a plan describes.

    Args:
        plan: a recipe with every name bound.
        pretrained: load the plan's weights; false leaves them random, for a state dict that
            follows.

    Raises:
        TvcError: something does not fit; nothing that existed before has changed.
    """
    with _keeping_random_state():
        network = build_backbone(plan, pretrained=pretrained)
        with rollback_on_error(network):
            return _assemble(plan, network, pretrained)


def _assemble(plan: Plan, network: nn.Module, pretrained: bool) -> HybridModel:
    spec = plan.backbone.spec
    anatomy = Anatomy.of(network, spec)
    if plan.recipe.unfreeze_stages is not None:
        anatomy.stage_indices(plan.recipe.unfreeze_stages)
    trained_at = plan.weights.crop_size if plan.weights is not None else None
    probe = Probe.of(network, spec, likely=plan.image_side or trained_at)
    changed, probe = _change_input(plan, network, probe)
    before = probe.run(network) if plan.patches else None
    prepared = prepare(network, plan.patches, anatomy, probe, spec.name)
    originals = {
        patch.site.path: network.get_submodule(patch.site.path)
        for patch in prepared
        if patch.replacement is not None
    }
    records = tuple(_put_in(network, patch) for patch in prepared)
    taps = Taps(network, anatomy.taps, last_layer(network, anatomy.head)[0])
    logits, readers, stages, levels = measure(network, anatomy, taps, records, probe)
    difference = 0.0 if before is None else _difference(before, logits)
    _prove(records, difference)
    classes = num_classes_of(last_layer(network, anatomy.head)[1])
    names = (
        class_names_of(plan.weights)
        if plan.weights and plan.weights.num_classes == classes
        else None
    )
    new_layers: tuple[str, ...] = ()
    wanted = plan.recipe.num_classes
    if wanted is not None and wanted != classes:
        new_layers = exchange_heads(network, anatomy, wanted)
        names = None
    if plan.recipe.class_names is not None:
        names = plan.recipe.class_names
        check_class_names(names, wanted or classes)
    if plan.recipe.dropout is not None:
        set_dropout(network, anatomy.head, plan.recipe.dropout)
    if pretrained:  # a file has passed it, or is older than the proof and loads all the same
        prove_trains(network, prepared, originals, probe)
    facts = HybridState(
        plan=plan,
        anatomy=anatomy,
        taps=taps,
        bridge=find_bridge(network, anatomy.taps[-1], anatomy.head, probe),
        readers=readers,
        stages=stages,
        levels=levels,
        records=records,
        patches=tuple(patch.plan for patch in prepared),
        originals=originals,
        step0_difference=difference,
        probe_shape=tuple(probe.image.shape),
        verified=not (pretrained and plan.weights is not None and verification_is_off()),
        new_layers=new_layers,
        input=changed,
    )
    model = become_hybrid(network, facts)
    if names is not None:
        model.class_names = names
    if freeze := plan.recipe.freeze_backbone:
        model.freeze_backbone(
            unfreeze_stages=plan.recipe.unfreeze_stages, **({} if freeze is True else freeze)
        )
    return model


def build_backbone(plan: Plan, *, pretrained: bool = True) -> nn.Module:
    """Return the backbone of a plan, unpatched, with its weights in.

    Raises:
        BackboneError: the factory fails, or does not return a module.
        WeightsError: the weights cannot be had or do not fit.
    """
    spec = plan.backbone.spec
    if plan.weights_class is not None:
        check_weights_class(spec, plan.weights_class)
    factory: Callable[..., Any] = plan.backbone.load()
    try:
        if pretrained or plan.weights is None:
            network = factory(spec, weights=plan.weights, **plan.options)
        else:
            network = factory(spec, weights=None, **{**plan.weights.options, **plan.options})
    except (TvcError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a factory may raise SystemExit or worse
        given = ", ".join(f"{name}={value!r}" for name, value in plan.options.items())
        what = (
            f"the backbone {plan.backbone.qualified!r} cannot be "
            f"built{f' with {given}' if given else ''}"
        )
        raise BackboneError(f"{what}: {describe_error(error)}") from error
    if not isinstance(network, nn.Module):
        raise BackboneError(
            f"the factory of {plan.backbone.qualified!r} returned {type(network).__name__}, not an "
            "nn.Module"
        )
    if isinstance(network, HybridModel):
        raise BackboneError(
            f"the factory of {plan.backbone.qualified!r} returned a hybrid, not a new network"
        )
    return network


def _change_input(plan: Plan, network: nn.Module, probe: Probe) -> tuple[InputRecord | None, Probe]:
    channels, policy = plan.recipe.in_channels, plan.recipe.in_channels_policy
    if channels is None or (policy is None and channels == probe.image.shape[1]):
        return None, probe
    return change_input(network, probe, channels, policy or "mean")


def _put_in(network: nn.Module, prepared: Prepared) -> PatchRecord:
    path, plan = prepared.site.path, prepared.plan
    new: tuple[str, ...] = ()
    if prepared.replacement is not None:
        old = set(network.get_submodule(path).modules())
        new = tuple(
            name
            for name, module in prepared.replacement.named_modules(prefix=path)
            if module not in old
        )
        set_module(network, path, prepared.replacement)
    homes = [attach(network, each.site.path, plan.name, each.patch) for each in prepared.insertions]
    return PatchRecord(
        target=path,
        op=plan.op.qualified,
        block=plan.block.qualified if plan.block else None,
        params=dict(plan.entry.params),
        init=plan.init.qualified if plan.init else None,
        starts_as_identity=prepared.replacement is None
        and all(i.patch.alpha is not None or i.patch.neutral for i in prepared.insertions),
        paths=tuple(homes) if homes else (path,),
        replaced=prepared.site.type_name if prepared.replacement is not None else None,
        new=new,
    )


def _difference(before: torch.Tensor, after: torch.Tensor) -> float:
    """Return the largest absolute difference; two values that are both nan do not differ."""
    if before.shape != after.shape:
        return float("inf")
    if before.is_meta:
        return 0.0
    differs = ~((before == after) | (before.isnan() & after.isnan()))
    return (
        float((before.float() - after.float())[differs].abs().max()) if bool(differs.any()) else 0.0
    )


def _prove(records: tuple[PatchRecord, ...], difference: float) -> None:
    """Refuse a hybrid that was to start as its backbone and does not."""
    if all(record.starts_as_identity for record in records) and difference != 0.0:
        targets = ", ".join(record.target for record in records)
        raise PatchError(
            f"the patches at {targets} were to start as the identity, but the logits differ by "
            f"{difference:.3g}: a block puts "
            "out values that are not finite, or an operation does more than it declares"
        )


@contextmanager
def _keeping_random_state() -> Iterator[None]:
    """Put torch's random state back if what runs inside raises."""
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    except BaseException:
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        raise
