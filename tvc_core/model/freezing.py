"""Freeze and thaw by part: gradients, running statistics, dropout and drop-path together.

`requires_grad=False` alone leaves statistics moving, and any `train()` undoes an earlier `eval()`.
So what is frozen is kept as a state, and `train()` leaves frozen parts in eval mode. The state
survives `deepcopy` and pickle; a plain state dict does not carry it.

tvc writes only what it holds: the modes of frozen modules, the flags that a call is about. What the
user, another tool or the network's own `train()` has set elsewhere stays.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FreezeError, count_of, join_names, short_repr
from ..surgery.anatomy import HEAD, STEM, Anatomy, stage_name
from ..surgery.head import find_classifier
from ..surgery.initializers import is_normalization
from ..surgery.patch import PatchTree
from ..surgery.patches import CONTAINERS
from ..surgery.sites import find_module, plain_name
from ..written.rules import FREEZE
from .fingerprint import kind_of
from .state import FreezeState, HybridState

__all__ = [
    "adopt", "as_data", "by_hand", "freeze", "freeze_head", "from_data", "held_modules",
    "hold", "keep_statistics", "part_of_parameter", "refuse_under_ddp", "wanted_grads",
]  # fmt: skip

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def as_data(state: HybridState) -> dict[str, Any]:
    """Return what is frozen as plain data for a checkpoint, with the network that it is about."""
    return {
        **asdict(state.freeze),
        "stages": list(state.freeze.stages),
        "backbone": state.plan.backbone.qualified,
        "num_stages": len(state.anatomy.stages),
    }


def by_hand(network: nn.Module, state: HybridState) -> dict[str, list[str]]:
    """Return the parameters that are frozen or trainable otherwise than the freeze state says."""
    found: dict[str, list[str]] = {"frozen": [], "trainable": []}
    wanted = wanted_grads(network, state)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad != wanted[name]:
            found["trainable" if parameter.requires_grad else "frozen"].append(plain_name(name))
    return {kind: names for kind, names in found.items() if names}


def from_data(data: Mapping[str, Any], state: HybridState) -> FreezeState:
    """Return the freeze state that `as_data` wrote.

    States from before there was a choice have no `normalization`, which is "frozen", and do not say
    which network they are about.

    Raises:
        FreezeError: unknown keys or values of the wrong kind, or the state of a network with
            another number of stages.
        StageError: a stage that this backbone does not have.
    """
    fields = FreezeState.__dataclass_fields__
    about = {"backbone": state.plan.backbone.qualified, "num_stages": len(state.anatomy.stages)}
    given = data
    if isinstance(data, Mapping):
        data = {"normalization": "frozen", **about, **data}
    if not isinstance(data, Mapping) or set(data) != {*fields, *about}:
        raise FreezeError(
            f"a freeze state is a mapping with the keys {join_names((*fields, *about))}, "
            f"not {short_repr(given)}"
        )
    if not isinstance(data["stem"], bool) or not isinstance(data["patches"], bool):
        raise FreezeError(
            f"stem and patches of a freeze state are true or false, not {short_repr(data)}"
        )
    for key in ("head", "normalization"):
        FREEZE[key].check(key, data[key], FreezeError)
    if any(data[key] != value for key, value in about.items()):
        raise FreezeError(
            f"the freeze state is of {short_repr(data['backbone'])} with {data['num_stages']} "
            f"stages, and this is {about['backbone']} with {about['num_stages']}: freeze it with "
            "freeze_backbone(unfreeze_stages=...)"
        )
    values = {name: data[name] for name in fields}
    return FreezeState(**{**values, "stages": tuple(state.anatomy.stage_indices(data["stages"]))})


def part_of_parameter(name: str, anatomy: Anatomy) -> tuple[str | None, bool]:
    """Return the part that a parameter belongs to, and whether it is in an inserted block.

    A block at a module of no part (the pooling layer between the last stage and the head) is part
    of the head.
    """
    root, _, rest = name.partition(".")
    if root in CONTAINERS and anatomy.part_of(name) is None:
        return anatomy.part_of(rest) or HEAD, True
    return anatomy.part_of(name), False


def freeze(network: nn.Module, state: HybridState, wanted: FreezeState) -> None:
    """Set `requires_grad` of every parameter as wanted, and hold the modes of frozen modules.

    Args:
        network: the hybrid.
        state: what it knows; `freeze` is what tvc had frozen until now.
        wanted: what is to be frozen.

    Raises:
        FreezeError: the network runs under DistributedDataParallel, and the set of trainable
            parameters would change.
    """
    # Three sets of flags: what tvc had wanted until now, what it is to want, and what the
    # parameters have. A parameter that tvc had let learn and that does not was frozen by other
    # code, and is named if this call thaws it. All refusals come before the first change.
    before, flags = wanted_grads(network, state), wanted_grads(network, state, wanted)
    parameters = dict(network.named_parameters())
    changes = [name for name, p in parameters.items() if p.requires_grad != flags[name]]
    if changes:
        refuse_under_ddp(network, changes)
    foreign = [name for name in changes if flags[name] and before[name]]
    released = {id(module): module for _, module in held_modules(network, state)}
    for name in changes:
        parameters[name].requires_grad_(flags[name])
    state.freeze = wanted
    state.half_thawed_told = False
    state.statistics = {}
    held = {id(module) for _, module in held_modules(network, state)}
    _release(network, [module for key, module in released.items() if key not in held])
    hold(network, state)
    if foreign:
        warnings.warn(
            f"now trainable: {count_of(len(foreign), 'parameter')} that tvc had not frozen (by "
            f"hand, or by another tool): {join_names(foreign, most=4)}. freeze_backbone and "
            "unfreeze_all set the whole network",
            UserWarning,
            stacklevel=4,
        )


def _release(network: nn.Module, modules: list[nn.Module]) -> None:
    """Put modules that were held into the network's mode, as its own `train` has it."""
    if not modules or not network.training:
        return
    base: Any = getattr(network, "_hybrid_base", nn.Module)
    if base.train is not nn.Module.train:  # it may leave some of them in eval mode
        network.train()
        return
    for module in modules:
        module.training = True


