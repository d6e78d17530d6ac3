"""Patches leave names, keys and, at step 0, outputs alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tvc_core import (
    BackboneSpec,
    BlockSpec,
    HybridBuilder,
    InitializerSpec,
    Patch,
    PatchError,
    TargetError,
)
from tvc_core.surgery import initializers

ODD_NAMES = ("half", "float", "type", "forward", "children", "training")


class OnlyGate(nn.Module):
    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(in_channels))

    def forward(self, x: Tensor) -> Tensor:
        return -x * 0.98 + self.scale[:, None, None]


def fill_everything(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(3.0)


def patch_keys(model: nn.Module) -> list[str]:
    return [key for key in model.state_dict() if key.startswith("patches.")]


# -- names and keys --------------------------------------------------------------------------------


def test_every_key_and_name_of_the_backbone_stays(builder: HybridBuilder) -> None:
    reference = torchvision.models.resnet18()
    model = builder.from_backbone(
        "resnet18",
        weights=None,
        patches={"layer3": {"wrap": "se"}, "layer4.0.conv1": {"inject": "cbam_block"}},
    )
    assert [key for key in model.state_dict() if not key.startswith("patches.")] == list(
        reference.state_dict()
    )
    children = [name for name, _ in model.named_children()]
    others = [name for name, _ in reference.named_children()]
    assert children == [others[0], "patches", *others[1:]]
    # by which tools find out what images a network takes, its type and its device
    weights = [each.weight for each in model.modules() if isinstance(each, nn.Conv2d)]
    assert weights[0] is next(model.parameters()) and weights[0].shape[1] == 3
    assert type(model.layer3) is nn.Sequential and type(model.layer4[0].conv1) is nn.Conv2d


def test_a_plain_torchvision_state_dict_lacks_exactly_the_patches(builder: HybridBuilder) -> None:
    reference = torchvision.models.resnet18()
    model = builder.from_backbone(
        "resnet18",
        weights=None,
        patches={"layer3": {"wrap": "se"}, "layer4.0.conv1": {"inject": "cbam_block"}},
    )
    result = model.load_state_dict(reference.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert result.missing_keys == patch_keys(model) and len(result.missing_keys) > 4
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.eval()(x), reference.eval()(x))


def test_an_unpatched_hybrid_has_no_child_for_patches(tiny: Any, plain: Any) -> None:
    assert list(tiny().state_dict()) == list(plain().state_dict())
    assert not hasattr(tiny(), "patches")


def test_two_equal_blocks_at_one_target_both_run(tiny: Any, images: Tensor) -> None:
    model = tiny({"layer2": [{"wrap": "gate"}, {"wrap": "gate"}]}).eval()
    assert list(model.patches.layer2._modules) == ["gate", "gate_2"]
    before = model(images)
    for name in ("gate", "gate_2"):
        with torch.no_grad():
            model.patches.layer2.get_submodule(name).alpha.fill_(1.0)
        after = model(images)
        assert not torch.equal(before, after), name
        before = after


def test_a_target_with_a_child_of_the_blocks_name_keeps_that_child(tiny: Any) -> None:
    model = tiny({"layer2": {"wrap": "conv"}, "layer2.conv": {"wrap": "gate"}})
    assert isinstance(model.layer2.conv, nn.Conv2d)
    assert set(model.patches.layer2._modules) == {"conv", "conv_2"}
    assert isinstance(model.patches.layer2.conv_2, Patch) and isinstance(
        model.patches.layer2.conv.gate, Patch
    )


class HasPatches(nn.Module):
    """A network whose own first layer is called `patches`."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.body = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.patches(x)).mean((2, 3)))


def has_patches(spec: BackboneSpec, *, weights: Any) -> nn.Module:
    return HasPatches()


def test_a_backbone_with_a_child_called_patches_keeps_it(lab: Any) -> None:
    spec = BackboneSpec(
        name="has_patches", factory=has_patches, stem=("patches",), stages=("body",), head="head"
    )
    model = lab(spec).from_backbone(
        "has_patches", weights=None, patches={"body": {"wrap": "gate"}}, freeze_backbone=True
    )
    assert isinstance(model.patches, nn.Conv2d)
    assert {key.partition(".")[0] for key in model.state_dict()} == {
        "patches",
        "body",
        "head",
        "tvc_patches",
    }
    trainable = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"tvc_patches", "head"}


