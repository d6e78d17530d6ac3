"""A target is a path, or a pattern that means several; what it means is compared with regular
expressions and by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.densenet import _DenseLayer
from torchvision.models.efficientnet import MBConv
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.swin_transformer import SwinTransformerBlock
from torchvision.models.vision_transformer import EncoderBlock

from tvc_core import (
    BackboneSpec,
    BlockSpec,
    HybridBuilder,
    HybridModel,
    PatchError,
    RecipeError,
    Registry,
    TargetError,
    describe_backbone,
)
from tvc_core.recipe import load_recipe
from tvc_core.surgery.anatomy import Anatomy
from tvc_core.surgery.targets import expand

BASIC_BLOCK = ("conv1", "bn1", "relu", "conv2", "bn2")
BASIC_STAGE = (
    *(
        "0",
        *(f"0.{path}" for path in BASIC_BLOCK),
        "0.downsample",
        "0.downsample.0",
        "0.downsample.1",
    ),
    *("1", *(f"1.{path}" for path in BASIC_BLOCK)),
)
NETWORKS = ("resnet18", "resnet50", "efficientnet_b0", "swin_t", "vit_b_32", "densenet121")


class VectorGate(nn.Module):
    """[N, C] to itself."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(in_channels, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


VECTOR = BlockSpec(name="vector_gate", factory=VectorGate, layouts=("NC",))


@pytest.fixture(scope="module")
def networks() -> dict[str, tuple[nn.Module, Anatomy]]:
    """The plugins' networks, without memory for their weights, and the anatomies that they
    declare.
    """
    registry = Registry()
    found = {}
    for name in NETWORKS:
        offer = registry.resolve(BackboneSpec, name)
        with torch.device("meta"):
            network = offer.load()(offer.spec, weights=None)
        found[name] = (network, Anatomy.of(network, offer.spec))
    return found


@pytest.fixture
def meant(networks: dict[str, tuple[nn.Module, Anatomy]]) -> Callable[[str, str], list[str]]:
    return lambda name, target: expand(networks[name][0], target, networks[name][1], name)


# -- what patterns mean ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "target", "expression"),
    [
        ("resnet18", "layer?", r"layer[^.]"),
        ("resnet50", "layer*.*.bn3", r"layer[^.]*\.[^.]*\.bn3"),
        ("resnet50", "layer[34].0.conv*", r"layer[34]\.0\.conv[^.]*"),
        ("resnet50", "**.bn3", r"(.*\.)?bn3"),
        ("resnet50", "**.bn1", r"(.*\.)?bn1"),
        ("resnet50", "layer2.**", r"layer2(\..*)?"),
        ("resnet50", "**.**", r".+"),
        ("resnet50", "layer1.**.downsample.*", r"layer1\.(.*\.)?downsample\.[^.]*"),
        ("efficientnet_b0", "features.[2-7].*", r"features\.[2-7]\.[^.]*"),
        ("swin_t", "features.*.*.mlp", r"features\.[^.]*\.[^.]*\.mlp"),
        ("vit_b_32", "encoder.layers.*.mlp", r"encoder\.layers\.[^.]*\.mlp"),
        ("densenet121", "features.denseblock*", r"features\.denseblock[^.]*"),
        ("densenet121", "**.conv2", r"(.*\.)?conv2"),
    ],
)
def test_a_glob_means_what_the_regular_expression_means(
    networks: dict[str, tuple[nn.Module, Anatomy]],
    meant: Any,
    name: str,
    target: str,
    expression: str,
) -> None:
    expected = [
        path
        for path, _ in networks[name][0].named_modules()
        if path and re.fullmatch(expression, path)
    ]
    assert expected and meant(name, target) == expected


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnet18", BasicBlock),
        ("resnet50", Bottleneck),
        ("efficientnet_b0", MBConv),
        ("swin_t", SwinTransformerBlock),
        ("vit_b_32", EncoderBlock),
        ("densenet121", _DenseLayer),
    ],
)
def test_a_type_means_every_module_of_the_class(
    networks: dict[str, tuple[nn.Module, Anatomy]], meant: Any, name: str, kind: type[nn.Module]
) -> None:
    expected = [path for path, module in networks[name][0].named_modules() if type(module) is kind]
    assert expected and meant(name, f"type:{kind.__name__}") == expected


