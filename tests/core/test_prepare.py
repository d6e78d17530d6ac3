"""Every patch is checked before anything is touched, and a failed build leaves no trace."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tvc_core import (
    BackboneError,
    BackboneSpec,
    BlockSpec,
    HeadError,
    HybridBuilder,
    InitializerSpec,
    ParameterError,
    Patch,
    PatchError,
    PatchOpSpec,
    PluginError,
    RecipeError,
    Registry,
    StageError,
    TargetError,
    TvcError,
)


class ConvBnAct(nn.Sequential):
    """As the block of that name: `channels` is its output width."""

    def __init__(
        self, in_channels: int, channels: int = 64, kernel_size: int = 3, stride: int = 1
    ) -> None:
        conv = nn.Conv2d(in_channels, channels, kernel_size, stride, kernel_size // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(channels), nn.ReLU())


class Fails(nn.Module):
    def __init__(self, in_channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("something inside")


class FailsLater(nn.Module):
    """Works on the first call, fails on the second."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 2:
            raise KeyError("later")
        return x


class OneChannel(nn.Module):
    """[N, C, H, W] to [N, 1, H, W], which broadcasts without an error."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)


class WideGate(nn.Module):
    """A gate that makes a map of one channel wider."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()

    def gate(self, x: Tensor) -> Tensor:
        return torch.ones(1, 5, *x.shape)

    def forward(self, x: Tensor) -> Tensor:
        return x


class ReturnsPair(nn.Module):
    def __init__(self, in_channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class NotFinite(nn.Module):
    def __init__(self, in_channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x / 0


def block(name: str, factory: Callable[..., Any], **more: Any) -> BlockSpec:
    return BlockSpec(name=name, factory=factory, **more)


CONV_BN_ACT = block("cba", ConvBnAct, preserves_shape=False)


@pytest.fixture
def resnets() -> HybridBuilder:
    """A builder with the installed backbones and the block cba."""

    class Blocks:
        from tvc_core import hookimpl

        @hookimpl
        def tvc_blocks(self) -> list[BlockSpec]:
            return [CONV_BN_ACT]

    return HybridBuilder(registry=Registry([Blocks()]))


# -- replace ---------------------------------------------------------------------------------------


def test_a_replacement_that_does_not_fit_names_the_parameter_that_would(
    resnets: HybridBuilder,
) -> None:
    patches = {"layer1": {"replace": {"type": "cba", "params": {"channels": 64}}}}
    with pytest.raises(PatchError, match=r"Shape mismatch.*64.*256.*channels=256 would fit"):
        resnets.from_torchvision("resnet50", weights=None, patches=patches)
    model = resnets.from_torchvision("resnet18", weights=None, patches=patches)
    assert isinstance(model.layer1, ConvBnAct) and model(torch.randn(1, 3, 64, 64)).shape == (
        1,
        1000,
    )


def test_what_would_fit_may_need_a_stride(resnets: HybridBuilder) -> None:
    with pytest.raises(PatchError, match=r"channels=128 and stride=2 would fit"):
        resnets.from_torchvision("resnet18", weights=None, patches={"layer2": {"replace": "cba"}})
    fitting = {"type": "cba", "params": {"channels": 128, "stride": 2}}
    resnets.from_torchvision("resnet18", weights=None, patches={"layer2": {"replace": fitting}})


@pytest.mark.parametrize("error", [KeyError, AttributeError, NotImplementedError])
def test_whatever_a_network_raises_after_a_replacement_is_told_with_the_shapes(
    lab: Any, error: type[Exception]
) -> None:
    class Looks(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] != 8:
                raise error("8 channels are all it knows")
            return super().forward(x)

    network = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 8, 1),
        Looks(8, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(8, 5, 1),
    )
    with pytest.raises(
        PatchError, match=r"Shape mismatch.*8 channels are all it knows.*channels=8 would fit"
    ):
        lab().from_module(
            network,
            "0",
            ["1", "2"],
            "4",
            patches={"1": {"replace": {"type": "conv", "params": {"channels": 16}}}},
        )


def test_looking_for_what_would_fit_makes_no_huge_block(tiny: Any) -> None:
    sizes: list[int] = []

    def made(in_channels: int, kernel_size: int = 3, channels: int = 4) -> nn.Module:
        conv = nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2)
        sizes.append(0 if conv.weight.is_meta else conv.weight.numel())
        return conv

    with pytest.raises(PatchError, match="channels=32 would fit"):
        tiny({"layer3": {"wrap": "made"}}, block("made", made))
    assert len(sizes) > 1 and max(sizes) == 32 * 4 * 9


