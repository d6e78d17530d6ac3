"""A hybrid measured again after surgery by hand: widths, strides, maps, patches that are out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.regnet import BlockParams, RegNet

from tvc_core import BackboneError, HybridBuilder, ParameterError, PatchError, WeightsError

BUILDER = HybridBuilder()


def image(side: int = 64) -> Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def check_measured(model: Any) -> None:
    """Compare what is stated with maps of an image of another size than was measured with."""
    x = torch.randn(1, model._hybrid.probe_shape[1], 128, 192)
    for info, found in zip(model.stage_info, model.get_stage_outputs(x)[1:], strict=True):
        assert found.shape == (1, info.channels, 128 // info.stride, 192 // info.stride)
    for info, found in zip(model.pyramid_info, model.pyramid(x).values(), strict=True):
        assert found.shape == (1, info.channels, 128 // info.stride, 192 // info.stride)


def test_strides_follow_a_dilated_stage() -> None:
    model: Any = BUILDER.from_torchvision("mobilenet_v3_small", None).eval()
    before = [stage.stride for stage in model.stage_info]
    conv = model.features[9].block[1][0]  # the last depthwise convolution with a stride
    assert conv.stride == (2, 2) and before[-1] == 32
    conv.stride = (1, 1)
    assert [stage.stride for stage in model.stage_info] == before, "it is not measured by itself"
    model.remeasure()
    assert [stage.stride for stage in model.stage_info] == [*before[:-1], 16]
    check_measured(model)
    assert torch.equal(model.forward_head(model.forward_features(image())), model(image()))


def test_widths_follow_narrower_layers() -> None:
    model: Any = BUILDER.from_torchvision(
        "densenet121", None, num_classes=3, patches={"features.denseblock1": {"wrap": "se"}}
    ).eval()
    # a transition of 100 channels instead of 256, and what reads it, as a pruner would do it
    transition, layers = model.features.transition2, model.features.denseblock3
    transition.conv = nn.Conv2d(512, 100, 1, bias=False)
    for index, layer in enumerate(layers.values()):
        width = 100 + 32 * index
        layer.norm1 = nn.BatchNorm2d(width)
        layer.conv1 = nn.Conv2d(width, 128, 1, bias=False)
    end = 100 + 32 * 24
    model.features.transition3.norm = nn.BatchNorm2d(end)
    model.features.transition3.conv = nn.Conv2d(end, 512, 1, bias=False)
    model.eval().remeasure()
    assert [stage.channels for stage in model.stage_info] == [256, 512, end, 1024]
    check_measured(model)


def test_a_network_of_other_widths_is_measured_as_one_that_was_built_so(tmp_path: Any) -> None:
    def net(widths: list[int]) -> RegNet:
        return RegNet(BlockParams([1, 1, 1], widths, [8, 8, 8], [1.0] * 3, [2, 2, 2]), 5)

    def hybrid(network: nn.Module) -> Any:
        stages = [f"trunk_output.block{index}" for index in (1, 2, 3)]
        return BUILDER.from_module(network, stem="stem", stages=stages, head="fc").eval()

    model, other = hybrid(net([16, 24, 32])), net([16, 40, 32])
    model.trunk_output, model.fc = other.trunk_output, other.fc
    model.eval().remeasure()
    wanted = hybrid(net([16, 40, 32]))
    assert model.stage_info == wanted.stage_info and model.pyramid_info == wanted.pyramid_info
    check_measured(model)
    with pytest.raises(WeightsError, match="is not written"):  # no recipe gives the widths
        model.save(tmp_path / "pruned.safetensors")


def test_patches_that_do_not_fit_are_named_all_at_once() -> None:
    model: Any = BUILDER.from_torchvision(
        "resnet18",
        None,
        patches={
            "layer2": [{"wrap": "se"}, {"wrap": "eca"}],
            "layer2.1": {"inject": {"type": "conv_bn_act", "params": {"channels": 128}}},
            "layer3": {"wrap": "se"},
        },
    ).eval()
    before = model.stage_info
    narrow = torch.nn.Conv2d(64, 96, 1, 2)
    model.layer2 = nn.Sequential(narrow, nn.Identity())
    model.layer3[0].conv1 = nn.Conv2d(96, 256, 3, 2, 1, bias=False)
    model.layer3[0].downsample[0] = nn.Conv2d(96, 256, 1, 2, bias=False)
    with pytest.raises(PatchError) as caught:
        model.remeasure()
    said = str(caught.value)
    assert said.startswith("patches do not fit the network as it is now (2): patches.layer2.")
    assert "patches.layer2.se at 'layer2' gets [1, 96, 8, 12]" in said
    assert "patches.layer2.1.conv_bn_act at 'layer2.1' gets [1, 96, 8, 12]" in said
    assert "eca" not in said and "layer3" not in said and "unpatch" in said
    assert model.stage_info is not None and model.stage_info == before
    assert not any("forward" in module.__dict__ for module in model.modules())
    for target in ("layer2.1", "layer2"):
        model.unpatch(target)
    model.remeasure()
    assert model.stage_info[1].channels == 96
    check_measured(model)


def test_a_first_layer_for_other_channels_is_found() -> None:
    model: Any = BUILDER.from_torchvision("shufflenet_v2_x0_5", None).eval()
    model.conv1[0] = nn.Conv2d(5, 24, 3, 1, 1, bias=False)
    model.remeasure()
    assert [stage.stride for stage in model.stage_info] == [4, 8, 16]
    check_measured(model)


def test_what_fails_or_is_gone_is_said_and_nothing_changes() -> None:
    model: Any = BUILDER.from_torchvision("resnet18", None).eval()
    before = model.stage_info
    model.layer3[1].conv1 = nn.Conv2d(7, 256, 3)
    with pytest.raises(BackboneError, match=r"no forward pass with 3 channels.*7 channels"):
        model.remeasure()
    with pytest.raises(ParameterError, match="image_size is a whole number"):
        model.remeasure(image_size=[64])
    del model.layer3
    with pytest.raises(BackboneError, match=r"'?layer3'? is gone.*from_module"):
        model.remeasure()
    assert model.stage_info is before or model.stage_info == before
