"""What ends a training early: a signal, and numbers that are none."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .errors import TrainingError

__all__ = ["StoppedError", "Stopping", "check_finite", "not_finite"]


class StoppedError(TrainingError):
    """A signal asked the training to end; its state is saved."""


class Stopping:
    """Whether SIGTERM was received, as a scheduler sends it before it takes the machine away."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[Stopping]:
        """Listen inside of this context, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, before)

    def _note(self, number: int, frame: object) -> None:
        self.asked = True


def check_finite(tensors: Iterable[tuple[str, Tensor]], when: str) -> None:
    """Refuse numbers that are none.

    Raises:
        TrainingError: a tensor has an infinite value or a NaN; the message names it.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TrainingError(
                f"{when}, {name!r} has a value that is no finite number. Nothing of it was saved: "
                "the last checkpoint is from before. Lower the rate, or set training.clip"
            )


def not_finite(model: nn.Module, loss: float, when: str) -> TrainingError:
    """Return the error about a loss that is no finite number, which names the parameter that has
    it, or its gradient.
    """
    advice = (
        "Nothing of it was saved: the last checkpoint is from before. Lower the rate, or set "
        "training.clip"
    )
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return TrainingError(
                f"{when}, the loss is {loss}: the parameter {name!r} has a value that is no finite "
                f"number. {advice}"
            )
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return TrainingError(
                f"{when}, the loss is {loss}: the gradient of {name!r} has a value that is no "
                f"finite number. {advice}"
            )
    return TrainingError(f"{when}, the loss is {loss}, with finite parameters. {advice}")
