"""Regularizers act from the first step, leave eval mode alone, and take any map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tvc_core import HybridBuilder, PatchError, load


@pytest.fixture
def builder() -> HybridBuilder:
    return HybridBuilder()


def dropped(output: Tensor) -> float:
    """Share of the samples whose map is zero as a whole."""
    return float((output.flatten(1).abs().sum(1) == 0).float().mean())


@pytest.mark.parametrize(
    ("name", "target", "position"),
    [
        ("resnet18", "layer3.1", "branch"),
        ("convnext_tiny", "features.3.1", "branch"),
        ("mobilenet_v3_small", "features.4", "after"),
        ("vit_b_16", "encoder.layers.encoder_layer_2.mlp", "after"),
    ],
)
def test_stochastic_depth_drops_samples_from_the_first_step(
    builder: HybridBuilder, name: str, target: str, position: str
) -> None:
    torch.manual_seed(0)
    patch = {"type": "stochastic_depth", "position": position, "params": {"p": 0.4}}
    both = [{"wrap": patch}, {"wrap": {**patch, "init": "paper"}}]
    size = {"image_size": 32} if name == "vit_b_16" else {}
    model = builder.from_backbone(name, weights=None, patches={target: both}, **size)
    assert model.step0_difference == 0.0
    assert [record.starts_as_identity for record in model.patch_records] == [True, True]
    assert "alpha" not in " ".join(model.state_dict())
    assert model.explain().count("identity start by itself") == 2
    for record in model.patch_records:
        (home,) = record.paths
        block = model.get_submodule(home)
        x = torch.randn(400, 8, 3, 3)
        assert dropped(block.train()(x)) == pytest.approx(0.4, abs=0.1)
        assert torch.equal(block.eval()(x), x)


@pytest.mark.parametrize("side", [1, 2, 3, 6, 7, 8, 14])
def test_drop_block_takes_any_map(side: int) -> None:
    block = HybridBuilder().create_block("drop_block", 4, p=0.3, block_size=7)
    torch.manual_seed(0)
    x = torch.ones(200, 4, side, side + 1)
    y = block.train()(x)
    assert 0.1 < float((y == 0).float().mean()) < 0.6
    assert y[y != 0].mean() > 1 and torch.equal(block.eval()(x), x)


def test_where_the_map_holds_the_square_drop_block_is_torchvisions() -> None:
    block, x = (
        HybridBuilder().create_block("drop_block", 4, p=0.2, block_size=5),
        torch.rand(3, 4, 9, 9),
    )
    theirs = torchvision.ops.DropBlock2d(0.2, 5)
    results = []
    for module in (block, theirs):
        torch.manual_seed(1)
        results.append(module(x))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "name", ["alexnet", "resnet18", pytest.param("vgg11_bn", marks=pytest.mark.sweep)]
)
def test_drop_block_trains_on_even_maps(builder: HybridBuilder, name: str) -> None:
    model = builder.from_backbone(
        name, weights=None, patches={"stage:-1": {"wrap": "drop_block"}}, num_classes=3
    ).train()
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    first, second = (model(torch.ones(2, 3, 64, 64)) for _ in range(2))
    assert not torch.equal(first, second)


def test_a_regularizer_that_another_initializer_fills_still_acts(builder: HybridBuilder) -> None:
    patch = {"type": "drop_block", "init": "kaiming", "params": {"p": 0.5}}
    model = builder.from_backbone("resnet18", weights=None, patches={"layer2": {"wrap": patch}})
    assert model.get_submodule("patches.layer2.drop_block").alpha is None


def test_beside_a_target_identity_is_no_start_and_keeps_its_gate(builder: HybridBuilder) -> None:
    patch = {"inject": {"type": "identity", "position": "parallel"}}
    model = builder.from_backbone("resnet18", weights=None, patches={"layer1": patch})
    assert model.get_submodule("patches.layer1.identity").alpha.tolist() == [0.0]
    assert model.step0_difference == 0.0


def test_a_file_from_before_regularizers_had_no_gate_still_loads(
    builder: HybridBuilder, tmp_path: Any
) -> None:
    """Such a file has an alpha; the model computes what it computed, in training too."""
    import safetensors.torch as st

    path, patch = tmp_path / "m.safetensors", {"type": "stochastic_depth", "params": {"p": 0.5}}
    model = builder.from_backbone(
        "resnet18", weights=None, patches={"layer3": {"wrap": patch}}, num_classes=3
    )
    block = model.get_submodule("patches.layer3.stochastic_depth")
    block.alpha = nn.Parameter(torch.tensor([0.25]))
    # as a core of that time would have built it, so that save finds nothing changed
    model._hybrid.modules["patches.layer3.stochastic_depth"] = "Patch() with alpha 1"
    model.save(path)
    assert "patches.layer3.stochastic_depth.alpha" in st.load_file(path)
    again = load(path)
    found = again.get_submodule("patches.layer3.stochastic_depth").train()
    assert found.alpha.tolist() == [0.25]
    y = found(torch.ones(100, 2, 3, 3)).unique()
    torch.testing.assert_close(y, torch.tensor([0.75, 1.25]))  # 1 + 0.25 (0 or 2 - 1)


@pytest.mark.parametrize("position", ["after", "parallel"])
def test_a_block_of_zeros_that_cannot_learn_is_refused(
    builder: HybridBuilder, position: str
) -> None:
    params = {"channels": 256, "stride": 2} if position == "parallel" else {}
    patch = {"type": "conv_bn_act", "position": position, "init": "zero", "params": params}
    with pytest.raises(PatchError, match=r"layer3\.inject: .*never learn.*init: zero.*Leave init"):
        builder.from_backbone("resnet18", weights=None, patches={"layer3": {"inject": patch}})


def test_a_block_of_zeros_beside_a_target_learns_without_a_gate(builder: HybridBuilder) -> None:
    params = {"channels": 256, "stride": 2, "activation": None}
    patch = {"type": "conv_bn_act", "position": "parallel", "init": "zero", "params": params}
    model = builder.from_backbone(
        "resnet18", weights=None, patches={"layer3": {"inject": patch}}, num_classes=3
    ).train()
    assert model.step0_difference == 0.0
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    conv = model.get_submodule("patches.layer3.conv_bn_act.block.0")
    assert float(conv.weight.grad.abs().max()) > 0
