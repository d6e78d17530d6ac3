"""Offers torchvision's EfficientNet B0-B7 and V2, and EfficientNet-Lite0. Light: imports no
torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvc_core import BackboneSpec, WeightsSpec, hookimpl

from .figures import FIGURES

TVC_API = (1, 1)

_B = "Tan and Le 2019, arXiv:1905.11946"
_V2 = "Tan and Le 2021, arXiv:2104.00298"
_HALF = (0.5, 0.5, 0.5)
_LITE0: dict[str, Any] = {"num_params": 4652008, "gflops": 0.385, "license": "Apache-2.0"}
"""Measured, and what the package says; no one states the accuracy of its file."""
_TF_MEAN, _TF_STD = (127 / 255,) * 3, (128 / 255,) * 3


def _imagenet(
    crop_size: int, resize_size: int, interpolation: str = "bicubic", **others: Any
) -> WeightsSpec:
    version = others.pop("version", 1)
    return WeightsSpec(
        name=f"IMAGENET1K_V{version}",
        crop_size=crop_size,
        resize_size=resize_size,
        interpolation=interpolation,
        **others,
    )


def _spec(
    name: str, *weights: WeightsSpec, dropout: float, num_stages: int = 7, **others: Any
) -> BackboneSpec:
    # the last convolution, after the last stage of blocks, belongs to that stage
    stages = [
        *((f"features.{index}",) for index in range(1, num_stages)),
        (f"features.{num_stages}", f"features.{num_stages + 1}"),
    ]
    options: dict[str, Any] = {"progress": True, "dropout": dropout, "stochastic_depth_prob": 0.2}
    if name in (
        "efficientnet_b0",
        "efficientnet_b1",
        "efficientnet_b2",
        "efficientnet_b3",
        "efficientnet_b4",
    ):
        options["norm_layer"] = None  # torchvision's builders of the others fix it
    defaults: dict[str, Any] = {
        "family": "efficientnet",
        "origin": "torchvision",
        "summary": f"Compound-scaled inverted residuals, trained at {weights[-1].crop_size} "
        "pixels.",
        "factory": "tvc_core:build_torchvision",
        "default_weights": weights[-1].name,
        "options": options,
        "min_size": 33,
        "source": _B,
    }
    return BackboneSpec(
        name=name,
        weights=tuple(replace(each, **FIGURES.get((name, each.name), {})) for each in weights),
        stem=("features.0",),
        stages=tuple(stages),
        head="classifier",
        branches={
            "torchvision.models.efficientnet.MBConv": "block",
            "torchvision.models.efficientnet.FusedMBConv": "block",
        },
        **{**defaults, **others},
    )


@hookimpl
def tvc_backbones() -> list[BackboneSpec]:
    """Offer the eleven networks of torchvision.models.efficientnet, and Lite0."""
    v2_l = _imagenet(480, 480, mean=_HALF, std=_HALF)
    return [
        _spec("efficientnet_b0", _imagenet(224, 256), dropout=0.2),
        _spec(
            "efficientnet_b1",
            _imagenet(240, 256),
            _imagenet(240, 255, "bilinear", version=2),
            dropout=0.2,
        ),
        _spec("efficientnet_b2", _imagenet(288, 288), dropout=0.3),
        _spec("efficientnet_b3", _imagenet(300, 320), dropout=0.3),
        _spec("efficientnet_b4", _imagenet(380, 384), dropout=0.4),
        _spec("efficientnet_b5", _imagenet(456, 456), dropout=0.4),
        _spec("efficientnet_b6", _imagenet(528, 528), dropout=0.5),
        _spec("efficientnet_b7", _imagenet(600, 600), dropout=0.5),
        _spec(
            "efficientnet_v2_s",
            _imagenet(384, 384, "bilinear"),
            dropout=0.2,
            num_stages=6,
            source=_V2,
        ),
        _spec("efficientnet_v2_m", _imagenet(480, 480, "bilinear"), dropout=0.3, source=_V2),
        _spec("efficientnet_v2_l", v2_l, dropout=0.4, source=_V2),
        _spec(
            "efficientnet_lite0",
            _imagenet(
                224,
                256,
                **_LITE0,
                recipe="the same file, with the preprocessing that torchvision's networks share",
            ),
            _imagenet(
                224,
                256,
                mean=_TF_MEAN,
                std=_TF_STD,
                version="1_TF",
                **_LITE0,
                recipe="the preprocessing of its training",
            ),
            dropout=0.2,
            origin="tensorflow",
            summary="EfficientNet-B0 without squeeze-excite and with ReLU6; weights from a "
            "package.",
            factory="tvc_efficientnet.lite:build",
            options={"dropout": 0.2, "stochastic_depth_prob": 0.2},
            source="tensorflow/tpu, models/official/efficientnet/lite",
        ),
    ]
