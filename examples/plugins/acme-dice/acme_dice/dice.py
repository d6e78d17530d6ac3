"""The loss."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Dice"]


class Dice(nn.Module):
    """1 - 2 * sum(p * t) / (sum(p) + sum(t)), with p the sigmoid of the logits.

    Source: Milletari et al. 2016, arXiv:1606.04797, without squares.
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of logits and masks of one shape."""
        p = logits.sigmoid()
        return 1 - 2 * (p * targets).sum() / (p.sum() + targets.sum())
