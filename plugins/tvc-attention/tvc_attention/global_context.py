"""Global Context.

Cao et al. 2019, "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond",
arXiv:1904.11492.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .fused import pointwise, scale_by_context
from .fused.context import attend
from .widths import hidden_width

__all__ = ["GlobalContext", "GlobalContextAdd", "global_context"]


def global_context(
    in_channels: int, fusion: str = "scale", reduction: int = 8, hidden_channels: int | None = None
) -> nn.Module:
    """Make a block that adds the map's context, a mean over pixels weighted by attention, to each
    pixel, or scales channels by it.

    Args:
        in_channels: C, the width of the incoming map [channels].
        fusion: "scale" multiplies each channel with a gate, as timm does by default; "add" adds, as
            the paper does in most of its experiments.
        reduction: C divided by the width of the hidden layer, 1 to C; the paper uses 4 to 32. The
            width is at least 4: it is normalized, and of one channel nothing would be left, of two
            the sign of their difference.
        hidden_channels: width of the hidden layer [channels], instead of C // reduction.

    Raises:
        ValueError: `fusion` is another word, `reduction` is below 1 or above both C and 16, or
            `hidden_channels` is below 1.

    Source: Cao et al. 2019, the global context block, whose ablations compare the fusions.
    """
    if fusion not in ("scale", "add"):
        raise ValueError(f"fusion is 'scale' or 'add', not {fusion!r}")
    hidden = hidden_width(in_channels, reduction, hidden_channels)
    if hidden_channels is None:
        hidden = max(hidden, 4)
    return (GlobalContext if fusion == "scale" else GlobalContextAdd)(in_channels, hidden)


class _Norm(nn.LayerNorm):
    """Layer norm over the channels of a map."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class _Context(nn.Module):
    """The attention over pixels, and the two layers that make something of the context."""

    def __init__(self, in_channels: int, hidden_channels: int, name: str) -> None:
        super().__init__()
        # The softmax over pixels cancels the bias, so it cannot learn. It is there for timm's
        # weights, which have one, and a buffer, so that no optimizer gets it.
        self.conv_attn = nn.Conv2d(in_channels, 1, 1)
        bias = self.conv_attn.bias
        assert bias is not None
        del self.conv_attn.bias
        self.conv_attn.register_buffer("bias", bias.detach())
        nn.init.kaiming_normal_(self.conv_attn.weight, mode="fan_in", nonlinearity="relu")
        layers = OrderedDict[str, nn.Module](
            fc1=nn.Conv2d(in_channels, hidden_channels, 1),
            norm=_Norm(hidden_channels, eps=1e-6),
            act=nn.ReLU(),
            fc2=nn.Conv2d(hidden_channels, in_channels, 1),
        )
        self.add_module(name, nn.Sequential(layers))

    @staticmethod
    def transform(layers: Any, context: Tensor) -> Tensor:
        """Return what the layers make of the context."""
        for layer in layers:
            context = pointwise(layer, context)
        return context


class GlobalContext(_Context):
    """Scale each channel by a gate computed from the context: see `global_context`.

    Maps [N, C, H, W] to the same shape, dtype and device.
    """

    def __init__(self, in_channels: int, hidden_channels: int) -> None:
        super().__init__(in_channels, hidden_channels, "mlp_scale")
        self.sigmoid = nn.Sigmoid()

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate [N, C, 1, 1], each entry in (0, 1)."""
        return self._excite(attend(x, self.conv_attn))

    def mix(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        """Return x * (1 + alpha * (gate(x) - 1)) as one computation; without alpha x * gate(x)."""
        return scale_by_context(x, self.conv_attn, self._excite, alpha)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by its gate."""
        return self.mix(x, None)

    def _excite(self, context: Tensor) -> Tensor:
        return self.sigmoid(self.transform(self.mlp_scale, context))


class GlobalContextAdd(_Context):
    """Add to each pixel what two layers make of the context: see `global_context`.

    Maps [N, C, H, W] to the same shape, dtype and device. The last layer starts at zero.
    """

    def __init__(self, in_channels: int, hidden_channels: int) -> None:
        super().__init__(in_channels, hidden_channels, "mlp_add")
        nn.init.zeros_(self.mlp_add.fc2.weight)  # type: ignore[union-attr, arg-type]
        nn.init.zeros_(self.mlp_add.fc2.bias)  # type: ignore[union-attr, arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Add the transformed context."""
        return x + self.transform(self.mlp_add, attend(x, self.conv_attn)).to(x.dtype)
