"""Offers torchvision's MobileNet V2 and V3. Light: imports no torch.

A stage is a row of the paper's table: consecutive blocks of one output width. The last convolution
belongs to the last stage.
"""

from __future__ import annotations

from dataclasses import replace

from tvc_core import BackboneSpec, WeightsSpec, hookimpl

from .figures import FIGURES

TVC_API = (1, 1)

_V1 = WeightsSpec(name="IMAGENET1K_V1")
_V2 = WeightsSpec(name="IMAGENET1K_V2", resize_size=232)
_SANDLER = "Sandler et al. 2018, arXiv:1801.04381"
_HOWARD = "Howard et al. 2019, arXiv:1905.02244"


def _stages(*lengths: int) -> tuple[tuple[str, ...], ...]:
    """Return the stages with these numbers of children of `features`, counted from features.1."""
    stages, start = [], 1
    for length in lengths:
        stages.append(tuple(f"features.{index}" for index in range(start, start + length)))
        start += length
    return tuple(stages)


def _spec(
    name: str, summary: str, source: str, stages: tuple[tuple[str, ...], ...], *weights: WeightsSpec
) -> BackboneSpec:
    v2_options = {"round_nearest": 8, "block": None}
    v3_options = {"reduced_tail": False, "dilated": False}
    return BackboneSpec(
        name=name,
        family="mobilenet",
        origin="torchvision",
        summary=summary,
        factory="tvc_core:build_torchvision",
        weights=tuple(replace(each, **FIGURES[name, each.name]) for each in weights),
        default_weights=weights[-1].name,
        stem=("features.0",),
        stages=stages,
        head="classifier",
        branches={
            "torchvision.models.mobilenetv2.InvertedResidual": "conv",
            "torchvision.models.mobilenetv3.InvertedResidual": "block",
        },
        options={
            "progress": True,
            "dropout": 0.2,
            "width_mult": 1.0,
            "norm_layer": None,
            **(v2_options if name == "mobilenet_v2" else v3_options),
        },
        min_size=1,
        source=source,
    )


@hookimpl
def tvc_backbones() -> list[BackboneSpec]:
    """Offer the three networks of torchvision.models.mobilenet."""
    v2 = "Inverted residuals with linear bottlenecks, 3.5 M parameters."
    small = "Searched inverted residuals with squeeze-excite, 2.5 M parameters."
    large = "Searched inverted residuals with squeeze-excite, 5.5 M parameters."
    return [
        _spec("mobilenet_v2", v2, f"{_SANDLER}, table 2", _stages(1, 2, 3, 4, 3, 3, 2), _V1, _V2),
        _spec("mobilenet_v3_small", small, f"{_HOWARD}, table 2", _stages(1, 2, 3, 2, 4), _V1),
        _spec(
            "mobilenet_v3_large", large, f"{_HOWARD}, table 1", _stages(1, 2, 3, 4, 2, 4), _V1, _V2
        ),
    ]
