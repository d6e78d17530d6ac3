"""What of a training is held: written to checkpoints and read back, and what is left at its end."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import count, takewhile
from typing import Any

import torch
from torch import Tensor

from .checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from .errors import TrainingError
from .evaluating import Evaluation
from .faults import check_finite
from .filling import fill
from .progress import Progress
from .state import TrainingState

__all__ = [
    "kept_weights", "load_weights", "row", "save", "save_best", "take_progress", "take_tensors",
    "weights", "write_rows",
]  # fmt: skip


def save(state: TrainingState) -> None:
    """Write a checkpoint of where the training is.

    Raises:
        TrainingError: it cannot be written, or has a value that is no finite number.
    """
    state.schedule.keep(state.model, state.optimizer)
    whole = state.devices.whole
    tensors: dict[str, Tensor] = {}
    for name, tensor in whole(state.model.state_dict().items()).items():
        tensors[f"model.{name}"] = tensor
    if state.average is not None:
        for name, tensor in whole(state.average.tensors.items()).items():
            tensors[f"ema.{name}"] = tensor
    for name, kept in state.schedule.kept.items():
        for key, tensor in whole(kept.items()).items():
            tensors[f"optimizer.{key}.{name}"] = tensor
    tensors |= _statistics(state)
    for name, method in state.methods.items():
        for key, tensor in method.tensors.items():
            tensors[f"method.{name}.{key}"] = tensor
        state.progress.methods[name] = method.facts
    content = {"key": state.key, "progress": state.progress.to_mapping()}
    step = state.position.steps

    def write() -> None:
        check_finite(tensors.items(), f"after step {step}")
        state.checkpoints.write(step, Checkpoint(content=content, tensors=tensors))

    state.devices.together(write)


def save_best(state: TrainingState) -> None:
    """Write the weights of the best epoch.

    Raises:
        TrainingError: as for `save`.
    """
    tensors = {f"model.{name}": tensor for name, tensor in weights(state).items()}
    content = {"key": state.key, "best": state.progress.best}

    def write() -> None:
        check_finite(tensors.items(), f"after step {state.position.steps}")
        write_checkpoint(state.checkpoints.best, Checkpoint(content=content, tensors=tensors))

    state.devices.together(write)


def take_progress(state: TrainingState, start: Checkpoint) -> None:
    """Go to where a checkpoint was.

    Raises:
        TrainingError: it does not fit.
    """
    state.progress = Progress.from_mapping(
        start.content.get("progress", {}),
        phases=len(state.schedule.phases),
        steps=state.schedule.steps,
    )
    state.speed = [
        row for row in state.files.read_rows(state.files.speed)
        if int(row.get("epoch") or 0) <= state.position.epochs
    ]  # fmt: skip


def take_tensors(state: TrainingState, start: Checkpoint) -> None:
    """Put the tensors of a checkpoint in place: weights, their average, and what the optimizer and
    methods remember.

    Raises:
        TrainingError: they do not fit.
    """
    model = state.model
    current = model.state_dict()
    _fill(state, start.below("model"))
    parameters = dict(model.named_parameters())
    if state.average is not None:
        found = start.below("ema")
        _check(found, {name: current[name] for name in parameters}, "the moving average")
        state.average.tensors = {
            name: state.devices.like(found[name], parameters[name]) for name in parameters
        }
    kept: dict[str, dict[str, Tensor]] = {}
    for path, tensor in start.below("optimizer").items():
        key, _, name = path.partition(".")
        if name not in parameters or (tensor.ndim and tensor.shape != current[name].shape):
            raise TrainingError(f"its optimizer has a state of {name!r}, which does not fit")
        kept.setdefault(name, {})[key] = state.devices.like(tensor, parameters[name])
    state.schedule.kept = kept
    _take_statistics(state, start)
    for name, method in state.methods.items():
        method.tensors = start.below(f"method.{name}")
        method.facts = dict(state.progress.methods.get(name, {}))


def _statistics(state: TrainingState) -> dict[str, Tensor]:
    """Return the statistics of each process's normalizations, by "statistics.RANK.NAME". They are
    averaged at the end of an epoch, and until then those of others are not the first one's.
    """
    devices = state.devices
    if devices.world == 1 or not state.position.step:
        return {}
    mine = {name: tensor.cpu() for name, tensor in state.normalization.statistics()}
    return {
        f"statistics.{rank}.{name}": tensor
        for rank, found in enumerate(devices.everyone(mine))
        for name, tensor in found.items()
    }


def _take_statistics(state: TrainingState, start: Checkpoint) -> None:
    """Put this process's statistics in place; their mean where there are other processes now."""
    shares = [*takewhile(bool, (start.below(f"statistics.{rank}") for rank in count()))]
    buffers = dict(state.model.named_buffers())
    for name in shares[0] if shares else ():
        found = [share.get(name, torch.empty(0)) for share in shares]
        if name not in buffers or any(each.shape != buffers[name].shape for each in found):
            raise TrainingError(f"its statistics of {name!r} do not fit")
        same = len(shares) == state.devices.world
        own = found[state.devices.rank] if same else torch.stack(found).mean(0)
        buffers[name].copy_(own)


