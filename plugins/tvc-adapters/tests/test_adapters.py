"""Adapters against references written by hand, and what the names do with them."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from tvc_core import (
    HeadError,
    HybridBuilder,
    HybridModel,
    LocalPlugin,
    ParameterError,
    PatchError,
    TargetError,
    audit,
    fold_patches,
    load,
    plain_state_dict,
)

BUILDER = HybridBuilder()
RESNET = torchvision.models.resnet18


def resnet18(patches: dict[str, Any], **arguments: Any) -> HybridModel:
    torch.manual_seed(0)
    arguments = {"num_classes": 5, **arguments}
    return BUILDER.from_torchvision("resnet18", weights=None, patches=patches, **arguments)


class OneLayer(nn.Module):
    """A network whose only stage is a layer of one's own."""

    def __init__(self, layer: nn.Module, channels: int, last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, channels, 1)
        self.layer = layer
        self.last = last
        self.head = nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.last else self.layer(x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def around(layer: nn.Module, patch: Any, channels: int, last: bool = False) -> HybridModel:
    """Return a hybrid with a patch at one layer, in float64, its adapter away from the start."""
    network = OneLayer(layer, channels, last).double()
    network(torch.zeros(2, 3, 32, 48, dtype=torch.float64))
    model = BUILDER.from_module(
        network, stem="stem", stages=["layer"], head="head", patches={"layer": patch}
    )
    assert model.step0_difference == 0.0
    assert not any("alpha" in name or "lora_" in name for name in model.state_dict())
    move(model)
    return model.eval()


def move(model: HybridModel, size: float = 0.1, seed: int = 0) -> None:
    """Give everything that is in blocks random values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.startswith("patches."):
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.add_((size * noise).to(tensor.dtype))


def blocks(model: HybridModel) -> dict[str, Tensor]:
    return {
        name.rpartition("block.")[2]: tensor.detach()
        for name, tensor in model.named_parameters()
        if name.startswith("patches.")
    }


def steps(model: HybridModel, size: int = 64, count: int = 3, batch: int = 4) -> None:
    """Train for three steps, with patches that are frozen by no one."""
    generator = torch.Generator().manual_seed(2)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.001)
    model.train()
    for _ in range(count):
        x = torch.randn(batch, 3, size, size, generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(batch) % 5).backward()
        optimizer.step()
    model.eval()


# -- against references ----------------------------------------------------------------------------

CONVS = {
    "plain": {"kernel_size": 3, "padding": 1},
    "no padding": {"kernel_size": 3, "bias": False},
    "1x1": {"kernel_size": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "oblong": {"kernel_size": (3, 5), "stride": (1, 2), "padding": (0, 3), "dilation": (2, 1)},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 4},
    "depthwise": {"kernel_size": 5, "padding": 2, "groups": 8},
    "depthwise wider": {"kernel_size": 3, "padding": 1, "groups": 8, "out": 16},
    "depthwise strided": {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 8, "bias": False},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "grouped circular": {"kernel_size": 3, "padding": 2, "groups": 2, "padding_mode": "circular"},
    "same": {"kernel_size": 4, "padding": "same"},
    "grouped same": {"kernel_size": 4, "padding": "same", "groups": 2, "padding_mode": "reflect"},
}


def conv_of(settings: dict[str, Any]) -> nn.Conv2d:
    settings = dict(settings)
    return nn.Conv2d(8, settings.pop("out", 12 if "groups" not in settings else 8), **settings)


def merged_by_hand(conv: nn.Conv2d, found: dict[str, Tensor], scale: float) -> nn.Conv2d:
    """Add the update to the kernel entry by entry."""
    new, down, up = copy.deepcopy(conv), found["down.weight"], found["up.weight"]
    with torch.no_grad():
        for out in range(conv.out_channels):
            for rank in range(down.shape[0]):
                new.weight[out] += scale * up[out, rank, 0, 0] * down[rank]
    return new


@pytest.mark.parametrize("settings", CONVS.values(), ids=CONVS)
@pytest.mark.parametrize("alpha", [None, 7.0])
def test_lora_beside_a_convolution_is_a_merged_kernel(
    settings: dict[str, Any], alpha: float | None
) -> None:
    params = {"rank": 3, "alpha": alpha}
    model = around(conv_of(settings), {"inject": {"type": "lora", "params": params}}, 8)
    x = torch.randn(2, 3, 37, 41, dtype=torch.float64)
    conv = copy.deepcopy(model.layer)
    conv._forward_hooks.clear()
    conv._forward_pre_hooks.clear()
    reference = merged_by_hand(conv, blocks(model), 1.0 if alpha is None else alpha / 3)
    expected = reference(model.stem(x))
    found = model.get_stage_outputs(x)[1]
    assert not torch.allclose(found, conv(model.stem(x)))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    report = fold_patches(model)
    assert report.folded == ("patches.layer.lora",) and not report.left
    torch.testing.assert_close(model.layer.weight, reference.weight, rtol=1e-12, atol=1e-13)


def test_a_depthwise_update_has_fewer_parameters_than_the_kernel() -> None:
    model = around(
        nn.Conv2d(96, 96, 7, padding=3, groups=96),
        {"inject": {"type": "lora", "params": {"rank": 4}}},
        96,
    )
    assert sum(each.numel() for each in blocks(model).values()) == 4 * (96 + 49) < 96 * 49


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.norm()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


@pytest.mark.parametrize("groups", [1, 8])
def test_a_class_that_pads_by_itself_keeps_its_padding(groups: int) -> None:
    """timm's Conv2dSame pads by the size of each map."""
    conv = timm.layers.Conv2dSame(8, 8, 3, stride=2, groups=groups)
    model = around(conv, {"inject": {"type": "lora", "params": {"rank": 2}}}, 8)
    x = torch.randn(2, 3, 33, 46, dtype=torch.float64)
    bare = timm.layers.Conv2dSame(8, 8, 3, stride=2, groups=groups).double()
    bare.load_state_dict(conv.state_dict())
    expected = merged_by_hand(bare, blocks(model), 1.0)(model.stem(x))
    torch.testing.assert_close(model.get_stage_outputs(x)[1], expected, rtol=1e-12, atol=1e-12)
    assert fold_patches(model).left == {}


@pytest.mark.parametrize(
    "conv",
    [
        Standardized(8, 8, 3),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)),
        timm.layers.ScaledStdConv2d(8, 8, 3),
    ],
    ids=["standardized", "parametrized", "scaled"],
)
def test_lora_refuses_a_weight_that_is_not_used_as_it_is(conv: nn.Conv2d) -> None:
    with pytest.raises(
        ParameterError, match=r"lora.*(not linear in its weight|parameter of its own|more than a)"
    ):
        around(conv, {"inject": "lora"}, 8)


