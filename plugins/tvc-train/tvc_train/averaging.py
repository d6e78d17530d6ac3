"""A moving average of the weights (Polyak and Juditsky 1992; its warm-up as in Tan and Le 2019,
arXiv:1905.11946, whose reference code has it).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .devices import own

__all__ = ["MovingAverage"]


class MovingAverage:
    """The moving average of a model's parameters, by their names.

    Args:
        decay: the share of the old value.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.tensors: dict[str, Tensor] = {}
        self._moving: list[str] = []

    def begin(self, model: nn.Module) -> None:
        """Begin a phase: start with the parameters as they are, where there is no average yet."""
        self._moving = []
        for name, parameter in model.named_parameters():
            if name not in self.tensors:
                self.tensors[name] = parameter.detach().clone()
            # what is frozen again is still on its way to where its parameter stays
            if parameter.requires_grad or not own(self.tensors[name]).equal(own(parameter)):
                self._moving.append(name)

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Add the parameters after a step.

        Args:
            model: which is trained.
            steps: that were done, this one included.
        """
        share = 1 - min(self.decay, (1 + steps) / (10 + steps))
        known = dict(model.named_parameters())
        torch._foreach_lerp_(  # type: ignore[attr-defined]
            [self.tensors[name] for name in self._moving],
            [known[name] for name in self._moving],
            share,
        )

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Let the model have the average inside of this context."""
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        _copy(model, self.tensors)
        try:
            yield
        finally:
            _copy(model, before)


@torch.no_grad()
def _copy(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[name])
