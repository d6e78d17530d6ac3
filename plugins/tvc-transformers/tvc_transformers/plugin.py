"""Offers torchvision's vision transformers: ViT, Swin, Swin v2 and MaxViT. Light: imports
no torch.
"""

from __future__ import annotations

from dataclasses import replace

from tvc_core import BackboneSpec, WeightsSpec, hookimpl

from .figures import FIGURES

TVC_API = (1, 1)


@hookimpl
def tvc_backbones() -> list[BackboneSpec]:
    """Offer ViT, Swin, Swin v2 and MaxViT."""
    return [
        _vit("vit_b_16", 12, _V1, _swag("E2E", 384), _swag("LINEAR", 224)),
        _vit("vit_b_32", 12, _V1),
        _vit(
            "vit_l_16",
            24,
            WeightsSpec(name="IMAGENET1K_V1", resize_size=242),
            _swag("E2E", 512),
            _swag("LINEAR", 224),
        ),
        _vit("vit_l_32", 24, _V1),
        _vit("vit_h_14", 32, _swag("E2E", 518), _swag("LINEAR", 224)),
        _swin("swin_t", 224, 232),
        _swin("swin_s", 224, 246),
        _swin("swin_b", 224, 238),
        _swin("swin_v2_t", 256, 260),
        _swin("swin_v2_s", 256, 260),
        _swin("swin_v2_b", 256, 272),
        _maxvit(),
    ]


_V1 = WeightsSpec(name="IMAGENET1K_V1")


def _swag(kind: str, size: int) -> WeightsSpec:
    return WeightsSpec(
        name=f"IMAGENET1K_SWAG_{kind}_V1",
        crop_size=size,
        resize_size=size,
        interpolation="bicubic",
        options={"image_size": size},
        recipe="Singh et al. 2022, arXiv:2201.08371",
    )


def _vit(name: str, depth: int, *weights: WeightsSpec) -> BackboneSpec:
    """Return a ViT in four stages of equal depth; the last has the final normalization."""
    quarter = depth // 4
    stages = [
        tuple(f"encoder.layers.encoder_layer_{index}" for index in range(start, start + quarter))
        for start in range(0, depth, quarter)
    ]
    stages[-1] = (*stages[-1], "encoder.ln")
    return BackboneSpec(
        name=name,
        family="vit",
        origin="torchvision",
        summary=f"Plain transformer of {depth} layers over patches of {name.rpartition('_')[2]} "
        "pixels.",
        factory="tvc_core:build_torchvision",
        weights=tuple(replace(each, **FIGURES[name, each.name]) for each in weights),
        default_weights=weights[0].name,
        stem=("class_token", "conv_proj", "encoder.pos_embedding", "encoder.dropout"),
        stages=tuple(stages),
        head="heads",
        branches={"torchvision.models.vision_transformer.EncoderBlock": "mlp"},
        migrate="tvc_transformers.positions:migrate",
        options={
            "progress": True,
            "image_size": 224,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "representation_size": None,
        },
        min_size=224,
        fixed_size=True,
        source="Dosovitskiy et al. 2021, arXiv:2010.11929",
    )


def _swin(name: str, crop_size: int, resize_size: int) -> BackboneSpec:
    version = 2 if "_v2_" in name else 1
    v1 = WeightsSpec(
        name="IMAGENET1K_V1", crop_size=crop_size, resize_size=resize_size, interpolation="bicubic"
    )
    return BackboneSpec(
        name=name,
        family="swin",
        origin="torchvision",
        summary=f"Transformer over shifted windows, version {version}.",
        factory="tvc_transformers.swin:build",
        weights=(replace(v1, **FIGURES[name, v1.name]),),
        default_weights="IMAGENET1K_V1",
        stem=("features.0",),
        stages=(
            ("features.1",),
            ("features.2", "features.3"),
            ("features.4", "features.5"),
            ("features.6", "features.7", "norm"),
        ),
        head="head",
        branches={
            "torchvision.models.swin_transformer.SwinTransformerBlock": "mlp",
            "torchvision.models.swin_transformer.SwinTransformerBlockV2": "norm2",
        },
        options={"progress": True, "dropout": 0.0, "attention_dropout": 0.0, "norm_layer": None},
        min_size=32,
        source="Liu et al. "
        f"{'2022, arXiv:2111.09883' if version == 2 else '2021, arXiv:2103.14030'}",
    )


def _maxvit() -> BackboneSpec:
    v1 = WeightsSpec(name="IMAGENET1K_V1", resize_size=224, interpolation="bicubic")
    return BackboneSpec(
        name="maxvit_t",
        family="maxvit",
        origin="torchvision",
        summary="Convolution, block attention and grid attention in turn.",
        factory="tvc_transformers.maxvit:build",
        weights=(replace(v1, **FIGURES["maxvit_t", v1.name]),),
        default_weights="IMAGENET1K_V1",
        stem=("stem",),
        stages=("blocks.0", "blocks.1", "blocks.2", "blocks.3"),
        head="classifier",
        branches={"torchvision.models.maxvit.MBConv": "layers"},
        options={"progress": True, "input_size": 224},
        size_option="input_size",
        min_size=224,
        fixed_size=True,
        source="Tu et al. 2022, arXiv:2204.01697",
    )