@pytest.mark.parametrize("bias", [True, False])
def test_lora_beside_a_linear_layer(bias: bool) -> None:
    patch = {"inject": {"type": "lora", "params": {"rank": 2, "alpha": 3.0}}}
    model = around(nn.Linear(8, 20, bias=bias), patch, 8, last=True)
    x, found = torch.randn(2, 3, 32, 48, dtype=torch.float64), blocks(model)
    weight = model.layer.weight + 1.5 * found["up.weight"] @ found["down.weight"]
    expected = F.linear(model.stem(x).permute(0, 2, 3, 1), weight, model.layer.bias)
    torch.testing.assert_close(
        model.get_stage_outputs(x)[1], expected.permute(0, 3, 1, 2), rtol=1e-12, atol=1e-12
    )
    assert fold_patches(model).left == {}
    torch.testing.assert_close(model.layer.weight, weight, rtol=1e-12, atol=1e-13)


def test_lora_beside_a_block_that_changes_shape() -> None:
    layer = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU())
    model = around(layer, {"inject": {"type": "lora", "params": {"rank": 2}}}, 8)
    x, found = torch.randn(1, 3, 32, 48, dtype=torch.float64), blocks(model)
    into = model.stem(x)
    update = torch.einsum(
        "nchw,rc,or->nohw", into[:, :, ::2, ::2], found["down.weight"], found["up.weight"]
    )
    plain = F.relu(layer[0](into)) + update
    torch.testing.assert_close(model.get_stage_outputs(x)[1], plain, rtol=1e-12, atol=1e-12)
    with pytest.warns(UserWarning, match=r"patches\.layer\.lora \(it takes a Linear"):
        assert list(fold_patches(model).left) == ["patches.layer.lora"]


