"""Offers the networks and the block. Light: imports no torch."""

from __future__ import annotations

from tvc_core import BackboneSpec, BlockSpec, hookimpl

TVC_API = (1, 0)

_DEPTHS = {20: "0.27 M", 32: "0.46 M", 44: "0.66 M", 56: "0.85 M"}


@hookimpl
def tvc_backbones() -> list[BackboneSpec]:
    """Offer the residual networks that their paper trains on CIFAR-10."""
    return [
        BackboneSpec(
            name=f"cifar_resnet{depth}",
            family="cifar_resnet",
            origin="acme",
            factory="acme_cifar.resnet:build",
            summary=f"{depth}-layer residual network for 32x32 images, {parameters} parameters.",
            stem=("conv1", "bn1", "relu"),
            stages=("stage1", "stage2", "stage3"),
            head="fc",
            min_size=4,
            source="He et al. 2016, arXiv:1512.03385, section 4.2",
        )
        for depth, parameters in _DEPTHS.items()
    ]


@hookimpl
def tvc_blocks() -> list[BlockSpec]:
    """Offer efficient local attention."""
    return [
        BlockSpec(
            name="ela",
            category="attention",
            gated=True,
            factory="acme_cifar.local_attention:EfficientLocalAttention",
            summary="Scale each pixel of each channel by gates computed along its row and its "
            "column.",
            source="Xu and Wan 2024, arXiv:2403.01123",
        )
    ]
