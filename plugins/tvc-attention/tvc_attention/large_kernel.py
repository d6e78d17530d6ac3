"""Large kernel attention.

Guo et al. 2022, "Visual Attention Network", arXiv:2202.09741. Written from the authors' code
(`AttentionModule`) and a second public implementation, which agree; the layers have their names,
and start as the authors' do.
"""

from __future__ import annotations

from torch import Tensor, nn

from .checks import odd_size

__all__ = ["LargeKernelAttention"]


class LargeKernelAttention(nn.Module):
    """Scale each pixel of each channel by a convolution with a large kernel, in three cheap steps.

    Maps [N, C, H, W] to the same shape, dtype and device: x * conv1(conv_spatial(conv0(x))). A
    depthwise convolution, a depthwise one with gaps and a pointwise one together see kernel_size
    pixels on a side. The gate is the result itself: there is no sigmoid, so it can be negative.

    Args:
        in_channels: C, the width of the incoming map [channels].
        kernel_size: K, the side of the whole neighborhood; the paper uses 21 [pixels].
        dilation: d, the gaps of the second convolution; the paper uses 3 [pixels]. The first has a
            kernel of 2d - 1, the second one of ceil(K / d), which is odd.

    Raises:
        ValueError: `dilation` is below 1, or `kernel_size` is not positive, or ceil(K / d) is even.

    Source: Guo et al. 2022, section 3, large kernel attention.
    """

    def __init__(self, in_channels: int, kernel_size: int = 21, dilation: int = 3) -> None:
        super().__init__()
        odd_size(kernel_size)
        if isinstance(dilation, bool) or not isinstance(dilation, int) or dilation < 1:
            raise ValueError(f"dilation is a whole number of at least 1, not {dilation!r}")
        sparse = -(-kernel_size // dilation)
        if sparse % 2 == 0:
            raise ValueError(
                f"kernel_size {kernel_size} with dilation {dilation} needs a kernel of {sparse} "
                "pixels, which has no center: take numbers whose quotient rounds up to an odd one"
            )
        self.conv0 = _depthwise(in_channels, 2 * dilation - 1, 1)
        self.conv_spatial = _depthwise(in_channels, sparse, dilation)
        self.conv1 = nn.Conv2d(in_channels, in_channels, 1)
        for conv in (self.conv0, self.conv_spatial, self.conv1):
            fan_out = conv.kernel_size[0] ** 2 * conv.out_channels // conv.groups
            nn.init.normal_(conv.weight, std=(2 / fan_out) ** 0.5)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate [N, C, H, W], of any size and sign."""
        gate: Tensor = self.conv1(self.conv_spatial(self.conv0(x)))
        return gate

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by its gate."""
        return x * self.gate(x).to(x.dtype)


def _depthwise(channels: int, size: int, dilation: int) -> nn.Conv2d:
    padding = size // 2 * dilation
    return nn.Conv2d(channels, channels, size, padding=padding, dilation=dilation, groups=channels)