def _fill(state: TrainingState, found: Mapping[str, Tensor]) -> None:
    current = state.model.state_dict()
    _check(found, current, "the model")
    fill(state.model, {name: state.devices.like(found[name], current[name]) for name in current})


def _check(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    if missing := wanted.keys() ^ found.keys():
        raise TrainingError(f"its tensors are not those of {what}: {sorted(missing)[0]!r}")
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            raise TrainingError(
                f"{name!r} of {what} is {list(tensor.shape)} of {tensor.dtype}, and in the "
                f"checkpoint {list(found[name].shape)} of {found[name].dtype}"
            )


def weights(state: TrainingState) -> dict[str, Tensor]:
    """Return what would be saved: parameters (their moving average) and buffers, whole, on the
    CPU.
    """
    average, model = state.average, state.model
    with nullcontext() if average is None else average.in_place(model):
        found = state.devices.whole(model.state_dict().items())
        return {name: tensor.clone() for name, tensor in found.items()}


def load_weights(state: TrainingState, tensors: Mapping[str, Tensor]) -> None:
    """Put weights in place, also of a moving average."""
    state.average = None
    _fill(state, tensors)


def kept_weights(state: TrainingState) -> dict[str, Tensor]:
    """Return the weights that are kept at the end: of the last epoch or of the best, as the
    settings and the methods have it.
    """
    kept = weights(state)  # in all processes, whatever each of them can read
    changed = any(method.changes_weights for method in state.methods.values())
    if state.settings.keep == "best" and not changed:
        try:
            kept = read_checkpoint(state.checkpoints.best).below("model")
        except TrainingError as error:
            warnings.warn(
                f"{error}. The weights of the last epoch are kept instead of the best",
                UserWarning,
                stacklevel=2,
            )
    return kept


def write_rows(state: TrainingState) -> None:
    """Write metrics.csv and speed.csv."""

    def write() -> None:
        state.files.write_rows(state.files.metrics, state.progress.rows)
        state.files.write_rows(state.files.speed, state.speed)

    state.devices.together(write)


def row(state: TrainingState, evaluation: Evaluation, step: int) -> dict[str, Any]:
    """Return the row of an epoch.

    Args:
        state: after its last step.
        evaluation: of it.
        step: of the phase, that comes next.
    """
    where, sums = state.position, state.progress.sums
    return {
        "epoch": where.epochs + 1,
        "phase": state.phase.title,
        "steps": where.steps,
        "rate": state.schedule.rate(state.phase, step - 1),
        "train_loss": sums["loss"] / max(sums["images"], 1),
        **evaluation.figures,
        **_gates(state),
    }


def _gates(state: TrainingState) -> dict[str, Any]:
    """Return how far each gate of a patch is open, by "gate/PATH": the mean of its absolute
    values.
    """
    found = {
        f"gate/{name.removeprefix('patches.').removesuffix('.alpha')}": tensor
        for name, tensor in state.model.named_parameters()
        if name.startswith("patches.") and name.endswith(".alpha")
    }
    whole = state.devices.whole(found.items())
    with torch.no_grad():
        return {name: float(tensor.abs().mean()) for name, tensor in whole.items()}