@pytest.mark.parametrize("position", ["after", "before"])
@pytest.mark.parametrize("last", [False, True])
def test_ssf_scales_and_shifts_each_channel(position: str, last: bool) -> None:
    layer = nn.Linear(8, 12) if last else nn.Conv2d(8, 12, 1)
    patch = {"inject": {"type": "ssf", "position": position}}
    model = around(layer, patch, 8, last)
    x, found = torch.randn(2, 3, 32, 48, dtype=torch.float64), blocks(model)
    scale, shift = (found[name].view(1, -1, 1, 1) for name in ("scale", "shift"))
    weight = layer.weight.view(12, 8, 1, 1)
    into = model.stem(x)
    if position == "before":
        expected = F.conv2d(into * scale + shift, weight, layer.bias)
    else:
        expected = F.conv2d(into, weight, layer.bias) * scale + shift
    torch.testing.assert_close(model.get_stage_outputs(x)[1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "last"),
    [
        (nn.Conv2d(8, 12, 3, groups=2), False),
        (nn.Linear(8, 4), True),
        (nn.BatchNorm2d(8), False),
        (nn.GroupNorm(2, 8), False),
        (nn.LayerNorm(8), True),
        (torchvision.models.convnext.LayerNorm2d(8), False),
        (nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)), False),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, nn.Module) else "",
)
def test_ssf_folds_into_the_layer_before_it(layer: nn.Module, last: bool) -> None:
    model = around(copy.deepcopy(layer), {"inject": "ssf"}, 8, last)
    keys = list(copy.deepcopy(layer).state_dict())
    x = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    before = model(x)
    assert fold_patches(model).left == {}
    assert list(model.layer.state_dict()) == keys
    torch.testing.assert_close(model(x), before, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.Conv2d(8, 8, 3, bias=False), "no bias to take the shift"),
        (nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()), "not a ReLU"),
        (nn.BatchNorm2d(8, affine=False), "not a BatchNorm2d"),
        (timm.layers.BatchNormAct2d(8), "folded, BatchNormAct2d gives something else"),
    ],
    ids=["bare", "ReLU", "no scale", "with an activation"],
)
def test_ssf_that_cannot_fold_is_named_and_stays(layer: nn.Module, said: str) -> None:
    model = around(layer, {"inject": "ssf"}, 8)
    state = {name: each.clone() for name, each in model.state_dict().items()}
    x = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    before = model(x)
    with pytest.warns(UserWarning, match=rf"1 patch not folded.*patches\.layer\.ssf.*{said}"):
        report = fold_patches(model)
    assert report.folded == () and said in report.left["patches.layer.ssf"]
    assert said in str(report)
    assert torch.equal(model(x), before)
    after = model.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[k], state[k]) for k in state)


@pytest.mark.parametrize("settings", list(CONVS.values())[:7], ids=list(CONVS)[:7])
def test_conv_adapter_beside_a_convolution(settings: dict[str, Any]) -> None:
    conv = conv_of(settings)
    model = around(conv, {"inject": {"type": "conv_adapter", "params": {"reduction": 2}}}, 8)
    x, found = torch.randn(2, 3, 37, 41, dtype=torch.float64), blocks(model)
    into = model.stem(x)
    hidden = F.conv2d(
        into,
        found["conv1.weight"],
        found["conv1.bias"],
        conv.stride,
        conv.padding,
        conv.dilation,
        4,
    )
    added = F.conv2d(hidden.clamp(min=0), found["conv2.weight"], found["conv2.bias"])
    plain = F.conv2d(
        into, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
    )
    expected = plain + added * found["se"]
    assert found["conv1.weight"].shape[:2] == (4, 2)
    torch.testing.assert_close(model.get_stage_outputs(x)[1], expected, rtol=1e-12, atol=1e-12)
    with pytest.warns(UserWarning, match=r"conv_adapter \(a ConvAdapter is not linear"):
        fold_patches(model)


def test_conv_adapter_beside_every_stage_has_its_stride() -> None:
    model = resnet18({"layer*": {"inject": "conv_adapter"}})
    strides = [
        model.get_submodule(f"patches.layer{i}.conv_adapter").block.conv1.stride
        for i in (1, 2, 3, 4)
    ]
    assert strides == [(1, 1), (2, 2), (2, 2), (2, 2)]
    assert model.step0_difference == 0.0


