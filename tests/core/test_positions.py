"""Positions: beside a target, inside a residual branch, and several patches on one place."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from tvc_attention.cbam import CBAM

from tvc_core import (
    POSITIONS,
    BackboneSpec,
    BlockSpec,
    HeadError,
    HybridBuilder,
    HybridModel,
    ParameterError,
    PatchError,
    PatchOpSpec,
    Position,
    TargetError,
    load,
)
from tvc_core.surgery.branches import branch_of


def set_gates(model: HybridModel, value: float) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".alpha"):
                parameter.fill_(value)


# -- parallel --------------------------------------------------------------------------------------

BESIDE = {"type": "conv", "position": "parallel", "params": {"channels": 16, "stride": 2}}


def test_a_block_that_rounds_a_size_in_another_way_says_so() -> None:
    """A patch embedding leaves an odd image's last pixels out, and a padded convolution does not:
    at the even size of the build both give the same map.
    """
    network = nn.Sequential()
    network.stem = nn.Conv2d(3, 8, 1)
    network.stage = nn.Sequential(nn.Conv2d(8, 8, 2, stride=2))
    network.pool, network.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    network.fc = nn.Linear(8, 4)
    model = HybridBuilder().from_module(
        network, "stem", ["stage"], "fc", patches={"stage": {"inject": "conv_adapter"}}
    )
    assert model(torch.randn(1, 3, 32, 34)).shape == (1, 4)
    with pytest.raises(PatchError, match=r"stage.conv_adapter gives \[1, 8, 17, 16\]"):
        model(torch.randn(1, 3, 33, 32))


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_block_beside_a_target_is_added(
    tiny: Any, plain: Any, images: Tensor, value: float
) -> None:
    model, reference = tiny({"layer2": {"inject": BESIDE}}).eval(), plain().eval()
    set_gates(model, value)
    block = model.patches.layer2.conv_2.block
    assert (block.conv.in_channels, block.conv.out_channels) == (8, 16)
    x = reference.layer1(reference.stem(images))
    y = reference.layer2(x.clone()) + value * block(x)
    expected = reference.fc(reference.avgpool(reference.layer3(y)).flatten(1))
    assert torch.equal(model(images), expected)
    assert model.step0_difference == 0.0 and "layer2 + lab:conv" in model.explain()


def test_the_published_start_adds_the_block_itself(tiny: Any, images: Tensor) -> None:
    model = tiny({"layer2": {"inject": {**BESIDE, "init": "paper"}}}).eval()
    x = model.layer1(model.stem(images))
    without = nn.Sequential.forward(model.layer2, x.clone())
    assert torch.equal(model.layer2(x.clone()), without + model.patches.layer2.conv_2.block(x))


@pytest.mark.parametrize("training", [False, True])
def test_an_in_place_target_does_not_overwrite_what_the_block_reads(
    tiny: Any, images: Tensor, training: bool
) -> None:
    model = tiny(
        {"layer1.relu": {"inject": {"type": "scale", "position": "parallel"}}}, SCALE
    ).train(training)
    set_gates(model, 1.0)
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(model.layer1.relu(x.clone()), torch.relu(x) + x)
    model(images).sum().backward()


def test_a_shape_that_does_not_fit_is_refused_with_what_would(tiny: Any) -> None:
    for params in ({}, {"channels": 16}, {"stride": 2}):
        with pytest.raises(
            PatchError, match=r"parallel to 'layer2' turns \[1, 8.*is \[1, 16.*would fit"
        ) as error:
            tiny({"layer2": {"inject": {**BESIDE, "params": params}}})
        for name, value in {"channels": 16, "stride": 2}.items():
            assert (f"{name}={value}" in str(error.value)) == (name not in params)


def test_one_channel_is_not_spread_over_all(tiny: Any) -> None:
    with pytest.raises(PatchError, match=r"into \[1, 1, .*channels=8 would fit"):
        tiny(
            {
                "layer1": {
                    "inject": {"type": "conv", "position": "parallel", "params": {"channels": 1}}
                }
            }
        )


def test_a_target_that_changes_the_layout_has_nothing_beside_it(builder: HybridBuilder) -> None:
    with pytest.raises(TargetError, match=r"parallel to 'features.0.1'.*NCHW.*NHWC"):
        builder.from_backbone(
            "swin_t",
            weights=None,
            patches={"features.0.1": {"inject": {"type": "se", "position": "parallel"}}},
        )


def test_beside_a_linear_layer_on_channels_last_maps_widths_are_compared(
    builder: HybridBuilder,
) -> None:
    block = {"type": "se", "position": "parallel"}
    with pytest.raises(PatchError, match=r"parallel to .*\[1, 96, .*\[1, 384, "):
        builder.from_backbone(
            "convnext_tiny", weights=None, patches={"features.1.0.block.3": {"inject": block}}
        )


def test_beside_tokens_the_class_token_is_a_map_of_one_pixel(builder: HybridBuilder) -> None:
    target = "encoder.layers.encoder_layer_3"
    block = {"type": "se", "position": "parallel", "params": {"hidden_channels": 4}}
    model = builder.from_backbone(
        "vit_b_32", weights=None, patches={target: {"inject": block}}, image_size=96
    ).eval()
    assert model.step0_difference == 0.0
    set_gates(model, 1.0)
    layer, se = (
        model.get_submodule(target),
        model.get_submodule(model.patch_records[0].paths[0]).block,
    )
    x = torch.randn(1, 10, 768)
    grid = x[:, 1:].transpose(1, 2).reshape(1, 768, 3, 3)
    token = x[:, :1].transpose(1, 2).reshape(1, 768, 1, 1)
    added = torch.cat([se(token).flatten(2), se(grid).flatten(2)], dim=2).transpose(1, 2)
    torch.testing.assert_close(layer(x), type(layer).forward(layer, x) + added)


@pytest.mark.parametrize("carry", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_beside_survives_copies_and_an_early_end(tiny: Any, images: Tensor, carry: Any) -> None:
    model = tiny({"layer3": {"inject": {**BESIDE, "params": {"channels": 32, "stride": 2}}}}).eval()
    set_gates(model, 0.5)
    expected = model(images)
    model.get_stage_outputs(images, stages=0)
    with pytest.raises(RuntimeError):
        model.layer3(torch.zeros(1, 16, 8, 8, dtype=torch.int64))
    copied = carry(model)
    assert torch.equal(copied(images), expected)


def test_beside_can_be_exported(tiny: Any, images: Tensor) -> None:
    model = tiny(
        {
            "layer2": {"inject": BESIDE},
            "layer1.relu": {"inject": {"type": "conv", "position": "parallel"}},
        }
    ).eval()
    set_gates(model, 0.5)
    exported = torch.export.export(model, (images,))
    torch.testing.assert_close(exported.module()(images), model(images))


def test_the_head_does_not_change_its_width_under_a_block_beside_it(tiny: Any) -> None:
    dense = BlockSpec(
        name="dense", factory=lambda in_channels: nn.Linear(in_channels, 7), layouts=("NC",)
    )
    patches = {"fc": {"inject": {"type": "dense", "position": "parallel"}}}
    with pytest.raises(HeadError, match="the block parallel to 'fc' was made for 7 outputs"):
        tiny(patches, dense, num_classes=3)


# -- branch ----------------------------------------------------------------------------------------


def squeeze_excite_in_branches(depth: int) -> dict[str, Any]:
    """SE in every block of ResNet-18 or -50, with the hidden width that timm gives it: C / 16,
    rounded to 8.
    """
    layers, expansion = {18: ([2, 2, 2, 2], 1), 50: ([3, 4, 6, 3], 4)}[depth]
    patches: dict[str, Any] = {}
    for stage, blocks in enumerate(layers):
        hidden = timm.layers.make_divisible(64 * 2**stage * expansion / 16, 8)
        params = {
            "type": "se",
            "params": {"hidden_channels": hidden},
            "init": "paper",
            "position": "branch",
        }
        patches |= {f"layer{stage + 1}.{index}": {"wrap": params} for index in range(blocks)}
    return patches


@pytest.mark.parametrize("depth", [18, 50])
def test_se_in_the_branches_of_resnet_is_timms_seresnet(builder: HybridBuilder, depth: int) -> None:
    model = (
        builder.from_backbone(
            f"resnet{depth}", weights=None, patches=squeeze_excite_in_branches(depth)
        )
        .double()
        .eval()
    )
    reference = timm.create_model(f"seresnet{depth}").double().eval()
    spread_statistics(reference)
    end = {18: "bn2", 50: "bn3"}[depth]
    theirs = reference.state_dict()
    names = {
        name: name.replace("patches.", "").replace(f".{end}.se.block.", ".se.")
        for name in model.state_dict()
    }
    assert sorted(names.values()) == sorted(theirs)
    model.load_state_dict({name: theirs[other] for name, other in names.items()})
    x = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    torch.testing.assert_close(model(x), reference(x), rtol=0, atol=1e-10)


def spread_statistics(network: nn.Module) -> None:
    """Let no normalization be the identity, so that a block on the wrong side of one is seen."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.0, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)


