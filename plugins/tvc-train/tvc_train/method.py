"""What a method of fine-tuning is, and what it may ask of the training that it is part of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from tvc_core import HybridModel

from .evaluating import Evaluation
from .phases import Phase
from .progress import Position
from .settings import TrainingSettings

__all__ = ["Method", "Training"]


class Training(Protocol):
    """A training that runs, as its methods see it."""

    @property
    def model(self) -> HybridModel:
        """The hybrid that is trained, where it computes."""

    @property
    def settings(self) -> TrainingSettings:
        """How it is trained."""

    @property
    def labels(self) -> str:
        """What an image has: "one" class, or "many"."""

    @property
    def phases(self) -> Sequence[Phase]:
        """All phases."""

    @property
    def position(self) -> Position:
        """Where it is: between two steps."""

    def evaluate(self) -> Evaluation:
        """Evaluate the weights that would be saved on the held-out images."""

    def figure(self, evaluation: Evaluation) -> float:
        """Return the figure by which the best epoch is chosen."""

    def weights(self) -> dict[str, Tensor]:
        """Return what would be saved: parameters (their moving average) and buffers, whole, on the
        CPU.
        """

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Put such weights in place, at the end of the training."""


class Method:
    """A way to fine-tune; every hook does nothing here.

    What a method has to remember until the end goes into `tensors` and `facts`: both are part of
    every checkpoint, and back in place when a run goes on.
    """

    changes_weights = False
    """`finish` puts other weights in place of those of the last epoch, which are then saved."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.facts: dict[str, Any] = {}

    def phases(self, phases: tuple[Phase, ...], *, size: int) -> tuple[Phase, ...]:
        """Return the phases of the training.

        Args:
            phases: those of the recipe.
            size: side of the images [pixels].
        """
        return phases

    def check(self, phases: tuple[Phase, ...]) -> None:
        """Look at the phases that are trained, after every method has changed them.

        Raises:
            ParameterError: the method would do nothing with them.
        """

    def start(self, model: HybridModel) -> None:
        """Look at the model as it is before the first step. Called also when a run goes on."""

    def penalty(self, model: HybridModel) -> Tensor | None:
        """Return what is added to the loss of a step.

        With FSDP2 parameters are shards: of `parameter.to_local()`, which is this process's, a sum
        over all of them has the right gradients.
        """
        return None

    def after_epoch(self, training: Training, evaluation: Evaluation) -> None:
        """Act after an epoch, with what the evaluation found."""

    def after_phase(self, training: Training) -> None:
        """Act after a phase."""

    def finish(self, training: Training) -> None:
        """Act at the end of the training, after the weights to keep are in place."""
