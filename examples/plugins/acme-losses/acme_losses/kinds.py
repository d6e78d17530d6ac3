"""What a loss is, for plugins that offer some. Light: imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tvc_core import Spec, hookspec

__all__ = ["LossSpec", "acme_losses"]


@dataclass(frozen=True, kw_only=True)
class LossSpec(Spec):
    """A loss for classifiers.

    The factory is a class or function `(**params) -> loss`, and the loss is called as
    `loss(logits, targets) -> scalar`.

    Args:
        targets: "classes" for numbers of classes [N], "masks" for zeros and ones of the shape of
            the logits.
    """

    kind: ClassVar[str] = "loss"

    targets: str = "classes"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets not in ("classes", "masks"):
            raise ValueError(
                f"LossSpec {self.name!r}: targets is 'classes' or 'masks', not {self.targets!r}"
            )


@hookspec
def acme_losses() -> list[LossSpec]:
    """Offer losses. Must not import torch. Since acme-losses 0.1."""
    raise NotImplementedError
