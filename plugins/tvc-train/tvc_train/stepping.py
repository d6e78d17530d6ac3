"""The parts of a step: gradients of this process's share, and a look at the losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tvc_core import foreign

from .errors import TrainingError
from .faults import not_finite

if TYPE_CHECKING:
    from .loop import Training

__all__ = ["backward", "look"]


def backward(training: Training, model: Callable[[Tensor], Any], batch: Any) -> Tensor:
    """Add the gradients of this process's share of a step, and return the sum of its losses.

    Args:
        training: which steps.
        model: wrapped as it is trained.
        batch: of this process.
    """
    feed, devices, parts = training.feed, training.devices, training.settings.accumulate
    images, targets = feed.ready(batch.images), batch.targets.to(devices.device)
    run = feed.runs(model)
    share = devices.world / batch.total  # the mean over processes is taken of gradients
    summed = torch.zeros((), device=images.device, dtype=devices.dtype)
    compiling = foreign(
        TrainingError, "training.compile: torch.compile fails here", advice="Leave it out."
    )
    pieces = list(zip(images.chunk(parts), targets.chunk(parts), strict=True))
    for number, (some, wanted) in enumerate(pieces, 1):
        last = number == len(pieces)
        with devices.part(training.model, last=last):
            with devices.autocast(), compiling if training.settings.compile else nullcontext():
                loss = training.loss(run(some), wanted)
            summed += loss.detach()
            total = loss * share
            for method in training.methods.values() if last else ():
                extra = method.penalty(training.model)
                total = total if extra is None else total + extra
            total.backward()
    return summed


def look(training: Training) -> None:
    """Add the losses of the last steps to the sums.

    Raises:
        TrainingError: one is no finite number; the message names step and parameter.
    """
    for step, loss, total in training.new:
        (value,) = training.devices.total(float(loss))
        if not math.isfinite(value):
            raise not_finite(training.model, value / total, f"at step {step}")
        training.progress.sums["loss"] += value
        training.progress.sums["images"] += total
    training.new = []
