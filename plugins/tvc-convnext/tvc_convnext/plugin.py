"""Offers torchvision's ConvNeXt. Light: imports no torch."""

from __future__ import annotations

from dataclasses import replace

from tvc_core import BackboneSpec, WeightsSpec, hookimpl

from .figures import FIGURES

TVC_API = (1, 1)


def _spec(name: str, summary: str, resize_size: int, stochastic_depth_prob: float) -> BackboneSpec:
    v1 = WeightsSpec(name="IMAGENET1K_V1", resize_size=resize_size)
    return BackboneSpec(
        name=name,
        family="convnext",
        origin="torchvision",
        summary=summary,
        factory="tvc_core:build_torchvision",
        weights=(replace(v1, **FIGURES[name, v1.name]),),
        default_weights="IMAGENET1K_V1",
        stem=("features.0",),
        # a stage starts with the layer that halves the map, as in section 2.2 of the paper
        stages=(
            "features.1",
            ("features.2", "features.3"),
            ("features.4", "features.5"),
            ("features.6", "features.7"),
        ),
        head="classifier",
        branches={"torchvision.models.convnext.CNBlock": "block"},
        options={
            "progress": True,
            "stochastic_depth_prob": stochastic_depth_prob,
            "layer_scale": 1e-6,
            "block": None,
            "norm_layer": None,
        },
        min_size=32,
        source="Liu et al. 2022, arXiv:2201.03545",
    )


@hookimpl
def tvc_backbones() -> list[BackboneSpec]:
    """Offer the four networks of torchvision.models.convnext."""
    return [
        _spec(
            "convnext_tiny",
            "Convolutional network in transformer style, 29 M parameters.",
            236,
            0.1,
        ),
        _spec(
            "convnext_small",
            "Convolutional network in transformer style, 50 M parameters.",
            230,
            0.4,
        ),
        _spec(
            "convnext_base",
            "Convolutional network in transformer style, 89 M parameters.",
            232,
            0.5,
        ),
        _spec(
            "convnext_large",
            "Convolutional network in transformer style, 198 M parameters.",
            232,
            0.5,
        ),
    ]