@pytest.mark.parametrize("block", ["lora", "ssf", "conv_adapter"])
@pytest.mark.parametrize("groups", [1, 4])
def test_gradients(block: str, groups: int) -> None:
    model = around(nn.Conv2d(4, 4, 3, padding=1, groups=groups), {"inject": block}, 4)
    names = [name for name, _ in model.named_parameters() if name.startswith("patches.")]
    values = [model.get_parameter(name).detach().clone().requires_grad_() for name in names]
    x = torch.randn(1, 3, 6, 5, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        out: Tensor = torch.func.functional_call(model, given, (x,))
        return out

    assert torch.autograd.gradcheck(run, (x, *values))
    if block != "conv_adapter":  # a ReLU has no second derivative at 0
        assert torch.autograd.gradgradcheck(run, (x, *values))


# -- in networks -----------------------------------------------------------------------------------

EVERYWHERE: dict[str, dict[str, Any]] = {
    "lora": {"layer*.*.conv?": {"inject": "lora"}},
    "ssf": {"type:Conv2d": {"inject": "ssf"}, "layer*.*.bn2": {"inject": "ssf"}},
    "conv_adapter": {"layer*.*": {"inject": "conv_adapter"}},
    "bias": {"stage:*": {"bias": {}}, "bn1": {"bias": {}}},
}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_only_the_adapters_and_the_head_learn(name: str) -> None:
    model = resnet18(EVERYWHERE[name])
    model.freeze_backbone()
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    if name == "bias":
        adapters = {
            n
            for n in RESNET().state_dict()
            if ".bn" in n or ".downsample.1" in n or n.startswith("bn1")
        }
        adapters = {n for n in adapters if n.endswith((".weight", ".bias"))}
    else:
        adapters = {n for n in model.state_dict() if n.startswith("patches.")}
        assert adapters
    assert learning == adapters | {"fc.weight", "fc.bias"}
    state = {n: t.clone() for n, t in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with audit(model, optimizer, strict=name in ("ssf", "bias")):
        model.train()
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(4, 3, 64, 64)).square().sum().backward()
            optimizer.step()
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, state[n])}
    assert moved == learning


@pytest.mark.parametrize("name", EVERYWHERE)
def test_files_recipes_and_unpatch(name: str, tmp_path: Path) -> None:
    model = resnet18(EVERYWHERE[name])
    model.freeze_backbone()
    steps(model)
    x = torch.randn(2, 3, 64, 64)
    model.save(tmp_path / "whole.safetensors")
    torch.manual_seed(0)
    base = BUILDER.from_torchvision("resnet18", weights=None, num_classes=5)
    base.save(tmp_path / "base.safetensors")
    model.save(tmp_path / "delta.safetensors", base=tmp_path / "base.safetensors")
    small, whole = (tmp_path / f"{n}.safetensors" for n in ("delta", "whole"))
    assert small.stat().st_size < 0.2 * whole.stat().st_size
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    for path in (whole, small):
        again = load(path).eval()
        assert torch.equal(again(x), model(x))
        assert {n: p.requires_grad for n, p in again.named_parameters()} == flags
        assert again.explain() == model.explain()
    torch.manual_seed(0)
    built = BUILDER.build(model.recipe)
    assert list(built.state_dict()) == list(model.state_dict())
    plain = RESNET(num_classes=5).eval()
    model.unpatch()
    plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(model(x), plain(x))
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]


def test_bias_is_a_patch_like_the_others() -> None:
    model = resnet18({"layer3": {"bias": {"norms": False}}, "layer4.0.bn1": {"bias": {}}})
    assert model.step0_difference == 0.0 and list(model.state_dict()) == list(RESNET().state_dict())
    model.freeze_backbone()
    thawed = {n for n, p in model.named_parameters() if p.requires_grad} - {"fc.weight", "fc.bias"}
    norms = [
        n for n, m in RESNET().named_modules() if isinstance(m, nn.BatchNorm2d) and "layer3" in n
    ]
    assert thawed == {f"{n}.bias" for n in norms} | {"layer4.0.bn1.weight", "layer4.0.bn1.bias"}
    assert "layer3: bias, 5 parameters learn where their part is frozen" in model.explain()
    model.train()
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    model.freeze_backbone(freeze_patches=True)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]
    model.freeze_backbone(head="none")
    model.unpatch("layer3")
    left = {n for n, p in model.named_parameters() if p.requires_grad}
    assert left == {"layer4.0.bn1.weight", "layer4.0.bn1.bias"}
    assert fold_patches(model).folded == ("layer4.0.bn1",) and model.patch_records == ()
    with pytest.raises(TargetError, match=r"nothing in 'layer1\.0\.relu' \(ReLU\) is a bias"):
        resnet18({"layer1.0.relu": {"bias": {}}})


