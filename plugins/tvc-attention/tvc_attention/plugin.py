"""Offers attention blocks. Light: imports no torch."""

from __future__ import annotations

from tvc_core import BlockSpec, hookimpl

TVC_API = (1, 1)

_WOO = "Woo et al. 2018, arXiv:1807.06521"


@hookimpl
def tvc_blocks() -> list[BlockSpec]:
    """Offer squeeze-excite, CBAM with its two parts, and ECA."""
    return [
        BlockSpec(
            name="se",
            category="attention",
            gated=True,
            factory="tvc_attention.squeeze_excite:SqueezeExcite",
            summary="Scale each channel by a gate computed from all channels' means.",
            source="Hu et al. 2018, arXiv:1709.01507",
        ),
        BlockSpec(
            name="eca",
            category="attention",
            gated=True,
            factory="tvc_attention.efficient_channel:EfficientChannelAttention",
            summary="Scale each channel by a gate computed from its neighbors' means.",
            source="Wang et al. 2020, arXiv:1910.03151",
        ),
        BlockSpec(
            name="cbam_block",
            category="attention",
            factory="tvc_attention.cbam:CBAM",
            summary="Channel attention, then spatial attention.",
            source=_WOO,
        ),
        BlockSpec(
            name="channel_attention",
            category="attention",
            gated=True,
            factory="tvc_attention.cbam:ChannelAttention",
            summary="Scale each channel by a gate computed from all channels' means and maxima.",
            source=f"{_WOO}, section 3.1",
        ),
        BlockSpec(
            name="spatial_attention",
            category="attention",
            gated=True,
            factory="tvc_attention.cbam:SpatialAttention",
            summary="Scale each pixel by a gate computed from its neighborhood's mean and maximum "
            "over channels.",
            source=f"{_WOO}, section 3.2",
        ),
    ]
