"""Offers attention blocks. Light: imports no torch."""

from __future__ import annotations

from tvc_core import BlockSpec, hookimpl

TVC_API = (1, 1)

_WOO = "Woo et al. 2018, arXiv:1807.06521"


@hookimpl
def tvc_blocks() -> list[BlockSpec]:
    """Offer gates of channels, of pixels, and of both."""
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
            name="ese",
            category="attention",
            gated=True,
            factory="tvc_attention.squeeze_excite:EffectiveSqueezeExcite",
            summary="Scale each channel by a gate computed from all channels' means in one layer.",
            source="Lee and Park 2020, arXiv:1911.06667",
        ),
        BlockSpec(
            name="gather_excite",
            category="attention",
            gated=True,
            factory="tvc_attention.gather_excite:GatherExcite",
            summary="Scale a map by gates computed from neighborhoods, or from the whole map.",
            source="Hu et al. 2018, arXiv:1810.12348",
        ),
        BlockSpec(
            name="global_context",
            category="attention",
            gated=True,
            factory="tvc_attention.global_context:global_context",
            summary="Scale each channel by a gate computed from a mean weighted by attention.",
            source="Cao et al. 2019, arXiv:1904.11492",
        ),
        BlockSpec(
            name="coord_attention",
            category="attention",
            gated=True,
            factory="tvc_attention.coordinate:CoordinateAttention",
            summary="Scale rows and columns by gates computed from the means of rows and columns.",
            source="Hou et al. 2021, arXiv:2103.02907",
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
            gated=True,
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
