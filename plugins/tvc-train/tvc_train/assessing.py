"""Evaluate a model while it trains: on all processes, and looking at whether it has to end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from .evaluating import Evaluation, evaluate
from .faults import StoppedError
from .state import TrainingState

__all__ = ["assess"]


def assess(state: TrainingState) -> Evaluation:
    """Evaluate the weights that would be saved: their moving average, where there is one.

    Raises:
        StoppedError: a signal asked for the end; the weights that are trained are in place again.
    """
    model, feed, devices = state.model, state.feed, state.devices
    steps, done = feed.held_out_steps, 0
    state.display.epoch(state.position.epochs + 1, steps=steps, what="evaluate")

    def before_batch() -> None:
        nonlocal done
        if done < feed.common_steps and state.asked_to_stop():  # which every process asks
            raise StoppedError
        done += 1

    def forward(images: Tensor) -> Tensor:
        with devices.autocast():
            return feed.runs(model)(feed.ready(images))

    def run(images: Tensor) -> Tensor:
        state.display.step(state.position.steps, images=len(images) * devices.world)
        return forward(images)

    def batches() -> Iterator[Any]:
        yield from feed.evaluation_batches()
        if devices.strategy == "fsdp":  # no process can run the model alone
            for _ in range(feed.most_steps - feed.held_out_steps):
                forward(feed.any_image())

    average = state.average
    with nullcontext() if average is None else average.in_place(model):
        try:
            return evaluate(
                model,
                batches(),
                labels=feed.labels,
                device=devices.device,
                gather=devices.gather,
                before_batch=before_batch,
                forward=run,
            )
        finally:
            devices.settle(model)
