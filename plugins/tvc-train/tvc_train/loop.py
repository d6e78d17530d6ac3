"""The loop: steps, epochs and phases, each from a position that a checkpoint can hold."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tvc_core import HybridModel

from . import holding
from .assessing import assess
from .averaging import MovingAverage
from .checkpoints import Checkpoint, Checkpoints
from .devices import Devices
from .evaluating import Evaluation
from .faults import StoppedError, Stopping
from .feeding import Feed
from .losses import Loss
from .methods import Method
from .normalization import Normalization
from .optimizers import names_of
from .phases import Phase, PhaseSchedule
from .progress import Position, Progress
from .runs import Run
from .settings import TrainingSettings
from .showing import Display
from .stepping import Unseen, backward, check_loss, look
from .watching import check_gradients, first_step, warn_of_gap

__all__ = ["Training"]

_LOOK_EVERY = 20
"""Steps between two looks at the loss where looking waits for the device."""


class Training:
    """A training of one model.

    Args:
        model: the hybrid, where it computes.
        feed: its images.
        settings: how it is trained.
        schedule: of phases.
        methods: by name.
        devices: of this process.
        run: where its files go.
        key: what has to be equal to go on, which checkpoints hold.
        display: what shows it.
        stopping: whether it was asked to end.
    """

    def __init__(
        self,
        *,
        model: HybridModel,
        feed: Feed,
        settings: TrainingSettings,
        schedule: PhaseSchedule,
        methods: Mapping[str, Method],
        devices: Devices,
        run: Run,
        key: Mapping[str, Any],
        display: Display,
        stopping: Stopping,
    ) -> None:
        self.model, self.feed, self.settings, self.schedule = model, feed, settings, schedule
        self.methods, self.devices, self.files, self.key = methods, devices, run, key
        self.display, self.stopping = display, stopping
        self.checkpoints = Checkpoints(run.checkpoints)
        self.progress = Progress()
        smooth, weights = settings.label_smoothing, feed.class_weights
        self.loss = Loss(feed.labels, smoothing=smooth, weights=weights)
        self.average = None if settings.ema is None else MovingAverage(settings.ema)
        self.optimizer: torch.optim.Optimizer | None = None
        self.phase = schedule.phases[0]
        self.speed: list[dict[str, Any]] = []
        self._run: Callable[[Tensor], Any] = model
        self.learning: dict[str, nn.Parameter] = {}
        self.new: list[Unseen] = []
        self._fresh = True  # no step of the phase was watched yet
        self._ended = False  # the last checkpoint is written

    @property
    def position(self) -> Position:
        """Where the training is."""
        return self.progress.position

    @property
    def phases(self) -> Sequence[Phase]:
        """All phases."""
        return self.schedule.phases

    # -- phases ------------------------------------------------------------------------------------

    def go(self, start: Checkpoint | None = None) -> Evaluation:
        """Train to the end, and return the evaluation of the model that is then in place.

        Args:
            start: where to go on.

        Raises:
            StoppedError: a signal asked for it; a checkpoint was written.
            TrainingError: a number is no finite number any more, replicas differ, or a file cannot
                be written.
        """
        if start is not None:
            holding.take_progress(self, start)
        while self.position.phase < len(self.phases):
            self._begin_phase(self.phases[self.position.phase], start)
            start = None
            while not self._phase_is_over():
                self._epoch()
            self._end_phase()
        if start is not None:  # it was killed after its last epoch
            self._begin_phase(self.phases[-1], start)
        self._ended = True
        return holding.finish(self)

    def _begin_phase(self, phase: Phase, start: Checkpoint | None) -> None:
        self.phase, first = phase, self.optimizer is None
        self._run = self.model  # no wrapper may live while something is thawed
        self.devices.unwrap()
        gc.collect()
        self.schedule.keep(self.model, self.optimizer)
        self.schedule.freeze(self.model, phase)
        self._run = self.devices.wrap(self.model, compiled=self.settings.compile)
        if first:
            for method in self.methods.values():
                method.start(self.model)
        if start is not None:
            holding.take_tensors(self, start)
        if self.average is not None:
            self.average.begin(self.model)
        self.optimizer = self.schedule.make(self.model, phase)
        self.learning = dict(names_of(self.optimizer, self.model))
        mode = phase.normalization or str(self.settings.normalization)
        self.normalization = Normalization(self.model, mode)
        self.feed.begin(self.model, phase)
        self._fresh = True
        learning = f"{self.model.count_parameters(trainable_only=True):,}"
        facts = {"rate": phase.rate, "parameters": learning, "normalization": mode}
        self.display.phase(phase.title, {"epochs": phase.epochs, **facts})

    def _end_phase(self) -> None:
        self.display.end_phase()
        for method in self.methods.values():
            method.after_phase(self)
        if self.devices.strategy == "ddp":
            self.devices.check_equal(self.model.state_dict().items(), "weights")
        self.position.phase += 1
        self.position.epoch = 0
        holding.save(self)

    def _phase_is_over(self) -> bool:
        done, patience = self.position.epoch, self.phase.stop_early
        if patience is None or not 0 < done < self.phase.epochs:
            return done >= self.phase.epochs
        figures = [row[self.settings.best] for row in self.progress.rows[-done:]]
        best = min(figures) if self.settings.lower_is_better else max(figures)
        return done - 1 - figures.index(best) >= patience

    # -- an epoch ----------------------------------------------------------------------------------

    def _epoch(self) -> None:
        where, begin = self.position, time.monotonic()
        first = where.step
        self.display.epoch(where.epochs + 1, steps=self.schedule.steps)
        if first < self.schedule.steps:
            self.normalization.training()
            for batch in self.feed.training_batches(where.epochs, first):
                self._step(batch)
                every = self.settings.save_every
                if self.asked_to_stop():
                    self.stop()
                if every and where.steps % every == 0 and where.step < self.schedule.steps:
                    holding.save(self)
        look(self)
        seconds = time.monotonic() - begin
        self._settle_statistics()
        evaluation = self.evaluate()
        self._note(evaluation)
        images = self.feed.num_images * (self.schedule.steps - first) / self.schedule.steps
        self.speed.append({
            "epoch": where.epochs,
            "seconds": round(time.monotonic() - begin, 3),
            "images_per_second": round(images / max(seconds, 1e-9), 1),
        })  # fmt: skip
        self.display.row(self.progress.rows[-1], self.speed[-1])
        for method in self.methods.values():
            method.after_epoch(self, evaluation)
        if not self._phase_is_over():
            holding.save(self)  # else when the phase has ended
        holding.write_rows(self)

    def _settle_statistics(self) -> None:
        """Make the running statistics those that are used: equal in all replicas."""
        self.normalization.training()
        if self.normalization.mode == "reestimate":
            batches = self.feed.training_batches(self.position.epochs, 0)
            images = (self.feed.ready(batch.images) for batch in batches)
            self.normalization.estimate(images, self.feed.runs(self.model))
            self.devices.settle(self.model)
        self.devices.average_(tensor for _, tensor in self.normalization.statistics())

    def _note(self, evaluation: Evaluation) -> None:
        where, progress = self.position, self.progress
        check_loss(self, evaluation.figures["loss"])
        progress.rows.append(holding.row(self, evaluation, self._step_of_phase))
        progress.sums = {"loss": 0.0, "images": 0}
        where.epoch, where.epochs, where.step = where.epoch + 1, where.epochs + 1, 0
        figure = self.figure(evaluation)
        if self.settings.better(figure, progress.best.get("figure")):
            progress.best = {"figure": figure, "epoch": where.epochs}
            holding.save_best(self)

    # -- a step ------------------------------------------------------------------------------------

    @property
    def _step_of_phase(self) -> int:
        return self.position.epoch * self.schedule.steps + self.position.step

    def _step(self, batch: Any) -> None:
        """Step once. A fresh phase is watched while it does."""
        where, optimizer = self.position, self.optimizer
        assert optimizer is not None
        rate = self.schedule.set_rates(optimizer, self.phase, self._step_of_phase)
        watched = nullcontext()
        if self._fresh:
            warn_of_gap(self, batch)
            watched = first_step(self.model, optimizer, self.devices, self.phase.title)  # type: ignore[assignment]
        self.devices.seed(self.settings.seed, where.steps, self.devices.rank)
        with watched:
            self.new.append(backward(self, self._run, batch))
            if self.devices.device.type == "cpu" or len(self.new) >= _LOOK_EVERY:
                look(self)
            if self._fresh:
                check_gradients(self.model, self.devices)
            if self.settings.clip is not None:
                nn.utils.clip_grad_norm_(self.learning.values(), self.settings.clip)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._fresh = False
        where.step, where.steps = where.step + 1, where.steps + 1
        if self.average is not None:
            self.average.update(self.model, where.steps)
        sums = self.progress.sums
        figures = {"loss": sums["loss"] / max(sums["images"], 1), "rate": rate}
        self.display.step(where.steps, images=batch.total, figures=figures)

    # -- evaluation --------------------------------------------------------------------------------

    def evaluate(self) -> Evaluation:
        """Evaluate the weights that would be saved: their moving average, where there is one."""
        try:
            return assess(self)
        except StoppedError:
            self.stop()
            raise

    def figure(self, evaluation: Evaluation) -> float:
        """Return the figure by which the best epoch is chosen."""
        return evaluation.figures[self.settings.best]

    def weights(self) -> dict[str, Tensor]:
        """Return what would be saved: parameters (their moving average) and buffers, whole, on the
        CPU.
        """
        return holding.weights(self)

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Put such weights in place, at the end of the training."""
        holding.load_weights(self, tensors)

    # -- ends --------------------------------------------------------------------------------------

    def asked_to_stop(self) -> bool:
        """Return whether one of the processes was asked to end."""
        return self.devices.any(self.stopping.asked)

    def stop(self) -> None:
        """End, with a checkpoint.

        Raises:
            StoppedError: always.
        """
        if not self._ended:
            look(self)
            holding.save(self)
        raise StoppedError(
            f"SIGTERM was received: the state after step {self.position.steps} is saved in "
            f"{self.files.folder}. --resume goes on from there"
        )
