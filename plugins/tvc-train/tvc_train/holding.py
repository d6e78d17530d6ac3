"""What of a training is held: written to checkpoints and read back, and what is left at its end."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from .errors import TrainingError
from .evaluating import Evaluation
from .faults import check_finite
from .progress import Progress

if TYPE_CHECKING:
    from .loop import Training

__all__ = [
    "finish", "load_weights", "row", "save", "save_best", "take_progress", "take_tensors",
    "weights", "write_rows",
]  # fmt: skip


def save(training: Training) -> None:
    """Write a checkpoint of where the training is.

    Raises:
        TrainingError: it cannot be written, or has a value that is no finite number.
    """
    training.schedule.keep(training.model, training.optimizer)
    whole = training.devices.whole
    tensors: dict[str, Tensor] = {}
    for name, tensor in whole(training.model.state_dict().items()).items():
        tensors[f"model.{name}"] = tensor
    if training.average is not None:
        for name, tensor in whole(training.average.tensors.items()).items():
            tensors[f"ema.{name}"] = tensor
    for name, state in training.schedule.kept.items():
        for key, tensor in whole(state.items()).items():
            tensors[f"optimizer.{key}.{name}"] = tensor
    tensors |= _statistics(training)
    for name, method in training.methods.items():
        for key, tensor in method.tensors.items():
            tensors[f"method.{name}.{key}"] = tensor
        training.progress.methods[name] = method.facts
    content = {"key": training.key, "progress": training.progress.to_mapping()}
    step = training.position.steps

    def write() -> None:
        check_finite(tensors.items(), f"after step {step}")
        training.checkpoints.write(step, Checkpoint(content=content, tensors=tensors))

    training.devices.together(write)


def save_best(training: Training) -> None:
    """Write the weights of the best epoch.

    Raises:
        TrainingError: as for `save`.
    """
    tensors = {f"model.{name}": tensor for name, tensor in weights(training).items()}
    content = {"key": training.key, "best": training.progress.best}

    def write() -> None:
        check_finite(tensors.items(), f"after step {training.position.steps}")
        write_checkpoint(training.checkpoints.best, Checkpoint(content=content, tensors=tensors))

    training.devices.together(write)


def take_progress(training: Training, start: Checkpoint) -> None:
    """Go to where a checkpoint was.

    Raises:
        TrainingError: it does not fit.
    """
    training.progress = Progress.from_mapping(
        start.content.get("progress", {}),
        phases=len(training.phases),
        steps=training.schedule.steps,
    )
    training.speed = [
        row for row in training.files.read_rows(training.files.speed)
        if int(row.get("epoch") or 0) <= training.position.epochs
    ]  # fmt: skip


def take_tensors(training: Training, start: Checkpoint) -> None:
    """Put the tensors of a checkpoint in place: weights, their average, and what the optimizer and
    methods remember.

    Raises:
        TrainingError: they do not fit.
    """
    model = training.model
    current = model.state_dict()
    _fill(training, start.below("model"))
    parameters = dict(model.named_parameters())
    if training.average is not None:
        found = start.below("ema")
        _check(found, {name: current[name] for name in parameters}, "the moving average")
        training.average.tensors = {
            name: training.devices.like(found[name], parameters[name]) for name in parameters
        }
    kept: dict[str, dict[str, Tensor]] = {}
    for path, tensor in start.below("optimizer").items():
        key, _, name = path.partition(".")
        if name not in parameters or (tensor.ndim and tensor.shape != current[name].shape):
            raise TrainingError(f"its optimizer has a state of {name!r}, which does not fit")
        kept.setdefault(name, {})[key] = training.devices.like(tensor, parameters[name])
    training.schedule.kept = kept
    _take_statistics(training, start)
    for name, method in training.methods.items():
        method.tensors = start.below(f"method.{name}")
        method.facts = dict(training.progress.methods.get(name, {}))


def _statistics(training: Training) -> dict[str, Tensor]:
    """Return the statistics of each process's normalizations, by "statistics.RANK.NAME". They are
    averaged at the end of an epoch, and until then those of others are not the first one's.
    """
    devices = training.devices
    if devices.world == 1 or not training.position.step:
        return {}
    mine = {name: tensor.cpu() for name, tensor in training.normalization.statistics()}
    return {
        f"statistics.{rank}.{name}": tensor
        for rank, found in enumerate(devices.everyone(mine))
        for name, tensor in found.items()
    }


def _take_statistics(training: Training, start: Checkpoint) -> None:
    """Put this process's statistics in place; their mean where there are other processes now."""
    shares = [*takewhile(bool, (start.below(f"statistics.{rank}") for rank in count()))]
    buffers = dict(training.model.named_buffers())
    for name in shares[0] if shares else ():
        found = [share.get(name, torch.empty(0)) for share in shares]
        if name not in buffers or any(each.shape != buffers[name].shape for each in found):
            raise TrainingError(f"its statistics of {name!r} do not fit")
        same = len(shares) == training.devices.world
        own = found[training.devices.rank] if same else torch.stack(found).mean(0)
        buffers[name].copy_(own)


