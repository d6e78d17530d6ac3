"""Evaluate a model while it trains: on all processes, and looking at whether it has to end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .evaluating import Evaluation, evaluate
from .faults import StoppedError

if TYPE_CHECKING:
    from .loop import Training

__all__ = ["assess"]


def assess(training: Training) -> Evaluation:
    """Evaluate the weights that would be saved: their moving average, where there is one.

    Raises:
        StoppedError: a signal asked for the end; the weights that are trained are in place again.
    """
    model, feed, devices = training.model, training.feed, training.devices
    steps, done = feed.held_out_steps, 0
    training.display.epoch(training.position.epochs + 1, steps=steps, what="evaluate")

    def before_batch() -> None:
        nonlocal done
        if done < feed.common_steps and training.asked_to_stop():  # which every process asks
            raise StoppedError
        done += 1

    def forward(images: Tensor) -> Tensor:
        with devices.autocast():
            return feed.runs(model)(feed.ready(images))

    def run(images: Tensor) -> Tensor:
        training.display.step(training.position.steps, images=len(images) * devices.world)
        return forward(images)

    def batches() -> Iterator[Any]:
        yield from feed.evaluation_batches()
        if devices.strategy == "fsdp":  # no process can run the model alone
            for _ in range(feed.most_steps - feed.held_out_steps):
                forward(feed.any_image())

    average = training.average
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