def test_a_replacement_may_change_the_size_where_what_follows_accepts_it(
    resnets: HybridBuilder,
) -> None:
    model = resnets.from_torchvision(
        "resnet18", weights=None, patches={"maxpool": {"replace": "cba"}}
    )
    assert [stage.stride for stage in model.stage_info] == [2, 4, 8, 16]
    assert [f.shape[-1] for f in model.get_stage_outputs(torch.randn(1, 3, 64, 64))] == [
        32,
        32,
        16,
        8,
        4,
    ]


def test_a_wrap_after_a_replacement_sees_its_width_not_the_originals(
    lab: Any, images: Tensor
) -> None:
    class Flexible(nn.Module):
        """Works for any width of its middle."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.middle, self.head = (
                nn.Conv2d(3, 8, 3, 2, 1),
                nn.Conv2d(8, 8, 1),
                nn.Linear(1, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.middle(self.stem(x)).mean((1, 2, 3))[:, None])

    spec = BackboneSpec(
        name="flexible",
        factory=lambda spec, weights: Flexible(),
        stem=("stem",),
        stages=("middle",),
        head="head",
    )
    patches = {
        "middle": [{"replace": {"type": "conv", "params": {"channels": 20}}}, {"wrap": "gate"}]
    }
    model = lab(spec).from_backbone("flexible", weights=None, patches=patches)
    assert model.patches.middle.gate.block.fc.in_channels == 20
    assert model.stage_info[0].channels == 20 and model(images).shape == (4, 3)


def test_a_replacement_takes_no_name_since_it_has_its_targets(tiny: Any) -> None:
    with pytest.raises(PatchError, match="'mine'"):
        tiny({"layer3.0.conv": {"replace": {"type": "conv", "name": "mine"}}})


# -- conflicts -------------------------------------------------------------------------------------

CONV16 = {"type": "conv", "params": {"channels": 16, "stride": 2}}


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        ({"layer2": [{"replace": CONV16}, {"replace": CONV16}]}, "'layer2' is replaced twice"),
        (
            {"layer2": [{"wrap": "gate"}, {"replace": CONV16}]},
            "would lose the earlier patch at 'layer2'; replace first",
        ),
        (
            {"layer2": {"replace": CONV16}, "layer2.conv": {"wrap": "gate"}},
            "'layer2.conv' is inside 'layer2'",
        ),
        (
            {"layer2.conv": {"wrap": "gate"}, "layer2": {"replace": CONV16}},
            "would lose the earlier patch at 'layer2.conv'",
        ),
        (
            {"layer3.0.conv": {"replace": "conv"}, "layer3": {"replace": CONV16}},
            "earlier patch at 'layer3.0.conv'",
        ),
    ],
)
def test_patches_in_conflict_are_refused(tiny: Any, patches: Any, message: str) -> None:
    with pytest.raises(PatchError, match=message):
        tiny(patches)


def test_replacing_and_then_wrapping_one_target_does_both(tiny: Any, images: Tensor) -> None:
    model = tiny({"layer2": [{"replace": CONV16}, {"wrap": "gate"}]}).eval()
    assert type(model.layer2).__name__ == "ConvNorm"
    before = model(images)
    with torch.no_grad():
        model.patches.layer2.gate.alpha.fill_(1.0)
    assert not torch.equal(before, model(images))


def test_targets_with_equal_beginnings_are_not_inside_one_another(tiny: Any) -> None:
    tiny(
        {"layer3.0": {"replace": "conv"}, "layer3.1": {"wrap": "gate"}, "layer2": {"wrap": "gate"}}
    )


# -- blocks that do not fit ------------------------------------------------------------------------


@pytest.mark.parametrize("init", [None, "paper"])
def test_a_block_whose_forward_fails_is_named_with_the_shape(tiny: Any, init: str | None) -> None:
    with pytest.raises(PatchError, match=r"lab:fails.*fails on \[1, 16, \d+, \d+\]: KeyError"):
        tiny({"layer2": {"wrap": {"type": "fails", "init": init}}}, block("fails", Fails))


@pytest.mark.parametrize("init", [None, "paper"])
def test_a_block_that_fails_in_the_network_is_a_patch_error(tiny: Any, init: str | None) -> None:
    with pytest.raises(PatchError, match=r"layer2\b.*later"):
        tiny({"layer2": {"wrap": {"type": "later", "init": init}}}, block("later", FailsLater))


def test_a_block_whose_wrong_shape_would_broadcast_is_refused(tiny: Any) -> None:
    with pytest.raises(
        PatchError, match=r"turns \[1, 16, \d+, \d+\] into \[1, 1, \d+, \d+\] at 'layer2'"
    ):
        tiny({"layer2": {"wrap": "one"}}, block("one", OneChannel))


def test_a_gate_that_would_widen_the_map_is_refused(tiny: Any) -> None:
    with pytest.raises(PatchError, match="layer2"):
        tiny({"layer2": {"wrap": "wide"}}, block("wide", WideGate, gated=True))


def test_a_wrong_shape_is_refused_in_the_published_start_too(tiny: Any) -> None:
    with pytest.raises(PatchError, match="layer2"):
        tiny({"layer2": {"wrap": {"type": "one", "init": "paper"}}}, block("one", OneChannel))


def test_a_block_that_returns_no_tensor_is_refused(tiny: Any) -> None:
    with pytest.raises(PatchError, match="returns a tuple"):
        tiny({"layer2": {"wrap": "pair"}}, block("pair", ReturnsPair))


def test_a_block_that_is_not_finite_cannot_claim_to_start_as_the_identity(tiny: Any) -> None:
    with pytest.raises(PatchError, match="not finite"):
        tiny({"layer2": {"wrap": "bad"}}, block("bad", NotFinite))


def test_a_misspelt_parameter_gets_the_right_one(tiny: Any) -> None:
    with pytest.raises(
        ParameterError, match=r"unknown parameter 'chanels'.*Did you mean 'channels'.*kernel_size"
    ):
        tiny({"layer2": {"wrap": {"type": "conv", "params": {"chanels": 3}}}})


def test_in_channels_is_the_cores_to_give(tiny: Any) -> None:
    with pytest.raises(ParameterError, match="in_channels"):
        tiny({"layer2": {"wrap": {"type": "conv", "params": {"in_channels": 3}}}})


@pytest.mark.parametrize("error", [KeyError, AttributeError, OSError, ZeroDivisionError])
def test_whatever_a_blocks_constructor_raises_is_told_with_its_parameters(
    tiny: Any, error: type[Exception]
) -> None:
    def broken(in_channels: int, activation: str = "relu") -> nn.Module:
        raise error(activation)

    with pytest.raises(ParameterError, match=f"lab:broken.*activation='tanh'.*{error.__name__}"):
        tiny(
            {"layer2": {"wrap": {"type": "broken", "params": {"activation": "tanh"}}}},
            block("broken", broken),
        )


def test_a_block_factory_that_makes_no_module_is_a_fault_of_its_plugin(tiny: Any) -> None:
    with pytest.raises(PluginError, match=r"lab:none.*NoneType"):
        tiny({"layer2": {"wrap": "none"}}, block("none", lambda in_channels: None))


# -- operations of others --------------------------------------------------------------------------


def nothing(target: Any) -> nn.Module:
    return target.module


def smooth(target: Any, size: int = 3) -> nn.Module:
    target.after(nn.AvgPool2d(size, 1, size // 2))
    return target.module


def twice(target: Any, block: Any) -> nn.Module:
    target.before(block(target.in_channels))
    target.after(nn.Sequential(block(target.out_channels)))
    return target.module


class Doubled(nn.Module):
    """Holds the original."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.inner(x))


