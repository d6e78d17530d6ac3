"""What `patch_report` says about gates, and which patches `drop_closed_patches` takes out."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from tvc_core import HybridBuilder, ParameterError, drop_closed_patches

PATCHES = {"layer2": {"wrap": "se"}, "layer3": {"wrap": "eca"}, "layer4": {"wrap": "cbam_block"}}


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return HybridBuilder().from_torchvision("resnet18", weights=None, patches=PATCHES).eval()


IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def seen(model: nn.Module, path: str) -> torch.Tensor:
    """Return the map that a target gives its patch, with no gate open."""
    maps: list[torch.Tensor] = []
    target = model.get_submodule(path)
    handle = target.register_forward_hook(lambda *args: maps.append(args[-1].clone()))
    with torch.no_grad():
        model(IMAGES)
    handle.remove()
    return maps[0]


@torch.no_grad()
def gate_of(
    model: nn.Module, path: str, block: str, axes: tuple[int, ...] = (0, 1, 2, 3)
) -> torch.Tensor:
    patch: Any = model.get_submodule(f"patches.{path}.{block}")
    return patch.block.gate(seen(model, path).permute(axes))


def test_a_report_has_the_statistics_of_each_gate(model: Any) -> None:
    gate = gate_of(model, "layer2", "se").double()
    found = model.patch_report(iter([IMAGES[:2], IMAGES[2:]])).patches[0].gate_values
    assert gate.shape == (3, 128, 1, 1)
    assert found.mean == pytest.approx(float(gate.mean()), rel=1e-6)
    assert found.spread == pytest.approx(float(gate.std(correction=0)), rel=1e-6)
    assert found.response == pytest.approx(float(gate.std(0, correction=0).mean()), rel=1e-4)
    assert found.saturation == 0 and found.dead == ""


def test_a_gate_of_pixels_and_of_channels_is_seen_whole(model: Any) -> None:
    gate = gate_of(model, "layer4", "cbam_block")
    found = model.patch_report(IMAGES).patches[2].gate_values
    assert gate.shape == (3, 512, 2, 2)
    assert found.mean == pytest.approx(float(gate.mean()), rel=1e-5)


def test_dead_gates_are_warned_of_and_live_ones_are_not(model: Any) -> None:
    with torch.no_grad():
        se = model.get_submodule("patches.layer2.se").block
        se.fc2.weight.zero_()  # whatever comes in, sigmoid(bias) comes out
        se.fc2.bias.fill_(0.62)
        model.get_submodule("patches.layer3.eca").block.conv.weight.fill_(-1e3)
    with pytest.warns(UserWarning) as told:
        report = model.patch_report(IMAGES)
    dead = [str(each.message) for each in told if "is dead" in str(each.message)]
    assert "patches.layer2.se is dead: it is the same for every input, 0.65" in dead[0]
    assert "patches.layer3.eca is dead: 100% of its entries are saturated" in dead[1]
    assert len(dead) == 2 and all(line in str(report) for line in dead)


def test_a_gate_that_starts_at_one_is_not_dead_there() -> None:
    """GCT's gate is 1 + tanh(gamma * norm + beta), and gamma and beta start at 0, where the slope
    of tanh is largest: the block is the identity, and learns from the first step.
    """
    torch.manual_seed(0)
    patches = {"layer2": {"wrap": "gct"}, "layer3": {"wrap": {"type": "gct", "init": "paper"}}}
    model = HybridBuilder().from_torchvision("resnet18", weights=None, patches=patches).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found: Any = model.patch_report(IMAGES).patches[0].gate_values
    assert (found.mean, found.spread, found.saturation, found.dead) == (1, 0, 0, "")
    block: Any = model.get_submodule("patches.layer2.gct").block
    with torch.no_grad():
        block.gamma.fill_(-0.005)  # every entry is within 0.01 of 1, and below it
    found = model.patch_report(IMAGES).patches[0].gate_values
    assert found.saturation == 0 and found.dead == "" and 0.99 < found.mean < 1
    with torch.no_grad():
        block.gamma.zero_()
        block.beta.fill_(-9)  # 1 + tanh(-9) is 3e-8
    with pytest.warns(UserWarning, match=r"layer2.gct is dead: 100% of its entries are saturated"):
        model.patch_report(IMAGES)


def test_one_image_does_not_tell_whether_a_gate_responds(model: Any) -> None:
    with torch.no_grad():
        model.get_submodule("patches.layer2.se").block.fc2.weight.zero_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model.patch_report(IMAGES[:1]).patches[0].gate_values
    assert found.response is None and found.spread < 0.1


def test_a_block_without_a_gate_of_its_own_has_no_statistics() -> None:
    patches = {"layer4": {"wrap": {"type": "conv_bn_act", "params": {}}}}
    torch.manual_seed(0)
    model = HybridBuilder().from_torchvision("resnet18", weights=None, patches=patches)
    report = model.patch_report(IMAGES)
    assert report.patches[0].gate_values is None
    assert report.patches[0].gate == 0 and " - " in str(report)


def test_tokens_are_shown_to_gates_as_the_block_sees_them() -> None:
    torch.manual_seed(0)
    patches = {"features.1": {"wrap": "se"}}
    model = HybridBuilder().from_torchvision("swin_t", weights=None, patches=patches).eval()
    gate = gate_of(model, "features.1", "se", (0, 3, 1, 2))  # NHWC to NCHW
    found = model.patch_report(IMAGES).patches[0].gate_values
    assert found.mean == pytest.approx(float(gate.mean()), rel=1e-5)
    assert found.response == pytest.approx(float(gate.std(0, correction=0).mean()), rel=1e-3)


def test_factors_for_each_channel_are_seen_in_every_layout_and_may_be_the_same_for_all() -> None:
    patches = {"layer2": {"wrap": "layer_scale"}, "fc": {"wrap": "layer_scale"}}
    model = HybridBuilder().from_torchvision("resnet18", weights=None, patches=patches).eval()
    factors: list[Any] = [
        model.get_submodule(f"patches.{path}.layer_scale").block.gamma.detach()  # type: ignore[union-attr]
        for path in patches
    ]
    for gamma in factors:
        torch.nn.init.uniform_(gamma, 0.5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = model.patch_report(IMAGES)
    for gamma, effect in zip(factors, report.patches, strict=True):
        found: Any = effect.gate_values
        assert found.mean == pytest.approx(float(gamma.mean()), rel=1e-5)
        assert found.spread == pytest.approx(float(gamma.std(correction=0)), rel=1e-4)
        assert found.response == pytest.approx(0, abs=1e-6) and found.dead == ""


# -- closed patches --------------------------------------------------------------------------------


def test_patches_with_gates_of_exactly_zero_go(model: Any) -> None:
    with torch.no_grad():
        model.get_submodule("patches.layer3.eca").alpha.fill_(1e-30)
        before = model(IMAGES)
    gone = drop_closed_patches(model)
    assert gone == ("patches.layer2.se", "patches.layer4.cbam_block")
    assert [record.target for record in model.patch_records] == ["layer3"]
    with torch.no_grad():
        assert torch.equal(model(IMAGES), before)
    assert drop_closed_patches(model) == ()


def test_a_model_whose_gates_are_all_closed_becomes_the_plain_network(model: Any) -> None:
    drop_closed_patches(model)
    plain = HybridBuilder().from_torchvision("resnet18", weights=None)
    assert list(model.state_dict()) == list(plain.state_dict())
    hooks = [name for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooks == [
        name for name, m in plain.named_modules() if m._forward_hooks or m._forward_pre_hooks
    ]


def test_of_two_patches_at_one_target_the_closed_one_goes() -> None:
    torch.manual_seed(0)
    patches = {"layer3": {"wrap": "se", "inject": "eca"}}
    model = HybridBuilder().from_torchvision("resnet18", weights=None, patches=patches).eval()
    with torch.no_grad():
        model.get_submodule("patches.layer3.se").alpha.fill_(0.5)
        before = model(IMAGES)
    assert drop_closed_patches(model) == ("patches.layer3.eca",)
    with torch.no_grad():
        assert torch.equal(model(IMAGES), before)


def test_patches_without_a_gate_and_replaced_modules_stay() -> None:
    torch.manual_seed(0)
    patches = {
        "layer3": {"wrap": {"type": "se", "init": "paper"}},
        "bn1": {"replace": "frozen_batch_norm"},
    }
    model = HybridBuilder().from_torchvision("resnet18", weights=None, patches=patches)
    assert drop_closed_patches(model) == ()
    assert len(model.patch_records) == 2


def test_what_is_not_a_hybrid_is_refused() -> None:
    with pytest.raises(ParameterError, match="drop_closed_patches takes a model"):
        drop_closed_patches(nn.Linear(1, 1))
