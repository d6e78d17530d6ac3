"""Choose what a recipe leaves to the machine: batch size and layout of images in memory, which are
timed in whole steps, rates, and what normalizations do with batches of that size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from tvc_core import HybridModel

from .data import Transforms, evaluation_batches, steps_in_epoch
from .data.order import epoch_order
from .devices import Devices
from .filling import fill
from .losses import Loss, every_head
from .normalization import default_normalization
from .phases import PhaseSchedule
from .planning import Plan

__all__ = ["choose"]

_SIZES = (8, 16, 32, 64, 128, 256)
_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
_BELOW_HEAD = 10
"""How many times the rate of stages that are thawed is below that of the head alone."""

_MOST_IMAGES = 2000
"""Images on which a rate is tried, at most."""

_FEW_STEPS = 100
"""Steps of a training below which it is not worth to time layouts."""

_WORTH = 1.1
"""How many times more images a second a larger batch has to bring, and another layout."""


def choose(
    plan: Plan, model: HybridModel, transforms: Transforms, devices: Devices
) -> dict[str, Any]:
    """Return the values of `batch_size`, `layout`, `normalization` and the rates of phases where
    they were left open.

    Args:
        plan: what is trained.
        model: which is as before afterwards.
        transforms: that say how large images are.
        devices: of this process.
    """
    found: dict[str, Any] = {}
    size = plan.training.batch_size
    channels = len(transforms.preprocessing.mean)
    shape = (channels, *transforms.preprocessing.size)
    state = model.freeze_state()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    devices.place(model)
    try:
        if size == "auto":
            size = found["batch_size"] = _batch_size(plan, model, shape, devices)
        if plan.training.normalization is None:
            images = plan.images_of_step(int(size)) // devices.world
            each = images // min(plan.training.accumulate, max(images, 1))
            pretrained = plan.recipe.weights is not None
            found["normalization"] = default_normalization(pretrained, each)
        if plan.training.layout == "auto":
            found["layout"] = _layout(plan, model, shape, devices, int(size))
        if any(phase.rate == "auto" for phase in plan.training.phases):
            rate = _rate(plan, model, transforms, devices, int(size))
            found["phases"] = [
                replace(
                    phase, rate=rate if phase.thaw == ("head",) else rate / _BELOW_HEAD
                ).to_mapping()
                if phase.rate == "auto"
                else phase.to_mapping()
                for phase in plan.training.phases
            ]
    finally:
        fill(model, kept)
        model.load_freeze_state(state)
    return found


def _batch_size(plan: Plan, model: HybridModel, shape: tuple[int, ...], devices: Devices) -> int:
    """Return the smallest size from which a larger one brings little, if an epoch still has ten
    steps.
    """
    most = max(_SIZES[0], len(plan.data.train) // 10)
    best, speed = _SIZES[0], 0.0
    for size in (size for size in _SIZES if size <= most):
        try:
            found = _speed(model, (size, *shape), devices)
        except (RuntimeError, MemoryError) as error:
            # Python's own, and numpy's, say it by their class
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            break
        if found > speed * _WORTH:
            best, speed = size, found
    return best * devices.world


def _layout(
    plan: Plan, model: HybridModel, shape: tuple[int, ...], devices: Devices, size: int
) -> str:
    """Return the layout with which the phases take less time, where it is worth to find out."""
    phases, steps = plan.training.phases, steps_in_epoch(len(plan.data.train), size)
    if steps * sum(phase.epochs for phase in phases) < _FEW_STEPS:
        return "contiguous"
    schedule = PhaseSchedule(phases, steps, **plan.freezing)

    def seconds(layout: torch.memory_format) -> float:
        # what is frozen is most of a step in one phase and little in another
        return sum(
            phase.epochs
            / _speed(
                model, (size // devices.world, *shape), devices, layout,
                partial(schedule.freeze, model, phase),
            )
            for phase in phases
        )  # fmt: skip

    plain, other = map(seconds, (torch.contiguous_format, torch.channels_last))
    return "channels_last" if plain > _WORTH * other else "contiguous"


def _rate(
    plan: Plan, model: HybridModel, transforms: Transforms, devices: Devices, size: int
) -> float:
    """Return the rate with which a new head on the features of the model learns most in some
    epochs.
    """
    parts = []
    model.eval()
    for samples, most in ((plan.data.train, _MOST_IMAGES), (plan.data.val, _MOST_IMAGES // 4)):
        some = samples.take(epoch_order(len(samples), seed=plan.training.seed, epoch=0)[:most])
        batches = evaluation_batches(some, transforms, batch_size=size, device=devices.device)
        with torch.no_grad():
            pairs = [
                (
                    model.forward_head(
                        model.forward_features(b.images.to(devices.dtype)), pre_logits=True
                    ).flatten(1),
                    b.targets,
                )
                for b in batches
            ]
        parts.append([torch.cat([pair[i] for pair in pairs]) for i in (0, 1)])
    (images, targets), (held_out, wanted) = parts
    loss = Loss(plan.data.labels)
    scores = {}
    for rate in _RATES:
        head = nn.Linear(images.shape[1], len(plan.data.classes)).to(images)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        optimizer = torch.optim.AdamW(head.parameters(), lr=rate)
        for epoch in range(5):
            order = torch.from_numpy(epoch_order(len(images), seed=plan.training.seed, epoch=epoch))
            for some in order.split(size):
                optimizer.zero_grad()
                (loss(head(images[some]), targets[some]) / len(some)).backward()
                optimizer.step()
        with torch.no_grad():
            scores[rate] = float(loss.plain(head(held_out), wanted))
    return min(scores, key=lambda rate: (scores[rate], rate))


def _speed(
    model: HybridModel,
    shape: tuple[int, ...],
    devices: Devices,
    layout: torch.memory_format = torch.contiguous_format,
    freeze: Callable[[], object] | None = None,
) -> float:
    """Return the images a second of whole steps, with all thawed or as `freeze` leaves it."""
    model.to(memory_format=layout)  # type: ignore[call-overload]
    (freeze or model.unfreeze_all)()
    model.train()
    images = torch.zeros(shape, device=devices.device, dtype=devices.dtype)
    images = images.contiguous(memory_format=layout)
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        with devices.autocast():
            found = every_head(model(images))
        sum(each.float().square().mean() for each in found).backward()  # type: ignore[union-attr]
        devices.wait()
        times.append(time.perf_counter() - begin)
        model.zero_grad(set_to_none=True)
    model.to(memory_format=torch.contiguous_format)
    return shape[0] / min(times)