SMOOTH = PatchOpSpec(name="smooth", factory=smooth, takes_block=False, options={"size": 3})


def test_an_operation_that_changes_nothing_is_an_error(tiny: Any) -> None:
    op = PatchOpSpec(name="nothing", factory=nothing, takes_block=False)
    with pytest.raises(PluginError, match=r"lab:nothing.*changed nothing at 'layer2'"):
        tiny({"layer2": {"nothing": None}}, op)


def test_an_operation_without_a_block_takes_its_options(
    tiny: Any, plain: Any, images: Tensor
) -> None:
    model = tiny({"layer2": {"smooth": {"size": 5}}}, SMOOTH).eval()
    assert model.patches.layer2.smooth.block.kernel_size == 5
    assert torch.equal(model(images), plain().eval()(images))


@pytest.mark.parametrize(
    ("written", "message"), [({"sise": 5}, "size"), ({"type": "gate"}, "type"), ("gate", "type")]
)
def test_an_operation_refuses_what_it_does_not_take(tiny: Any, written: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny({"layer2": {"smooth": written}}, SMOOTH)


def test_an_operation_may_insert_twice_and_wrap_a_gated_block_in_another_module(
    tiny: Any, plain: Any, images: Tensor
) -> None:
    model = tiny({"layer2": {"twice": "gate"}}, PatchOpSpec(name="twice", factory=twice)).eval()
    assert model.patch_records[0].paths == ("patches.layer2.gate", "patches.layer2.gate_2")
    assert torch.equal(model(images), plain().eval()(images))
    assert not model.patches.layer2.gate_2.gated


def test_an_operation_that_returns_no_module_is_a_fault_of_its_plugin(tiny: Any) -> None:
    op = PatchOpSpec(name="lost", factory=lambda target: None, takes_block=False)
    with pytest.raises(PluginError, match=r"lab:lost.*NoneType"):
        tiny({"layer2": {"lost": None}}, op)


def test_a_replacement_that_holds_the_original_keeps_its_weights(
    tiny: Any, plain: Any, images: Tensor
) -> None:
    def around(target: Any, block: Any) -> nn.Module:
        return Doubled(target.module)

    def ones(module: nn.Module) -> None:
        for parameter in module.parameters():
            nn.init.ones_(parameter)

    specs = (PatchOpSpec(name="around", factory=around), InitializerSpec(name="ones", factory=ones))
    model = tiny(
        {"layer2": {"around": {"type": "gate", "init": "ones"}}}, *specs, freeze_backbone=True
    )
    assert torch.equal(model.layer2.inner.conv.weight, plain().layer2.conv.weight)
    assert model.layer2.scale.weight.eq(1).all()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"layer2.scale.weight", "layer2.scale.bias", "fc.weight", "fc.bias"}
    assert model(images).shape == (4, 7)


