"""The loss of a batch, as a sum over its images, so that parts of it add up."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["Loss"]


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

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over images.

        Args:
            logits: [N, K].
            targets: class numbers [N], or the share of each class [N, K].
        """
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
