"""Look, before a training begins, whether what is frozen in each phase can be computed once."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext

import torch

from tvc_core import HybridModel

from ..data import Transforms
from ..devices import Devices
from ..errors import TrainingError
from ..modes import modes_kept
from ..phases import Phase, PhaseSchedule
from .cutting import CutError, cut

__all__ = ["COMPILED", "check_cuts", "check_devices", "refused"]

COMPILED = "data.cache: a compiled model cannot be cut; leave one of them out"


def refused(phase: Phase, error: CutError) -> TrainingError:
    """Return the error of a phase in which features would be wrong."""
    return TrainingError(
        f"data.cache: phase {phase.title!r}: {error}. Leave the cache out, or freeze what stands "
        "there"
    )


def check_devices(devices: Devices) -> None:
    """Refuse processes that cannot have cached features.

    Raises:
        TrainingError: there are several machines, or the model is in shards.
    """
    if devices.nodes > 1:
        raise TrainingError(
            f"data.cache: features are kept on one machine, and there are {devices.nodes}. Leave "
            "the cache out, or train on one machine: without what is frozen, little is left to "
            "compute"
        )
    if devices.strategy == "fsdp":
        raise TrainingError(
            "data.cache: with the strategy fsdp, layers are whole only while all of the model "
            "runs, so no part of it can run alone. Use ddp, or leave the cache out"
        )


def check_cuts(
    model: HybridModel, schedule: PhaseSchedule, transforms: Transforms, *, compiled: bool
) -> None:
    """Refuse phases in which cached features would be wrong, also those that come after others. The
    model is as before afterwards.

    Args:
        model: the hybrid.
        schedule: of all phases.
        transforms: of images to train on.
        compiled: the model is to be compiled.

    Raises:
        TrainingError: something is frozen, and yet its features would be wrong.
    """
    state = model.freeze_state()
    channels = len(transforms.preprocessing.mean)
    generator = torch.Generator().manual_seed(0)
    with modes_kept(model), ExitStack() as stack:
        stack.callback(model.load_freeze_state, state)
        for phase in schedule.phases:
            schedule.freeze(model, phase)
            sized = transforms if phase.size is None else transforms.resized(phase.size)
            shape = (2, channels, *sized.preprocessing.size)
            pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
            model.train()
            try:
                with torch.random.fork_rng(devices=[]):
                    cut(model, sized.normalize(pixels), nullcontext)
            except CutError as error:
                if not error.all_learns:
                    raise refused(phase, error) from error
            else:
                if compiled:
                    raise TrainingError(COMPILED)