def test_inject_before_runs_the_block_first(tiny: Any, images: Tensor) -> None:
    model = tiny({"layer2": {"inject": {"type": "gate", "position": "before"}}}).eval()
    order: list[str] = []
    model.layer2.conv.register_forward_hook(lambda *_: order.append("conv"))
    model.patches.layer2.gate.register_forward_hook(lambda *_: order.append("gate"))
    model(images)
    assert order == ["gate", "conv"] and model.patches.layer2.gate.block.fc.in_channels == 8


def test_an_unknown_position_gets_the_right_one(tiny: Any) -> None:
    with pytest.raises(ParameterError, match="Did you mean 'before'"):
        tiny({"layer2": {"inject": {"type": "gate", "position": "befor"}}})


# -- all or nothing --------------------------------------------------------------------------------


def fingerprint(network: nn.Module) -> Any:
    return (
        type(network),
        [(name, id(module), module.training) for name, module in network.named_modules()],
        [
            (name, id(tensor), tensor._version, tensor.requires_grad)
            for name, tensor in network.named_parameters()
        ],
        {name: tensor.clone() for name, tensor in network.named_buffers()},
        [
            list(module._forward_hooks) + list(module._forward_pre_hooks)
            for module in network.modules()
        ],
        sorted(network.__dict__),
    )