def test_what_is_advised_for_a_pattern_that_meets_too_much_works() -> None:
    """A ViT's last stage ends with an identity here, and `type:Linear` names its head as well."""

    def vit(patches: dict[str, Any], classes: int | None = None) -> HybridModel:
        arguments = {"options": {"fc_norm": True}, "num_classes": classes, "weights": None}
        return BUILDER.from_backbone("timm/test_vit", patches=patches, **arguments)

    with pytest.raises(TargetError, match=r"the blocks of a stage \('stage:\*\.\*'\)"):
        vit({"stage:*": {"bias": {}}})
    model = vit({"stage:*.*": {"bias": {}}})
    model.freeze_backbone(head="none")
    learn = {name for name, p in model.named_parameters() if p.requires_grad}
    own = {name for name, _ in model.named_parameters() if name.startswith("blocks.")}
    assert learn == {name for name in own if name.endswith("bias") or ".norm" in name}

    with pytest.raises(HeadError, match=r"start with 'stage:' leave out the head.*fold it first"):
        vit({"type:Linear": {"inject": "lora"}}, 3)
    assert len(vit({"stage:*.type:Linear": {"inject": "lora"}}, 3).patch_records) == 24
    model = vit({"head": {"inject": "lora"}})
    fold_patches(model)
    model.reset_classifier(3)
    assert model.num_classes == 3


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        (
            {"wrap": {"type": "lora", "position": "after"}},
            r"lora is for the position 'parallel', not 'after'.*takes 'parallel'",
        ),
        ({"replace": "lora"}, r"lora cannot take the place of .*Use inject"),
        ({"inject": {"type": "ssf", "position": "parallel"}}, r"ssf is for the position 'after'"),
        ({"inject": {"type": "lora", "params": {"rank": 0}}}, r"rank is a whole number"),
        ({"inject": {"type": "lora", "params": {"r": 4}}}, r"unknown parameter 'r'.*rank"),
        ({"inject": {"type": "lora", "params": {"alpha": -1.0}}}, r"alpha is a number above 0"),
        ({"inject": {"type": "lora", "params": {"dropout": 1.0}}}, r"dropout is a probability"),
        (
            {"inject": {"type": "conv_adapter", "params": {"reduction": 0.5}}},
            r"reduction is a number",
        ),
        (
            {"inject": {"type": "conv_adapter", "params": {"kernel_size": 2}}},
            r"kernel_size is an odd",
        ),
        (
            {"inject": {"type": "conv_adapter", "params": {"channels": 0}}},
            r"channels is a whole number of at least 1, not 0",
        ),
        (
            {"inject": {"type": "conv_adapter", "params": {"stride": 0}}},
            r"stride is a whole number of at least 1, not 0",
        ),
        ({"bias": {"norm": True}}, r"'norm'.*norms"),
    ],
)
def test_what_is_wrong_is_refused_by_name(patch: Any, said: str) -> None:
    with pytest.raises(Exception, match=said) as caught:
        resnet18({"layer1.0.conv1": patch})
    assert type(caught.value).__module__ == "tvc_core.errors"


def test_wrap_puts_a_block_where_it_belongs_as_inject_does() -> None:
    for block, position in (("lora", "parallel"), ("ssf", "after"), ("conv_adapter", "parallel")):
        found = [
            resnet18({"stage:*": {op: block}}).get_submodule(f"patches.layer2.{block}")
            for op in ("wrap", "inject")
        ]
        assert [each.position.name for each in found] == [position] * 2
        assert [each.alpha for each in found] == [None, None]


def test_no_name_is_one_that_peft_takes_for_its_own() -> None:
    twice = [{"inject": "lora"}, {"inject": {"type": "lora", "params": {"rank": 2}}}]
    model = resnet18({"layer1.0.conv1": twice})
    assert [record.paths for record in model.patch_records] == [
        ("patches.layer1.0.conv1.lora",),
        ("patches.layer1.0.conv1.lora2",),
    ]
    names = [n for n, _ in model.named_modules()] + list(model.state_dict())
    assert not any("lora_" in name for name in names)
    move(model)
    x = torch.randn(1, 3, 64, 64)
    before = model.eval()(x)
    assert len(fold_patches(model).folded) == 2
    assert (model(x) - before).abs().max() < 1e-5