def _fill(training: Training, found: Mapping[str, Tensor]) -> None:
    current = training.model.state_dict()
    _check(found, current, "the model")
    training.model.load_state_dict(
        {name: training.devices.like(found[name], current[name]) for name in current}
    )


def _check(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    if missing := wanted.keys() ^ found.keys():
        raise TrainingError(f"its tensors are not those of {what}: {sorted(missing)[0]!r}")
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            raise TrainingError(
                f"{name!r} of {what} is {list(tensor.shape)} of {tensor.dtype}, and in the "
                f"checkpoint {list(found[name].shape)} of {found[name].dtype}"
            )


def weights(training: Training) -> dict[str, Tensor]:
    """Return what would be saved: parameters (their moving average) and buffers, whole, on the
    CPU.
    """
    average, model = training.average, training.model
    with nullcontext() if average is None else average.in_place(model):
        found = training.devices.whole(model.state_dict().items())
        return {name: tensor.clone() for name, tensor in found.items()}


def load_weights(training: Training, tensors: Mapping[str, Tensor]) -> None:
    """Put weights in place, also of a moving average."""
    training.average = None
    _fill(training, tensors)


def finish(training: Training) -> Evaluation:
    """Leave the weights to keep in the model, and return their evaluation."""
    changed = any(method.changes_weights for method in training.methods.values())
    kept = weights(training)
    if training.settings.keep == "best" and not changed:
        try:
            kept = read_checkpoint(training.checkpoints.best).below("model")
        except TrainingError as error:
            warnings.warn(
                f"{error}. The weights of the last epoch are kept instead of the best",
                UserWarning,
                stacklevel=2,
            )
    load_weights(training, kept)
    for method in training.methods.values():
        method.finish(training)
    write_rows(training)
    return training.evaluate()


def write_rows(training: Training) -> None:
    """Write metrics.csv and speed.csv."""

    def write() -> None:
        training.files.write_rows(training.files.metrics, training.progress.rows)
        training.files.write_rows(training.files.speed, training.speed)

    training.devices.together(write)


def row(training: Training, evaluation: Evaluation, step: int) -> dict[str, Any]:
    """Return the row of an epoch.

    Args:
        training: after its last step.
        evaluation: of it.
        step: of the phase, that comes next.
    """
    where, sums = training.position, training.progress.sums
    return {
        "epoch": where.epochs + 1,
        "phase": training.phase.title,
        "steps": where.steps,
        "rate": training.schedule.rate(training.phase, step - 1),
        "train_loss": sums["loss"] / max(sums["images"], 1),
        **evaluation.figures,
        **_gates(training),
    }


def _gates(training: Training) -> dict[str, Any]:
    """Return how far each gate of a patch is open, by "gate/PATH": the mean of its absolute
    values.
    """
    found = {
        f"gate/{name.removeprefix('patches.').removesuffix('.alpha')}": tensor
        for name, tensor in training.model.named_parameters()
        if name.startswith("patches.") and name.endswith(".alpha")
    }
    whole = training.devices.whole(found.items())
    with torch.no_grad():
        return {name: float(tensor.abs().mean()) for name, tensor in whole.items()}