def test_of_nested_modules_of_a_type_the_outermost_is_meant(meant: Any) -> None:
    # downsample is a Sequential, too, inside a stage that is one
    assert meant("resnet50", "type:Sequential") == ["layer1", "layer2", "layer3", "layer4"]
    assert meant("resnet50", "layer4.type:Sequential") == ["layer4.0.downsample"]
    assert meant("efficientnet_b0", "features.1.type:Conv2d") == [
        "features.1.0.block.0.0",
        "features.1.0.block.1.fc1",
        "features.1.0.block.1.fc2",
        "features.1.0.block.2.0",
    ]


@pytest.mark.parametrize(
    ("name", "target", "paths"),
    [
        ("resnet18", "stage:2", ["layer3"]),
        ("resnet18", "stage:-1", ["layer4"]),
        ("resnet18", "stage:*", ["layer1", "layer2", "layer3", "layer4"]),
        ("resnet18", "stage:1.0.bn2", ["layer2.0.bn2"]),
        ("resnet18", "layer4.-1", ["layer4.1"]),
        ("resnet18", "layer4.-2", ["layer4.0"]),
        ("resnet18", "-1", ["fc"]),
        ("resnet18", "layer[12].-1.-1", ["layer1.1.bn2", "layer2.1.bn2"]),
        ("resnet50", "stage:*.-1", ["layer1.2", "layer2.3", "layer3.5", "layer4.2"]),
        (
            "resnet50",
            "stage:3.type:Bottleneck.bn3",
            ["layer4.0.bn3", "layer4.1.bn3", "layer4.2.bn3"],
        ),
        ("efficientnet_b0", "stage:5", ["features.6"]),
        ("efficientnet_b0", "stage:3.-1", ["features.4.2"]),
        ("efficientnet_b0", "stage:-1", ["features.8"]),
        ("swin_t", "stage:*", ["features.1", "features.3", "features.5", "norm"]),
        # the last stage of swin_t ends with a normalization, which is no block
        ("swin_t", "stage:*.-1", ["features.1.1", "features.3.1", "features.5.5", "features.7.1"]),
        (
            "vit_b_32",
            "stage:*",
            [*(f"encoder.layers.encoder_layer_{index}" for index in (2, 5, 8)), "encoder.ln"],
        ),
        ("vit_b_32", "stage:-1.-1", ["encoder.layers.encoder_layer_11"]),
        ("vit_b_32", "stage:1.0.mlp", ["encoder.layers.encoder_layer_3.mlp"]),
        (
            "vit_b_32",
            "stage:-1.type:LayerNorm",
            [
                *[f"encoder.layers.encoder_layer_{i}.ln_{j}" for i in (9, 10, 11) for j in (1, 2)],
                "encoder.ln",
            ],
        ),
        ("efficientnet_b0", "stage:-1.*", ["features.7.0"]),
        ("efficientnet_b0", "stage:-1.-1", ["features.7.0"]),
        (
            "efficientnet_b0",
            "stage:-1.type:Conv2dNormActivation",
            ["features.7.0.block.0", "features.7.0.block.1", "features.7.0.block.3", "features.8"],
        ),
        ("densenet121", "stage:1.0", ["features.denseblock2.denselayer1"]),
        (
            "densenet121",
            "stage:1.denselayer1*",
            [f"features.denseblock2.denselayer{index}" for index in (1, 10, 11, 12)],
        ),
        ("resnet18", "stage:3.**", ["layer4", *(f"layer4.{path}" for path in BASIC_STAGE)]),
        (
            "densenet121",
            "stage:*",
            [*(f"features.denseblock{index}" for index in (1, 2, 3)), "features.relu5"],
        ),
        (
            "densenet121",
            "stage:*.-1",
            [
                f"features.denseblock{block}.denselayer{size}"
                for block, size in enumerate((6, 12, 24, 16), 1)
            ],
        ),
    ],
)
def test_stages_and_indices_from_the_end(
    meant: Any, name: str, target: str, paths: list[str]
) -> None:
    assert meant(name, target) == paths


def test_a_module_with_two_names_is_meant_once(meant: Any) -> None:
    shared = nn.ReLU()
    network = nn.ModuleDict(
        {
            "a": nn.ModuleDict({"act": shared}),
            "b": nn.ModuleDict({"act": shared, "conv": nn.Identity()}),
        }
    )
    anatomy = Anatomy(stem=("a",), stages=(("b",),), head="b")
    assert expand(network, "*.act", anatomy, "net") == ["a.act"]
    assert expand(network, "b.*", anatomy, "net") == ["b.act", "b.conv"]


