"""From a plan to a hybrid: backbone, input, patches, proof, head, freezing, in this order.

Each step is a function that takes what the step before gave. Until `_insert` nothing in the network
has changed but its input layer, and whatever fails afterwards is rolled back: so a network that a
user handed over is unchanged. What plugins do to the process during a build is undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from .backbone import build_backbone
from .errors import HeadError, PatchError, RecipeError, TvcError, WeightsError
from .model.bridge import find_bridge
from .model.classes import become_hybrid
from .model.current import head_of
from .model.features import Taps
from .model.fingerprint import fingerprint, foreign_hooks, known_lines
from .model.heads import make_head
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
from .recipe import KEY_PATHS, Plan
from .registry.contract import CORE_OWNER
from .remembered import key_of
from .surgery.anatomy import Anatomy
from .surgery.ending import LeftOutRecord, end_early, stages_kept
from .surgery.head import fill_empty, find_last_layer, num_classes_of
from .surgery.home import on_the_cpu
from .surgery.input import InputRecord, change_input
from .surgery.measured import keep_their_maps
from .surgery.patches import attach, rollback_on_error, set_module
from .surgery.prepare import Prepared, prepare
from .surgery.sites import Probe, find_module, image_of, refuse_half_on_meta
from .surgery.training_proof import prove_trains
from .weights.files import verification_is_off
from .weights.limits import limit_tensors
from .weights.preprocessing import image_size, preprocessing_of
from .weights.seeded import seeded
from .weights.skeleton import made_from
from .weights.torchvision import build_torchvision

__all__ = ["assemble"]


def assemble(
    plan: Plan,
    *,
    pretrained: bool = True,
    fill: Callable[[nn.Module], None] | None = None,
    check: Callable[[str, nn.Module], None] | None = None,
) -> HybridModel:
    """Build the hybrid that a plan describes.

    Args:
        plan: a recipe with every name bound.
        pretrained: load the plan's weights; false leaves them random, for a state dict that
            follows.
        fill: as for `build_backbone`.
        check: as for `prepare`.

    Raises:
        TvcError: something does not fit; nothing that existed before has changed.
    """
    seed, most = plan.recipe.seed, plan.recipe.max_params
    with ExitStack() as modes:
        modes.enter_context(on_the_cpu())
        if seed is not None:
            modes.enter_context(seeded(seed))
        if most is not None:
            modes.enter_context(_about("max_params"))
            modes.enter_context(_budget(most))
        model = run_preserved(_build, plan, pretrained, fill, check)
    if most is not None:
        _check_budget(model, most)
    return model


def _check_budget(model: nn.Module, most: int) -> None:
    found = sum(parameter.numel() for parameter in model.parameters())
    if found > most:
        with _about("max_params"):
            raise RecipeError(f"the model has {found:,} parameters, more than max_params={most:,}")


@contextmanager
def _about(key: str) -> Iterator[None]:
    """Let errors that are raised inside say which key of the recipe they are about. Where it stands
    is known to the builder alone: a plan, which the model keeps, has no places in files.
    """
    try:
        yield
    except TvcError as error:
        if error.path is None and not error.below:
            error.below = KEY_PATHS[key]
        raise


def _budget(most: int) -> limit_tensors:
    what = f"the recipe has max_params={most:,}"
    return limit_tensors([most], what, times=2, error=RecipeError)


def _build(
    plan: Plan,
    pretrained: bool,
    fill: Callable[[nn.Module], None] | None,
    check: Callable[[str, nn.Module], None] | None,
) -> HybridModel:
    recipe = plan.recipe
    key = "image_size" if recipe.image_size else "options" if recipe.options else "backbone"
    try:
        with _about(key):
            network, plan = build_backbone(plan, pretrained=pretrained, fill=fill)
    except (WeightsError, RecipeError) as error:  # of which the second is about the budget
        error.below = KEY_PATHS["weights" if isinstance(error, WeightsError) else "max_params"]
        raise
    # torchvision's builders return a new network, which no one else has
    is_new = plan.backbone.load() is build_torchvision
    with nullcontext() if is_new else rollback_on_error(network):
        return _assemble(plan, network, pretrained, check)


def _assemble(
    plan: Plan, network: nn.Module, pretrained: bool, check: Callable[[str, nn.Module], None] | None
) -> HybridModel:
    # Everything that can be refused without changing the network comes first: parts, stages, an
    # image that it accepts, and every block made and tried at its place. Then the changes: patches
    # in, one pass as the proof, the head. The head comes after the proof, since the step-0
    # difference is about the logits of the pretrained head. The training step comes after the head,
    # since it has to learn with it. Whatever fails is rolled back by the caller.
    spec = plan.backbone.spec
    # `made` stands for the tensors of the network, and, if no other factory had it in hands, for
    # all else that it is.
    made = made_from(network)
    all_of_it = made if plan.backbone.load() is build_torchvision else ""
    lines = known_lines(network, all_of_it)
    key = backbone_key(plan, network, all_of_it) if pretrained else ""
    size = recall_image(key)
    whole = Anatomy.of(network, spec, checked=bool(all_of_it) and size is not None)
    with _about("stages"):
        anatomy, left_out = _end(plan, network, whole)
    with _about("unfreeze_stages"):
        if plan.recipe.unfreeze_stages is not None:
            anatomy.stage_indices(plan.recipe.unfreeze_stages)
    with _about("weights"):
        if pretrained:
            _check_classifier(plan, network, anatomy)
    probe, changed = _look(plan, network, size)
    remember_image(key, probe.size)
    same_maps = key_of(key, made) if key and made else ""
    prepared, before = prepare(network, plan.patches, anatomy, probe, spec.name, same_maps, check)
    key = patched_key(key, plan, prepared)
    known = recall_survey(key, anatomy)
    if prepared and before is None and not (known and _are_seen_as_identity(prepared, probe)):
        before = probe.run(network)
    originals = {
        patch.site.path: network.get_submodule(patch.site.path)
        for patch in prepared
        if patch.replacement is not None
    }
    installed = tuple(_insert(network, patch) for patch in prepared)
    proof = _prove(network, anatomy, installed, probe, before, known)
    with _about("heads" if plan.recipe.heads else "num_classes"):
        head = make_head(plan, network, anatomy, probe)
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
        preprocessing=preprocessing_of(plan),
        input=changed,
        left_out=left_out,
        modules=fingerprint(network, known=_unchanged(lines, plan, network, anatomy)),
        hooks=foreign_hooks(network),
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


def _are_seen_as_identity(prepared: Iterable[Prepared], probe: Probe) -> bool:
    prepared = tuple(prepared)
    insertions = [insertion for each in prepared for insertion in each.insertions]
    starts = all(each.starts_as_identity for each in prepared)
    return starts and keep_their_maps(insertions, probe)


def _unchanged(
    lines: dict[int, str], plan: Plan, network: nn.Module, anatomy: Anatomy
) -> dict[int, str]:
    """Return the lines of the modules that nothing can have changed in place since they were made:
    neither a new head or input nor an operation of a plugin.
    """
    if plan.recipe.in_channels is not None or any(p.op.owner != CORE_OWNER for p in plan.patches):
        return {}
    heads = (find_module(network, path) for path in anatomy.heads)
    changed = {id(each) for head in heads if head is not None for each in head.modules()}
    return {identity: line for identity, line in lines.items() if identity not in changed}


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
    return Probe.of(network, plan.backbone.spec, likely=trained_at, asked=image_size(plan))


def _look(
    plan: Plan, network: nn.Module, size: tuple[int, int] | None
) -> tuple[Probe, InputRecord | None]:
    """Find an image that the network accepts, with the channels that it is to take; `size` is that
    of one that it did accept.
    """
    refuse_half_on_meta(network)
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
        paths=tuple(homes) if homes or prepared.replacement is None else (path,),
        replaced=prepared.site.type_name if prepared.replacement is not None else None,
        new=new,
        kept=prepared.kept,
        changed=prepared.changed,
        lost=prepared.lost,
        thawed=_own_names(network, path, prepared.thawed),
    )
    return Installed(plan=plan, record=record)


def _own_names(network: nn.Module, path: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return the names that parameters below a path have in the network; one that several modules
    share has its first.
    """
    if not names:  # of most patches, and a network may have thousands of parameters
        return ()
    of = {id(parameter): name for name, parameter in network.named_parameters()}
    below = dict(network.get_submodule(path).named_parameters())
    return tuple(dict.fromkeys(of[id(below[name])] for name in names if name in below))


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
        if before is None:  # there are no patches, or they were proved at their places
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
