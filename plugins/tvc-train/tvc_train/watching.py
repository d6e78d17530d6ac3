"""What is looked at in the first step of a phase: that what is frozen stays, that what learns is in
the optimizer, that replicas have the same gradients, and that training and evaluation compute the
same.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tvc_core import AuditReport, HybridModel, audit, join_names

from .devices import Devices, own
from .errors import TrainingError
from .state import TrainingState

__all__ = ["check_gradients", "first_step", "warn_of_gap"]

_GAP = 0.5
"""Part of the loss by which the two modes may differ before it is said."""


@contextmanager
def first_step(
    model: HybridModel, optimizer: torch.optim.Optimizer, devices: Devices, phase: str
) -> Iterator[None]:
    """Watch the first step of a phase.

    Raises:
        TrainingError: what is frozen has moved, or what learns is not in the optimizer.
    """
    shards = devices.strategy == "fsdp"
    watched = _audit_shards(model, optimizer, devices) if shards else audit(model, optimizer)
    with watched as report:
        yield
    if report.moved or report.not_in_optimizer:
        raise TrainingError(f"phase {phase!r} does something other than it says:\n{report}")
    if report.without_gradient:
        warnings.warn(
            f"phase {phase!r}: {len(report.without_gradient)} parameters are trainable and no "
            f"gradient reaches them: {join_names(report.without_gradient, most=4)}",
            UserWarning,
            stacklevel=2,
        )


@contextmanager
def _audit_shards(
    model: HybridModel, optimizer: torch.optim.Optimizer, devices: Devices
) -> Iterator[AuditReport]:
    """Watch a step of a model in shards, each process its own, as `audit` does a whole one."""
    devices.settle(model)
    frozen = {name: own(tensor).clone() for name, tensor in _resting(model)}
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    report = AuditReport(num_frozen=len(frozen), num_trainable=len(learning))
    yield report
    devices.settle(model)
    now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    moved = [n for n, before in frozen.items() if n not in now or not own(now[n]).equal(before)]
    here = {name for found in devices.everyone(moved) for name in found}
    report.moved = tuple(name for name in frozen if name in here)
    report.without_gradient = tuple(name for name in learning if now[name].grad is None)
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    report.not_in_optimizer = tuple(name for name in learning if id(now[name]) not in known)
    report.finished = True


def _resting(model: HybridModel) -> Iterator[tuple[str, Tensor]]:
    """Yield what may not move: frozen parameters, and buffers of what is in evaluation mode."""
    yield from ((name, p) for name, p in model.named_parameters() if not p.requires_grad)
    for path, module in model.named_modules():
        if not module.training:
            yield from module.named_buffers(prefix=path, recurse=False)


def check_gradients(model: HybridModel, devices: Devices) -> None:
    """Compare the gradients of all replicas.

    Raises:
        TrainingError: they differ.
    """
    if devices.strategy == "ddp":
        found = ((n, p.grad) for n, p in model.named_parameters() if p.grad is not None)
        devices.check_equal(found, "gradients")


def warn_of_gap(state: TrainingState, batch: Any) -> None:
    """Warn where the same images have another loss in training mode than in evaluation mode."""
    feed, devices = state.feed, state.devices
    if devices.strategy == "fsdp":
        return
    images, targets = feed.ready(batch.images), batch.targets.to(devices.device)

    def loss() -> Tensor:
        return state.loss(feed.runs(state.model)(images), targets) / len(images)

    found = state.normalization.gap(loss)
    if found is None:
        return
    moved, settled = found
    if abs(moved - settled) > _GAP * max(abs(settled), abs(moved)):
        warnings.warn(
            f"phase {state.phase.title!r}: the same images have the loss {moved:.3g} with the "
            f"statistics of their batch and {settled:.3g} with running ones, so the model learns "
            "something other than is evaluated. 'normalization: fixed' keeps the running ones",
            UserWarning,
            stacklevel=2,
        )