def test_bfloat16_autocast_channels_last_and_empty_batches() -> None:
    patches = {
        **EVERYWHERE["lora"],
        "layer*.*.bn2": {"inject": "ssf"},
        "layer3.*": {"inject": "conv_adapter"},
    }
    model = resnet18(patches).eval()
    move(model)
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.get_stage_outputs(x)[4].dtype == torch.bfloat16
        torch.testing.assert_close(model(x).float(), expected, rtol=0.1, atol=0.1)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    maps = last.get_stage_outputs(x.to(memory_format=torch.channels_last))
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in maps)
    torch.testing.assert_close(
        last(x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-4
    )
    assert model(x[:0]).shape == (0, 5)
    half = copy.deepcopy(model).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert not fold_patches(half, "layer*.*.conv?").left


def test_export_compile_and_vmap() -> None:
    layer = nn.Sequential(
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
        timm.layers.Conv2dSame(8, 8, 3, stride=2, groups=4),
        nn.Conv2d(8, 8, 1, bias=False),
        nn.BatchNorm2d(8),
    )
    network = OneLayer(layer, 8)
    network(torch.zeros(2, 3, 32, 48))
    patches = {
        "layer.[01]": {"inject": {"type": "lora", "params": {"rank": 2, "alpha": 1.0}}},
        "layer.2": {"inject": "conv_adapter"},
        "layer.3": {"inject": "ssf"},
    }
    model = BUILDER.from_module(network, "stem", ["layer"], "head", patches=patches).eval()
    move(model)
    dims = (torch.export.Dim(n, min=low, max=512) for n, low in (("n", 2), ("h", 9), ("w", 9)))
    shapes = (dict(zip((0, 2, 3), dims, strict=True)),)
    program = torch.export.export(model, (torch.randn(2, 3, 48, 32),), dynamic_shapes=shapes)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for size in ((3, 3, 65, 97), (2, 3, 31, 18)):
        x = torch.randn(size)
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    found = torch.vmap(model)(x[:, None])
    torch.testing.assert_close(found[:, 0], model(x), rtol=1e-4, atol=1e-5)
    assert len(fold_patches(model, "layer.[013]").folded) == 3
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


# -- folding ---------------------------------------------------------------------------------------

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18": (
        "resnet18",
        {
            "type:Conv2d": {"inject": "lora"},
            "layer*.*.conv?": {"inject": "ssf"},
            "**.type:BatchNorm2d": {"inject": "ssf"},
            "stage:*": {"bias": {}},
        },
    ),
    "mobilenet_v3_small": (
        "mobilenet_v3_small",
        {
            "type:Conv2d": [{"inject": "lora"}, {"inject": "ssf"}],
            "type:BatchNorm2d": {"inject": "ssf"},
        },
    ),
    "efficientnet_b0": (
        "efficientnet_b0",
        {
            "features.[2-4].**.type:Conv2d": {"inject": "lora"},
            "features.[5-6].**.type:Conv2d": {"inject": "ssf"},
        },
    ),
    "convnext_tiny": (
        "convnext_tiny",
        {
            "features.[1357].**.type:Linear": {"inject": "lora"},
            "features.*.*.block.0": {"inject": "lora"},
            "features.*.*.block.2": {"inject": "ssf"},
        },
    ),
    "swin_t": (
        "swin_t",
        {
            "features.*.*.mlp.[03]": [{"inject": "lora"}, {"inject": "ssf"}],
            "features.*.*.norm?": {"inject": "ssf"},
        },
    ),
    "vit": (
        "timm/vit_tiny_patch16_224",
        {
            "blocks.*.attn.qkv": {"inject": "lora"},
            "blocks.*.mlp.fc?": [{"inject": "lora"}, {"inject": "ssf"}],
        },
    ),
    "regnet": ("timm/regnetx_002", {"type:Conv2d": {"inject": "lora"}}),
    "tf": ("timm/tf_mobilenetv3_small_minimal_100", {"type:Conv2d*": {"inject": "lora"}}),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[] if name in ("resnet18", "mobilenet_v3_small") else pytest.mark.sweep
        )
        for name in NETWORKS
    ],
)
def test_three_steps_then_fold_gives_the_plain_network(name: str) -> None:
    backbone, patches = NETWORKS[name]
    torch.manual_seed(0)
    model = HybridBuilder().from_backbone(backbone, None, patches=patches, num_classes=5)
    torch.manual_seed(0)
    plain = HybridBuilder().from_backbone(backbone, None, num_classes=5)
    model.freeze_backbone()
    move(model, 0.01)
    size = 224 if "vit" in name else 64
    steps(model, size=size)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        before = model(x)
        report = fold_patches(model)
        after = model(x)
    assert report.left == {} and len(report.folded) > 10, str(report)
    assert (before - after).abs().max() < 1e-5 * max(1.0, float(before.abs().max()))
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(plain_state_dict(model), strict=True)
    assert torch.equal(plain.eval()(x), after)
    assert model.patch_records == () and "patches: none" in model.explain()
    plain.freeze_backbone()
    learn = [{n for n, p in net.named_parameters() if p.requires_grad} for net in (model, plain)]
    assert learn[0] == learn[1]


