"""Frozen means frozen: no gradients, no moving statistics, no dropout or drop-path, whatever
`train()` is called with.

The state is kept by part (stem, stages, head, patches), so that it survives train(), deepcopy and
pickle; a plain state dict does not carry it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from ..errors import FreezeError, did_you_mean, join_names
from ..recipe.schema import HEAD_CHOICES, NORMALIZATION_CHOICES
from ..surgery.anatomy import HEAD, STEM, Anatomy, stage_name
from ..surgery.head import last_layer
from ..surgery.initializers import is_normalization
from ..surgery.patches import CONTAINERS, PatchTree

__all__ = [
    "FreezeState",
    "apply_freeze",
    "freeze_head",
    "held_modules",
    "hold_modes",
    "part_of_parameter",
    "refuse_under_ddp",
    "wanted_grads",
]


@dataclass(frozen=True, kw_only=True)
class FreezeState:
    """What is frozen.

    Args:
        stem: the stem is frozen.
        stages: indices of the frozen stages.
        head: what of the head is trainable: "all", "last" (its last layer) or "none".
        patches: inserted blocks in frozen parts are frozen with them.
        normalization: what the normalization layers of a frozen stem and frozen stages do: "frozen"
            (scale and shift fixed, running statistics fixed), "eval" (scale and shift learn,
            statistics fixed) or "train" (both move).
    """

    stem: bool = False
    stages: tuple[int, ...] = ()
    head: str = "all"
    patches: bool = False
    normalization: str = "frozen"

    def frozen_parts(self) -> set[str]:
        """Return the names of the parts that are frozen as a whole."""
        parts = {stage_name(index) for index in self.stages}
        return parts | ({STEM} if self.stem else set()) | ({HEAD} if self.head == "none" else set())

    def as_data(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        return {**asdict(self), "stages": list(self.stages)}

    @staticmethod
    def from_data(data: Mapping[str, Any], anatomy: Anatomy) -> FreezeState:
        """Return the state that `as_data` wrote. States from before there was a choice have no
        `normalization`: "frozen".

        Raises:
            FreezeError: unknown keys or values of the wrong kind.
            StageError: a stage that this backbone does not have.
        """
        fields = FreezeState.__dataclass_fields__
        if isinstance(data, Mapping):
            data = {"normalization": "frozen", **data}
        if not isinstance(data, Mapping) or set(data) != set(fields):
            raise FreezeError(
                f"a freeze state is a mapping with the keys {join_names(fields)}, not {data!r}"
            )
        if not isinstance(data["stem"], bool) or not isinstance(data["patches"], bool):
            raise FreezeError(f"stem and patches of a freeze state are true or false, not {data!r}")
        check_head(data["head"])
        check_normalization(data["normalization"])
        return FreezeState(**{**data, "stages": tuple(anatomy.stage_indices(data["stages"]))})


def check_head(head: object) -> None:
    """Refuse what is not one of the choices for the head.

    Raises:
        FreezeError: another value.
    """
    if head not in HEAD_CHOICES:
        hint = did_you_mean(str(head), HEAD_CHOICES)
        raise FreezeError(
            f"head says what of the head is trainable: {join_names(HEAD_CHOICES)}, not "
            f"{head!r}.{hint}"
        )


def check_normalization(normalization: object) -> None:
    """Refuse what is not one of the choices for the normalization layers of frozen parts.

    Raises:
        FreezeError: another value.
    """
    if normalization not in NORMALIZATION_CHOICES:
        hint = did_you_mean(str(normalization), NORMALIZATION_CHOICES)
        raise FreezeError(
            "normalization says what the normalization layers of frozen parts do: "
            f"{join_names(NORMALIZATION_CHOICES)}, "
            f"not {normalization!r}.{hint}"
        )


def part_of_parameter(name: str, anatomy: Anatomy) -> tuple[str | None, bool]:
    """Return the part that a parameter belongs to, and whether it is in an inserted block.

    A block at a module of no part (the pooling layer between the last stage and the head) counts to
    the head.
    """
    root, _, rest = name.partition(".")
    if root in CONTAINERS and anatomy.part_of(name) is None:
        return anatomy.part_of(rest) or HEAD, True
    return anatomy.part_of(name), False


def apply_freeze(
    network: nn.Module, anatomy: Anatomy, state: FreezeState, new: Collection[str] = ()
) -> None:
    """Set `requires_grad` of every parameter, and hold the modes of frozen modules.

    Args:
        network: the hybrid.
        anatomy: its parts.
        state: what is to be frozen.
        new: paths of modules that patches put in the place of others; frozen where inserted blocks
            are.

    Raises:
        FreezeError: the network runs under DistributedDataParallel, and the set of trainable
            parameters would change.
    """
    wanted = wanted_grads(network, anatomy, state, new)
    changes = [
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad != wanted[name]
    ]
    if changes:
        refuse_under_ddp(network, changes)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(wanted[name])
    hold_modes(network, anatomy, state, new)


def freeze_head(model: nn.Module) -> None:
    """Freeze the head as `freeze_backbone(head="none")` does, and leave everything else as it is.

    What is frozen or thawed elsewhere stays so, whoever did it. Blocks inserted in the head stay
    trainable unless inserted blocks are frozen. A second call changes nothing.

    Args:
        model: the hybrid; `freeze_state` has it from now on.

    Raises:
        FreezeError: the model runs under DistributedDataParallel, and the head is trainable.
    """
    facts: Any = model._hybrid
    state = replace(facts.freeze, head="none")
    changes = {}
    for name, parameter in model.named_parameters():
        part, inserted = part_of_parameter(name, facts.anatomy)
        if part == HEAD and parameter.requires_grad and (state.patches or not inserted):
            changes[name] = parameter
    if changes:
        refuse_under_ddp(model, list(changes))
    for parameter in changes.values():
        parameter.requires_grad_(False)
    facts.freeze = state
    for module in held_modules(
        model, facts.anatomy, replace(state, stem=False, stages=()), facts.new_modules
    ):
        module.training = False


def wanted_grads(
    network: nn.Module, anatomy: Anatomy, state: FreezeState, new: Collection[str] = ()
) -> dict[str, bool]:
    """Return for every parameter whether the state lets it learn."""
    frozen = state.frozen_parts()
    last, _ = last_layer(network, anatomy.head)
    norms = {path for path, module in network.named_modules() if is_normalization(module)}
    wanted: dict[str, bool] = {}
    for name, _ in network.named_parameters():
        part, inserted = part_of_parameter(name, anatomy)
        owner = name.rpartition(".")[0]
        inserted = inserted or (part != HEAD and owner in new)
        trainable = part not in frozen or (inserted and not state.patches)
        if part != HEAD and not inserted and state.normalization != "frozen" and owner in norms:
            trainable = True
        if part == HEAD and not inserted and state.head == "last":
            trainable = name.startswith(f"{last}.")
        wanted[name] = trainable
    return wanted


def hold_modes(
    network: nn.Module, anatomy: Anatomy, state: FreezeState, new: Collection[str] = ()
) -> None:
    """Put frozen modules in eval mode and all others in the network's own mode."""
    mode = network.training
    for module in network.modules():
        module.training = mode
    if not mode:
        return
    for module in held_modules(network, anatomy, state, new):
        module.training = False