def test_a_name_that_looks_like_a_pattern_is_the_name() -> None:
    network = nn.ModuleDict(
        {
            "a*": nn.Identity(),
            "ab": nn.Identity(),
            "-1": nn.ModuleDict({"x": nn.Identity()}),
            "c": nn.ReLU(),
        }
    )
    anatomy = Anatomy(stem=("ab",), stages=(("c",),), head="c")
    assert expand(network, "a*", anatomy, "net") == ["a*"]
    assert expand(network, "-1.*", anatomy, "net") == ["-1.x"]


def test_in_a_hybrid_a_pattern_means_what_it_means_in_the_backbone(tiny: Any) -> None:
    plain, patched = tiny(), tiny({"**.norm": {"wrap": "gate"}})
    assert patched.get_submodule("patches.stem.norm") is not None
    anatomy = Anatomy(stem=("stem",), stages=(("layer1",),), head="fc")
    for target in ("**", "*", "-1", "type:*", "**.norm"):
        assert expand(plain, target, anatomy, "tiny") == expand(patched, target, anatomy, "tiny")
    with pytest.raises(TargetError):
        expand(patched, "**.gate", anatomy, "tiny")


# -- what patterns do not mean ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (
            "layer*.*.bn9",
            r"no child 'bn9' in layer1\.0, .*only conv1, bn1, conv2.*Near paths: layer4.*"
            r"'tvc show resnet50' list",
        ),
        ("blocks.*", r"no child 'blocks' in resnet50, only conv1"),
        ("layer4.-4", r"no child '-4' in layer4, only 0, 1, 2"),
        (
            "type:Botleneck",
            r"Did you mean 'Bottleneck'\?.*AdaptiveAvgPool2d, BatchNorm2d, Bottleneck",
        ),
        ("type:ResNet", r"no module in resnet50 is a ResNet"),
        ("layer1.type:Linear", r"no module in layer1 is a Linear"),
        ("stage:4", r"there is no stage 4: the 4 stages are 0: layer1, .*'stage:\*' is each"),
        ("stage:-5.0", r"there is no stage -5"),
        ("stage:one", r"there is no stage 'one'"),
        ("stage:" + "1" * 5000, r"there is no stage"),
        ("stage:", r"there is no stage ''"),
        # the other stages have one
        ("stage:*.3", r"no '3' among the blocks of stage 0, layer1\.0, layer1\.1, layer1\.2\."),
        ("stage:0.-4", r"no '-4' among the blocks of stage 0"),
        ("stage:0.conv", r"no 'conv' among the blocks of stage 0"),
        ("stage:0.type:Linear", r"no module in layer1 is a Linear"),
        ("layer4.stage:0", r"no child 'stage:0' in layer4"),
        ("**.", r"no child ''"),
    ],
)
def test_a_pattern_without_a_match_says_what_there_is(meant: Any, target: str, said: str) -> None:
    start = re.escape(target[:80])  # long text is cut
    with pytest.raises(TargetError, match=f"(?s)Target not found: '{start}.*'.*{said}"):
        meant("resnet50", target)


@pytest.mark.parametrize(
    "target",
    [
        "layer3.foo",
        "layer5",
        "layer3.9",
        "Bottleneck",
        "layer3.",
        "layer4.-0",
        "layer4.-" + "9" * 5000,
    ],
)
def test_a_path_stays_a_path(meant: Any, target: str) -> None:
    with pytest.raises(
        TargetError,
        match=rf"Target not found: '{re.escape(target[:80])}.*' is not a module of resnet50",
    ):
        meant("resnet50", target)


LAST_BLOCKS = {
    **dict.fromkeys(("alexnet", "vgg11", "vgg11_bn"), "MaxPool2d"),  # of plain layers, the last one
    **dict.fromkeys(
        ("mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5"), "InvertedResidual"
    ),
    **{
        "resnet18": "BasicBlock",
        "resnext50_32x4d": "Bottleneck",
        "wide_resnet50_2": "Bottleneck",
        "convnext_tiny": "CNBlock",
    },
    **{
        "efficientnet_b0": "MBConv",
        "efficientnet_v2_s": "*MBConv",
        "mnasnet0_5": "_InvertedResidual",
        "squeezenet1_1": "Fire",
    },
    **{
        "densenet121": "_DenseLayer",
        "googlenet": "Inception",
        "inception_v3": "Inception[A-E]",
        "maxvit_t": "MaxVitLayer",
    },
    **{
        "regnet_x_400mf": "ResBottleneckBlock",
        "vit_b_32": "EncoderBlock",
        "swin_t": "SwinTransformerBlock",
    },
    **{"swin_v2_t": "SwinTransformerBlockV2"},
}


