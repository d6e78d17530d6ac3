"""Offers attention blocks. Light: imports no torch."""

from __future__ import annotations

from tvc_core import BlockSpec, hookimpl

TVC_API = (1, 1)

_WOO = "Woo et al. 2018, arXiv:1807.06521"


@hookimpl
def tvc_blocks() -> list[BlockSpec]:
    """Offer attention over channels, over pixels, and over both."""
    return [
        *_others(),
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


def _others() -> list[BlockSpec]:
    return [
        BlockSpec(
            name="bam",
            category="attention",
            gated=True,
            factory="tvc_attention.bam:BottleneckAttention",
            summary="Scale each entry by one plus a gate of all channels' means and of a wide "
            "neighborhood.",
            source="Park et al. 2018, arXiv:1807.06514",
        ),
        BlockSpec(
            name="ela",
            category="attention",
            gated=True,
            factory="tvc_attention.efficient_local:EfficientLocalAttention",
            summary="Scale each entry by gates of its row's and its column's neighborhoods.",
            source="Xu and Wan 2024, arXiv:2403.01123",
        ),
        BlockSpec(
            name="ema_attention",
            category="attention",
            gated=True,
            factory="tvc_attention.multi_scale:EfficientMultiScaleAttention",
            summary="Scale each pixel of a group of channels by a gate of strips and 3x3 "
            "neighborhoods.",
            source="Ouyang et al. 2023, arXiv:2305.13563",
        ),
        BlockSpec(
            name="gct",
            category="attention",
            gated=True,
            starts_as="identity",
            factory="tvc_attention.gated_channel:GatedChannelTransform",
            summary="Scale each channel by a gate in which the norms of all channels compete.",
            source="Yang et al. 2020, arXiv:1909.11519",
        ),
        BlockSpec(
            name="lka",
            category="attention",
            gated=True,
            factory="tvc_attention.large_kernel:LargeKernelAttention",
            summary="Scale each entry by a convolution with a large kernel, in three steps.",
            source="Guo et al. 2022, arXiv:2202.09741",
        ),
        BlockSpec(
            name="mlca",
            category="attention",
            gated=True,
            factory="tvc_attention.local_channel:MixedLocalChannelAttention",
            summary="Scale each entry by gates of its part of the map and of its whole channel.",
            source="Wan et al. 2023, doi:10.1016/j.engappai.2023.106442",
        ),
        BlockSpec(
            name="non_local",
            category="attention",
            starts_as="identity",
            factory="tvc_attention.non_local:NonLocalAttention",
            summary="Add to each pixel a mean over all pixels, weighted by similarity.",
            source="Wang et al. 2018, arXiv:1711.07971",
        ),
        BlockSpec(
            name="scse",
            category="attention",
            gated=True,
            factory="tvc_attention.scse:ConcurrentSqueezeExcite",
            summary="Scale each entry by the sum of a gate of its channel and one of its pixel.",
            source="Roy et al. 2018, arXiv:1803.02579",
        ),
        BlockSpec(
            name="simam",
            category="attention",
            gated=True,
            factory="tvc_attention.simam:SimAM",
            summary="Scale each entry by how much it differs from its channel's mean.",
            source="Yang et al. 2021, PMLR 139:11863",
        ),
        BlockSpec(
            name="srm",
            category="attention",
            gated=True,
            factory="tvc_attention.style_recalibration:StyleRecalibration",
            summary="Scale each channel by a gate of its own mean and standard deviation.",
            source="Lee et al. 2019, arXiv:1903.10829",
        ),
        BlockSpec(
            name="triplet_attention",
            category="attention",
            gated=True,
            factory="tvc_attention.triplet:TripletAttention",
            summary="Scale each entry by the mean of three gates, each of two axes of the map.",
            source="Misra et al. 2021, arXiv:2010.03045",
        ),
    ]
