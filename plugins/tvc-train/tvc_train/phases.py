"""The schedule of phases: what is thawed when, and at which rates. For a plain loop and for others.

schedule = PhaseSchedule([Phase(epochs=1), Phase(epochs=2, thaw=(-1,), rate=1e-3)], steps=100)
optimizer = None
for phase in schedule.phases:
    optimizer = schedule.begin(model, phase, optimizer)
    for epoch in range(phase.epochs):
        for step, (images, targets) in enumerate(loader):
            schedule.set_rates(optimizer, phase, epoch * schedule.steps + step)
            ...
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tvc_core import HybridModel, ParameterError, StageError, join_names, short_repr, what_there_is

from .errors import TrainingError
from .optimizers import OptimizerSettings, kept_state, load_kept, make_optimizer
from .rules import misfit
from .training_schema import PHASE

__all__ = ["Phase", "PhaseSchedule", "thaw"]

_SCHEDULES = ("cosine", "linear", "constant")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Some epochs with one set of thawed stages.

    Args:
        epochs: how many [epochs].
        name: for tables; by default what is thawed.
        thaw: stages that learn besides the head and new blocks, by number (negative ones count from
            the end), path ("layer4") or pattern ("features.[67]"); "all" is everything, the stem
            included, "head" nothing more.
        rate: of the head and of new blocks, at its highest; "auto" in a recipe is found out before
            the first step.
        layer_decay: factor from one layer to the one before it; None for one rate.
        warmup: linear, at the start of the phase [epochs].
        schedule: after it: "cosine" to zero, "linear" to zero, or "constant".
        stop_early: end the phase after so many epochs without a better figure [epochs].
        normalization: what thawed normalization layers do; None as the whole training.
        size: side of the training images, where they are not square the longer one; None as the
            data say [pixels].

    Raises:
        ParameterError: a value is none that a recipe could have.
    """

    epochs: int
    name: str = ""
    thaw: tuple[int | str, ...] = ("head",)
    rate: float | str = 1e-2
    layer_decay: float | None = None
    warmup: float = 0.0
    schedule: str = "cosine"
    stop_early: int | None = None
    normalization: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.thaw, (int, str)):
            object.__setattr__(self, "thaw", (self.thaw,))
        if isinstance(self.thaw, Iterable):
            object.__setattr__(self, "thaw", tuple(self.thaw))
        if self.schedule not in _SCHEDULES:
            there = what_there_is(str(self.schedule), _SCHEDULES, "There are")
            raise ParameterError(f"there is no schedule {short_repr(self.schedule)}.{there}")
        for key, rule in PHASE["properties"].items():  # names that methods make may be longer
            if key != "name" and (problem := misfit(getattr(self, key), rule)):
                raise ParameterError(f"{key} of a phase is {problem}")

    @staticmethod
    def from_mapping(data: Mapping[str, Any]) -> Phase:
        """Return the phase that an entry of `training.phases` describes."""
        return Phase(**data)

    def to_mapping(self) -> dict[str, Any]:
        """Return plain data that `from_mapping` reads back as an equal phase."""
        given = {k: v for k, v in vars(self).items() if v != Phase.__dataclass_fields__[k].default}
        given["rate"] = self.rate  # for whoever reads it
        if "thaw" in given:
            given["thaw"] = list(self.thaw)
        return given

    @property
    def title(self) -> str:
        """The name, or what is thawed."""
        if self.name:
            return self.name
        if self.thaw in (("head",), ("all",)):
            return str(self.thaw[0])
        return f"stages {join_names(map(str, self.thaw))}"

    def factor(self, step: int, steps: int) -> float:
        """Return the share of its rate that a step of the phase has; after its last one, that with
        which it ends.

        Args:
            step: of the phase, from 0.
            steps: of an epoch.
        """
        warm, total = round(self.warmup * steps), self.epochs * steps
        if step < warm:
            return (step + 1) / (warm + 1)
        done = min((step - warm) / max(total - warm, 1), 1.0)
        if self.schedule == "cosine":  # Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1 - done if self.schedule == "linear" else 1.0


