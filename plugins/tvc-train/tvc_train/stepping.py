"""The parts of a step: gradients of this process's share, and a look at the losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from tvc_core import foreign

from .devices import own
from .errors import TrainingError
from .faults import culprit, not_finite
from .state import TrainingState, Unseen

__all__ = ["backward", "check_loss", "look"]


def backward(state: TrainingState, model: Callable[[Tensor], Any], batch: Any) -> Unseen:
    """Add the gradients of this process's share of a step, and return its figures.

    Args:
        state: which steps.
        model: wrapped as it is trained.
        batch: of this process.
    """
    feed, devices, parts = state.feed, state.devices, state.settings.accumulate
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
        with devices.part(state.model, last=last):
            with devices.autocast(), compiling if state.settings.compile else nullcontext():
                loss = state.loss(run(some), wanted)
            summed += loss.detach()
            total = loss * share
            if last and state.methods:
                total = _penalized(state, total)
            total.backward()
    feed.after_backward(state.learning.values())
    norms, step = _norms(state), state.position.steps + 1
    return Unseen(step=step, loss=summed, norms=norms, images=batch.total)


def _penalized(state: TrainingState, loss: Tensor) -> Tensor:
    """Return a loss with what the methods add to it."""
    state.devices.settle(state.model)  # methods see shards of all parameters, or of none
    for method in state.methods.values():
        extra = method.penalty(state.model)
        if extra is not None:
            loss = loss + extra
    return loss


def _norms(state: TrainingState) -> Tensor:
    """Return the norm of the gradient of each parameter that learns, 0 where there is none; of one
    in shards, that of this process's.
    """
    zero = torch.zeros((), device=state.devices.device, dtype=state.devices.dtype)
    found = [zero if p.grad is None else p.grad for p in state.learning.values()]
    if state.devices.strategy == "fsdp":
        found = [own(each) for each in found]
    return torch.stack(torch._foreach_norm(found))


def look(state: TrainingState) -> None:
    """Add the losses of the last steps to the sums.

    Raises:
        TrainingError: a loss or a gradient is no finite number; the message names step and
            parameter.
    """
    devices = state.devices
    for new in state.new:
        norms = zip(state.learning, new.norms.tolist(), strict=True)
        bad = [name for name, norm in norms if not math.isfinite(norm)]
        value, wrong = devices.total(float(new.loss), float(bool(bad)))
        if math.isfinite(value) and not wrong:
            state.progress.sums["loss"] += value
            state.progress.sums["images"] += new.images
            continue
        check_loss(state, value / new.images, step=new.step)
        found = devices.first_said(repr(bad[0]) if bad else "")
        what = f"the gradient of {found} has a value that is no finite number"
        raise not_finite(f"at step {new.step}", f"{what}; the loss is {value / new.images}")
    state.new = []


def check_loss(state: TrainingState, loss: float, *, step: int | None = None) -> None:
    """Refuse a loss that is no finite number.

    Args:
        state: of which it is.
        loss: of all processes.
        step: of which it is; None of an evaluation.

    Raises:
        TrainingError: it is none; the message names step and parameter.
    """
    if not math.isfinite(loss):
        found = state.devices.first_said(culprit(state.model)) or "with finite parameters"
        when = f"at step {step}" if step else f"in the evaluation after step {state.position.steps}"
        raise not_finite(when, f"the loss is {loss}: {found}")
