"""What builds also trains: a training step at build finds what no other check sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tvc_core import BlockSpec, HybridBuilder, PatchError, PluginError


class Refuses(nn.Module):
    """Fails in training mode only."""

    def __init__(self, in_channels: int, error: type[BaseException] = ValueError) -> None:
        super().__init__()
        self.scale, self.error = nn.Parameter(torch.ones(in_channels, 1, 1)), error

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise self.error("no training today")
        return x * self.scale


class Overwrites(nn.Module):
    """Its backward pass needs what it then overwrites."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).sigmoid()
        z = y * 1.0
        return z + (y.mul_(2) if self.training else y * 2)


class Adapter(nn.Module):
    """Starts as zero beside the target: its last layer is zero."""

    def __init__(self, in_channels: int, zero: bool = True) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(in_channels, 4, 1), nn.Conv2d(4, in_channels, 1)
        if zero:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x).tanh())


class Counts(nn.Module):
    """Moves a buffer and draws random numbers, in training mode."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(in_channels, 1, 1))
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
        return self.weight * torch.dropout(x, 0.5, self.training)


class Root(nn.Module):
    """Its derivative at 0 is infinite, in its input or in its parameter alone."""

    def __init__(self, in_channels: int, inside: bool = False) -> None:
        super().__init__()
        self.scale, self.inside = nn.Parameter(torch.zeros(in_channels, 1, 1)), inside

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale.abs().sqrt() if self.inside else x + self.scale + x.abs().sqrt()


BLOCKS = (
    BlockSpec(name="root", factory=Root),
    BlockSpec(name="refuses", factory=Refuses),
    BlockSpec(name="overwrites", factory=Overwrites),
    BlockSpec(name="adapter", factory=Adapter, starts_as="zero"),
    BlockSpec(name="undeclared", factory=Adapter),
    BlockSpec(name="counts", factory=Counts),
)


@pytest.mark.parametrize("op", ["wrap", "replace"])
@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_block_that_fails_in_training_is_named(tiny: Any, op: str, error: Any) -> None:
    patches = {
        "layer1": {"wrap": "gate"},
        "layer2.relu": {op: {"type": "refuses", "params": {"error": error}}},
        "layer3": {"wrap": "gate"},
    }
    with pytest.raises(PatchError) as caught:
        tiny(patches, *BLOCKS)
    assert f"['layer2.relu'].{op} (lab:refuses): builds, but a training step fails: " in str(
        caught.value
    )
    assert f"{error.__name__}: no training today" in str(caught.value)
    assert "layer1" not in str(caught.value) and caught.value.__cause__ is not None


def test_what_only_the_backward_pass_shows_is_found_among_others(tiny: Any) -> None:
    patches = {
        "layer1": {"wrap": "gate"},
        "layer2": {"wrap": "overwrites"},
        "layer3": {"wrap": "gate"},
    }
    with pytest.raises(
        PatchError, match=r"layer2\.wrap \(lab:overwrites\).*inplace.*in place what"
    ):
        tiny(patches, *BLOCKS)


@pytest.mark.parametrize("inside", [False, True])
def test_a_block_whose_gradient_is_not_finite_is_named_among_others(
    tiny: Any, inside: bool
) -> None:
    patches = {
        "layer1": {"wrap": "gate"},
        "layer2": {"wrap": {"type": "root", "params": {"inside": inside}}},
        "layer3": {"wrap": "gate"},
    }
    said = r"layer2\.wrap \(lab:root\): .*ArithmeticError: a gradient is no finite number\. Try"
    with pytest.raises(PatchError, match=said) as caught:
        tiny(patches, *BLOCKS)
    assert "gate" not in str(caught.value)


def test_an_in_place_neighbor_of_a_replacement_is_found(tiny: Any) -> None:
    """Tiny's relu works in place on what the block's own relu needs for its backward pass."""
    patches = {"layer2.norm": {"replace": "conv"}, "layer3": {"wrap": "gate"}}
    with pytest.raises(PatchError, match=r"'layer2\.norm'\]\.replace \(lab:conv\).*inplace"):
        tiny(patches)


def test_a_refused_build_leaves_the_network_alone(lab: Any, plain: Any, images: Tensor) -> None:
    network = plain().train()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random_state, before = torch.get_rng_state(), dict(network.named_modules())
    with pytest.raises(PatchError, match="training step fails"):
        lab(*BLOCKS).from_module(
            network,
            "stem",
            ["layer1", "layer2", "layer3"],
            "fc",
            patches={"layer2.norm": {"replace": "conv"}},
        )
    assert torch.equal(torch.get_rng_state(), random_state) and network.training
    assert all(torch.equal(state[name], t) for name, t in network.state_dict().items())
    assert dict(network.named_modules()) == before
    network(images).sum().backward()


def test_the_proof_leaves_no_trace(tiny: Any, lab: Any, plain: Any) -> None:
    torch.manual_seed(3)
    network = plain()
    network.layer1.requires_grad_(False)
    network.layer2.eval()
    model = lab(*BLOCKS).from_module(
        network,
        "stem",
        ["layer1", "layer2", "layer3"],
        "fc",
        patches={"layer2": {"wrap": "counts"}},
    )
    assert model.get_submodule("patches.layer2.counts.block").passes == 0
    reference = plain().state_dict()
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in reference.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(p.requires_grad for p in model.layer1.parameters())
    assert all(
        name.endswith("alpha") is False or not p.any() for name, p in model.named_parameters()
    )


def test_what_is_drawn_after_a_build_does_not_depend_on_the_proof(tiny: Any) -> None:
    drawn = []
    for name in ("counts", "adapter"):
        torch.manual_seed(0)
        tiny({"layer2": {"wrap": name}}, *BLOCKS)
        if name == "adapter":
            torch.manual_seed(0)
            Counts(16)
        drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[1])


def test_a_network_that_cannot_train_on_the_small_image_is_no_fault_of_a_patch(
    lab: Any, plain: Any
) -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if self.training and x.shape[-1] < 100:
                raise RuntimeError("too small to train on")
            return x

    network = plain()
    network.layer3.add_module("picky", Picky())
    stages = ["layer1", "layer2", "layer3"]
    knows = lab(*BLOCKS)
    model = knows.from_module(network, "stem", stages, "fc", patches={"layer2": {"wrap": "gate"}})
    assert model.step0_difference == 0.0
    for name, message in (
        ("refuses", "fails in training mode"),
        ("overwrites", "in training mode"),
    ):
        other = plain()
        other.layer3.add_module("picky", Picky())
        with pytest.raises(PatchError, match=rf"layer2\.wrap \(lab:{name}\).*{message}"):
            knows.from_module(other, "stem", stages, "fc", patches={"layer2": {"wrap": name}})


@pytest.mark.parametrize("block", ["adapter", "undeclared"])
@pytest.mark.parametrize("init", [None, "paper"])
def test_an_adapter_beside_a_target_has_no_second_zero(
    tiny: Any, images: Tensor, block: str, init: str | None
) -> None:
    """Declared or seen, zero needs no gate."""
    patch = {"type": block, "position": "parallel", **({"init": init} if init else {})}
    model = tiny({"layer1": {"inject": patch}}, *BLOCKS).train()
    name = f"patches.layer1.{block}"
    assert model.step0_difference == 0.0 and model.get_submodule(name).alpha is None
    assert model.patch_records[0].starts_as_identity
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()
    gradients = {n: p.grad for n, p in model.named_parameters() if n.startswith(name)}
    assert len(gradients) == 4 and all(bool(g.any()) for g in gradients.values())


def test_an_adapter_that_an_initializer_fills_gets_its_gate_back(tiny: Any) -> None:
    patch = {"type": "adapter", "position": "parallel", "init": "kaiming"}
    model = tiny({"layer1": {"inject": patch}}, *BLOCKS)
    assert model.step0_difference == 0.0
    assert model.get_submodule("patches.layer1.adapter").alpha.tolist() == [0.0]


def test_as_a_step_of_its_own_an_adapter_keeps_its_gate(tiny: Any) -> None:
    model = tiny({"layer1": {"wrap": "adapter"}}, *BLOCKS)
    assert model.get_submodule("patches.layer1.adapter").alpha.tolist() == [0.0]


def test_a_start_that_a_block_declares_and_does_not_have_is_its_plugins_fault(tiny: Any) -> None:
    liar = BlockSpec(name="liar", factory=lambda n: Adapter(n, zero=False), starts_as="zero")
    with pytest.raises(
        PluginError, match=r"'lab:liar' declares starts_as='zero'.*distribution 'lab'"
    ):
        tiny({"layer1": {"inject": {"type": "liar", "position": "parallel"}}}, liar)


def test_a_branch_that_starts_at_zero_hides_no_block(builder: HybridBuilder) -> None:
    """With zero_init_residual no gradient reaches the branch in the first step."""
    patches = {"layer*.0.conv2": {"wrap": "se"}}
    model = builder.from_backbone(
        "resnet18", weights=None, patches=patches, options={"zero_init_residual": True}
    )
    assert model.step0_difference == 0.0


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_heads_pass(builder: HybridBuilder, name: str) -> None:
    patches = {"stage:-1": {"wrap": "eca"}}
    assert (
        builder.from_backbone(name, weights=None, patches=patches, num_classes=4).num_classes == 4
    )


def test_a_block_for_the_old_width_of_the_head_is_named(builder: HybridBuilder) -> None:
    block = {"type": "cbam_block", "position": "before"}
    with pytest.raises(PatchError, match=r"'classifier\.2'\]\.inject .*cbam.*num_classes"):
        builder.from_backbone(
            "squeezenet1_1",
            weights=None,
            patches={"classifier.2": {"inject": block}},
            num_classes=3,
        )
    before = {"classifier.1": {"inject": block}}
    assert (
        builder.from_backbone(
            "squeezenet1_1", weights=None, patches=before, num_classes=3
        ).num_classes
        == 3
    )