class CBAMBottleneck(torchvision.models.resnet.Bottleneck):
    """Woo et al. 2018, figure 3: the module refines the branch's map before the addition."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        out = self.cbam(self.bn3(self.conv3(out)))
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


def test_cbam_in_the_branches_of_resnet50_is_a_hand_written_cbam_resnet(
    builder: HybridBuilder,
) -> None:
    patches = {
        "layer*.*": {"inject": {"type": "cbam_block", "init": "paper", "position": "branch"}}
    }
    model = builder.from_backbone("resnet50", weights=None, patches=patches).double().eval()
    reference = torchvision.models.ResNet(CBAMBottleneck, [3, 4, 6, 3])
    for block in reference.modules():
        if isinstance(block, CBAMBottleneck):
            block.cbam = CBAM(block.conv3.out_channels)
    reference = reference.double().eval()
    spread_statistics(reference)
    theirs = reference.state_dict()
    names = {
        n: n.replace("patches.", "").replace(".bn3.cbam_block.block.", ".cbam.")
        for n in model.state_dict()
    }
    assert sorted(names.values()) == sorted(theirs)
    model.load_state_dict({name: theirs[other] for name, other in names.items()})
    x = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    torch.testing.assert_close(model(x), reference(x), rtol=0, atol=1e-10)


CASES = {
    "resnet18": "layer2.0",
    "resnet50": "layer2.0",
    "regnet_y_400mf": "trunk_output.block2.block2-0",
    "mobilenet_v2": "features.3",
    "mobilenet_v3_small": "features.3",
    "mnasnet0_5": "layers.8.1",
    "efficientnet_b0": "features.2.1",
    "efficientnet_v2_s": "features.2.1",
    "convnext_tiny": "features.1.1",
    "maxvit_t": "blocks.0.layers.1.layers.MBconv",
    "swin_t": "features.1.1",
    "swin_v2_t": "features.1.1",
    "vit_b_16": "encoder.layers.encoder_layer_1",
}


def branches_of(builder: HybridBuilder) -> dict[str, str]:
    """What all torchvision backbones declare together."""
    found: dict[str, str] = {}
    for offer in builder.registry.all(BackboneSpec):
        found.update(offer.spec.branches)
    return found


def test_every_known_block_has_a_case(builder: HybridBuilder) -> None:
    assert len(CASES) == len(branches_of(builder)) == 13


@pytest.mark.parametrize("backbone", CASES)
def test_a_patch_in_a_branch_leaves_the_shortcut_alone(
    builder: HybridBuilder, backbone: str
) -> None:
    target = CASES[backbone]
    block = {"type": "se", "position": "branch", "init": "paper"}
    small = {"image_size": 32} if backbone.startswith("vit") else {}
    model = builder.from_backbone(
        backbone, weights=None, patches={target: {"wrap": block}}, **small
    ).eval()
    residual = model.get_submodule(target)
    end = branch_of(residual, builder.registry.resolve(BackboneSpec, backbone).spec.branches)
    assert model.patch_records[0].paths[0].startswith(f"patches.{target}.{end}.se")
    seen: list[Tensor] = []
    handle = residual.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    side = model._hybrid.probe_shape[2:]
    model(torch.randn(1, 3, *side))
    handle.remove()
    gate = model.get_submodule(model.patch_records[0].paths[0])
    with torch.no_grad():  # a gate that shuts: nothing of the branch is left
        gate.block.fc2.weight.zero_()
        gate.block.fc2.bias.fill_(-1e4)
    torch.testing.assert_close(residual(seen[0]), shortcut_of(residual, seen[0]))
    with model.without():
        assert not torch.allclose(residual(seen[0]), shortcut_of(residual, seen[0]))


def shortcut_of(block: Any, x: Tensor) -> Tensor:
    """What a residual block gives where its (last) branch is zero, written down from torchvision's
    source.
    """
    name = f"{type(block).__module__.rpartition('.')[2]}.{type(block).__name__}"
    if name.startswith("resnet."):
        return torch.relu(x if block.downsample is None else block.downsample(x))
    if name.startswith("regnet."):
        return torch.relu(x if block.proj is None else block.proj(x))
    if name.startswith("maxvit."):
        return block.proj(x)
    if name == "swin_transformer.SwinTransformerBlock":
        return x + block.attn(block.norm1(x))
    if name == "swin_transformer.SwinTransformerBlockV2":
        return x + block.norm1(block.attn(x))
    if name == "vision_transformer.EncoderBlock":
        y = block.ln_1(x)
        return x + block.self_attention(y, y, y, need_weights=False)[0]
    return x


def test_a_container_of_blocks_is_refused_with_the_pattern_for_all(builder: HybridBuilder) -> None:
    with pytest.raises(
        TargetError,
        match=r"'layer1' \(Sequential\) is not one but has 2: layer1.0, layer1.1.*'layer1\.\*'",
    ):
        builder.from_backbone(
            "resnet18",
            weights=None,
            patches={"layer1": {"wrap": {"type": "se", "position": "branch"}}},
        )
    builder.from_backbone(
        "resnet18",
        weights=None,
        patches={"layer1.*": {"wrap": {"type": "se", "position": "branch"}}},
    )


@pytest.mark.parametrize(
    ("backbone", "target", "known"),
    [
        ("resnet18", "conv1", r"knows BasicBlock \(resnet\), Bottleneck \(resnet\);"),
        ("swin_t", "features.0", r"knows SwinTransformerBlock \(swin_transformer\), .*V2"),
        ("shufflenet_v2_x0_5", "stage2.0", r"MBConv \(maxvit\).*BasicBlock \(resnet\)"),
    ],
)
def test_an_unknown_block_is_refused_with_those_that_this_network_knows(
    builder: HybridBuilder, backbone: str, target: str, known: str
) -> None:
    with pytest.raises(TargetError, match=rf"not one that tvc knows.*{known}.*tvc_branch"):
        builder.from_backbone(
            backbone, weights=None, patches={target: {"wrap": {"type": "se", "position": "branch"}}}
        )


class Residual(nn.Module):
    tvc_branch = "body.1"

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, 1, 1), nn.BatchNorm2d(in_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Residuals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer1, self.fc = (
            nn.Conv2d(3, 8, 3),
            nn.Sequential(Residual(8), Residual(8)),
            nn.Linear(8, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(self.stem(x)).mean((2, 3)))


def build_residuals(spec: BackboneSpec, *, weights: Any) -> Residuals:
    return Residuals()


RESIDUALS = BackboneSpec(
    name="residuals", factory=build_residuals, stem=("stem",), stages=("layer1",), head="fc"
)


def test_a_class_declares_its_own_branch(lab: Any) -> None:
    patches = {"layer1.0": {"wrap": {"type": "gate", "position": "branch", "init": "paper"}}}
    model = lab(RESIDUALS).from_backbone("residuals", weights=None, patches=patches).eval()
    assert model.patch_records[0].paths == ("patches.layer1.0.body.1.gate",)
    block, x = model.layer1[0], torch.randn(1, 8, 6, 6)
    gate = model.patches.layer1.get_submodule("0.body.1.gate").block
    expected = x + gate(nn.BatchNorm2d.forward(block.body[1], block.body[0](x)))
    assert torch.equal(block(x), expected)


def test_a_wrong_declaration_is_refused(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Residual, "tvc_branch", "body.7")
    with pytest.raises(
        TargetError, match=r"branch of 'layer1.0' \(Residual\) is said to end at 'body.7'"
    ):
        lab(RESIDUALS).from_backbone(
            "residuals",
            weights=None,
            patches={"layer1.0": {"wrap": {"type": "gate", "position": "branch"}}},
        )


def test_a_subclass_with_another_forward_is_not_known() -> None:
    class Other(torchvision.models.resnet.BasicBlock):
        def forward(self, x: Tensor) -> Tensor:
            return self.bn1(self.conv1(x)) + self.bn2(self.conv2(x))

    class Same(torchvision.models.resnet.BasicBlock):
        pass

    known = {"torchvision.models.resnet.BasicBlock": "bn2"}
    assert branch_of(Other(8, 8), known) is None and branch_of(Same(8, 8), known) == "bn2"
    assert branch_of(Same(8, 8), {}) is None


def test_a_backbone_declares_the_branches_of_its_blocks(lab: Any) -> None:
    """A class that has no attribute, and of which no other plugin knows."""

    class Unmarked(Residual):
        tvc_branch = None

    def build(spec: BackboneSpec, *, weights: Any) -> nn.Module:
        network = Residuals()
        network.layer1 = nn.Sequential(Unmarked(8), Unmarked(8))
        return network

    place = f"{Unmarked.__module__}.{Unmarked.__qualname__}"
    spec = dataclasses.replace(RESIDUALS, factory=build, branches={place: "body.0"})
    patches = {"stage:0.*": {"wrap": {"type": "gate", "position": "branch"}}}
    model = lab(spec).from_backbone("residuals", weights=None, patches=patches)
    assert [record.paths[0] for record in model.patch_records] == [
        "patches.layer1.0.body.0.gate",
        "patches.layer1.1.body.0.gate",
    ]
    with pytest.raises(TargetError, match="not one that tvc knows"):
        lab(dataclasses.replace(spec, branches={})).from_backbone(
            "residuals", weights=None, patches=patches
        )


def test_in_a_users_network_torchvisions_blocks_are_known(builder: HybridBuilder) -> None:
    network = nn.Sequential()
    network.add_module("stem", nn.Conv2d(3, 16, 3, 2, 1))
    network.add_module(
        "blocks", nn.Sequential(*(torchvision.models.resnet.BasicBlock(16, 16) for _ in range(2)))
    )
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("head", nn.Sequential(nn.Flatten(1), nn.Linear(16, 4)))
    block = {"wrap": {"type": "se", "position": "branch"}}
    model = builder.from_module(
        network, stem="stem", stages=["blocks"], head="head", patches={"blocks.*": block}
    )
    assert model.patch_records[1].paths == ("patches.blocks.1.bn2.se",)


# -- several, conflicts, others' operations --------------------------------------------------------


def scale(in_channels: int, factor: float = 1.0, shift: float = 0.0) -> nn.Module:
    conv = nn.Conv2d(in_channels, in_channels, 1)
    with torch.no_grad():
        nn.init.dirac_(conv.weight)
        conv.weight.mul_(factor)
        conv.bias.fill_(shift)
    return conv


SCALE = BlockSpec(name="scale", factory=scale)


def steps(*positions: tuple[str, float, float]) -> list[dict[str, Any]]:
    made = []
    for position, factor, shift in positions:
        params = {"factor": factor, "shift": shift}
        made.append(
            {"inject": {"type": "scale", "position": position, "params": params, "init": "paper"}}
        )
    return made


def test_patches_on_one_place_run_in_the_stated_order(tiny: Any) -> None:
    x = torch.rand(1, 8, 4, 4) + 1  # positive, so that relu does nothing
    for patches, expected in [
        (steps(("after", 2, 0), ("after", 1, 3)), 2 * x + 3),
        (steps(("after", 1, 3), ("after", 2, 0)), 2 * (x + 3)),
        (steps(("before", 2, 0), ("before", 1, 3)), 2 * x + 3),
        (steps(("before", 1, 3), ("before", 2, 0)), 2 * (x + 3)),
        (steps(("after", 2, 0), ("parallel", 1, 0)), 2 * x + x),
        (steps(("parallel", 1, 0), ("after", 2, 0)), 2 * (x + x)),
        (steps(("before", 3, 0), ("parallel", 1, 0)), 3 * x + 3 * x),
        (steps(("parallel", 1, 0), ("before", 3, 0)), 3 * x + x),
    ]:
        model = tiny({"layer1.relu": patches}, SCALE).eval()
        torch.testing.assert_close(model.layer1.relu(x.clone()), expected)


def test_a_branch_and_its_end_are_one_place(lab: Any) -> None:
    def made(first: str, second: str) -> Any:
        one = {"type": "scale", "params": {"factor": 2.0}, "init": "paper"}
        other = {"type": "scale", "params": {"shift": 3.0}, "init": "paper"}
        at = {
            "layer1.0": {"wrap": {**one, "position": "branch"}},
            "layer1.0.body.1": {"wrap": other},
        }
        return (
            lab(RESIDUALS, SCALE)
            .from_backbone(
                "residuals", weights=None, patches={key: at[key] for key in (first, second)}
            )
            .eval()
        )

    x = torch.randn(1, 8, 6, 6)
    order = ("layer1.0", "layer1.0.body.1")
    for model, expected in (
        (made(*order), lambda y: 2 * y + 3),
        (made(*order[::-1]), lambda y: 2 * (y + 3)),
    ):
        end = model.layer1[0].body[1]
        torch.testing.assert_close(end(x), expected(nn.BatchNorm2d.forward(end, x)))


def test_replacing_the_end_of_a_branch_that_has_a_patch_is_a_conflict(lab: Any) -> None:
    patches = {
        "layer1.0": {"wrap": {"type": "gate", "position": "branch"}},
        "layer1.0.body.1": {"replace": "scale"},
    }
    with pytest.raises(
        PatchError,
        match=r"replaces 'layer1.0.body.1' and would lose the earlier patch at 'layer1.0'",
    ):
        lab(RESIDUALS, SCALE).from_backbone("residuals", weights=None, patches=patches)
    turned = dict(reversed(patches.items()))
    assert (
        lab(RESIDUALS, SCALE)
        .from_backbone("residuals", weights=None, patches=turned)
        .patch_records[1]
        .op
        == "tvc-core:wrap"
    )


def test_a_given_name_in_a_branch_is_never_changed(lab: Any) -> None:
    named = {"type": "gate", "name": "attention"}
    patches = {
        "layer1.0": {"wrap": {**named, "position": "branch"}},
        "layer1.0.body.1": {"wrap": named},
    }
    for order in (patches, dict(reversed(patches.items()))):
        with pytest.raises(PatchError, match=r"the name 'attention' is taken at 'layer1.0.body.1'"):
            lab(RESIDUALS).from_backbone("residuals", weights=None, patches=order)


def test_others_operations_have_the_same_positions(lab: Any) -> None:
    def both(target: Any, block: Any) -> nn.Module:
        target.parallel(block(target.in_channels))
        target.branch(block(target.branch_channels))
        return target.module

    op = PatchOpSpec(name="both", factory=both)
    model = lab(RESIDUALS, op).from_backbone(
        "residuals", weights=None, patches={"layer1.1": {"both": "gate"}}
    )
    assert model.patch_records[0].paths == ("patches.layer1.1.gate", "patches.layer1.1.body.1.gate")
    assert model.step0_difference == 0.0
    model.unpatch()
    assert list(model.state_dict()) == list(Residuals().state_dict())


def test_an_unknown_position_is_refused_with_what_there_is(tiny: Any) -> None:
    for op, there_are in (
        ("inject", "'after', 'before', 'parallel' or 'branch'"),
        ("wrap", "'after' or 'branch'"),
    ):
        with pytest.raises(
            ParameterError, match=f"{op} takes the position {there_are}, not 'paralel'"
        ):
            tiny({"layer1": {op: {"type": "gate", "position": "paralel"}}})


# -- the table, and positions of plugins -----------------------------------------------------------


def expected_at(name: str, x: Tensor, value: float) -> Tensor:
    """What the doubled relu gives with a block that computes 3 x + 1 at a position, by hand."""

    def block(x: Tensor) -> Tensor:
        return 3 * x + 1

    if name == "before":
        return torch.relu(x + value * (block(x) - x))
    y = torch.relu(x)
    if name == "after":
        return y + value * (block(y) - y)
    return y + value * block(x if name == "parallel" else y)


def add(y: Tensor, result: Tensor, gate: Tensor | None) -> Tensor:
    return y + (result if gate is None else gate * result)


AROUND = Position(
    name="around", formula="{target} + {block}({target})", combine=add, neutral="zero"
)


def around(target: Any, block: Any) -> nn.Module:
    target.insert(block(target.channels(AROUND)), AROUND)
    return target.module


AROUND_OP = PatchOpSpec(name="around", factory=around)


@pytest.mark.parametrize("value", [0.0, 0.25])
@pytest.mark.parametrize("name", [*POSITIONS, "around"])
def test_every_position_computes_its_formula(tiny: Any, name: str, value: float) -> None:
    if name == "branch":
        pytest.skip("as after, in a branch: see above")
    block = {"type": "scale", "params": {"factor": 3.0, "shift": 1.0}}
    patch = {"around": block} if name == "around" else {"inject": {**block, "position": name}}
    model = tiny({"layer1.relu": patch}, SCALE, AROUND_OP).eval()
    assert model.step0_difference == 0.0
    set_gates(model, value)
    x = torch.randn(1, 8, 5, 5)
    torch.testing.assert_close(model.layer1.relu(x.clone()), expected_at(name, x, value))


@pytest.mark.parametrize("name", ["before", "after", "parallel", "around"])
def test_backward_hooks_see_the_patched_target(tiny: Any, name: str) -> None:
    """torch makes the arguments of a module with such hooks anew, as their type says."""
    block = {"type": "scale", "params": {"factor": 3.0, "shift": 1.0}}
    patch = {"around": block} if name == "around" else {"inject": {**block, "position": name}}
    model = tiny({"layer1.conv": patch}, SCALE, AROUND_OP).eval()
    set_gates(model, 0.25)
    layer = model.layer1.conv
    x = torch.randn(1, 8, 5, 5, requires_grad=True)
    expected = torch.autograd.grad(layer(x).square().sum(), x)[0]
    seen: list[tuple[Tensor, ...]] = []
    layer.register_full_backward_hook(lambda module, below, above: seen.append((*below, *above)))
    y = layer(x)
    found = torch.autograd.grad(y.square().sum(), x)[0]
    torch.testing.assert_close(found, expected)
    inner = expected / 1.5 if name == "before" else expected  # d(x + 0.25 (3x + 1 - x)) = 1.5 dx
    torch.testing.assert_close(seen, [(inner, 2 * y)])


@pytest.mark.parametrize("name", [*POSITIONS, "around"])
def test_every_position_is_explained_copied_saved_and_taken_out(
    lab: Any, images: Tensor, name: str, tmp_path: Any
) -> None:
    patch = (
        {"around": "gate"} if name == "around" else {"inject": {"type": "gate", "position": name}}
    )
    knows = lab(RESIDUALS, AROUND_OP)
    plain = knows.from_backbone("residuals", None)
    model = knows.from_backbone("residuals", weights=None, patches={"layer1.1": patch}).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    place = "layer1.1.body.1" if name == "branch" else "layer1.1"
    position = AROUND if name == "around" else POSITIONS[name]
    assert position.describe(place, "lab:gate") in model.explain()
    set_gates(model, 0.7)
    right = model(images)
    assert not torch.allclose(right, plain.eval()(images))
    model.save(tmp_path / "model.safetensors")
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        load(tmp_path / "model.safetensors", registry=knows.registry).eval(),
    ):
        assert torch.equal(other(images), right)
    traced = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(traced(images), right)
    with model.without():
        assert torch.equal(model(images), plain(images))
    model.set_grad_checkpointing(True)
    torch.testing.assert_close(model.train()(images), model(images))
    model.unpatch()
    model.load_state_dict(plain.state_dict())  # training has moved the statistics
    assert torch.equal(model.eval()(images), plain(images))


def test_wrap_takes_the_positions_that_read_what_the_target_gives(tiny: Any) -> None:
    for name, position in POSITIONS.items():
        if position.reads == "output":
            continue
        with pytest.raises(ParameterError, match="wrap takes the position 'after' or 'branch'"):
            tiny({"layer1": {"wrap": {"type": "gate", "position": name}}})


def test_another_entry_of_the_table_is_a_position_of_inject(
    tiny: Any, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One edit adds a position: nothing else has to know its name."""
    fed = Position(
        name="fed", formula="{block} + {target}", reads="input", writes="input", combine=add,
        neutral="zero",
    )  # fmt: skip
    monkeypatch.setitem(POSITIONS, "fed", fed)
    patch = {"type": "scale", "position": "fed", "params": {"factor": 2.0}, "init": "paper"}
    model = tiny({"layer1.relu": {"inject": patch}}, SCALE).eval()
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(model.layer1.relu(x.clone()), torch.relu(3 * x))
    assert "lab:scale(factor=2.0) + layer1.relu" in model.explain()
    with pytest.raises(ParameterError, match=r"'branch' or 'fed', not 'feed'. Did you mean 'fed'"):
        tiny({"layer1": {"inject": {"type": "gate", "position": "feed"}}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reads": "middle"}, "reads and writes are 'input' or 'output'"),
        ({"neutral": "one"}, "neutral is 'identity', 'zero'"),
        ({"writes": "input"}, "cannot depend on the target's output"),
        ({"reads": "input"}, "reads the input and writes the output, so it needs combine"),
    ],
)
def test_a_position_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Position(name="odd", formula="{target}", **fields)


def test_a_block_that_does_not_fit_a_plugins_position_is_refused(tiny: Any) -> None:
    with pytest.raises(PatchError, match=r"conv around 'layer2' turns .*output of 'layer2'.*16"):
        tiny({"layer2": {"around": {"type": "conv", "params": {"channels": 4}}}}, AROUND_OP)
