"""The schedule of phases as a callback for Lightning's Trainer."""

from __future__ import annotations

import sys
from typing import Any

from .errors import TrainingError
from .phases import PhaseSchedule

__all__ = ["phase_callback"]


def phase_callback(schedule: PhaseSchedule, *, model: str = "model") -> Any:
    """Return a callback that begins the phases of a schedule and sets their rates.

    The module needs no schedule of rates of its own. Its `configure_optimizers` may return any
    optimizer: each phase puts its own in the place of it. `max_epochs` of the Trainer is the sum of
    the epochs of the phases. Phases that thaw parts go with one device, or with strategies that do
    not wrap the model in DistributedDataParallel.

    Args:
        schedule: of phases.
        model: the attribute of the LightningModule that is the hybrid.

    Raises:
        TrainingError: Lightning is not installed.
    """
    base: Any = _callback()

    class PhaseCallback(base):  # type: ignore[misc]
        """Begin phases at the start of epochs, and set rates before batches."""

        def __init__(self) -> None:
            self.begun = -1
            self.optimizer: Any = None

        def place(self, epoch: int) -> tuple[int, int]:
            """Return the phase of an epoch, and the epoch in it."""
            for number, phase in enumerate(schedule.phases):
                if epoch < phase.epochs:
                    return number, epoch
                epoch -= phase.epochs
            return len(schedule.phases) - 1, schedule.phases[-1].epochs - 1

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            """Begin a phase, where one begins."""
            number, _ = self.place(trainer.current_epoch)
            if number != self.begun:
                hybrid, phase = getattr(module, model), schedule.phases[number]
                self.optimizer = schedule.begin(hybrid, phase, self.optimizer)
                trainer.strategy.optimizers = [self.optimizer]
                self.begun = number

        def on_train_batch_start(
            self, trainer: Any, module: Any, batch: Any, batch_idx: int
        ) -> None:
            """Set the rates of a step."""
            number, epoch = self.place(trainer.current_epoch)
            step = epoch * schedule.steps + batch_idx
            schedule.set_rates(self.optimizer, schedule.phases[number], step)

    return PhaseCallback()


def _callback() -> Any:
    """Return the class of callbacks of the Lightning that is in use: it has two packages."""
    try:
        if "pytorch_lightning" not in sys.modules:
            from lightning.pytorch.callbacks import Callback  # type: ignore[import-not-found]

            return Callback
    except ImportError:
        pass
    try:
        from pytorch_lightning.callbacks import Callback  # type: ignore[import-not-found]
    except ImportError as error:
        raise TrainingError(
            "phase_callback needs Lightning, which is not installed: pip install lightning"
        ) from error
    return Callback
