"""The parts of a step: gradients of this process's share, and a look at the losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tvc_core import foreign

from .devices import own
from .errors import TrainingError
from .faults import culprit, not_finite

if TYPE_CHECKING:
    from .loop import Training

__all__ = ["Unseen", "backward", "check_loss", "look"]


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


def backward(training: Training, model: Callable[[Tensor], Any], batch: Any) -> Unseen:
    """Add the gradients of this process's share of a step, and return its figures.

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
    parts = min(parts, batch.total // devices.world)  # as many in each process: shards go together
    pieces = list(zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True))
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
    feed.after_backward(training.learning.values())
    norms, step = _norms(training), training.position.steps + 1
    return Unseen(step=step, loss=summed, norms=norms, images=batch.total)


def _norms(training: Training) -> Tensor:
    """Return the norm of the gradient of each parameter that learns, 0 where there is none; of one
    in shards, that of this process's.
    """
    zero = torch.zeros((), device=training.devices.device, dtype=training.devices.dtype)
    found = [zero if p.grad is None else p.grad for p in training.learning.values()]
    if training.devices.strategy == "fsdp":
        found = [own(each) for each in found]
    return torch.stack(torch._foreach_norm(found))


def look(training: Training) -> None:
    """Add the losses of the last steps to the sums.

    Raises:
        TrainingError: a loss or a gradient is no finite number; the message names step and
            parameter.
    """
    devices = training.devices
    for new in training.new:
        norms = zip(training.learning, new.norms.tolist(), strict=True)
        bad = [name for name, norm in norms if not math.isfinite(norm)]
        value, wrong = devices.total(float(new.loss), float(bool(bad)))
        if math.isfinite(value) and not wrong:
            training.progress.sums["loss"] += value
            training.progress.sums["images"] += new.images
            continue
        check_loss(training, value / new.images, step=new.step)
        found = devices.first_said(repr(bad[0]) if bad else "")
        what = f"the gradient of {found} has a value that is no finite number"
        raise not_finite(f"at step {new.step}", f"{what}; the loss is {value / new.images}")
    training.new = []


def check_loss(training: Training, loss: float, *, step: int | None = None) -> None:
    """Refuse a loss that is no finite number.

    Args:
        training: of which it is.
        loss: of all processes.
        step: of which it is; None of an evaluation.

    Raises:
        TrainingError: it is none; the message names step and parameter.
    """
    if not math.isfinite(loss):
        found = training.devices.first_said(culprit(training.model)) or "with finite parameters"
        when = (
            f"at step {step}" if step else f"in the evaluation after step {training.position.steps}"
        )
        raise not_finite(when, f"the loss is {loss}: {found}")