def adopt(network: nn.Module, state: HybridState, paths: Collection[str]) -> None:
    """Freeze or thaw the modules at some paths, which are new in the network, as the state says."""
    flags = wanted_grads(network, state)
    for name, parameter in network.named_parameters():
        if _is_below(name, paths):
            parameter.requires_grad_(flags[name])
    hold(network, state, paths)


def freeze_head(network: nn.Module, state: HybridState) -> None:
    """Freeze the head, and nothing else.

    Raises:
        FreezeError: the network runs under DistributedDataParallel, and the head is trainable.
    """
    paths = [*state.anatomy.heads, *state.anatomy.neck]
    trainable = [
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and _is_below(name, paths)
    ]
    if trainable:
        refuse_under_ddp(network, trainable)
    state.freeze = replace(state.freeze, head="none")
    adopt(network, state, paths)


def wanted_grads(
    network: nn.Module, state: HybridState, wanted: FreezeState | None = None
) -> dict[str, bool]:
    """Return for every parameter whether a freeze state lets it learn."""
    wanted = wanted or state.freeze
    anatomy, new, frozen = state.anatomy, state.new_modules, frozen_parts(wanted)
    last, thawed = find_classifier(network, anatomy.head), state.thawed
    norms = {path for path, module in network.named_modules() if is_normalization(module)}
    flags: dict[str, bool] = {}
    for name, _ in network.named_parameters():
        part, inserted = part_of_parameter(name, anatomy)
        if HEAD in frozen and not inserted and _is_below(name, anatomy.heads):
            part = HEAD  # an auxiliary head, which is of no use without the head
        owner = name.rpartition(".")[0]
        inserted = inserted or (part != HEAD and owner in new)
        trainable = part not in frozen or (inserted and not wanted.patches)
        if part != HEAD and not inserted and wanted.normalization != "frozen" and owner in norms:
            trainable = True
        if part == HEAD and not inserted and wanted.head == "last":
            trainable = last is not None and name.startswith(f"{last[0]}.")
        if name in thawed and not wanted.patches:
            trainable = True
        flags[name] = trainable
    return flags


