"""Offers torchvision's MobileNet V2 and V3. Light: imports no torch.

A stage is a row of the paper's table: consecutive blocks of one output width. The last convolution belongs to the last stage.
"""

from __future__ import annotations

from tvc_core import BackboneSpec, WeightsSpec, hookimpl

TVC_API = (1, 0)

_V1 = WeightsSpec(name="IMAGENET1K_V1")
_V2 = WeightsSpec(name="IMAGENET1K_V2", resize_size=232)
_HOWARD = "Howard et al. 2019, arXiv:1905.02244"


def _stages(*lengths: int) -> tuple[tuple[str, ...], ...]:
    """Return the stages with these numbers of children of `features`, counted from features.1."""
    stages, start = [], 1
    for length in lengths:
        stages.append(tuple(f"features.{index}" for index in range(start, start + length)))
        start += length
    return tuple(stages)


@hookimpl
def tvc_backbones() -> list[BackboneSpec]:
    """Offer the three networks of torchvision.models.mobilenet."""
    shared = {"family": "mobilenet", "origin": "torchvision", "factory": "tvc_core:build_torchvision"}
    anatomy = {"stem": ("features.0",), "head": "classifier", "min_size": 1}
    v3_options = {"progress": True, "dropout": 0.2, "width_mult": 1.0, "reduced_tail": False, "dilated": False, "norm_layer": None}
    v2_options = {"progress": True, "dropout": 0.2, "width_mult": 1.0, "round_nearest": 8, "block": None, "norm_layer": None}
    return [
        BackboneSpec(
            name="mobilenet_v2",
            summary="Inverted residuals with linear bottlenecks, 3.5 M parameters.",
            weights=(_V1, _V2),
            default_weights="IMAGENET1K_V2",
            stages=_stages(1, 2, 3, 4, 3, 3, 2),
            options=v2_options,
            source="Sandler et al. 2018, arXiv:1801.04381, table 2",
            **shared,
            **anatomy,
        ),
        BackboneSpec(
            name="mobilenet_v3_small",
            summary="Searched inverted residuals with squeeze-excite, 2.5 M parameters.",
            weights=(_V1,),
            default_weights="IMAGENET1K_V1",
            stages=_stages(1, 2, 3, 2, 4),
            options=v3_options,
            source=f"{_HOWARD}, table 2",
            **shared,
            **anatomy,
        ),
        BackboneSpec(
            name="mobilenet_v3_large",
            summary="Searched inverted residuals with squeeze-excite, 5.5 M parameters.",
            weights=(_V1, _V2),
            default_weights="IMAGENET1K_V2",
            stages=_stages(1, 2, 3, 4, 2, 4),
            options=v3_options,
            source=f"{_HOWARD}, table 1",
            **shared,
            **anatomy,
        ),
    ]
