"""Non-local block.

Wang et al. 2018, "Non-local Neural Networks", CVPR 2018, arXiv:1711.07971. The layers have timm's
names (`timm.layers.NonLocalAttn`), whose weights load.
"""

from __future__ import annotations

from torch import Tensor, nn

from .norms import BatchNorm2d
from .widths import hidden_width

__all__ = ["NonLocalAttention"]


class NonLocalAttention(nn.Module):
    """Add to each pixel a mean over all pixels, weighted by how similar they are.

    Maps [N, C, H, W] to the same shape, dtype and device: x + norm(z(softmax(scale * t(x)^T p(x))
    g(x))). Time and memory grow with the square of H * W. It starts as the identity by itself,
    since the scale of its batch normalization starts at 0.

    Args:
        in_channels: C, the width of the incoming map [channels].
        reduction: C divided by the width of the embeddings, 1 to C; the paper uses 2, timm 8.
            Narrow maps keep a width of 1.
        use_scale: divide the similarities by sqrt(C), as the authors' code and timm do; without it
            they are those of equation (3).
        hidden_channels: width of the embeddings [channels] instead of C // reduction, as other
            libraries round it.

    Raises:
        ValueError: `reduction` is below 1 or above both C and 16, or `hidden_channels` is below 1,
            or `use_scale` is not a bool.

    Source: Wang et al. 2018, section 3: equations (1), (3) and (6), the embedded Gaussian version
    with its bottleneck; the normalization is that of section 4.1.
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int = 2,
        use_scale: bool = True,
        hidden_channels: int | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_width(in_channels, reduction, hidden_channels)
        if not isinstance(use_scale, bool):
            raise ValueError(f"use_scale is True or False, not {use_scale!r}")
        self.scale = in_channels**-0.5 if use_scale else 1.0
        self.t = nn.Conv2d(in_channels, hidden, 1)
        self.p = nn.Conv2d(in_channels, hidden, 1)
        self.g = nn.Conv2d(in_channels, hidden, 1)
        self.z = nn.Conv2d(hidden, in_channels, 1)
        self.norm = BatchNorm2d(in_channels)
        for conv in (self.t, self.p, self.g, self.z):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Add the weighted means to the map."""
        # scaled before the product, which overflows float16 sooner than its factors
        queries = (self.t(x) * self.scale).flatten(2).transpose(1, 2)
        weights = (queries @ self.p(x).flatten(2)).softmax(2)
        means = weights @ self.g(x).flatten(2).transpose(1, 2)
        result: Tensor = self.norm(self.z(means.transpose(1, 2).unflatten(2, x.shape[2:])))
        return x + result.to(x.dtype)
