"""Replacements keep what they can of the weights that stood there, and say what they cannot."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor, nn

from tvc_core import HybridBuilder, HybridModel, ParameterError, PatchError, TargetError, load


def trained(network: Any) -> Any:
    """Give a network statistics, scales and shifts that are not those of the start."""
    generator = torch.Generator().manual_seed(7)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data = torch.rand(tensor.shape, generator=generator) + 0.5
            for tensor in (module.bias, module.running_mean):
                tensor.data = torch.randn(tensor.shape, generator=generator) * 0.1
    return network.eval()


def hybrid(network: nn.Module, patches: dict[str, Any], **anatomy: Any) -> HybridModel:
    return HybridBuilder().from_module(network, patches=patches, **anatomy).eval()


REGNET = {"stem": "stem", "stages": ["trunk_output"], "head": "fc"}
NORMS = "**.type:BatchNorm2d"


RESNET = {
    "stem": ["conv1", "bn1"],
    "stages": ["layer1", "layer2", "layer3", "layer4"],
    "head": "fc",
}


def bottlenecks() -> Any:
    """Return a small ResNet of bottlenecks, always the same."""
    torch.manual_seed(0)
    return torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1]).eval()


@pytest.fixture
def regnet() -> Any:
    torch.manual_seed(0)
    return trained(torchvision.models.regnet_y_400mf())


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


# -- normalizations --------------------------------------------------------------------------------


@torch.no_grad()
def test_frozen_batch_norms_compute_what_batch_norms_do(regnet: nn.Module, x: Tensor) -> None:
    expected = regnet(x)
    model = hybrid(regnet, {NORMS: {"replace": "frozen_batch_norm"}}, **REGNET)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    torch.testing.assert_close(model.train()(x), expected, rtol=1e-3, atol=1e-4)
    record = model.patch_records[0]
    assert record.kept == ("weight", "bias", "running_mean", "running_var")
    assert record.lost == ("num_batches_tracked",)


@torch.no_grad()
def test_group_norms_have_the_scale_and_shift_of_the_batch_norms(x: Tensor) -> None:
    torch.manual_seed(0)
    network = trained(torchvision.models.regnet_y_400mf())
    by_hand = trained(torchvision.models.regnet_y_400mf())
    by_hand.load_state_dict(network.state_dict())
    for path, norm in list(by_hand.named_modules()):
        if isinstance(norm, nn.BatchNorm2d):
            group = nn.GroupNorm(norm.num_features // 8, norm.num_features, eps=norm.eps)
            group.load_state_dict({"weight": norm.weight, "bias": norm.bias})
            by_hand.set_submodule(path, group)
    patch = {"replace": {"type": "group_norm", "params": {"group_size": 8}}}
    model = hybrid(network, {NORMS: patch}, **REGNET)
    torch.testing.assert_close(model(x), by_hand(x))
    assert "keeps weight, bias; loses running_mean, running_var" in model.explain()


@torch.no_grad()
@pytest.mark.parametrize("block", ["frozen_batch_norm", "group_norm", "layer_norm_2d"])
def test_what_timms_normalizations_run_after_themselves_goes_along(block: str) -> None:
    """BatchNormAct2d has an activation inside; eps is 1e-3 there."""
    params = {"params": {"num_groups": 4}} if block == "group_norm" else {}
    patch = {"**.type:BatchNormAct2d": {"replace": {"type": block, **params}}}
    model = HybridBuilder().from_backbone("timm/test_efficientnet", None, patches=patch).eval()
    plain = trained(timm.create_model("test_efficientnet"))
    state = {key: value for key, value in plain.state_dict().items() if key in model.state_dict()}
    model.load_state_dict(state, strict=True)
    norm, new = plain.bn1, model.bn1
    x = torch.randn(2, norm.num_features, 5, 5)
    if block == "frozen_batch_norm":
        expected = norm(x)
        image = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(model(image), plain(image), rtol=1e-4, atol=1e-5)
    elif block == "group_norm":
        expected = nn.functional.group_norm(x, 4, norm.weight, norm.bias, norm.eps)
        expected = nn.functional.silu(expected)
    else:
        expected = timm.layers.LayerNorm2d(norm.num_features, eps=norm.eps)
        expected.load_state_dict({"weight": norm.weight, "bias": norm.bias})
        expected = nn.functional.silu(expected(x))
    torch.testing.assert_close(new(x), expected, rtol=1e-4, atol=1e-5)


def test_groups_that_do_not_divide_a_width_are_refused_with_what_does() -> None:
    with pytest.raises(
        ParameterError, match=r"the 16 channels .* 1, 2, 4, 8, 16, not 32; .*group_"
    ):
        HybridBuilder().from_backbone(
            "mobilenet_v3_small", None, patches={NORMS: {"replace": "group_norm"}}
        )


def test_a_frozen_batch_norm_does_not_stand_for_what_has_no_statistics() -> None:
    patches = {"features.0.1": {"replace": "frozen_batch_norm"}}
    with pytest.raises(ParameterError, match="LayerNorm2d, which has no running statistics"):
        HybridBuilder().from_backbone("convnext_tiny", None, patches=patches)


def test_with_an_initializer_a_replacement_takes_nothing_over(regnet: nn.Module) -> None:
    patch = {"replace": {"type": "group_norm", "params": {"group_size": 8}, "init": "paper"}}
    model = hybrid(regnet, {"stem.1": patch}, **REGNET)
    assert model.stem[1].weight.tolist() == [1.0] * 32
    assert model.patch_records[0].kept == () and "weight" in model.patch_records[0].lost


def test_a_file_carries_replacements(tmp_path: Any, x: Tensor) -> None:
    patches = {
        NORMS: {"replace": "frozen_batch_norm"},
        "**.type:Hardswish": {"replace": "mish"},
        "features.0.0": {"replace": {"type": "conv2d", "params": {"stride": 1}}},
    }
    model = HybridBuilder().from_backbone("mobilenet_v3_small", None, patches=patches).eval()
    model.save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert again.patch_records == model.patch_records and again.features[0][1].eps == 1e-3


def test_unpatch_gives_the_replaced_weights_back(regnet: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = regnet(x)
        model = hybrid(regnet, {"**.type:BatchNorm2d": {"replace": "layer_norm_2d"}}, **REGNET)
        model.unpatch()
        assert torch.equal(model(x), expected)


# -- convolutions ----------------------------------------------------------------------------------


@torch.no_grad()
def test_a_stem_at_another_stride_computes_the_same_at_every_second_pixel() -> None:
    torch.manual_seed(0)
    network = torchvision.models.mnasnet0_5()
    old = network.layers[0]
    patch = {"replace": {"type": "conv2d", "params": {"stride": 1}}}
    layers = [f"layers.{index}" for index in range(17)]
    model = hybrid(
        network, {"layers.0": patch}, stem="layers.0", stages=layers[1:], head="classifier"
    )
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.layers[0](x)[..., ::2, ::2], old(x))
    assert model.patch_records[0].kept == ("weight",)


@torch.no_grad()
@pytest.mark.parametrize(("before", "after"), [(7, 3), (3, 7), (7, 5), (4, 6)])
def test_a_resized_kernel_is_timms(before: int, after: int) -> None:
    torch.manual_seed(0)
    old = nn.Conv2d(3, 8, before, stride=2, padding=before // 2)
    new = in_place_of(old, kernel_size=after)
    expected = resample_patch_embed(old.weight, [after, after])
    torch.testing.assert_close(new.weight, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(new.bias, old.bias) and new.stride == old.stride


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_zeros_around_a_kernel_change_nothing(padding: int, dilation: int) -> None:
    old = nn.Conv2d(4, 4, 3, 2, padding, dilation, groups=4)
    new = in_place_of(old, kernel_size=7, resample="center")
    x = torch.randn(1, 4, 17, 16)
    torch.testing.assert_close(new(x), old(x))


def test_a_kernel_keeps_its_middle_where_its_borders_are_cut_off() -> None:
    old = nn.Conv2d(3, 8, 7, 2, 3)
    new = in_place_of(old, kernel_size=3, resample="center")
    assert torch.equal(new.weight, old.weight[..., 2:5, 2:5]) and new.padding == (1, 1)


def in_place_of(old: nn.Conv2d, **params: Any) -> Any:
    """Return what takes the place of a convolution in a network."""
    stem, width = nn.Conv2d(3, old.in_channels, 1), old.out_channels
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))
    patches = {"1": {"replace": {"type": "conv2d", "params": params}}}
    model = hybrid(nn.Sequential(stem, old, head), patches, stem="0", stages=["1"], head="2")
    return model.get_submodule("1")


@torch.no_grad()
def test_the_last_stage_of_a_resnet_keeps_its_size_by_two_replacements(x: Tensor) -> None:
    """Each alone does not fit: the branch and its shortcut change together."""
    torch.manual_seed(0)
    by_hand = bottlenecks()
    patch = {"replace": {"type": "conv2d", "params": {"stride": 1}}}
    patches = {"layer4.0.conv2": patch, "layer4.0.downsample.0": patch}
    model = hybrid(bottlenecks(), patches, **RESNET)
    by_hand.layer4[0].conv2.stride = by_hand.layer4[0].downsample[0].stride = (1, 1)
    torch.testing.assert_close(model(x), by_hand(x))
    assert model.stage_info[-1].stride == 16
    with pytest.raises(PatchError, match=r"conv2'\]\.replace: .*stride=2 would fit"):
        hybrid(bottlenecks(), {"layer4.0.conv2": patch}, **RESNET)


def test_a_convolution_with_a_forward_of_its_own_keeps_it() -> None:
    build = HybridBuilder().from_backbone
    name = "timm/tf_mobilenetv3_small_minimal_100"
    patch = {"type": "conv2d", "params": {"stride": 1}}
    model = build(name, None, patches={"conv_stem": {"replace": patch}})
    assert type(model.conv_stem) is timm.layers.Conv2dSame and model.conv_stem.stride == (1, 1)
    patch = {"type": "conv2d", "params": {"kernel_size": 5}}
    with pytest.raises(
        ParameterError, match="Conv2dSame is a convolution with a forward of its own"
    ):
        build(name, None, patches={"conv_stem": {"replace": patch}})


# -- activations -----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("block", "layer"),
    [("gelu", nn.GELU()), ("silu", nn.SiLU()), ("hardswish", nn.Hardswish()), ("mish", nn.Mish())],
)
def test_the_activations_of_a_network_are_replaced_by_name(
    block: str, layer: nn.Module, x: Tensor
) -> None:
    """A bottleneck shares its activation among maps of two widths."""
    by_hand = bottlenecks()
    model = hybrid(bottlenecks(), {"**.relu": {"replace": block}}, **RESNET)
    for path, module in list(by_hand.named_modules()):
        if isinstance(module, nn.ReLU):
            by_hand.set_submodule(path, layer)
    torch.testing.assert_close(model(x), by_hand(x))


def test_where_the_layout_is_not_known_an_activation_is_replaced() -> None:
    """MaxViT's attention works on windows [N * windows, pixels, C]."""
    model = HybridBuilder().from_backbone(
        "timm/test_maxvit", None, patches={"**.mlp.act": {"replace": "relu"}}
    )
    assert all(type(model.get_submodule(r.target)) is nn.ReLU for r in model.patch_records)


@pytest.mark.parametrize("block", ["group_norm", "eca", "conv2d"])
def test_what_depends_on_the_width_does_not_take_a_shared_place(block: str) -> None:
    """eca runs on every width, but its kernel is made for one."""
    with pytest.raises(TargetError, match=rf"3 times with the widths 64, 256, and {block} is made"):
        hybrid(bottlenecks(), {"layer1.0.relu": {"replace": block}}, **RESNET)