@pytest.mark.parametrize("name", LAST_BLOCKS)
def test_the_last_block_of_each_stage_is_the_last_module_of_its_class_there(name: str) -> None:
    offer = Registry().resolve(BackboneSpec, name)
    spec = offer.spec
    # RegNet computes its widths with tensors
    with nullcontext() if name.startswith("regnet") else torch.device("meta"):
        options = {"init_weights": False} if "init_weights" in spec.options else {}
        network = offer.load()(spec, weights=None, **options)
    anatomy = Anatomy.of(network, spec)
    expected = []
    for index, stage in enumerate(spec.stage_paths):
        # its first stage has no block
        kind = "BatchNorm2d" if (name, index) == ("mnasnet0_5", 0) else LAST_BLOCKS[name]
        expected.append(
            [
                path
                for path, module in network.named_modules()
                if any(f"{path}.".startswith(f"{start}.") for start in stage)
                and fnmatch(type(module).__name__, kind)
            ][-1]
        )
    assert expand(network, "stage:*.-1", anatomy, name) == expected


def test_a_stage_of_somebody_elses_network_has_blocks_too() -> None:
    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.downsample = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
            self.blocks = nn.Sequential(*(BasicBlock(3, 3) for _ in range(3)))
            self.norm = nn.BatchNorm2d(3)

    network = nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 3, 1),
            "stage": Stage(),
            "plain": nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()),
        }
    )
    anatomy = Anatomy(stem=("stem",), stages=(("stage",), ("plain",)), head="stem")
    assert expand(network, "stage:*.-1", anatomy, "net") == ["stage.blocks.2", "plain.1"]
    assert expand(network, "stage:0.*.bn2", anatomy, "net") == [
        f"stage.blocks.{index}.bn2" for index in range(3)
    ]


# -- patches at patterns ---------------------------------------------------------------------------


