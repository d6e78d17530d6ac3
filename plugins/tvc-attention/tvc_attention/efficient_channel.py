"""Efficient Channel Attention.

Wang et al. 2020, "ECA-Net", arXiv:1910.03151.
"""

from __future__ import annotations

from torch import Tensor, nn

from .checks import odd_size
from .fused import neighbor_scores
from .mean_gate import MeanGate
from .widths import neighbor_kernel

__all__ = ["EfficientChannelAttention"]


class EfficientChannelAttention(MeanGate):
    """Scale each channel by a gate computed from the spatial means of its neighbors.

    Maps [N, C, H, W] to the same shape, dtype and device, with kernel_size parameters in all.

    Args:
        in_channels: C, the width of the incoming map [channels].
        kernel_size: neighbors that a gate sees, odd; None computes it from C.
        gamma: divides log2(C) in the kernel size.
        b: is added to log2(C) before.

    Raises:
        ValueError: `kernel_size` is not odd and positive, or `gamma` is 0.

    Source: Wang et al. 2020, section 3.3; the kernel size is equation 12: |log2(C) / gamma + b /
    gamma|, rounded to odd.
    """

    def __init__(
        self, in_channels: int, kernel_size: int | None = None, gamma: float = 2, b: float = 1
    ) -> None:
        super().__init__()
        if kernel_size is None:
            if gamma == 0:
                raise ValueError("gamma divides log2(in_channels), so it cannot be 0")
            kernel_size = neighbor_kernel(in_channels, gamma, b)
        padding = odd_size(kernel_size) // 2
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=padding, bias=False)
        self.sigmoid = nn.Sigmoid()

    def _excite(self, means: Tensor) -> Tensor:
        scores = neighbor_scores(self.conv, means.flatten(1).unsqueeze(1))
        return self.sigmoid(scores).squeeze(1)[:, :, None, None]