def test_a_shift_moves_into_the_running_mean_and_trains_on_alike() -> None:
    model = resnet18({"layer2.0.conv1": {"inject": "ssf"}})
    move(model)
    model.eval()
    found, mean = blocks(model), model.layer2[0].bn1.running_mean.clone()
    kernel = model.layer2[0].conv1.weight.detach().clone()
    assert not fold_patches(model).left
    torch.testing.assert_close(model.layer2[0].bn1.running_mean, mean - found["shift"])
    torch.testing.assert_close(
        model.layer2[0].conv1.weight, kernel * found["scale"].view(-1, 1, 1, 1)
    )
    assert model.layer2[0].conv1.bias is None


@pytest.mark.parametrize("order", ["se first", "lora first"])
def test_what_comes_between_keeps_a_patch_from_folding(order: str) -> None:
    pair = [{"wrap": "se"}, {"inject": "lora"}]
    patches = {"layer1.0.conv1": pair if order == "se first" else pair[::-1]}
    torch.manual_seed(0)
    model = (
        HybridBuilder().from_torchvision("resnet18", None, patches=patches, num_classes=5).eval()
    )
    move(model)
    x = torch.randn(1, 3, 64, 64)
    before = model(x)
    with pytest.warns(UserWarning, match=r"patches\.layer1\.0\.conv1\.se \("):
        report = fold_patches(model)
    if order == "se first":
        assert (
            "patches.layer1.0.conv1.se comes between" in report.left["patches.layer1.0.conv1.lora"]
        )
        assert report.folded == ()
    else:
        assert report.folded == ("patches.layer1.0.conv1.lora",)
        assert list(report.left) == ["patches.layer1.0.conv1.se"]
        assert [record.block for record in model.patch_records] == ["tvc-attention:se"]
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("stays", "folds"), [("se", False), ("conv_adapter", True)])
def test_a_shift_moves_past_a_patch_that_stays_only_where_that_adds(
    stays: str, folds: bool
) -> None:
    pair = [{"inject": "ssf"}, {"inject": "ssf"}, {"inject": stays}]
    torch.manual_seed(0)
    model = HybridBuilder().from_torchvision("resnet18", None, patches={"layer1.0.conv1": pair})
    move(model.eval())
    x = torch.randn(1, 3, 64, 64)
    before = model(x)
    with pytest.warns(UserWarning, match="not folded"):
        report = fold_patches(model)
    home = "patches.layer1.0.conv1.ssf"
    assert report.folded == ((home, f"{home}_2") if folds else ())
    if not folds:
        assert f"{home[:-3]}{stays} comes between its shift" in report.left[home]
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


def test_a_patch_that_is_switched_off_for_a_while_stays_between() -> None:
    inner, outer = "layer2.0.downsample.1", "layer2.0.downsample"
    model = resnet18({inner: {"wrap": "se"}, outer: {"inject": "ssf"}}).eval()
    with model.without(inner), pytest.warns(UserWarning, match="not folded"):
        report = fold_patches(model, outer)
    assert f"patches.{inner}.se is inside" in report.left[f"patches.{outer}.ssf"]


def test_a_gate_a_tie_and_a_replacement_are_named() -> None:
    patches = {
        "layer1.0.conv1": {"inject": {"type": "lora", "init": "kaiming"}},
        "layer1.0.conv2": {"inject": "lora"},
        "layer2.0.conv2": {"inject": {"type": "ssf", "position": "before"}},
        "layer3.0.conv2": {"inject": "lora"},
    }
    model = resnet18(patches).eval()
    model.layer1[1].conv2.weight = model.layer1[0].conv2.weight
    with model.without("layer3.0.conv2"), pytest.warns(UserWarning, match=r"4 patches not folded"):
        left = fold_patches(model).left
    assert left == {
        "patches.layer1.0.conv1.lora": "it has a gate",
        "patches.layer1.0.conv2.lora": "'layer1.0.conv2' shares tensors with layer1.1.conv2",
        "patches.layer2.0.conv2.ssf": "a ScaleShift does not fold at the position 'before'",
        "patches.layer3.0.conv2.lora": "it is switched off",
    }


class Doubles(nn.Module):
    """A block of another plugin that scales, and folds rightly or not."""

    def __init__(self, in_channels: int, by: float = 2.0) -> None:
        super().__init__()
        self.factor, self.by = nn.Parameter(torch.ones(1)), by

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def fold(self, target: nn.Module) -> None:
        with torch.no_grad():
            target.weight.mul_(self.by * self.factor)  # type: ignore[operator,union-attr]
            target.bias.mul_(self.by * self.factor)  # type: ignore[operator,union-attr]


