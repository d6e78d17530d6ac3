"""The loss of a batch, as a sum over its images, so that parts of it add up."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["Loss", "every_head"]

_AUXILIARY = 0.3
"""Weight of the loss of an auxiliary head (Szegedy et al. 2015, arXiv:1409.4842, section 5)."""


def every_head(outputs: Tensor | tuple[Tensor | None, ...]) -> list[Tensor]:
    """Return the logits [N, K] of each head of a model: its own first, then those of auxiliary
    heads, which GoogLeNet and Inception return beside it in training.
    """
    found = outputs if isinstance(outputs, tuple) else (outputs,)
    return [each for each in found if each is not None]


class Loss:
    """The loss of a classifier.

    Args:
        labels: "one" class an image, or "many".
        smoothing: share of the target that is spread over all classes.
        weights: of the classes [K]; of many labels, of their positives.
    """

    def __init__(
        self, labels: str, *, smoothing: float = 0.0, weights: Tensor | None = None
    ) -> None:
        self.labels, self.smoothing, self.weights = labels, smoothing, weights

    def __call__(self, outputs: Tensor | tuple[Tensor | None, ...], targets: Tensor) -> Tensor:
        """Return the sum over images, with 0.3 of that of each auxiliary head.

        Args:
            outputs: logits [N, K], or those of each head.
            targets: class numbers [N], or the share of each class [N, K].
        """
        own, *others = (self._of(logits, targets) for logits in every_head(outputs))
        for each in others:
            own = own + _AUXILIARY * each
        return own

    def _of(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits.float() if logits.element_size() < 4 else logits
        weights = None if self.weights is None else self.weights.to(logits)
        if targets.is_floating_point():
            targets = targets.to(logits.dtype)
        if self.labels == "many":
            wanted = targets * (1 - self.smoothing) + self.smoothing / 2
            found = F.binary_cross_entropy_with_logits(
                logits, wanted, pos_weight=weights, reduction="none"
            )
            return found.mean(1).sum()
        return F.cross_entropy(
            logits, targets, weight=weights, label_smoothing=self.smoothing, reduction="sum"
        )

    def plain(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over images without smoothing and weights, as evaluation has it."""
        if self.labels == "many":
            return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
        return F.cross_entropy(logits, targets)