def test_keys_stay_when_another_patch_is_added(tiny: Any) -> None:
    few = patch_keys(tiny({"layer3.0": {"wrap": "gate"}}))
    many = patch_keys(
        tiny(
            {
                "layer3": {"wrap": "gate"},
                "layer1": {"inject": "conv"},
                "layer3.0": [{"wrap": "gate"}, {"wrap": "conv"}],
            }
        )
    )
    assert few and set(few) < set(many)


def test_a_given_name_is_the_last_part_of_the_path(tiny: Any) -> None:
    model = tiny({"layer2": {"wrap": {"type": "gate", "name": "attention"}}})
    assert isinstance(model.patches.layer2.attention, Patch)
    assert model.patch_records[0].paths == ("patches.layer2.attention",)


@pytest.mark.parametrize("name", ["conv", "half", "training", "gate"])
def test_a_given_name_that_cannot_be_had_is_refused_not_changed(tiny: Any, name: str) -> None:
    with pytest.raises(PatchError, match=f"{name!r} is taken at 'layer2'"):
        tiny({"layer2": [{"wrap": "gate"}, {"wrap": {"type": "gate", "name": name}}]})


def test_a_given_name_that_another_patch_got_by_number_is_refused(tiny: Any) -> None:
    with pytest.raises(PatchError, match="'gate_2' is taken at 'layer2'"):
        tiny(
            {
                "layer2": [
                    {"wrap": "gate"},
                    {"wrap": "gate"},
                    {"wrap": {"type": "gate", "name": "gate_2"}},
                ]
            }
        )


def test_a_given_name_of_a_child_of_the_replacement_is_refused(tiny: Any) -> None:
    class Inner(nn.Module):
        def __init__(self, in_channels: int) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    patches = {"layer1.relu": [{"replace": "holder"}, {"wrap": {"type": "gate", "name": "inner"}}]}
    with pytest.raises(PatchError, match=r"'inner' is taken at 'layer1\.relu'"):
        tiny(patches, BlockSpec(name="holder", factory=Inner))


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_block_named_like_an_attribute_of_modules_can_be_inserted(
    tiny: Any, images: Tensor, name: str
) -> None:
    model = tiny({"layer2": {"wrap": name}}, BlockSpec(name=name, factory=OnlyGate))
    assert [key for key in model.state_dict() if key.startswith("patches.")]
    model.half().float().train()
    assert model.patches.layer2.half == nn.Module.half.__get__(model.patches.layer2)
    model(images).sum().backward()
    assert model.get_submodule(model.patch_records[0].paths[0]).alpha.grad is not None


