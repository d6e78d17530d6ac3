"""Offers torchvision's other convolutional classifiers. Light: imports no torch.

A layer that shrinks the map before blocks belongs to the stage of these blocks; VGG's blocks
end with theirs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvc_core import BackboneSpec, WeightsSpec, hookimpl

from .figures import FIGURES

TVC_API = (1, 1)

Stages = tuple[tuple[str, ...], ...]

_V1 = WeightsSpec(name="IMAGENET1K_V1")
_V1_AT_232 = WeightsSpec(name="IMAGENET1K_V1", resize_size=232)
_V2 = WeightsSpec(name="IMAGENET1K_V2", resize_size=232)
_SWAG = (
    WeightsSpec(
        name="IMAGENET1K_SWAG_E2E_V1", crop_size=384, resize_size=384, interpolation="bicubic"
    ),
    WeightsSpec(
        name="IMAGENET1K_SWAG_LINEAR_V1", crop_size=224, resize_size=224, interpolation="bicubic"
    ),
)


@hookimpl
def tvc_backbones() -> list[BackboneSpec]:
    """Offer AlexNet, VGG, SqueezeNet, DenseNet, GoogLeNet, Inception v3, MNASNet, ShuffleNet v2 and
    RegNet.
    """
    return [
        _alexnet(),
        *_vggs(),
        *_squeezenets(),
        *_densenets(),
        _googlenet(),
        _inception(),
        *_mnasnets(),
        *_shufflenets(),
        *_regnets(),
    ]


def _spec(name: str, family: str, weights: tuple[WeightsSpec, ...], **others: Any) -> BackboneSpec:
    options = {"progress": True, **others.pop("options", {})}
    default = others.pop("default_weights", weights[-1].name)
    return BackboneSpec(
        name=name,
        family=family,
        origin="torchvision",
        factory=others.pop("factory", "tvc_core:build_torchvision"),
        weights=tuple(replace(each, **FIGURES[name, each.name]) for each in weights),
        default_weights=default,
        options=options,
        **others,
    )


def _features(start: int, stop: int, parent: str = "features") -> tuple[str, ...]:
    """Return the paths of the children from `start` to `stop`, both included."""
    return tuple(f"{parent}.{index}" for index in range(start, stop + 1))


def _alexnet() -> BackboneSpec:
    return _spec(
        "alexnet",
        "alexnet",
        (_V1,),
        factory="tvc_convnets.pooling:build",
        summary="Five convolutions and three fully connected layers.",
        source="Krizhevsky 2014, arXiv:1404.5997",
        stem=_features(0, 2),
        stages=(_features(3, 5), _features(6, 12)),
        head="classifier",
        options={"dropout": 0.5},
        min_size=63,
    )


def _vggs() -> list[BackboneSpec]:
    # convolutions of each of the five blocks; each block ends with a pooling layer (table 1 of the
    # paper)
    depths = {
        "vgg11": (1, 1, 2, 2, 2),
        "vgg13": (2, 2, 2, 2, 2),
        "vgg16": (2, 2, 3, 3, 3),
        "vgg19": (2, 2, 4, 4, 4),
    }
    features_only = WeightsSpec(
        name="IMAGENET1K_FEATURES",
        mean=(0.48235, 0.45882, 0.40784),
        std=(1 / 255,) * 3,
        num_classes=None,
    )
    specs = []
    for name, counts in depths.items():
        for normalized in (False, True):
            layers = 3 if normalized else 2
            blocks: list[tuple[str, ...]] = []
            start = 0
            for count in counts:
                blocks.append(_features(start, start + count * layers))
                start += count * layers + 1
            weights = (_V1, features_only) if name == "vgg16" and not normalized else (_V1,)
            specs.append(
                _spec(
                    f"{name}_bn" if normalized else name,
                    "vgg",
                    weights,
                    factory="tvc_convnets.pooling:build",
                    default_weights="IMAGENET1K_V1",
                    summary=f"{sum(counts)} "
                    f"convolutions{' with batch normalization' if normalized else ''}, 3 "
                    "linear layers.",
                    source="Simonyan and Zisserman 2014, arXiv:1409.1556, table 1",
                    stem=blocks[0],
                    stages=tuple(blocks[1:]),
                    head="classifier",
                    options={"dropout": 0.5, "init_weights": True},
                    min_size=32,
                )
            )
    return specs


def _squeezenets() -> list[BackboneSpec]:
    stages: dict[str, Stages] = {
        "squeezenet1_0": (_features(3, 5), _features(6, 10), _features(11, 12)),
        "squeezenet1_1": (_features(3, 4), _features(5, 7), _features(8, 12)),
    }
    return [
        _spec(
            name,
            "squeezenet",
            (_V1,),
            summary="Fire modules, 1.2 M parameters.",
            source="Iandola et al. 2016, arXiv:1602.07360",
            stem=_features(0, 2),
            stages=paths,
            head="classifier",
            options={"dropout": 0.5},
            min_size=21,
        )
        for name, paths in stages.items()
    ]


def _densenets() -> list[BackboneSpec]:
    stages: list[tuple[str, ...]] = [("features.denseblock1",)]
    stages += [
        (f"features.transition{index - 1}", f"features.denseblock{index}") for index in (2, 3)
    ]
    last = ("features.denseblock4", "features.norm5", "features.relu5")
    stages.append(("features.transition3", *last))
    return [
        _spec(
            f"densenet{depth}",
            "densenet",
            (_V1,),
            factory="tvc_convnets.densenet:build",
            summary=f"{depth} layers, each of which sees all earlier maps of its block.",
            source="Huang et al. 2017, arXiv:1608.06993",
            stem=("features.conv0", "features.norm0", "features.relu0", "features.pool0"),
            stages=tuple(stages),
            head="classifier",
            options={"drop_rate": 0, "bn_size": 4, "memory_efficient": False},
            min_size=29,
        )
        for depth in (121, 161, 169, 201)
    ]


def _googlenet() -> BackboneSpec:
    return _spec(
        "googlenet",
        "googlenet",
        (
            WeightsSpec(
                name="IMAGENET1K_V1", options={"transform_input": True, "aux_logits": False}
            ),
        ),
        summary="Inception modules, 6.6 M parameters.",
        source="Szegedy et al. 2015, arXiv:1409.4842",
        stem=("conv1", "maxpool1", "conv2", "conv3", "maxpool2"),
        stages=(
            ("inception3a", "inception3b"),
            ("maxpool3", *(f"inception4{letter}" for letter in "abcde")),
            ("maxpool4", "inception5a", "inception5b"),
        ),
        head="fc",
        auxiliary={"aux1": 1, "aux2": 1},
        options={
            "transform_input": False,
            "aux_logits": True,
            "dropout": 0.2,
            "dropout_aux": 0.7,
            "init_weights": None,
        },
        min_size=32,
    )


def _inception() -> BackboneSpec:
    return _spec(
        "inception_v3",
        "inception",
        (
            WeightsSpec(
                name="IMAGENET1K_V1",
                crop_size=299,
                resize_size=342,
                options={"transform_input": True},
            ),
        ),
        summary="Factorized inception modules, trained at 299 pixels.",
        source="Szegedy et al. 2016, arXiv:1512.00567",
        stem=(
            *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1"),
            *("Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"),
        ),
        stages=(
            tuple(f"Mixed_5{letter}" for letter in "bcd"),
            tuple(f"Mixed_6{letter}" for letter in "abcde"),
            tuple(f"Mixed_7{letter}" for letter in "abc"),
        ),
        head="fc",
        auxiliary={"AuxLogits": 1},
        options={
            "transform_input": False,
            "aux_logits": True,
            "dropout": 0.5,
            "init_weights": None,
        },
        min_size=75,
    )


def _mnasnets() -> list[BackboneSpec]:
    stages = (
        _features(3, 7, "layers"),
        *(_features(index, index, "layers") for index in range(8, 13)),
        _features(13, 16, "layers"),
    )
    return [
        _spec(
            f"mnasnet{width}",
            "mnasnet",
            (_V1_AT_232 if width in ("0_75", "1_3") else _V1,),
            summary=f"Searched inverted residuals, width {width.replace('_', '.')}.",
            source="Tan et al. 2019, arXiv:1807.11626",
            stem=_features(0, 2, "layers"),
            stages=stages,
            head="classifier",
            branches={"torchvision.models.mnasnet._InvertedResidual": "layers"},
            options={"dropout": 0.2},
        )
        for width in ("0_5", "0_75", "1_0", "1_3")
    ]


def _shufflenets() -> list[BackboneSpec]:
    return [
        _spec(
            f"shufflenet_v2_x{width}",
            "shufflenet",
            (_V1_AT_232 if width in ("1_5", "2_0") else _V1,),
            summary=f"Channel-shuffling residual units, width {width.replace('_', '.')}.",
            source="Ma et al. 2018, arXiv:1807.11164",
            stem=("conv1", "maxpool"),
            stages=(("stage2",), ("stage3",), ("stage4", "conv5")),
            head="fc",
        )
        for width in ("0_5", "1_0", "1_5", "2_0")
    ]


def _regnets() -> list[BackboneSpec]:
    flops = ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")
    names = [f"regnet_{kind}_{size}" for kind in "xy" for size in flops] + ["regnet_y_128gf"]
    weights = {
        "regnet_y_16gf": (_V1, _V2, *_SWAG),
        "regnet_y_32gf": (_V1, _V2, *_SWAG),
        "regnet_y_128gf": _SWAG,
    }
    return [
        _spec(
            name,
            "regnet",
            weights.get(name, (_V1, _V2)),
            default_weights="IMAGENET1K_SWAG_E2E_V1"
            if name == "regnet_y_128gf"
            else "IMAGENET1K_V2",
            summary=f"Quantized linear widths{', with squeeze-excite' if '_y_' in name else ''}, "
            f"{name[9:].replace('_', '.')}.",
            source="Radosavovic et al. 2020, arXiv:2003.13678",
            stem=("stem",),
            stages=tuple((f"trunk_output.block{index}",) for index in (1, 2, 3, 4)),
            head="fc",
            branches={"torchvision.models.regnet.ResBottleneckBlock": "f"},
            options={"norm_layer": None},
        )
        for name in names
    ]
