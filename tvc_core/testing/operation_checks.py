"""Checks of patch operations, each on small networks of three layouts, wherever the operation can
be applied.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor, nn

from ..backbone import build_backbone
from ..errors import TvcError, join_names
from ..model.hybrid import HybridModel
from ..recipe import Recipe, make_plan
from ..specs import BackboneSpec
from ..surgery.anatomy import Anatomy
from ..surgery.prepare import prepare
from ..surgery.probing import same_kernels
from ..surgery.sites import Probe
from .helpers import (
    SEED,
    build_patched,
    changed_names,
    check_copies,
    describe_error,
    image,
    named_tensors,
    perturb,
    refuses_clearly,
    snapshot,
)
from .seeding import torch_seed
from .subjects import Fault, Subject
from .toy_plugin import HOSTS

__all__ = ["BASIC", "CHECKS"]


@dataclass(frozen=True)
class Place:
    """Where an operation could be applied: a network of the kit, and the path of a module."""

    host: str
    target: str

    def __str__(self) -> str:
        return f"{self.target!r} of {self.host}"


def operation_applies(op: Subject) -> None:
    """The operation fails everywhere: its factory's signature is wrong, it returns nothing, or
    changes nothing.
    """
    _places(op)


def operation_layouts(op: Subject) -> None:
    """At a stage of some network (NCHW, NHWC or tokens) the operation crashes, instead of working
    or refusing clearly.
    """
    for host in HOSTS:
        for path in _stages(op, host):
            try:
                _build(op, Place(host, path))
            except TvcError as error:
                if not _is_refusal(error):
                    do = "raise TargetError or ValueError that says where the operation can be used"
                    raise Fault(
                        f"that it works or is refused clearly at {Place(host, path)}",
                        describe_error(error),
                        do,
                    ) from error


def operation_effect(op: Subject) -> None:
    """The patch never has an effect: whatever its new parameters learn, the network computes what
    it computed before.
    """
    for place in _places(op):
        model, plain, x = _build(op, place), _plain(op, place.host), _image(op, place.host)
        if any(record.thawed for record in model.patch_records):
            _check_thawed(model, place)
            continue
        for seed in range(5):
            perturb((tensor for _, tensor in _new(model, plain)), seed, 0.5)
            if not _same_output(model.eval(), plain.eval(), x) or not _same_output(
                model.train(), plain.train(), x
            ):
                break
        else:
            do = (
                "use the block's result in what the returned module computes, or insert it by "
                "target.after(block)"
            )
            raise Fault(
                f"another output once the new parameters at {place} have moved", "the same", do
            )


def _check_thawed(model: HybridModel, place: Place) -> None:
    """Refuse an operation whose only effect is to thaw, if nothing is thawed."""
    model.freeze_backbone(head="none")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        do = "name parameters of the target in target.thaw"
        raise Fault(f"trainable parameters at {place} in a frozen backbone", "none", do)
    model.unfreeze_all()


def operation_keys(op: Subject) -> None:
    """Parameters of the network get other names, so that its checkpoints no longer load."""
    for place in _places(op):
        model, plain = _build(op, place), _plain(op, place.host)
        do = (
            "insert by target.after, before or parallel, which rename nothing, instead of "
            "wrapping the target in a new module"
        )
        after = model.state_dict()
        replaced = any(record.replaced is not None for record in model.patch_records)
        for name, tensor in plain.state_dict().items():
            moved = [
                other for other, value in after.items() if other != name and _same(value, tensor)
            ]
            inside = replaced and name.startswith(f"{place.target}.")
            if name not in after and moved:
                raise Fault(
                    f"the key {name!r} at {place} unchanged", f"the same tensor as {moved[0]!r}", do
                )
            if not inside and (name not in after or not torch.equal(after[name], tensor)):
                seen = "other values there" if name in after else "no such key"
                raise Fault(
                    f"the key {name!r}, outside of what is replaced at {place}, unchanged", seen, do
                )


def operation_arguments(op: Subject) -> None:
    """The operation changes the network while it only declares: if a later patch is refused, a
    half-changed network is left.
    """
    for place in _places(op):
        recipe = Recipe.from_mapping(
            {"backbone": {"name": place.host, "weights": None, "patches": _patches(op, place)}}
        )
        plan = make_plan(recipe, op.registry)
        network, _ = build_backbone(plan)
        anatomy, probe = (
            Anatomy.of(network, plan.backbone.spec),
            Probe.of(network, plan.backbone.spec),
        )
        structure, tensors, params = (
            _structure(network),
            snapshot(network),
            copy.deepcopy(dict(op.params)),
        )
        prepare(network, plan.patches, anatomy, probe, place.host)
        do = (
            "call target.after, before, parallel or branch, or return a new module, and leave "
            "target.module as it is"
        )
        if (after := _structure(network)) != structure:
            paths = sorted(
                path
                for path in structure.keys() | after.keys()
                if structure.get(path) != after.get(path)
            )
            raise Fault(
                f"an untouched network while the patch at {place} is prepared",
                f"changes at {join_names(map(repr, paths))}",
                do,
            )
        if changed := changed_names(tensors, network):
            raise Fault(
                f"untouched tensors while the patch at {place} is prepared",
                f"changes of {join_names(changed)}",
                do,
            )
        if params != dict(op.params):
            raise Fault(
                "untouched options",
                f"{dict(op.params)} instead of {params}",
                "copy what you change",
            )


def operation_reversible(op: Subject) -> None:
    """`unpatch` does not restore what was there: names, types, tensors or outputs."""
    for place in _places(op):
        model, plain, x = _build(op, place), _plain(op, place.host), _image(op, place.host)
        perturb((tensor for _, tensor in _new(model, plain)))
        model.unpatch()
        do = (
            "insert by the target's methods and keep nothing in the original's modules: no "
            "hooks, "
            "attributes or new values"
        )
        if list(model.state_dict()) != list(plain.state_dict()):
            names = sorted(model.state_dict().keys() ^ plain.state_dict().keys())
            raise Fault(
                f"the network's own keys after unpatch at {place}",
                f"differences at {join_names(names, most=4)}",
                do,
            )
        if changed := changed_names(snapshot(plain), model):
            raise Fault(
                f"the network's own tensors after unpatch at {place}",
                f"differences at {join_names(changed, most=4)}",
                do,
            )
        with torch.no_grad():
            if not torch.equal(model(x), plain(x)):
                raise Fault(f"the network's own output after unpatch at {place}", "another", do)


def operation_reproducible(op: Subject) -> None:
    """Applied twice under one seed, the operation gives two different models."""
    for place in _places(op):
        one, two = _build(op, place), _build(op, place)
        do = "depend on the arguments and on torch's seed alone; keep nothing between two calls"
        if list(one.state_dict()) != list(two.state_dict()):
            names = sorted(one.state_dict().keys() ^ two.state_dict().keys())
            raise Fault(
                f"the same keys from two builds with a patch at {place}",
                f"differences at {join_names(names, most=4)}",
                do,
            )
        if changed := changed_names(snapshot(one), two):
            raise Fault(
                f"the same tensors from two builds with a patch at {place}",
                f"differences at {join_names(changed)}",
                do,
            )
        if not _alike(op, place, one, two):
            raise Fault(
                f"the same output from two builds with a patch at {place}, its gate open",
                "another one",
                do,
            )


def operation_options(op: Subject) -> None:
    """An option that the spec declares is not taken by the factory, or its default is
    another one.
    """
    options = dict(op.named.spec.options)
    if not options:
        raise SkipTest("its spec declares no options")
    place = _places(op)[0]
    do = (
        "let the spec's options and the factory's keyword arguments have the same names and "
        "defaults"
    )
    try:
        given = _build(op, place, options)
    except TvcError as error:
        raise Fault(
            f"that the declared options {join_names(map(repr, options))} are taken",
            describe_error(error),
            do,
        ) from error
    plain = _build(op, place)
    if list(given.state_dict()) != list(plain.state_dict()) or not _alike(op, place, given, plain):
        raise Fault(
            "the same model with all options at their declared defaults as without",
            "another one",
            do,
        )


def operation_gradients(op: Subject) -> None:
    """New parameters get no gradient once the gate is open."""
    for place in _places(op):
        model, plain = _build(op, place), _plain(op, place.host)
        reached: set[str] = set()
        new = [(name, tensor) for name, tensor in _new(model, plain) if tensor.requires_grad]
        for seed in range(6):
            perturb((tensor for _, tensor in new), seed)
            model.zero_grad(set_to_none=True)
            # what acts in one mode alone, such as dropout, learns in that mode
            with torch.random.fork_rng(devices=[]):
                logits = model.train(seed % 2 == 1)(_image(op, place.host, seed))
            (
                logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
            ).sum().backward()
            reached |= {
                name for name, tensor in new if tensor.grad is not None and tensor.grad.any()
            }
        lost = [name for name, _ in new if name not in reached]
        if lost:
            do = "use the block's result without detach"
            raise Fault(
                f"a gradient at every new parameter at {place}",
                f"none at {join_names(lost, most=4)}",
                do,
            )


def operation_pickle(op: Subject) -> None:
    """The patched model cannot be pickled or copied, or the copy does something else."""
    for place in _places(op):
        model = _build(op, place)
        perturb(tensor for _, tensor in _new(model, _plain(op, place.host)))
        check_copies(model, _image(op, place.host), f"a model patched at {place}")


BASIC = (operation_applies, operation_effect)
"""The checks that the others need: without them the others say nothing."""

CHECKS = (
    *BASIC,
    operation_layouts,
    operation_keys,
    operation_arguments,
    operation_reversible,
    operation_reproducible,
    operation_options,
    operation_gradients,
    operation_pickle,
)


def _patches(op: Subject, place: Place, options: dict[str, Any] | None = None) -> dict[str, Any]:
    block = {"type": "tvc-kit:gate"} if op.named.spec.takes_block else {}
    return {place.target: {op.named.qualified: {**block, **(options or {}), **op.params}}}


def _build(op: Subject, place: Place, options: dict[str, Any] | None = None) -> HybridModel:
    """Return a patched network in eval mode, built under a seed."""
    with torch_seed(SEED):
        return build_patched(op.registry, place.host, _patches(op, place, options)).eval()  # type: ignore[return-value]


def _plain(op: Subject, host: str) -> nn.Module:
    offer = op.registry.resolve(BackboneSpec, host)
    network: nn.Module = offer.load()(offer.spec, weights=None)
    return network.eval()


def _image(op: Subject, host: str, seed: int = SEED) -> Tensor:
    side = 32
    return image(
        2, op.registry.resolve(BackboneSpec, host).spec.num_channels, side, side, seed=seed
    )


def _stages(op: Subject, host: str) -> list[str]:
    return [paths[-1] for paths in op.registry.resolve(BackboneSpec, host).spec.stage_paths]


def _places(op: Subject) -> list[Place]:
    """Return for each network the first place where the operation can be applied: a stage, or the
    first module of a class.
    """
    if "places" in op.memo:
        places: list[Place] = op.memo["places"]
        return places
    found: list[Place] = []
    errors: list[str] = []
    for host in HOSTS:
        firsts = {
            type(module): path
            for path, module in reversed([*_plain(op, host).named_modules()])
            if path
        }
        for path in dict.fromkeys((*_stages(op, host), *reversed(firsts.values()))):
            place = Place(host, path)
            try:
                _build(op, place)
                found.append(place)
                break
            except TvcError as error:
                errors.append(describe_error(error))
    if not found:
        do = (
            "let the factory be apply(target, block, **options) and insert the block, or return "
            "a "
            "new module"
        )
        raise Fault(
            "that it can be applied somewhere",
            f"{errors[0]} (and {len(errors) - 1} more refusals)",
            do,
        )
    op.memo["places"] = found
    return found


def _same_output(one: nn.Module, two: nn.Module, x: Tensor) -> bool:
    outputs = []
    for model in (one, two):
        with torch.no_grad(), same_kernels(), torch_seed(SEED):
            outputs.append(model(x))
    return torch.equal(*outputs)


def _alike(op: Subject, place: Place, one: HybridModel, two: HybridModel) -> bool:
    """Tell whether two models with the same keys do the same at the start and once the new
    parameters have moved.
    """
    x, network = _image(op, place.host), _plain(op, place.host)
    if not _same_output(one, two, x):
        return False
    for model in (one, two):
        perturb(tensor for _, tensor in _new(model, network))
    return _same_output(one, two, x)


def _is_refusal(error: TvcError) -> bool:
    """Look through the error to which the core adds the place."""
    cause = error.__cause__
    return refuses_clearly(cause if isinstance(cause, TvcError) else error)


def _new(model: nn.Module, plain: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters that a patch brought."""
    before = list(named_tensors(plain).values())
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if not any(_same(parameter, tensor) for tensor in before)
    ]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b) and a.numel() > 1


def _structure(network: nn.Module) -> dict[str, Any]:
    """Return what identifies every module: itself, its class, children, hooks and attributes."""
    return {
        path: (
            id(module),
            id(type(module)),
            tuple((name, id(child)) for name, child in module._modules.items()),
            tuple((name, id(parameter)) for name, parameter in module._parameters.items()),
            tuple(tuple(hooks) for name, hooks in vars(module).items() if name.endswith("_hooks")),
            tuple(
                (name, id(value))
                for name, value in vars(module).items()
                if not name.startswith("_")
            ),
        )
        for path, module in network.named_modules()
    }
