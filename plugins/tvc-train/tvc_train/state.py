"""What a training is about and how far it is: what the parts of the loop read and write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tvc_core import HybridModel

from .averaging import MovingAverage
from .checkpoints import Checkpoints
from .devices import Devices
from .faults import Stopping
from .feeding import Feed
from .losses import Loss
from .method import Method
from .normalization import Normalization
from .phases import Phase, PhaseSchedule
from .progress import Position, Progress
from .runs import Run
from .settings import TrainingSettings
from .showing import Display

__all__ = ["TrainingState", "Unseen"]


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """A step whose figures were not looked at yet, as looking waits for the device.

    Args:
        step: of the whole run, from 1.
        loss: sum over the images of this process.
        norms: of the gradients of what learns, in its order.
        images: of all processes.
    """

    step: int
    loss: Tensor
    norms: Tensor
    images: int


@dataclass(kw_only=True, eq=False)
class TrainingState:
    """The state of a training of one model. It changes while the loop runs.

    Args:
        model: the hybrid, where it computes.
        feed: its images.
        settings: how it is trained.
        schedule: of phases.
        methods: by name.
        devices: of this process.
        files: where those of the run go.
        key: what has to be equal to go on, which checkpoints hold.
        display: what shows it.
        stopping: whether it was asked to end.
        progress: how far it is.
        speed: a row an epoch, of what the clock said.
        optimizer: of the phase; None before the first.
        learning: the parameters that learn in the phase, by name.
        new: the last steps, whose losses were not looked at yet.
    """

    model: HybridModel
    feed: Feed
    settings: TrainingSettings
    schedule: PhaseSchedule
    methods: Mapping[str, Method]
    devices: Devices
    files: Run
    key: Mapping[str, Any]
    display: Display
    stopping: Stopping

    progress: Progress = field(default_factory=Progress)
    speed: list[dict[str, Any]] = field(default_factory=list)
    optimizer: torch.optim.Optimizer | None = None
    learning: dict[str, nn.Parameter] = field(default_factory=dict)
    new: list[Unseen] = field(default_factory=list)

    phase: Phase = field(init=False)
    loss: Loss = field(init=False)
    average: MovingAverage | None = field(init=False)
    normalization: Normalization = field(init=False)  # of the phase, from its beginning

    def __post_init__(self) -> None:
        smooth, weights = self.settings.label_smoothing, self.feed.class_weights
        self.phase = self.schedule.phases[0]
        self.loss = Loss(self.feed.labels, smoothing=smooth, weights=weights)
        self.average = None if self.settings.ema is None else MovingAverage(self.settings.ema)

    @property
    def checkpoints(self) -> Checkpoints:
        """Where its checkpoints are."""
        return Checkpoints(self.files.checkpoints)

    @property
    def position(self) -> Position:
        """Where the training is."""
        return self.progress.position

    def asked_to_stop(self) -> bool:
        """Return whether one of the processes was asked to end."""
        return self.devices.any(self.stopping.asked)
