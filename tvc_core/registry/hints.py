"""Which first-party distribution provides a name, for the advice in errors. Data only: nothing is
resolved here.
"""

from __future__ import annotations

__all__ = ["distributions", "table"]

_NAMES: dict[str, dict[str, str]] = {
    "backbone": {
        "tvc-resnet": "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d "
        "resnext101_32x8d resnext101_64x4d wide_resnet50_2 wide_resnet101_2",
        "tvc-efficientnet": "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 "
        "efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_s "
        "efficientnet_v2_m efficientnet_v2_l efficientnet_lite0",
        "tvc-convnext": "convnext_tiny convnext_small convnext_base convnext_large",
        "tvc-mobilenet": "mobilenet_v2 mobilenet_v3_small mobilenet_v3_large",
        "tvc-convnets": "alexnet densenet121 densenet161 densenet169 densenet201 googlenet "
        "inception_v3 mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 regnet_x_1_6gf regnet_x_3_2gf "
        "regnet_x_8gf regnet_x_16gf regnet_x_32gf regnet_x_400mf regnet_x_800mf regnet_y_1_6gf "
        "regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf regnet_y_128gf regnet_y_400mf "
        "regnet_y_800mf shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 "
        "shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 vgg11 vgg11_bn vgg13 vgg13_bn vgg16 "
        "vgg16_bn vgg19 vgg19_bn",
        "tvc-transformers": "maxvit_t swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t "
        "vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32",
    },
    "backbone family": {"tvc-timm": "timm"},
    "block": {
        "tvc-attention": "se cbam_block eca channel_attention spatial_attention",
        "tvc-blocks": "conv_bn_act squeeze_excitation mlp stochastic_depth drop_block "
        "deform_conv frozen_batch_norm identity",
    },
    "command": {"tvc-cli": "build check doctor list new_plugin plugins show"},
    "kind": {"tvc-cli": "command"},
}


def distributions() -> frozenset[str]:
    """Return the first-party distributions that provide names."""
    return frozenset(owner for owners in _NAMES.values() for owner in owners)


def table(kind: str) -> dict[str, str]:
    """Return the first-party distribution of every name of a kind, sorted by name."""
    owners = _NAMES.get(kind, {})
    return dict(sorted((name, owner) for owner in owners for name in owners[owner].split()))
