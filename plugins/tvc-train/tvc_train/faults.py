"""What ends a training early: a signal, and numbers that are none."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .devices import own
from .errors import TrainingError

__all__ = ["StoppedError", "Stopping", "check_finite", "culprit", "not_finite"]


class StoppedError(TrainingError):
    """A signal asked the training to end; its state is saved.

    Args:
        message: what was stopped, and how it goes on.
        code: with which the process ends: 143 after SIGTERM, 130 after Ctrl-C.
    """

    def __init__(self, message: str = "", *, code: int = 143) -> None:
        super().__init__(message)
        self.code = code


class Stopping:
    """Whether SIGTERM was received, as a scheduler sends it before it takes the machine away.

    Args:
        interrupts: whatever runs then is ended in the way that Ctrl-C ends it, in the place of
            looking at `asked` itself.
    """

    def __init__(self, *, interrupts: bool = False) -> None:
        self.asked, self._interrupts = False, interrupts

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
        if self._interrupts:
            signal.raise_signal(signal.SIGINT)


def check_finite(tensors: Iterable[tuple[str, Tensor]], when: str) -> None:
    """Refuse numbers that are none.

    Raises:
        TrainingError: a tensor has an infinite value or a NaN; the message names it.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise TrainingError(
                f"{when}, {name!r} has a value that is no finite number. Nothing of it was saved: "
                "the last checkpoint is from before. Lower the rate, or set training.clip"
            )


def not_finite(when: str, what: str) -> TrainingError:
    """Return the error about a loss or a gradient that is no finite number.

    Args:
        when: such as "at step 7".
        what: such as "the loss is nan".
    """
    return TrainingError(
        f"{when}, {what}. Nothing of it was saved: the last checkpoint is from before. Lower the "
        "rate, or set training.clip"
    )


def culprit(model: nn.Module) -> str:
    """Return which parameter of a model, or else the gradient of which, has a value that is no
    finite number; "" where none has.
    """
    for name, parameter in model.named_parameters():
        if not _is_finite(parameter):
            return f"the parameter {name!r} has a value that is no finite number"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not _is_finite(parameter.grad):
            return f"the gradient of {name!r} has a value that is no finite number"
    return ""


def _is_finite(tensor: Tensor) -> bool:
    mine = own(tensor)
    # a finite sum has finite terms, and takes a twentieth of the time; a large one is no proof
    return math.isfinite(float(mine.sum())) or bool(torch.isfinite(mine).all())