class PhaseSchedule:
    """Begin phases of a hybrid's training, and set rates.

    The state of the optimizer (momenta) goes along by the names of parameters, also of a part that
    is frozen in between. When a phase ends early, the size of its images and what its normalization
    layers do are up to the loop: a schedule looks at none of `stop_early`, `size` and
    `normalization`.

    Args:
        phases: in order.
        steps: of an epoch.
        optimizer: what optimizer is made.
        head: what of the head learns: "all" or "last".
        freeze_patches: freeze the blocks inserted in frozen parts.

    Raises:
        ParameterError: the warm-up of a phase never ends, or an argument is something else.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        steps: int,
        *,
        optimizer: OptimizerSettings | None = None,
        head: str = "all",
        freeze_patches: bool = False,
    ) -> None:
        self.phases = tuple(phases) if isinstance(phases, Iterable) else (phases,)
        self.steps = steps
        self.optimizer = OptimizerSettings() if optimizer is None else optimizer
        _check(self.phases, steps, self.optimizer)
        self.head, self.freeze_patches = head, freeze_patches
        self.kept: dict[str, dict[str, Any]] = {}

    def freeze(self, model: HybridModel, phase: Phase) -> None:
        """Freeze and thaw as a phase says.

        Raises:
            StageError: a stage that is not there.
            FreezeError: the model is wrapped in DistributedDataParallel.
            TrainingError: it is no hybrid.
        """
        if not isinstance(model, HybridModel):
            raise TrainingError(
                f"a phase begins for a hybrid of tvc itself, not for a {type(model).__name__}: "
                "wrap or compile it afterwards"
            )
        if phase.thaw == ("all",):
            model.unfreeze_all()
        else:
            model.freeze_backbone(
                unfreeze_stages=thaw(model, phase.thaw),
                head=self.head,
                freeze_patches=self.freeze_patches,
            )

    def begin(
        self, model: HybridModel, phase: Phase, optimizer: Optimizer | None = None
    ) -> Optimizer:
        """Freeze and thaw as a phase says, and return an optimizer for what learns now.

        Args:
            model: the hybrid itself, unwrapped.
            phase: that begins.
            optimizer: of the phase before, whose state goes along; None starts without any.

        Raises:
            StageError: a stage that is not there.
            FreezeError: the model is wrapped in DistributedDataParallel.
            TrainingError: it is no hybrid, or the optimizer is not of its parameters alone.
        """
        if optimizer is None:
            self.kept = {}
        self.keep(model, optimizer)
        self.freeze(model, phase)
        return self.make(model, phase)

    def keep(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        """Note an optimizer's state by the names of its parameters."""
        if optimizer is not None:
            self.kept.update(kept_state(optimizer, model))

    def make(self, model: HybridModel, phase: Phase) -> Optimizer:
        """Return an optimizer for what learns, with the state that is kept.

        Raises:
            TrainingError: the phase has no number for a rate.
        """
        if isinstance(phase.rate, str):
            raise TrainingError(
                f"phase {phase.title!r} has the rate {phase.rate!r}, which only a run of tvc train "
                "finds out: give a number"
            )
        optimizer = make_optimizer(
            model, self.optimizer, rate=float(phase.rate), layer_decay=phase.layer_decay
        )
        load_kept(optimizer, model, self.kept)
        self.set_rates(optimizer, phase, 0)
        return optimizer

    def rate(self, phase: Phase, step: int) -> float:
        """Return the rate of the head at a step of a phase."""
        return float(phase.rate) * phase.factor(step, self.steps)

    def set_rates(self, optimizer: Optimizer, phase: Phase, step: int) -> float:
        """Set the rate of each group for a step of the phase, and return that of the head.

        Raises:
            TrainingError: the optimizer has a group that a phase did not make.
        """
        factor = phase.factor(step, self.steps)
        for number, group in enumerate(optimizer.param_groups):
            if "full_rate" not in group:
                raise TrainingError(
                    f"group {number} of the optimizer is none of a phase, and has no rate in it: "
                    "set the rates of the optimizer that begin() returned, and step what is not of "
                    "the model with another"
                )
        for group in optimizer.param_groups:
            group["lr"] = group["full_rate"] * factor
        return self.rate(phase, step)


def _check(phases: Sequence[Any], steps: Any, optimizer: Any) -> None:
    """Refuse what a schedule could not follow."""
    for phase in phases:
        if not isinstance(phase, Phase):
            raise ParameterError(f"a phase of a schedule is a Phase, not {short_repr(phase)}")
        if phase.warmup > phase.epochs:
            raise ParameterError(
                f"a warm-up of {phase.warmup:g} epochs never ends in phase {phase.title!r} of "
                f"{phase.epochs}"
            )
    if problem := misfit(steps, {"type": "integer", "minimum": 1}):
        raise ParameterError(f"the steps of an epoch are {problem}")
    if not isinstance(optimizer, OptimizerSettings):
        raise ParameterError(
            "optimizer is a tvc_train.optimizers.OptimizerSettings, such as "
            f"OptimizerSettings(name='sgd'), not {short_repr(optimizer)}"
        )


def thaw(model: HybridModel, wanted: Sequence[int | str]) -> list[int]:
    """Return the numbers of stages that a phase thaws.

    Raises:
        StageError: there is no such stage, or no stage has such a path; the message lists them.
    """
    stages = model.stage_info
    found: set[int] = set()
    for each in wanted:
        if each == "head":
            continue
        if isinstance(each, int) and not isinstance(each, bool):
            hits = {each % len(stages)} if -len(stages) <= each < len(stages) else set()
        else:
            hits = {
                stage.stage
                for stage in stages
                if any(fnmatchcase(path, str(each)) for path in stage.paths)
            }
        if not hits:
            paths = [f"{stage.stage} ({', '.join(stage.paths)})" for stage in stages]
            raise StageError(
                f"there is no stage {short_repr(each)} to thaw. The stages are "
                f"{join_names(paths, most=30)}; 'all' and 'head' stand alone"
            )
        found |= hits
    return sorted(found)
