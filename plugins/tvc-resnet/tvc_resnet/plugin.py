"""Offers torchvision's ResNet, ResNeXt and Wide ResNet. Light: imports no torch."""

from __future__ import annotations

from dataclasses import replace

from tvc_core import BackboneSpec, WeightsSpec, hookimpl

from .figures import FIGURES

TVC_API = (1, 1)

_HE = "He et al. 2016, arXiv:1512.03385"
_XIE = "Xie et al. 2017, arXiv:1611.05431"
_ZAGORUYKO = "Zagoruyko and Komodakis 2016, arXiv:1605.07146"

_OPTIONS = {
    "progress": True,
    "zero_init_residual": False,
    "groups": 1,
    "width_per_group": 64,
    "replace_stride_with_dilation": None,
    "norm_layer": None,
}
_FIXED = {"resnext": ("groups", "width_per_group"), "wide_resnet": ("width_per_group",)}
"""What torchvision's builders of a family refuse to change."""

_BRANCHES = {
    "torchvision.models.resnet.BasicBlock": "bn2",
    "torchvision.models.resnet.Bottleneck": "bn3",
}

_V1 = WeightsSpec(name="IMAGENET1K_V1")
_V2 = WeightsSpec(name="IMAGENET1K_V2", resize_size=232)
_V1_AT_232 = WeightsSpec(name="IMAGENET1K_V1", resize_size=232)


def _spec(name: str, family: str, summary: str, source: str, *weights: WeightsSpec) -> BackboneSpec:
    return BackboneSpec(
        name=name,
        family=family,
        origin="torchvision",
        summary=summary,
        factory="tvc_core:build_torchvision",
        weights=tuple(replace(each, **FIGURES[name, each.name]) for each in weights),
        default_weights=weights[-1].name,
        stem=("conv1", "bn1", "relu", "maxpool"),
        stages=("layer1", "layer2", "layer3", "layer4"),
        head="fc",
        branches=_BRANCHES,
        options={
            option: default
            for option, default in _OPTIONS.items()
            if option not in _FIXED.get(family, ())
        },
        source=source,
    )


@hookimpl
def tvc_backbones() -> list[BackboneSpec]:
    """Offer the ten networks of torchvision.models.resnet."""
    return [
        _spec("resnet18", "resnet", "18-layer residual network of basic blocks.", _HE, _V1),
        _spec("resnet34", "resnet", "34-layer residual network of basic blocks.", _HE, _V1),
        _spec("resnet50", "resnet", "50-layer residual network of bottlenecks.", _HE, _V1, _V2),
        _spec("resnet101", "resnet", "101-layer residual network of bottlenecks.", _HE, _V1, _V2),
        _spec("resnet152", "resnet", "152-layer residual network of bottlenecks.", _HE, _V1, _V2),
        _spec("resnext50_32x4d", "resnext", "50 layers, 32 groups of width 4.", _XIE, _V1, _V2),
        _spec("resnext101_32x8d", "resnext", "101 layers, 32 groups of width 8.", _XIE, _V1, _V2),
        _spec("resnext101_64x4d", "resnext", "101 layers, 64 groups of width 4.", _XIE, _V1_AT_232),
        _spec(
            "wide_resnet50_2",
            "wide_resnet",
            "50 layers, inner width doubled.",
            _ZAGORUYKO,
            _V1,
            _V2,
        ),
        _spec(
            "wide_resnet101_2",
            "wide_resnet",
            "101 layers, inner width doubled.",
            _ZAGORUYKO,
            _V1,
            _V2,
        ),
    ]
