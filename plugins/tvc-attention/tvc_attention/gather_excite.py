"""Gather-Excite.

Hu et al. 2018, "Gather-Excite: Exploiting Feature Context in Convolutional Neural Networks",
arXiv:1810.12348.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from .fused import blend, pointwise, scale_channels
from .norms import BatchNorm2d
from .widths import hidden_width

__all__ = ["GatherExcite"]


class GatherExcite(nn.Module):
    """Scale each entry of a map by a gate computed from its neighborhood, or from the whole map.

    Maps [N, C, H, W] to the same shape, dtype and device. Gather is a mean, or a chain of strided
    depthwise convolutions; excite is two 1x1 convolutions or none, then the sigmoid, enlarged to
    the map by the nearest neighbor.

    Args:
        in_channels: C, the width of the incoming map [channels].
        extent: the ratio e by which gathering shrinks the map, a power of 2 such as 2, 4 or 8
            [pixels]; 0 gathers over the whole map.
        extra_params: gather by convolutions instead of means (the paper's GE-theta); needs an
            extent, since for the whole map a kernel would have the size of one map.
        use_mlp: excite by two layers (with `extra_params` the paper's GE-theta-plus; over the
            whole map without, squeeze-excite); without both it has no parameters
            (GE-theta-minus).
        reduction: C divided by the width between the two layers, 1 to C; the paper uses 16.
        hidden_channels: that width [channels], instead of C // reduction.

    Raises:
        ValueError: `extent` is no power of 2, 2 or more, and not 0; `extra_params` without an
            extent; `reduction` is below 1 or above both C and 16, or `hidden_channels` is below 1.

    Source: Hu et al. 2018, sections 2 and 3.
    """

    def __init__(
        self,
        in_channels: int,
        extent: int = 0,
        extra_params: bool = False,
        use_mlp: bool = True,
        reduction: int = 16,
        hidden_channels: int | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_width(in_channels, reduction, hidden_channels)
        if (
            isinstance(extent, bool)
            or not isinstance(extent, int)
            or (extent != 0 and (extent < 2 or extent & (extent - 1)))
        ):
            raise ValueError(f"extent is 0 or a power of 2 from 2, not {extent!r}")
        if extra_params and not extent:
            raise ValueError(
                "extra_params needs an extent: for the whole map a kernel would have its size"
            )
        self.extent = extent
        self.gather = _strided(in_channels, int(math.log2(extent))) if extra_params else None
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Conv2d(in_channels, hidden, 1),
                act=nn.ReLU(),
                fc2=nn.Conv2d(hidden, in_channels, 1),
            )
            if use_mlp
            else OrderedDict()
        )
        self.sigmoid = nn.Sigmoid()

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate [N, C, 1, 1], or [N, C, H, W] with an extent, each entry in (0, 1)."""
        if not self.extent:
            return self._excite(x.mean((2, 3), keepdim=True))
        if self.gather is not None:
            gathered = self.gather(x)
        else:
            e = self.extent
            gathered = F.avg_pool2d(x, 2 * e - 1, e, e - 1, count_include_pad=False)
        return self.sigmoid(F.interpolate(self.mlp(gathered), size=x.shape[2:]))

    def mix(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        """Return x * (1 + alpha * (gate(x) - 1)) as one computation; without alpha x * gate(x)."""
        if self.extent:
            return x * blend(self.gate(x), alpha, x)
        return scale_channels(x, self._excite, alpha)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by its gate."""
        return self.mix(x, None)

    def _excite(self, gathered: Tensor) -> Tensor:
        for layer in self.mlp:
            gathered = pointwise(layer, gathered)
        return self.sigmoid(gathered)


def _strided(channels: int, count: int) -> nn.Sequential:
    """Return a chain of depthwise 3x3 convolutions of stride 2, each normalized."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(1, count + 1):
        layers[f"conv{number}"] = nn.Conv2d(
            channels, channels, 3, stride=2, padding=1, groups=channels, bias=False
        )
        layers[f"norm{number}"] = BatchNorm2d(channels)
        if number < count:
            layers[f"act{number}"] = nn.ReLU()
    return nn.Sequential(layers)
