"""The schedule of phases as a callback for Lightning's Trainer."""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any

from tvc_core import HybridModel, join_names

from .errors import TrainingError
from .phases import PhaseSchedule

__all__ = ["phase_callback"]

_ONLY_OURS = ("stop_early", "normalization", "size")
"""Fields of a phase that neither a schedule nor Lightning looks at."""


def phase_callback(schedule: PhaseSchedule, *, model: str = "model") -> Any:
    """Return a callback that begins the phases of a schedule and sets their rates.

    The module's `configure_optimizers` may return any optimizer, and no schedule of rates: each
    phase puts its own optimizer in the place of it. `max_epochs` of the Trainer is the sum of the
    epochs of the phases. What it saves goes on with `fit(..., ckpt_path=...)`: a phase, the state
    of its optimizer, and that of parts which are frozen in between. Phases that thaw parts go with
    one device, or with strategies that do not wrap the model in DistributedDataParallel.

    Args:
        schedule: of phases.
        model: the attribute of the LightningModule that is the hybrid.

    Raises:
        TrainingError: Lightning is not installed; a phase sets what only `tvc train` does
            (`stop_early`, `normalization`, `size`, `rate: auto`). By `fit`: the module has no such
            hybrid, several optimizers or a schedule of rates.
    """
    for number, phase in enumerate(schedule.phases):
        names = [name for name in _ONLY_OURS if getattr(phase, name) is not None]
        names += ["rate"] * isinstance(phase.rate, str)
        if names:
            raise TrainingError(
                f"phase {number} sets {join_names(names)}, which Lightning's Trainer does not do: "
                "leave it out and use a callback of Lightning's, or train with tvc_train.fit"
            )
    base: Any = _callback()

    class PhaseCallback(base):  # type: ignore[misc]
        """Begin phases at the start of epochs, and set rates before batches."""

        def __init__(self) -> None:
            self.begun = -1
            self.optimizer: Any = None
            self.saved: dict[str, Any] | None = None

        def place(self, epoch: int) -> tuple[int, int]:
            """Return the phase of an epoch, and the epoch in it."""
            for number, phase in enumerate(schedule.phases):
                if epoch < phase.epochs:
                    return number, epoch
                epoch -= phase.epochs
            return len(schedule.phases) - 1, schedule.phases[-1].epochs - 1

        def hybrid(self, module: Any) -> HybridModel:
            """Return the hybrid of a LightningModule, also if it is compiled."""
            found = getattr(module, model, None)
            found = getattr(found, "_orig_mod", found)
            if not isinstance(found, HybridModel):
                raise TrainingError(
                    f"the attribute {model!r} of {type(module).__name__} is of type "
                    f"{type(found).__name__}, which is no hybrid: name the one that is, by "
                    "phase_callback(schedule, model=...)"
                )
            return found

        def put(self, trainer: Any, number: int, optimizer: Any) -> None:
            """Put an optimizer in the place of the one that the Trainer has."""
            self.begun, self.optimizer = number, optimizer
            trainer.strategy.optimizers = [optimizer]

        def state_dict(self) -> dict[str, Any]:
            """Return what a checkpoint has to hold besides the optimizer."""
            if self.optimizer is None:
                return {}
            return {"phase": self.begun, "kept": schedule.kept}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            """Take what a checkpoint holds, until the fit starts."""
            self.saved = state_dict

        def on_fit_start(self, trainer: Any, module: Any) -> None:
            """Check what it works with; begin the phase of a checkpoint, so that the Trainer finds
            the optimizer whose state it reads next.
            """
            hybrid, phases = self.hybrid(module), schedule.phases
            _check(trainer.strategy)
            saved, self.saved = self.saved, None
            self.begun, self.optimizer = -1, None
            if saved is None:
                return
            if saved["phase"] >= len(phases):
                raise TrainingError(
                    f"the checkpoint is of phase {saved['phase']}, and the schedule has "
                    f"{len(phases)}: go on with the schedule that it was saved with"
                )
            schedule.kept, phase = saved["kept"], phases[saved["phase"]]
            schedule.freeze(hybrid, phase)
            self.put(trainer, saved["phase"], schedule.make(hybrid, phase))

        def on_train_start(self, trainer: Any, module: Any) -> None:
            """Say where the Trainer's epochs and steps are others than the schedule's."""
            epochs = sum(phase.epochs for phase in schedule.phases)
            pairs = {
                "epochs": (epochs, trainer.max_epochs),
                "steps an epoch": (schedule.steps, trainer.num_training_batches),
            }
            for words, (ours, theirs) in pairs.items():
                if theirs not in (ours, -1, math.inf):
                    warnings.warn(
                        f"the schedule of phases has {ours} {words}, and the Trainer {theirs}: "
                        "the rates of the steps follow the schedule",
                        stacklevel=2,
                    )

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            """Begin a phase, where one begins."""
            number, _ = self.place(trainer.current_epoch)
            if number != self.begun:
                phase = schedule.phases[number]
                optimizer = schedule.begin(self.hybrid(module), phase, self.optimizer)
                self.put(trainer, number, optimizer)

        def on_train_batch_start(
            self, trainer: Any, module: Any, batch: Any, batch_idx: int
        ) -> None:
            """Set the rates of a step."""
            number, epoch = self.place(trainer.current_epoch)
            step = epoch * schedule.steps + batch_idx
            schedule.set_rates(self.optimizer, schedule.phases[number], step)

    return PhaseCallback()


def _check(strategy: Any) -> None:
    """Refuse what a module configures and the callback would put aside without a word."""
    if len(strategy.optimizers) > 1 or strategy.lr_scheduler_configs:
        found = "a schedule of rates" if strategy.lr_scheduler_configs else "several optimizers"
        raise TrainingError(
            f"configure_optimizers returns {found}, and phase_callback puts one optimizer with the "
            "rates of its phases in the place of what it returns: return one optimizer alone"
        )


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
