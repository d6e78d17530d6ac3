"""Which first-party distribution provides a name, for the advice in errors. Data only: nothing is resolved here."""

from __future__ import annotations

__all__ = ["distributions", "known", "provider"]

_BACKBONES = {
    "tvc-resnet": (
        "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d "
        "wide_resnet50_2 wide_resnet101_2"
    ),
    "tvc-efficientnet": (
        "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 "
        "efficientnet_b6 efficientnet_b7 efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l efficientnet_lite0"
    ),
    "tvc-convnext": "convnext_tiny convnext_small convnext_base convnext_large",
    "tvc-mobilenet": "mobilenet_v2 mobilenet_v3_small mobilenet_v3_large",
}
_BLOCKS = {
    "tvc-attention": "se cbam_block eca channel_attention spatial_attention",
    "tvc-blocks": "conv_bn_act squeeze_excitation mlp stochastic_depth drop_block deform_conv frozen_batch_norm identity",
}
_TABLES = {
    "backbone": {name: owner for owner, names in _BACKBONES.items() for name in names.split()},
    "block": {name: owner for owner, names in _BLOCKS.items() for name in names.split()},
}


def provider(kind: str, name: str) -> str | None:
    """Return the first-party distribution that provides this name, or None."""
    return _TABLES.get(kind, {}).get(name)


def distributions() -> frozenset[str]:
    """Return the first-party distributions that provide names."""
    return frozenset({*_BACKBONES, *_BLOCKS})


def known(kind: str) -> list[str]:
    """Return every name of this kind that a first-party distribution provides."""
    return sorted(_TABLES.get(kind, {}))
