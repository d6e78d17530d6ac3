"""The losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Focal", "smooth"]


class Focal(nn.Module):
    """The mean of (1 - p)^gamma * -log(p), with p the probability of the right class.

    Args:
        gamma: 0 is the cross entropy; the larger, the less an easy sample counts.

    Source: Lin et al. 2017, arXiv:1708.02002, equation 4.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of logits [N, K] for class numbers [N]."""
        entropy = F.cross_entropy(logits, targets, reduction="none")
        return ((1 - torch.exp(-entropy)) ** self.gamma * entropy).mean()


def smooth(amount: float = 0.1) -> nn.Module:
    """Return the cross entropy with smoothed labels.

    Args:
        amount: what of each label is spread over all classes, from 0 to 1.
    """
    return nn.CrossEntropyLoss(label_smoothing=amount)
