"""What a hybrid is known by, and what stands where a network that ends early has nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..errors import ParameterError

__all__ = ["LeftOut", "check_hybrid", "is_hybrid"]

TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    "NCHW to NC": lambda x: x.mean((2, 3)),
    "NHWC to NC": lambda x: x.mean((1, 2)),
    "NLC to NC": lambda x: x.mean(1),
    "NCHW to NLC": lambda x: x.flatten(2).transpose(1, 2),
    "NHWC to NLC": lambda x: x.flatten(1, 2),
    "NCHW to NHWC": lambda x: x.permute(0, 2, 3, 1),
    "NHWC to NCHW": lambda x: x.permute(0, 3, 1, 2),
}
"""What can be done to a map without knowing more than its layout; a vector is its mean."""


class LeftOut(nn.Module):
    """Stands where a module was that an early end has left out: returns what it gets.

    Args:
        turn: one of `TURNS`, where the module gave another layout than it gets now; "" for none.
    """

    def __init__(self, turn: str = "") -> None:
        super().__init__()
        self.turn = turn if turn in TURNS else ""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:  # of whatever it stands for
        return TURNS[self.turn](x) if self.turn else x

    def extra_repr(self) -> str:
        return self.turn


def is_hybrid(module: object) -> bool:
    """Return whether a module is a hybrid already."""
    return hasattr(type(module), "_hybrid_base")  # the mark of the classes made for hybrids


def check_hybrid(model: object, what: str) -> None:
    """Refuse what is not a hybrid.

    Args:
        model: what was given.
        what: the function that takes a hybrid, for the error.

    Raises:
        ParameterError: it is not a model that HybridBuilder made.
    """
    if not is_hybrid(model):
        raise ParameterError(
            f"{what} takes a model that HybridBuilder made, not {type(model).__name__}; of a "
            "wrapped one, what is inside: ddp.module, compiled._orig_mod"
        )
