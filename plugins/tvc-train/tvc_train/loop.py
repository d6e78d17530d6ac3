"""The loop: steps, epochs and phases, each from a position that a checkpoint can hold."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from tvc_core import HybridModel

from . import holding
from .assessing import assess
from .checkpoints import Checkpoint
from .evaluating import Evaluation
from .faults import StoppedError
from .normalization import Normalization
from .optimizers import names_of
from .phases import Phase
from .progress import Position
from .settings import TrainingSettings
from .state import TrainingState
from .stepping import backward, check_loss, look
from .watching import check_gradients, first_step, warn_of_gap

__all__ = ["Loop"]

_LOOK_EVERY = 20
"""Steps between two looks at the loss where looking waits for the device."""


class Loop:
    """A training from its first step to its last.

    Args:
        state: of the training, at its beginning.
    """

    def __init__(self, state: TrainingState) -> None:
        self.state = state
        self._run: Callable[[Tensor], Any] = state.model
        self._fresh = True  # no step of the phase was watched yet
        self._ended = False  # the last checkpoint is written

    # -- what methods see --------------------------------------------------------------------------

    @property
    def model(self) -> HybridModel:
        """The hybrid that is trained, where it computes."""
        return self.state.model

    @property
    def settings(self) -> TrainingSettings:
        """How it is trained."""
        return self.state.settings

    @property
    def labels(self) -> str:
        """What an image has: "one" class, or "many"."""
        return self.state.loss.labels

    @property
    def phases(self) -> Sequence[Phase]:
        """All phases."""
        return self.state.schedule.phases

    @property
    def position(self) -> Position:
        """Where the training is."""
        return self.state.position

    def evaluate(self) -> Evaluation:
        """Evaluate the weights that would be saved: their moving average, where there is one."""
        try:
            return assess(self.state)
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
        return holding.weights(self.state)

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Put such weights in place, at the end of the training."""
        holding.load_weights(self.state, tensors)

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
        state = self.state
        if start is not None:
            holding.take_progress(state, start)
        while self.position.phase < len(self.phases):
            self._begin_phase(self.phases[self.position.phase], start)
            start = None
            while not self._phase_is_over():
                self._epoch()
            self._end_phase()
        if start is not None:  # it was killed after its last epoch
            self._begin_phase(self.phases[-1], start)
        return self._finish()

    def _begin_phase(self, phase: Phase, start: Checkpoint | None) -> None:
        state = self.state
        state.phase, first = phase, state.optimizer is None
        self._run = state.model  # no wrapper may live while something is thawed
        state.devices.unwrap()
        gc.collect()
        state.schedule.keep(state.model, state.optimizer)
        state.schedule.freeze(state.model, phase)
        self._run = state.devices.wrap(state.model, compiled=state.settings.compile)
        if first:
            for method in state.methods.values():
                method.start(state.model)
        if start is not None:
            holding.take_tensors(state, start)
        if state.average is not None:
            state.average.begin(state.model)
        state.optimizer = state.schedule.make(state.model, phase)
        state.learning = dict(names_of(state.optimizer, state.model))
        mode = phase.normalization or str(state.settings.normalization)
        state.normalization = Normalization(state.model, mode)
        state.feed.begin(state.model, phase)
        self._fresh = True
        learning = f"{state.model.count_parameters(trainable_only=True):,}"
        facts = {"rate": phase.rate, "parameters": learning, "normalization": mode}
        state.display.phase(phase.title, {"epochs": phase.epochs, **facts})

    def _end_phase(self) -> None:
        state = self.state
        state.display.end_phase()
        for method in state.methods.values():
            method.after_phase(self)
        if state.devices.strategy == "ddp":
            state.devices.check_equal(state.model.state_dict().items(), "weights")
        self.position.phase += 1
        self.position.epoch = 0
        holding.save(state)

    def _phase_is_over(self) -> bool:
        state = self.state
        done, patience = self.position.epoch, state.phase.stop_early
        if patience is None or not 0 < done < state.phase.epochs:
            return done >= state.phase.epochs
        figures = [row[state.settings.best] for row in state.progress.rows[-done:]]
        best = min(figures) if state.settings.lower_is_better else max(figures)
        return done - 1 - figures.index(best) >= patience

    # -- an epoch ----------------------------------------------------------------------------------

    def _epoch(self) -> None:
        state = self.state
        where, begin = self.position, time.monotonic()
        first = where.step
        state.display.epoch(where.epochs + 1, steps=state.schedule.steps)
        if first < state.schedule.steps:
            state.normalization.training()
            for batch in state.feed.training_batches(where.epochs, first):
                self._step(batch)
                every = state.settings.save_every
                if state.asked_to_stop():
                    self.stop()
                if every and where.steps % every == 0 and where.step < state.schedule.steps:
                    holding.save(state)
        look(state)
        seconds = time.monotonic() - begin
        self._settle_statistics()
        evaluation = self.evaluate()
        self._note(evaluation)
        images = state.feed.num_images * (state.schedule.steps - first) / state.schedule.steps
        state.speed.append({
            "epoch": where.epochs,
            "seconds": round(time.monotonic() - begin, 3),
            "images_per_second": round(images / max(seconds, 1e-9), 1),
        })  # fmt: skip
        state.display.row(state.progress.rows[-1], state.speed[-1])
        for method in state.methods.values():
            method.after_epoch(self, evaluation)
        if not self._phase_is_over():
            holding.save(state)  # else when the phase has ended
        holding.write_rows(state)

    def _settle_statistics(self) -> None:
        """Make the running statistics those that are used: equal in all replicas."""
        state = self.state
        state.normalization.training()
        if state.normalization.mode == "reestimate":
            feed, average, where = state.feed, state.average, self.position
            images = (feed.ready(batch.images) for batch in feed.batches_again(where.epochs))
            # what is dropped at random is the same in a run that goes on here
            state.devices.seed(state.settings.seed, where.steps, state.devices.rank)
            with nullcontext() if average is None else average.in_place(state.model):
                state.normalization.estimate(images, lambda each: feed.runs(state.model)(each))
                state.devices.settle(state.model)  # what is put back is in shards
        state.devices.average_(tensor for _, tensor in state.normalization.statistics())

    def _note(self, evaluation: Evaluation) -> None:
        state = self.state
        where, progress = self.position, state.progress
        check_loss(state, evaluation.figures["loss"])
        progress.rows.append(holding.row(state, evaluation, self._step_of_phase))
        progress.sums = {"loss": 0.0, "images": 0}
        where.epoch, where.epochs, where.step = where.epoch + 1, where.epochs + 1, 0
        figure = self.figure(evaluation)
        if state.settings.better(figure, progress.best.get("figure")):
            progress.best = {"figure": figure, "epoch": where.epochs}
            holding.save_best(state)

    # -- a step ------------------------------------------------------------------------------------

    @property
    def _step_of_phase(self) -> int:
        where = self.position
        return where.epoch * self.state.schedule.steps + where.step

    def _step(self, batch: Any) -> None:
        """Step once. A fresh phase is watched while it does."""
        state = self.state
        where, optimizer = self.position, state.optimizer
        assert optimizer is not None
        rate = state.schedule.set_rates(optimizer, state.phase, self._step_of_phase)
        watched = nullcontext()
        if self._fresh:
            warn_of_gap(state, batch)
            watched = first_step(state.model, optimizer, state.devices, state.phase.title)  # type: ignore[assignment]
        state.devices.seed(state.settings.seed, where.steps, state.devices.rank)
        with watched:
            state.new.append(backward(state, self._run, batch))
            if state.devices.device.type == "cpu" or len(state.new) >= _LOOK_EVERY:
                look(state)
            if self._fresh:
                check_gradients(state.model, state.devices)
            if state.settings.clip is not None:
                nn.utils.clip_grad_norm_(state.learning.values(), state.settings.clip)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._fresh = False
        where.step, where.steps = where.step + 1, where.steps + 1
        if state.average is not None:
            state.average.update(state.model, where.steps)
        sums = state.progress.sums
        figures = {"loss": sums["loss"] / max(sums["images"], 1), "rate": rate}
        state.display.step(where.steps, images=batch.total, figures=figures)

    # -- ends --------------------------------------------------------------------------------------

    def _finish(self) -> Evaluation:
        """Leave the weights to keep in the model, and return their evaluation."""
        state = self.state
        self._ended = True
        self.load_weights(holding.kept_weights(state))
        for method in state.methods.values():
            method.finish(self)
        holding.write_rows(state)
        return self.evaluate()

    def stop(self) -> None:
        """End, with a checkpoint.

        Raises:
            StoppedError: always.
        """
        state = self.state
        if not self._ended:
            look(state)
            holding.save(state)
        raise StoppedError(
            f"SIGTERM was received: the state after step {self.position.steps} is saved in "
            f"{state.files.folder}. --resume goes on from there"
        )
