"""Efficient local attention.

Xu and Wan 2024, "ELA: Efficient Local Attention for Deep Convolutional Neural Networks",
arXiv:2403.01123. Written from two public implementations, which agree: rows and columns share one
convolution and one normalization. The layers have their names.
"""

from __future__ import annotations

from math import gcd

from torch import Tensor, nn

from .checks import divisor_of, odd_size
from .norms import GroupNorm

__all__ = ["EfficientLocalAttention"]


class EfficientLocalAttention(nn.Module):
    """Scale each pixel of each channel by two gates: one of its row's mean, one of its column's.

    Maps [N, C, H, W] to the same shape, dtype and device: x * s(mean over the row) * s(mean over
    the column), with s = sigmoid(gn(conv(.))) along a strip of means.

    The paper's four versions are kernel_size 5, num_groups 32 (ELA-T); 7 and 16 (ELA-B, the
    default); 5, 16 and groups C / 8 (ELA-S); 7, 16 and groups C / 8 (ELA-L).

    Args:
        in_channels: C, the width of the incoming map [channels].
        kernel_size: neighbors along a strip that a gate sees, odd [pixels].
        groups: of the convolution, a divisor of C; None takes C, so that each channel is by itself.
        num_groups: of the normalization, a divisor of C; None takes the paper's 16, or its greatest
            common divisor with C.

    Raises:
        ValueError: `kernel_size` is not odd and positive, `groups` or `num_groups` does not divide
            C.

    Source: Xu and Wan 2024, section 3.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 7,
        groups: int | None = None,
        num_groups: int | None = None,
    ) -> None:
        super().__init__()
        groups = in_channels if groups is None else divisor_of(in_channels, "groups", groups)
        if num_groups is None:
            num_groups = gcd(in_channels, 16)
        self.conv = nn.Conv1d(
            in_channels,
            in_channels,
            odd_size(kernel_size),
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        )
        self.gn = GroupNorm(divisor_of(in_channels, "num_groups", num_groups), in_channels)

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate [N, C, H, W], each entry in (0, 1)."""
        return self._weigh(x.mean(3)).unsqueeze(3) * self._weigh(x.mean(2)).unsqueeze(2)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by its gate."""
        return x * self.gate(x).to(x.dtype)

    def _weigh(self, strip: Tensor) -> Tensor:
        """Return the gate of strips [N, C, L]."""
        weights: Tensor = self.gn(self.conv(strip)).sigmoid()
        return weights