# -- step 0 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", ["gate", "conv"])
def test_step_0_is_exact_in_every_type(
    tiny: Any, plain: Any, images: Tensor, block: str, dtype: torch.dtype
) -> None:
    patches = {
        path: {"wrap": block} for path in ("stem", "layer1", "layer2", "layer3.0.conv", "layer3")
    }
    model, reference = tiny(patches).to(dtype).eval(), plain().to(dtype).eval()
    found = model(images.to(dtype))
    assert found.dtype == dtype and torch.equal(found, reference(images.to(dtype)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", ["gate", "conv"])
def test_step_0_is_exact_under_autocast(
    tiny: Any, plain: Any, images: Tensor, block: str, dtype: torch.dtype
) -> None:
    model, reference = (
        tiny({"stem": {"wrap": block}, "layer3": {"wrap": block}}).eval(),
        plain().eval(),
    )
    with torch.autocast("cpu", dtype):
        found, expected = model(images), reference(images)
    assert found.dtype == expected.dtype and torch.equal(found, expected)


@pytest.mark.parametrize("block", ["gate", "conv"])
def test_step_0_is_exact_in_channels_last_memory(
    tiny: Any, plain: Any, images: Tensor, block: str
) -> None:
    x = images.to(memory_format=torch.channels_last)
    model = (
        tiny({"stem": {"wrap": block}, "layer2": {"wrap": block}})
        .to(memory_format=torch.channels_last)
        .eval()
    )
    assert torch.equal(model(x), plain().to(memory_format=torch.channels_last).eval()(x))
    assert model.layer2(model.layer1(model.stem(x))).is_contiguous(
        memory_format=torch.channels_last
    )


def test_step_0_is_exact_in_training_mode(tiny: Any, plain: Any, images: Tensor) -> None:
    model, reference = (
        tiny({"stem": {"wrap": "gate"}, "layer2": {"wrap": "conv"}}).train(),
        plain().train(),
    )
    outputs = []
    for network in (model, reference):
        torch.manual_seed(3)  # dropout
        outputs.append(network(images))
    assert torch.equal(*outputs)


def test_the_largest_finite_float16_values_pass_a_closed_gate() -> None:
    x = torch.tensor(
        [60000.0, -60000.0, 65504.0, -65504.0, 6e-8, 0.0, -0.0], dtype=torch.float16
    ).reshape(1, 7, 1, 1)
    # block(x) is near -x: their difference is over 65504
    assert torch.equal(Patch(OnlyGate(7).half())(x), x)
    assert torch.equal(Patch(Gate7().half(), gated=True)(x), x)


def test_a_closed_gate_of_a_gated_block_keeps_the_sign_of_zero() -> None:
    x = torch.tensor([-0.0, 0.0] * 4).reshape(1, 8, 1, 1)[:, :7]
    assert torch.equal(torch.signbit(Patch(Gate7(), gated=True)(x)), torch.signbit(x))


class Gate7(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def gate(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.weight).expand(1, 7, 1, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("opened", [0.0, 0.5])
def test_a_float32_gate_keeps_the_type_of_any_map(dtype: torch.dtype, opened: float) -> None:
    x = torch.randn(2, 7, 3, 3, dtype=dtype)
    for patch in (Patch(OnlyGate(7)), Patch(Gate7(), gated=True)):
        with torch.no_grad():
            patch.alpha.fill_(opened)
        assert patch(x).dtype == dtype


def test_an_open_gate_gives_the_block_itself() -> None:
    torch.manual_seed(0)
    x, block = torch.randn(2, 7, 3, 3), Gate7()
    patch = Patch(block, gated=True)
    with torch.no_grad():
        patch.alpha.fill_(1.0)
    torch.testing.assert_close(patch(x), x * block.gate(x))
    mix = Patch(OnlyGate(7))
    with torch.no_grad():
        mix.alpha.fill_(0.25)
    torch.testing.assert_close(mix(x), 0.75 * x + 0.25 * mix.block(x))


def optimizer_of(kind: str, parameters: Any) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=0.05, weight_decay=1e-2)
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=1e-1)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("block", ["gate", "conv"])
def test_gradients_reach_every_new_parameter_within_two_steps(
    tiny: Any, images: Tensor, block: str, kind: str
) -> None:
    model = tiny({"stem": {"wrap": block}, "layer2": {"wrap": block}, "layer3": {"inject": block}})
    new = {name: p for name, p in model.named_parameters() if name.startswith("patches.")}
    optimizer = optimizer_of(kind, model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in new.values())


def test_the_published_start_differs(tiny: Any, plain: Any, images: Tensor) -> None:
    model = tiny({"layer2": {"wrap": {"type": "gate", "init": "paper"}}}).eval()
    assert not torch.equal(model(images), plain().eval()(images))
    assert model.step0_difference > 0
    patch = model.patches.layer2.gate
    assert patch.alpha is None and "alpha" not in dict(patch.named_parameters())
    x = torch.randn(1, 16, 4, 4)
    assert torch.equal(patch(x), patch.block(x))


@pytest.mark.parametrize("init", ["kaiming", "xavier", "zero", "identity", "lab:fill"])
@pytest.mark.parametrize("block", ["gate", "conv"])
def test_no_initializer_opens_the_gate(
    tiny: Any, plain: Any, images: Tensor, init: str, block: str
) -> None:
    fill = InitializerSpec(name="fill", factory=fill_everything)
    if (block, init) == ("conv", "zero"):  # zeros before a relu: nothing in it could ever learn
        with pytest.raises(PatchError, match="would never learn"):
            tiny({"layer2": {"wrap": {"type": block, "init": init}}})
        return
    model = tiny({"layer2": {"wrap": {"type": block, "init": init}}}, fill).eval()
    assert torch.equal(model(images), plain().eval()(images))
    assert model.get_submodule(model.patch_records[0].paths[0]).alpha.tolist() == [0.0]


class OneUnit(nn.Module):
    """A gate with one hidden unit, which is dead where what is asked of the map has `sign`."""

    def __init__(self, in_channels: int, sign: float) -> None:
        super().__init__()
        self.down = nn.Conv2d(in_channels, 1, 1, bias=False)
        self.up = nn.Conv2d(1, in_channels, 1, bias=False)
        nn.init.constant_(self.down.weight, -sign)

    def gate(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.up(torch.relu(self.down(x.amax((2, 3), keepdim=True)))))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_unit_that_is_dead_on_one_image_may_learn_on_the_next(tiny: Any, sign: float) -> None:
    """A hidden width of one at a stage of few channels: it was refused for some seeds."""
    block = BlockSpec(name="one_unit", factory=OneUnit)
    patches = {"layer2": {"wrap": {"type": "lab:one_unit", "params": {"sign": sign}}}}
    assert len(tiny(patches, block).patch_records) == 1


def test_initializers_fill_by_role(tiny: Any) -> None:
    def patch_of(init: str) -> Any:
        return tiny({"layer3": {"wrap": {"type": "conv", "init": init}}}).patches.layer3.conv.block

    torch.manual_seed(0)
    # fan_out 32 * 9
    assert patch_of("kaiming").conv.weight.std().item() == pytest.approx(
        (2 / (32 * 9)) ** 0.5, rel=0.05
    )
    bound = (6 / (2 * 32 * 9)) ** 0.5
    assert 0.97 * bound < patch_of("xavier").conv.weight.abs().max().item() <= bound
    zero = patch_of("kaiming")
    nn.init.constant_(zero.norm.weight, 0.5)
    initializers.zero(zero)
    assert zero.conv.weight.abs().sum() == 0 and zero.norm.weight.tolist() == [1.0] * 32


# -- layouts ---------------------------------------------------------------------------------------


def test_a_block_for_maps_works_where_convnext_has_its_channels_last(
    builder: HybridBuilder,
) -> None:
    torch.manual_seed(0)
    paths = ("features.1.0.block.2", "features.1.0.block.3", "features.5.0.block.5")
    model = builder.from_backbone(
        "convnext_tiny", weights=None, patches={path: {"wrap": "se"} for path in paths}
    ).eval()
    assert model.step0_difference == 0.0
    widths = [
        model.get_submodule(record.paths[0]).block.fc1.in_channels for record in model.patch_records
    ]
    assert widths == [96, 384, 384]
    x, block = torch.randn(2, 5, 3, 96), model.patches.features.get_submodule("1.0.block.2.se")
    with torch.no_grad():
        block.alpha.fill_(1.0)
    expected = x * block.block.gate(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(block(x), expected)


def test_a_block_for_maps_is_refused_on_vectors(tiny: Any) -> None:
    with pytest.raises(TargetError, match=r"fc.*\[1, 7\].*NC"):
        tiny({"fc": {"wrap": "gate"}})


def test_a_block_for_vectors_works_on_vectors(tiny: Any, plain: Any, images: Tensor) -> None:
    block = BlockSpec(
        name="dense",
        factory=lambda in_channels: nn.Linear(in_channels, in_channels),
        layouts=("NC",),
    )
    model = tiny({"fc": {"inject": {"type": "dense", "position": "before"}}}, block).eval()
    assert torch.equal(model(images), plain().eval()(images))
    assert model.patches.fc.dense.block.in_features == 32


def test_a_root_sequential_with_patches_still_runs_its_layers_once(
    lab: Any, images: Tensor
) -> None:
    def sequential(spec: BackboneSpec, *, weights: Any) -> nn.Module:
        torch.manual_seed(0)
        layers = [
            ("stem", nn.Conv2d(3, 8, 3, 2)),
            ("body", nn.Conv2d(8, 8, 3)),
            ("pool", nn.AdaptiveAvgPool2d(1)),
        ]
        return nn.Sequential(
            OrderedDict([*layers, ("flat", nn.Flatten()), ("head", nn.Linear(8, 5))])
        )

    spec = BackboneSpec(
        name="line", factory=sequential, stem=("stem",), stages=("body",), head="head"
    )
    build: Callable[..., Any] = lab(spec).from_backbone
    plain, patched = (
        build("line", None).eval(),
        build("line", None, patches={"body": {"wrap": "gate"}}).eval(),
    )
    assert torch.equal(plain(images), patched(images))
    assert torch.equal(patched.forward_head(patched.forward_features(images)), patched(images))