@pytest.mark.parametrize("by", [1.0, 2.0])
def test_a_block_of_another_plugin_folds_by_the_same_contract(by: float) -> None:
    plugin = LocalPlugin("acme")
    plugin.block(name="doubles", starts_as="identity")(Doubles)
    builder = HybridBuilder(plugins=[plugin])
    patches = {"layer1.0.bn1": {"wrap": {"type": "doubles", "params": {"by": by}}}}
    model = builder.from_torchvision("resnet18", None, patches=patches).eval()
    with torch.no_grad():
        model.get_parameter("patches.layer1.0.bn1.doubles.block.factor").fill_(1.5)
    x = torch.randn(1, 3, 64, 64)
    before, weight = model(x), model.layer1[0].bn1.weight.detach().clone()
    if by == 1.0:
        assert not fold_patches(model).left
        torch.testing.assert_close(model.layer1[0].bn1.weight, 1.5 * weight)
    else:
        with pytest.warns(UserWarning, match="BatchNorm2d gives something else"):
            fold_patches(model)
        assert torch.equal(model.layer1[0].bn1.weight, weight)
        assert torch.equal(model(x), before)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


def test_weights_that_others_read_are_found_by_the_logits() -> None:
    """The convolution's map is read twice, which no hook shows."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1, bias=False)
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            out: Tensor = self.bn(x) + x
            return out

    network = OneLayer(Twice(), 4)
    network(torch.zeros(1, 3, 32, 48))
    model = BUILDER.from_module(
        network, "stem", ["layer"], "head", patches={"layer.conv": {"inject": "ssf"}}
    ).eval()
    move(model)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(PatchError, match=r"computes something else.*'?layer\.conv"):
        fold_patches(model)
    assert all(torch.equal(state[n], t) for n, t in model.state_dict().items())
    assert model.patch_records[0].paths == ("patches.layer.conv.ssf",)
    assert model.get_submodule("patches.layer.conv.ssf").enabled


# -- exports ---------------------------------------------------------------------------------------


class Small(nn.Module):
    """Two stages: a convolution, and a depthwise one with a pointwise one before its activation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.one = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False))
        self.one.extend([nn.BatchNorm2d(12), nn.ReLU()])
        self.two = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 16, 1))
        self.two.append(nn.Hardswish())
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.two(self.one(self.stem(x))).mean((2, 3)))
        return out


EXPORTED = {
    "all": {
        "one.0": {"inject": "lora"},
        "one.1": {"wrap": "ssf"},
        "two.0": {"inject": "lora"},
        "two.1": {"inject": "conv_adapter"},
        "head": {"inject": "lora"},
    },
    "lora": {path: {"inject": "lora"} for path in ("one.0", "two.0", "two.1", "head")},
    "ssf": {path: {"wrap": "ssf"} for path in ("one.0", "one.1", "two.1", "head")},
    "conv_adapter": {path: {"inject": "conv_adapter"} for path in ("one.0", "two.0", "two")},
}


@pytest.mark.parametrize("folded", [False, True], ids=["beside", "folded"])
@pytest.mark.parametrize(
    "patches",
    [
        pytest.param(patches, id=name, marks=[] if name == "all" else [pytest.mark.sweep])
        for name, patches in EXPORTED.items()
    ],
)
def test_onnx_runtime_gives_the_same_at_sizes_that_the_export_did_not_see(
    patches: dict[str, Any], folded: bool
) -> None:
    pytest.importorskip("onnx", reason="exports to ONNX need it")
    pytest.importorskip("onnxscript", reason="exports to ONNX need it")
    runtime = pytest.importorskip("onnxruntime", reason="runs what was exported")
    network = Small()
    network.one[1].running_mean.normal_()
    network.one[1].running_var.uniform_(0.5, 2.0)
    parts: dict[str, Any] = {"stem": "stem", "stages": ["one", "two"], "head": "head"}
    model = BUILDER.from_module(network, **parts, patches=patches)
    move(model)
    kept, plain = copy.deepcopy(model.eval()), copy.deepcopy(model.eval())
    if folded:
        left = fold_patches(model).left
        assert {each.rpartition(".")[2] for each in left} <= {"conv_adapter"}
        assert len(left) == str(patches).count("conv_adapter")
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (torch.randn(2, 3, 48, 64),), dynamic_shapes=(dynamic,), dynamo=True
        )
    assert program is not None
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    (given,) = session.get_inputs()
    plain.unpatch()
    for shape in ((1, 3, 33, 47), (3, 3, 96, 32), (5, 3, 17, 130)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        (found,) = session.run(None, {given.name: x.numpy()})
        with torch.no_grad():
            expected, unpatched = kept(x), plain(x)
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(expected, unpatched, atol=1e-3)
