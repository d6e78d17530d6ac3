"""Normalizations that also take a single value."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BatchNorm2d", "GroupNorm"]


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalization which, in training mode, normalizes a batch with one value of each
    channel by its running statistics, as in eval mode.

    One value has no spread, so torch refuses such a batch. Blocks that normalize pooled maps meet
    it in every batch of one image, such as the last one of an epoch.
    """

    tvc_computes_as = nn.BatchNorm2d  # so that SyncBatchNorm in its place is no other network

    def forward(self, input: Tensor) -> Tensor:
        """Normalize a map [N, C, H, W]."""
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


class GroupNorm(nn.GroupNorm):
    """Group normalization which takes groups of one value, and returns its bias for them. torch's
    refuses them.
    """

    tvc_computes_as = nn.GroupNorm

    def forward(self, input: Tensor) -> Tensor:
        """Normalize a map [N, C, ...]."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
