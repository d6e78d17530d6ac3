"""Offers every model of timm as `timm/NAME`. Light: imports neither torch nor timm."""

from __future__ import annotations

from tvc_core import BackboneFamilySpec, hookimpl

from . import names  # noqa: F401  light, and so no name that is looked up decides an import

TVC_API = (1, 1)


@hookimpl
def tvc_backbones() -> list[BackboneFamilySpec]:
    """Offer the family timm."""
    return [
        BackboneFamilySpec(
            name="timm",
            origin="timm",
            summary="Every model of timm, with or without the tag of its weights: timm/resnet50, "
            "timm/resnet50.a1_in1k.",
            factory="tvc_timm.family:describe",
            members="tvc_timm.names:names",
            source="Wightman 2019, PyTorch Image Models, doi:10.5281/zenodo.4414861",
        )
    ]