BAD = {
    "target": ({"patches": {"layer1": {"wrap": "gate"}, "layer9": {"wrap": "gate"}}}, TargetError),
    "shape": (
        {
            "patches": {
                "layer1": {"wrap": "gate"},
                "layer2": {"replace": "conv"},
                "layer3": {"wrap": "one"},
            }
        },
        PatchError,
    ),
    "later": ({"patches": {"layer1": {"wrap": "gate"}, "layer2": {"wrap": "later"}}}, PatchError),
    "proof": ({"patches": {"layer1": {"wrap": "gate"}, "layer2": {"wrap": "bad"}}}, PatchError),
    "parameter": (
        {
            "patches": {
                "layer1": {"wrap": "gate"},
                "layer2": {"wrap": {"type": "conv", "params": {"x": 1}}},
            }
        },
        ParameterError,
    ),
    "stage": (
        {"patches": {"layer1": {"wrap": "gate"}}, "freeze_backbone": True, "unfreeze_stages": [9]},
        StageError,
    ),
    "names": (
        {"patches": {"layer1": {"wrap": "gate"}}, "heads": {"type": 2, "other": 3}, "dropout": 0.5},
        HeadError,
    ),
    "width": ({"patches": {"fc": {"wrap": "dense"}}, "num_classes": 3}, HeadError),
}


@pytest.mark.parametrize("case", BAD)
def test_a_failed_build_leaves_no_trace(lab: Any, plain: Any, case: str) -> None:
    network = plain()
    dense = block("dense", lambda in_channels: nn.Linear(in_channels, in_channels), layouts=("NC",))
    given = BackboneSpec(
        name="given",
        factory=lambda spec, weights: network,
        stem=("stem",),
        stages=("layer1", "layer2", "layer3"),
        head="fc",
    )
    builder = lab(
        given, dense, block("one", OneChannel), block("later", FailsLater), block("bad", NotFinite)
    )
    arguments, error = BAD[case]
    before, random, environment = fingerprint(network), torch.get_rng_state(), dict(os.environ)
    with pytest.raises(error) as caught:
        builder.from_backbone("given", None, **arguments)
    assert isinstance(caught.value, TvcError)
    after = fingerprint(network)
    assert [before[i] for i in (0, 1, 2, 4, 5)] == [after[i] for i in (0, 1, 2, 4, 5)]
    assert all(torch.equal(before[3][name], after[3][name]) for name in before[3])
    assert torch.equal(random, torch.get_rng_state()) and environment == dict(os.environ)


def test_a_factory_that_gives_the_same_network_twice_is_refused(lab: Any, plain: Any) -> None:
    network = plain()
    given = BackboneSpec(
        name="given",
        factory=lambda spec, weights: network,
        stem=("stem",),
        stages=("layer1", "layer2", "layer3"),
        head="fc",
    )
    builder = lab(given)
    builder.from_backbone("given", None)
    with pytest.raises(BackboneError, match=r"lab:given.*hybrid"):
        builder.from_backbone("given", None)


def test_errors_name_the_place_in_the_recipe(tiny: Any) -> None:
    with pytest.raises(TargetError, match=r"^arguments, layer9\.wrap|^arguments, patches"):
        tiny({"layer9": {"wrap": "gate"}})


def test_create_block_makes_the_block_as_published(lab: Any) -> None:
    made = lab().create_block("conv", 8, channels=4)
    assert not isinstance(made, Patch) and made.conv.out_channels == 4
    for wrong in (0, -1, True, 2.0, "8"):
        with pytest.raises(ParameterError, match="in_channels"):
            lab().create_block("conv", wrong)