def frozen_parts(freeze: FreezeState) -> set[str]:
    """Return the names of the parts that are frozen as a whole."""
    parts = {stage_name(index) for index in freeze.stages}
    return parts | ({STEM} if freeze.stem else set()) | ({HEAD} if freeze.head == "none" else set())


def _frozen_roots(
    network: nn.Module, anatomy: Anatomy, frozen: set[str]
) -> Iterator[tuple[str, str, nn.Module]]:
    """Yield (part, path, module) of what is frozen as a whole: auxiliary heads with their stage, or
    with the head.
    """
    for found, path in anatomy.items():
        part = HEAD if HEAD in frozen and path in anatomy.heads else found
        if part in frozen and (module := find_module(network, path)) is not None:
            yield part, path, module


def _is_below(name: str, paths: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{path}.") for path in paths)


def hold(network: nn.Module, state: HybridState, within: Collection[str] | None = None) -> None:
    """Put frozen modules in eval mode, and keep their statistics. Nothing else is written.

    Args:
        network: the hybrid.
        state: what it knows.
        within: only the modes of modules at these paths; by default all.
    """
    # `train()` of the network has run already, and has set whatever modes it wants. Only frozen
    # modules are written to, so what the network's own `train` or the user has set elsewhere stays.
    # The statistics that a frozen normalization has now are what a later reset is undone to; those
    # of one that was thawed are forgotten.
    held = list(held_modules(network, state))
    if network.training:
        for path, module in held:
            if within is None or _is_below(path, within):
                module.training = False
        _tell_half_thawed(state, held)
    norms = {path: module for path, module in held if is_normalization(module)}
    for path in [path for path in state.statistics if path not in norms]:
        del state.statistics[path]
    for path, module in norms.items():
        if path not in state.statistics and (found := _statistics(module)):
            state.statistics[path] = _copies(found)
    keep_statistics(network, state)


def held_modules(network: nn.Module, state: HybridState) -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, module) of the modules that `train()` leaves in eval mode.

    Where another tool has wrapped a module and trains something of its own there (LoRA), only what
    learns nothing is held; where nothing there learns, all is (spectral normalization, say).
    """
    # `foreign` is the path of the wrapped module that the walk is inside of, as named_modules
    # visits a module before what is in it; "-" is a path that no module has. Modules that a patch
    # has put into a frozen part (`new`) are held only if patches are frozen as well.
    freeze, anatomy, new = state.freeze, state.anatomy, state.new_modules
    frozen = frozen_parts(freeze)
    for part, root_path, root in _frozen_roots(network, anatomy, frozen):
        foreign = "-"
        for path, module in root.named_modules(prefix=root_path):
            if _is_wrapped(path, module, state) and not _learns_nothing(module):
                foreign = path
            if _is_below(path, [foreign]) and not _learns_nothing(module):
                continue
            norm = part != HEAD and path not in new and is_normalization(module)
            if norm and freeze.normalization == "train":
                continue
            if path not in new or freeze.patches or part == HEAD:
                yield path, module
    if freeze.head == "last" and (last := find_classifier(network, anatomy.head)):
        root = network.get_submodule(anatomy.head)
        for path, module in root.named_modules(prefix=anatomy.head):
            if path != last[0] and is_normalization(module):
                yield path, module
    if freeze.patches:
        for container in CONTAINERS:
            tree = network._modules.get(container)
            if isinstance(tree, PatchTree):
                for path, module in tree.named_modules():
                    if path and anatomy.part_of(path) in frozen:
                        yield f"{container}.{path}", module


def _is_wrapped(path: str, module: nn.Module, state: HybridState) -> bool:
    known = state.modules.get(path, "").partition("(")[0]
    return bool(known) and known != kind_of(module) and bool(module._modules)


def _learns_nothing(module: nn.Module) -> bool:
    found = list(module.parameters())
    return bool(found) and not any(parameter.requires_grad for parameter in found)


def _tell_half_thawed(state: HybridState, held: Iterable[tuple[str, nn.Module]]) -> None:
    if state.half_thawed_told:
        return
    norms_learn, thawed = state.freeze.normalization != "frozen", state.thawed
    half = [
        path
        for path, module in held
        if any(
            p is not None and p.requires_grad and f"{path}.{name}" not in thawed
            for name, p in module._parameters.items()
        )
        and not (norms_learn and is_normalization(module))
    ]
    if half:
        state.half_thawed_told = True
        warnings.warn(
            f"{count_of(len(half), 'module')} of frozen parts with trainable parameters, thawed by "
            f"hand, in eval mode: {join_names(half, most=4)}. Thaw them with freeze_backbone("
            "unfreeze_stages=...) or unfreeze_all, which let their statistics and dropout work",
            UserWarning,
            stacklevel=4,
        )


def keep_statistics(network: nn.Module, state: HybridState) -> None:
    """Put the running statistics of frozen normalizations back where they were reset.

    `update_bn` and Lightning's weight averaging reset the statistics of every BatchNorm, call
    `train()` and let forward passes estimate them again. A frozen one stays in eval mode, so its
    mean 0 and variance 1 would stay. Any other change was made on purpose, and is kept.
    """
    # Asked before each pass in training, so it must cost little: a buffer that is the same object
    # with the same version counter has not been written to, and no value is read. Only one that was
    # written to is compared. Mean 0 and variance 1 are what a reset leaves; trained statistics
    # never have exactly these values.
    back: list[str] = []
    for path, kept in state.statistics.items():
        module = find_module(network, path)
        found = {} if module is None else _statistics(module)
        if not found or _marks(found) == kept.get("marks"):
            continue
        if _is_reset(found) and not _is_reset(kept):
            with torch.no_grad():
                for name, buffer in found.items():
                    if name in kept:
                        buffer.copy_(kept[name])
            back.append(path)
        else:
            kept.update({name: each.detach().clone() for name, each in found.items()})
        kept["marks"] = _marks(found)
    if back:
        warnings.warn(
            f"the running statistics of {len(back)} frozen normalizations were reset, as weight "
            f"averaging does to estimate them again, and are put back: {join_names(back, most=4)}. "
            "Thaw them before if they are to be estimated",
            UserWarning,
            stacklevel=5,
        )


def _statistics(module: nn.Module) -> dict[str, Tensor]:
    found = {name: module._buffers.get(name) for name in _STATISTICS}
    return {name: each for name, each in found.items() if each is not None and not each.is_meta}


def _copies(found: Mapping[str, Tensor]) -> dict[str, Any]:
    return {**{name: each.detach().clone() for name, each in found.items()}, "marks": None}


def _marks(found: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """Return what tells whether tensors have been written to since, without reading them."""
    return tuple((id(each), 0 if each.is_inference() else each._version) for each in found.values())


def _is_reset(found: Mapping[str, Any]) -> bool:
    mean, var = found.get("running_mean"), found.get("running_var")
    if mean is None or var is None:
        return False
    return not bool(mean.any()) and bool((var == 1).all())


def refuse_under_ddp(
    network: nn.Module,
    changes: list[str],
    harm: str = "would not average the gradients of what is new or thawed now",
) -> None:
    """Refuse to change what is trainable while DistributedDataParallel holds the network.

    Its reducer knows the trainable parameters of the moment it was made: a parameter thawed later
    gets gradients that no one averages, and the replicas drift apart without an error.

    Raises:
        FreezeError: a DistributedDataParallel holds the network.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    import gc

    from torch.nn.parallel import DistributedDataParallel

    # A wrapper does not announce itself to what it wraps, and a module does not know its parents.
    # So all objects of the process are looked through, which is slow, and done only where a process
    # group exists. The collection comes first: a wrapper that was deleted may live on in a circle
    # of references. `type(found)`, since asking some objects for their `__class__` runs code.
    gc.collect()
    for found in gc.get_objects():
        if issubclass(type(found), DistributedDataParallel) and any(
            module is network for module in found.modules()
        ):
            raise FreezeError(
                f"the model is wrapped in DistributedDataParallel, which {harm} "
                f"({join_names(changes, most=3)}). Change it before wrapping: keep ddp.module, "
                "delete the wrapper, change, wrap again."
            )
