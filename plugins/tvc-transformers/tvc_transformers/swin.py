"""torchvision's Swin, exported right for images of any size.

torchvision decides in Python, by the size of the map, whether windows are shifted. An exporter
writes down what was decided for its example, so that the file is wrong for other sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import (
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    shifted_window_attention,
)

from tvc_core import BackboneSpec, WeightsSpec, build_torchvision

__all__ = ["WindowAttention", "WindowAttentionV2", "build"]


def build(spec: BackboneSpec, *, weights: WeightsSpec | None, **options: Any) -> nn.Module:
    """Build a Swin; the arguments and errors are those of `tvc_core.build_torchvision`."""
    network = build_torchvision(spec, weights=weights, **options)
    for module in network.modules():
        module.__class__ = _EXPORTED.get(type(module), type(module))
    return network


class WindowAttention(ShiftedWindowAttention):  # type: ignore[misc]
    """torchvision's attention in shifted windows, which maps [N, H, W, C] to the same shape; it
    computes in another way while it is exported.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        return _attend(self, x) if _is_exported(self) else super().forward(x)


class WindowAttentionV2(ShiftedWindowAttentionV2):  # type: ignore[misc]
    """torchvision's attention of Swin v2, otherwise as `WindowAttention`."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        return _attend(self, x) if _is_exported(self) else super().forward(x)


_EXPORTED: dict[type[nn.Module], type[nn.Module]] = {
    ShiftedWindowAttention: WindowAttention,
    ShiftedWindowAttentionV2: WindowAttentionV2,
}


def _is_exported(attention: Any) -> bool:
    traced = torch.jit.is_tracing()  # type: ignore[attr-defined]
    return any(attention.shift_size) and (traced or torch.compiler.is_exporting())


def _attend(attention: Any, x: Tensor) -> Tensor:
    """Shift by operations on sizes, and let torchvision's function attend to the shifted map.

    Its mask goes in with the position bias, to which that function would add it.
    """
    height, width = x.shape[1], x.shape[2]
    (side, across), (shift, sideways) = attention.window_size, attention.shift_size
    down, up, rows = _shifted(height, side, shift, x.device)
    right, left, columns = _shifted(width, across, sideways, x.device)
    x = nn.functional.pad(x, (0, 0, 0, left.shape[0] - width, 0, up.shape[0] - height))
    x = x.index_select(1, down).index_select(2, right)
    regions = (3 * rows[:, None] + columns).reshape(-1, side, left.shape[0] // across, across)
    regions = regions.permute(0, 2, 1, 3).reshape(-1, side * across)
    mask = (regions[:, None] != regions[:, :, None]).to(x.dtype) * -100.0
    x = shifted_window_attention(
        x,
        attention.qkv.weight,
        attention.proj.weight,
        attention.get_relative_position_bias() + mask.repeat(x.shape[0], 1, 1)[:, None],
        attention.window_size,
        attention.num_heads,
        shift_size=[0, 0],
        attention_dropout=attention.attention_dropout,
        dropout=attention.dropout,
        qkv_bias=attention.qkv.bias,
        proj_bias=attention.proj.bias,
        logit_scale=getattr(attention, "logit_scale", None),
        training=attention.training,
    )
    return x.index_select(1, up).index_select(2, left)[:, :height, :width]


def _shifted(size: int, window: int, shift: int, device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return for one axis, padded to whole windows: the places in their shifted order, the way
    back, and which of three regions, that do not see each other, each shifted place is in.
    """
    windows = (size + window - 1) // window
    padded = windows * window
    shift = shift * (1 - 1 // windows)  # a single window is not shifted
    places = torch.arange(padded, device=device)
    regions = (places >= padded - window).long() + (places >= padded - shift).long()
    there = torch.cat([places[shift:], places[:shift]])
    back = torch.cat([places[padded - shift :], places[: padded - shift]])
    return there, back, regions