def held_modules(
    network: nn.Module, anatomy: Anatomy, state: FreezeState, new: Collection[str] = ()
) -> Iterator[nn.Module]:
    """Yield the modules that `train()` leaves in eval mode."""
    frozen = state.frozen_parts()
    for part in sorted(frozen):
        for root_path, root in anatomy.modules(network, part):
            for path, module in root.named_modules(prefix=root_path):
                if (
                    part != HEAD
                    and path not in new
                    and state.normalization == "train"
                    and is_normalization(module)
                ):
                    continue
                if path not in new or state.patches or part == HEAD:
                    yield module
    if state.head == "last":
        last, _ = last_layer(network, anatomy.head)
        for path, module in network.get_submodule(anatomy.head).named_modules(prefix=anatomy.head):
            if path != last and is_normalization(module):
                yield module
    if state.patches:
        for container in CONTAINERS:
            tree = network._modules.get(container)
            if isinstance(tree, PatchTree):
                for path, module in tree.named_modules():
                    if path and anatomy.part_of(path) in frozen:
                        yield module


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

    gc.collect()
    for found in gc.get_objects():
        if issubclass(type(found), DistributedDataParallel) and any(
            module is network for module in found.modules()
        ):
            raise FreezeError(
                f"the model is wrapped in DistributedDataParallel, which {harm} "
                f"({join_names(changes, most=3)}). "
                "Change it before wrapping: keep ddp.module, delete the wrapper, change, wrap "
                "again."
            )
