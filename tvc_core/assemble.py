"""From a plan to a hybrid: backbone, input, patches, proof, head, freezing, in this order.

Each step is a function that takes what the step before gave. Until `_insert` nothing in the network
has changed but its input layer, and whatever fails afterwards is rolled back: so a network that a
user handed over is unchanged. What plugins do to the process during a build is undone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from .backbone import build_backbone
from .errors import HeadError, PatchError, RecipeError, TvcError, WeightsError
from .model.bridge import find_bridge
from .model.classes import become_hybrid
from .model.current import head_of
from .model.features import Taps
from .model.fingerprint import fingerprint
from .model.hybrid import HybridModel
from .model.measuring import measure, run_patched
from .model.state import Feature, HybridState, Installed, PatchRecord
from .model.survey import (
    Survey,
    backbone_key,
    patched_key,
    recall_image,
    recall_survey,
    remember_image,
    remember_survey,
)
from .quarantine.process_state import run_preserved
from .recipe import Plan, Recipe, key_path
from .surgery.anatomy import Anatomy
from .surgery.ending import LeftOutRecord, end_early, stages_kept
from .surgery.head import (
    Layout,
    exchange_heads,
    fill_empty,
    find_heads,
    find_last_layer,
    num_classes_of,
    rows_by_name,
    set_dropout,
)
from .surgery.head_layers import Heads
from .surgery.input import InputRecord, change_input
from .surgery.patches import attach, rollback_on_error, set_module
from .surgery.prepare import Prepared, prepare
from .surgery.sites import Probe, image_of
from .surgery.training_proof import prove_trains
from .weights.files import verification_is_off
from .weights.limits import limit_tensors
from .weights.preprocessing import image_size
from .weights.seeded import seeded
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
    seed, most = plan.recipe.seed, plan.recipe.max_params
    with ExitStack() as modes:
        if seed is not None:
            modes.enter_context(seeded(seed))
        if most is not None:
            modes.enter_context(_about("max_params"))
            modes.enter_context(_budget(most))
        model = run_preserved(_build, plan, pretrained)
    found = sum(parameter.numel() for parameter in model.parameters())
    if most is not None and found > most:
        with _about("max_params"):
            raise RecipeError(f"the model has {found:,} parameters, more than max_params={most:,}")
    return model


@contextmanager
def _about(key: str) -> Iterator[None]:
    """Let errors that are raised inside say which key of the recipe they are about. Where it stands
    is known to the builder alone: a plan, which the model keeps, has no places in files.
    """
    try:
        yield
    except TvcError as error:
        if error.path is None and not error.below:
            error.below = key_path(key)
        raise


def _budget(most: int) -> limit_tensors:
    what = f"the recipe has max_params={most:,}"
    return limit_tensors([most], what, times=2, error=RecipeError)


def _build(plan: Plan, pretrained: bool) -> HybridModel:
    recipe = plan.recipe
    key = "image_size" if recipe.image_size else "options" if recipe.options else "backbone"
    try:
        with _about(key):
            network, plan = build_backbone(plan, pretrained=pretrained)
    except WeightsError as error:
        error.below = key_path("weights")
        raise
    with rollback_on_error(network):
        return _assemble(plan, network, pretrained)


def _assemble(plan: Plan, network: nn.Module, pretrained: bool) -> HybridModel:
    # Everything that can be refused without changing the network comes first: parts, stages, an
    # image that it accepts, and every block made and tried at its place. Then the changes: patches
    # in, one pass as the proof, the head. The head comes after the proof, since the step-0
    # difference is about the logits of the pretrained head. The training step comes after the head,
    # since it has to learn with it. Whatever fails is rolled back by the caller.
    anatomy = Anatomy.of(network, plan.backbone.spec)
    with _about("stages"):
        anatomy, left_out = _end(plan, network, anatomy)
    with _about("unfreeze_stages"):
        if plan.recipe.unfreeze_stages is not None:
            anatomy.stage_indices(plan.recipe.unfreeze_stages)
    with _about("weights"):
        if pretrained:
            _check_classifier(plan, network, anatomy)
    key = backbone_key(plan, network) if pretrained else ""
    probe, changed = _look(plan, network, recall_image(key))
    remember_image(key, probe.size)
    prepared, before = prepare(network, plan.patches, anatomy, probe, plan.backbone.spec.name)
    originals = {
        patch.site.path: network.get_submodule(patch.site.path)
        for patch in prepared
        if patch.replacement is not None
    }
    installed = tuple(_insert(network, patch) for patch in prepared)
    key = patched_key(key, plan, network, prepared)
    known = recall_survey(key, anatomy)
    proof = _prove(network, anatomy, installed, probe, before, known)
    with _about("heads" if plan.recipe.heads else "num_classes"):
        head = _set_head(plan, network, anatomy, probe)
    last = find_last_layer(network, anatomy.head)
    proof.taps.place(network, last[0] if last else None)
    if known is None:
        if pretrained:  # a file has passed it, or is older than the proof and loads all the same
            prove_trains(network, prepared, originals, probe)
        bridge = find_bridge(network, anatomy.taps[-1], anatomy.head, probe)
        repeated = proof.taps.repeated
        known = Survey(features=proof.features, bridge=bridge, repeated=repeated)
        remember_survey(key, known)
    state = HybridState(
        plan=plan,
        anatomy=anatomy,
        taps=proof.taps,
        bridge=known.bridge,
        features=known.features,
        patches=installed,
        originals=originals,
        step0_difference=proof.difference,
        probe_shape=tuple(probe.image.shape),
        verified=not (pretrained and plan.weights is not None and verification_is_off()),
        class_names=head.class_names,
        kept_classes=head.kept_classes,
        head_widths=head.widths,
        head_dim=head.dim,
        new_layers=head.new_layers,
        input=changed,
        left_out=left_out,
        modules=fingerprint(network),
    )
    model = become_hybrid(network, state)
    state.head_as_built = head_of(model, state)
    if checkpointed := plan.recipe.grad_checkpointing:
        with _about("grad_checkpointing"):
            model.set_grad_checkpointing(stages=None if checkpointed is True else checkpointed)
    if given := plan.recipe.freeze_backbone:
        also = {} if given is True else given
        with _about("freeze_backbone"):
            model.freeze_backbone(unfreeze_stages=plan.recipe.unfreeze_stages, **also)
    return model


def _check_classifier(plan: Plan, network: nn.Module, anatomy: Anatomy) -> None:
    """Refuse weights without a classifier for a network that has one, unless it gets a new one."""
    weights, spec = plan.weights, plan.backbone.spec
    if weights is None or weights.num_classes is not None:
        return
    found = find_last_layer(network, anatomy.head)
    if not plan.recipe.has_new_classes and found and num_classes_of(found[1]):
        raise HeadError(
            f"the weights {weights.name!r} of {spec.name!r} have no classifier, so its outputs "
            "would mean nothing: pass num_classes for a new one, or num_classes=0 for features"
        )
    fill_empty(network, anatomy.head)


def _end(plan: Plan, network: nn.Module, anatomy: Anatomy) -> tuple[Anatomy, LeftOutRecord | None]:
    """Leave out the stages that the recipe does not keep."""
    given, classes = plan.recipe.stages, plan.options.get("num_classes")
    if given is None or (count := stages_kept(given, anatomy)) == len(anatomy.stages):
        return anatomy, None
    if classes:
        raise HeadError(
            f"the option num_classes={classes!r} is about the head that stages={given!r} leaves "
            "out: give num_classes beside stages, for a new head on the last stage that stays"
        )
    return end_early(network, anatomy, count, _probe(plan, network), plan.backbone.qualified)


def _probe(plan: Plan, network: nn.Module) -> Probe:
    trained_at = plan.weights.crop_size if plan.weights is not None else None
    return Probe.of(network, plan.backbone.spec, likely=image_size(plan) or trained_at)


def _look(
    plan: Plan, network: nn.Module, size: tuple[int, int] | None
) -> tuple[Probe, InputRecord | None]:
    """Find an image that the network accepts, with the channels that it is to take; `size` is that
    of one that it did accept.
    """
    if size is not None:
        probe = Probe(image_of(network, plan.backbone.spec, size))
    else:
        probe = _probe(plan, network)
    channels, policy = plan.recipe.in_channels, plan.recipe.in_channels_policy
    if channels is None or (policy is None and channels == probe.image.shape[1]):
        return probe, None
    with _about("in_channels"):
        changed, probe = change_input(network, probe, channels, policy or "mean")
    return probe, changed


def _insert(network: nn.Module, prepared: Prepared) -> Installed:
    """Put a prepared patch into the network."""
    path, plan = prepared.site.path, prepared.plan
    new: tuple[str, ...] = ()
    if prepared.replacement is not None:
        # A replacement may keep modules of the original inside (an operation that wraps it does):
        # those are not new, and are frozen with their stage.
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
        options=dict(plan.entry.options),
        init=plan.init.qualified if plan.init else None,
        starts_as_identity=prepared.starts_as_identity,
        paths=tuple(homes) if homes else (path,),
        replaced=prepared.site.type_name if prepared.replacement is not None else None,
        new=new,
        kept=prepared.kept,
        changed=prepared.changed,
        lost=prepared.lost,
    )
    return Installed(plan=plan, record=record)


@dataclass(frozen=True)
class _Proof:
    taps: Taps
    features: tuple[Feature, ...]
    difference: float = 0.0


def _prove(
    network: nn.Module,
    anatomy: Anatomy,
    installed: Iterable[Installed],
    probe: Probe,
    before: torch.Tensor | None,
    known: Survey | None,
) -> _Proof:
    """Run the patched network: every patch runs, and what is to start as the backbone does."""
    records = [each.record for each in installed]
    last = find_last_layer(network, anatomy.head)
    taps = Taps(network, anatomy.taps, last[0] if last else None)
    if known is None:
        logits, features = measure(network, anatomy, taps, records, probe)
    else:
        taps.repeated, features = known.repeated, known.features
        if not records:
            return _Proof(taps, features)
        logits, _ = run_patched(network, anatomy, taps, records, probe)
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


@dataclass(frozen=True, kw_only=True)
class _Head:
    """What was done to the head; the fields are those of `HybridState`."""

    new_layers: tuple[str, ...]
    class_names: dict[str, tuple[str, ...]]
    kept_classes: dict[str, tuple[str, ...]]
    widths: dict[str, int]
    dim: int


def _set_head(plan: Plan, network: nn.Module, anatomy: Anatomy, probe: Probe) -> _Head:
    """Give the head its classes, its layers and its dropout."""
    recipe, weights = plan.recipe, plan.weights
    found = find_last_layer(network, anatomy.head)
    classes = num_classes_of(found[1]) if found else 0
    before = class_names_of(weights) if weights and weights.num_classes == classes else None
    layout, names = Layout.of(recipe, classes), recipe.class_names
    # as many names as the head has outputs name these, unless they are its own in another order
    moved = any(new != old for new, old in rows_by_name(before, names).items())
    exchanged = bool(layout.hidden or layout.heads or layout.num_classes != classes or moved)
    named = _names(recipe)
    new_layers: tuple[str, ...] = ()
    kept: dict[str, tuple[str, ...]] = {}
    if exchanged:
        bare = [n for n in named if not (layout.hidden or (n and layout.heads[n].hidden))]
        rows = {name: rows_by_name(before, named[name]) for name in bare}
        kept = {name: tuple(named[name][new] for new in rows[name]) for name in bare}
        new_layers = exchange_heads(network, anatomy, layout, rows)
    elif before is not None:
        named = {"": before, **named}
    if recipe.dropout is not None:
        set_dropout(network, anatomy.head, recipe.dropout)
    for name, path in find_heads(network, anatomy.head).items():
        if recipe.heads and (dropout := recipe.heads[name].get("dropout")) is not None:
            set_dropout(network, path, dropout)
    last = find_last_layer(network, anatomy.head)
    dim = last[1].dim if last and isinstance(last[1], Heads) else -1
    if layout.heads:
        _check_outputs(network, probe, layout.num_outputs, dim)
    return _Head(
        new_layers=new_layers,
        class_names=named,
        kept_classes=kept,
        widths={name: head.num_classes for name, head in layout.heads.items()},
        dim=dim,
    )


def _names(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """Return the class names that a recipe gives, by the name of the head."""
    heads = {name: head.get("class_names") for name, head in (recipe.heads or {}).items()}
    heads[""] = recipe.class_names
    return {name: tuple(names) for name, names in heads.items() if names is not None}


def _check_outputs(network: nn.Module, probe: Probe, wanted: int, dim: int) -> None:
    """Refuse several heads where the network does not return their outputs one after another."""
    found = probe.run(network)
    if found.shape[dim] != wanted:
        raise HeadError(
            f"several heads with {wanted} outputs together do not fit this network: it returns "
            f"{list(found.shape)}, so it does more with the logits than to return them"
        )