def opened(model: HybridModel) -> HybridModel:
    """Open all gates, so that the blocks act."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("alpha"):
                parameter.fill_(0.5)
    return model.eval()


def test_a_pattern_builds_what_its_paths_written_out_build(tiny: Any, images: Tensor) -> None:
    torch.manual_seed(0)
    short = tiny(
        {
            "layer?": {"wrap": "gate"},
            "type:Linear": {"inject": {"type": "vector_gate", "position": "after"}},
        },
        VECTOR,
    )
    torch.manual_seed(0)
    long = tiny(
        {
            **{f"layer{index}": {"wrap": "gate"} for index in (1, 2, 3)},
            "fc": {"inject": {"type": "vector_gate", "position": "after"}},
        },
        VECTOR,
    )
    assert [record.target for record in short.patch_records] == ["layer1", "layer2", "layer3", "fc"]
    assert short.patch_records == long.patch_records and short.step0_difference == 0.0
    assert list(short.state_dict()) == list(long.state_dict())
    before = short.eval()(images)
    after = opened(short)(images)
    assert torch.equal(after, opened(long)(images)) and not torch.equal(after, before)


def test_two_patterns_may_mean_the_same_module(tiny: Any, images: Tensor) -> None:
    model = tiny(
        {"layer*": {"wrap": "gate"}, "stage:-1": {"wrap": "gate"}, "layer3": {"wrap": "gate"}}
    )
    assert [record.target for record in model.patch_records] == [
        "layer1",
        "layer2",
        "layer3",
        "layer3",
        "layer3",
    ]
    assert [record.paths[0] for record in model.patch_records][2:] == [
        "patches.layer3.gate",
        "patches.layer3.gate_2",
        "patches.layer3.gate_3",
    ]


def test_the_recipe_keeps_the_pattern_and_rebuilds_the_model(
    tiny: Any, lab: Any, images: Tensor, tmp_path: Path
) -> None:
    patches = {
        "**.norm": {"wrap": "gate"},
        "stage:*.-1": {"inject": {"type": "gate", "position": "before"}},
    }
    model = opened(tiny(patches))
    assert len(model.patch_records) > 4
    written = model.recipe.to_mapping()["backbone"]["patches"]
    assert list(written) == ["**.norm", "stage:*.-1"]
    (tmp_path / "recipe.yaml").write_text(model.recipe.to_yaml())
    assert load_recipe(tmp_path / "recipe.yaml") == model.recipe
    rebuilt = lab().build(tmp_path / "recipe.yaml")
    assert rebuilt.patch_records == model.patch_records and list(rebuilt.state_dict()) == list(
        model.state_dict()
    )
    model.save(tmp_path / "model.safetensors")
    loaded = lab().load(tmp_path / "model.safetensors")
    assert (
        loaded.recipe.patches == model.recipe.patches
        and loaded.patch_records == model.patch_records
    )
    assert torch.equal(loaded.eval()(images), model(images))


def test_a_match_where_nothing_can_be_inserted_is_an_error_that_names_it(tmp_path: Path) -> None:
    builder = HybridBuilder()
    with pytest.raises(
        TargetError,
        match=r"layer4\.1\.\*, here layer4\.1\.relu: nothing can be inserted at 'layer4\.1\.relu'",
    ):
        builder.from_torchvision("resnet50", weights=None, patches={"layer4.1.*": {"wrap": "se"}})
    (tmp_path / "r.yaml").write_text(
        "backbone:\n  name: resnet18\n  weights: null\n  patches:\n    '*': {wrap: se}\n",
        encoding="utf-8",
    )
    with pytest.raises(
        TargetError,
        match=r"^\S+r\.yaml:5:\d+: backbone\.patches\.\*.*: \*, here fc: se cannot be inserted",
    ):
        builder.build(tmp_path / "r.yaml")


def test_a_pattern_inside_what_is_replaced_is_a_conflict(tiny: Any) -> None:
    patches = {
        "layer1": {"replace": {"type": "conv", "params": {"channels": 8}}},
        "layer*.conv": {"wrap": "gate"},
    }
    with pytest.raises(
        PatchError,
        match=r"layer\*\.conv, here layer1\.conv: .*'layer1', which another patch replaces",
    ):
        tiny(patches)


def test_a_pattern_that_is_wrong_says_where_it_stands(tiny: Any) -> None:
    with pytest.raises(TargetError, match=r"arguments, layre\*\.wrap: Target not found: 'layre\*'"):
        tiny({"layer1": {"wrap": "gate"}, "layre*": {"wrap": "gate"}})


@pytest.mark.parametrize(
    ("name", "target", "count"),
    [
        ("resnet18", "type:BasicBlock", 8),
        ("resnet50", "type:Bottleneck", 16),
        ("efficientnet_b0", "stage:*", 7),
        ("swin_t", "stage:*.-1", 4),
        ("vit_b_32", "encoder.layers.*", 12),
        ("densenet121", "features.denseblock*", 4),
    ],
)
def test_real_networks_start_as_they_were_with_a_block_at_every_match(
    builder: HybridBuilder, name: str, target: str, count: int
) -> None:
    model = builder.from_torchvision(name, weights=None, patches={target: {"wrap": "se"}})
    assert len(model.patch_records) == count and model.step0_difference == 0.0
    assert all(record.starts_as_identity for record in model.patch_records)


@pytest.mark.parametrize("key", ["**.bn1", "*.bn1", "*all"])
def test_yaml_says_that_text_with_a_star_in_front_needs_quotes(tmp_path: Path, key: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"backbone:\n  name: resnet18\n  patches:\n    {key}: {{wrap: se}}\n", encoding="utf-8"
    )
    with pytest.raises(
        RecipeError, match=r":4:\d: not YAML: .*alias.*; text that begins with '\*' needs quotes"
    ):
        load_recipe(path)


def test_describe_backbone_lists_what_a_target_means(
    networks: dict[str, tuple[nn.Module, Anatomy]],
) -> None:
    every = {info.path: info for info in describe_backbone("resnet18", size=64)}
    found = describe_backbone("resnet18", size=64, target="layer[34].*.bn2")
    assert found == tuple(
        every[path] for path in ("layer3.0.bn2", "layer3.1.bn2", "layer4.0.bn2", "layer4.1.bn2")
    )
    with pytest.raises(TargetError, match=r"Target not found: 'type:Bottleneck'.*BasicBlock"):
        describe_backbone("resnet18", target="type:Bottleneck")
