"""Replacements: how often the network runs for them, what they are made for, what they keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tvc_core import BlockSpec, HybridBuilder, PatchError, TargetError, hookimpl


class Chain(nn.Module):
    """Convolutions one after another, each with a normalization and one shared activation."""

    def __init__(self, length: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.body = nn.ModuleList(nn.Conv2d(8, 8, 1, bias=False) for _ in range(length))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(length))
        self.wide = nn.Conv2d(8, 16, 1)
        self.act = nn.ReLU(inplace=True)
        self.end = nn.Identity()
        self.head = nn.Linear(16, 3)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        x = self.stem(x)
        for conv, norm in zip(self.body, self.norms, strict=True):
            x = self.act(norm(conv(x)))
        return self.head(self.end(self.act(self.wide(x))).mean((2, 3)))


ANATOMY = {"stem": "stem", "stages": [["body", "norms", "wide", "end"]], "head": "head"}


def conv(in_channels: int, channels: int = 0, stride: int = 1) -> nn.Module:
    return nn.Conv2d(in_channels, channels or in_channels, 1, stride)


class Scale(nn.Module):
    """Scales each channel; `made_for` is what it was made of."""

    def __init__(self, in_channels: int, made_for: str = "") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(in_channels))
        self.made_for = made_for

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None]


def scale_in_place_of(
    original: nn.Module, in_channels: int, made_for: str = ""
) -> nn.Module | None:
    if not isinstance(original, nn.BatchNorm2d) or original.num_features != in_channels:
        return None
    made = Scale(in_channels, made_for or type(original).__name__)
    with torch.no_grad():
        made.weight.copy_(original.weight / (original.running_var + original.eps).sqrt())
    return made


class Power(nn.Module):
    """x to the power of a number that may come from the width."""

    def __init__(self, in_channels: int, by_width: bool = False) -> None:
        super().__init__()
        self.power = in_channels if by_width else 2

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() ** self.power


class Blocks:
    @hookimpl
    def tvc_blocks(self) -> list[BlockSpec]:
        every = ("NCHW", "NHWC", "NLC", "NC")
        return [
            BlockSpec(name="conv", factory=conv, preserves_shape=False),
            BlockSpec(name="scale", factory=Scale, in_place_of=scale_in_place_of),
            BlockSpec(name="power", factory=Power, layouts=every),
        ]


def build(patches: dict[str, Any], network: nn.Module | None = None) -> Any:
    torch.manual_seed(0)
    builder = HybridBuilder(plugins=[Blocks()])
    return builder.from_module(network or Chain(), patches=patches, **ANATOMY)


def runs(patches: dict[str, Any], length: int) -> int:
    """Return how often a network runs while it is built."""
    network = Chain(length)
    build(patches, network)
    return network.runs


@pytest.mark.parametrize(
    "patch",
    [
        {"replace": "scale"},
        {"wrap": "scale"},
        [{"replace": "scale"}, {"wrap": "scale"}, {"inject": "scale"}],
    ],
)
def test_the_network_runs_as_often_for_many_patches_as_for_one(patch: Any) -> None:
    once = runs({"norms.0": patch}, 2)
    assert runs({"norms.*": patch}, 2) == runs({"norms.*": patch}, 12) == once < 10


def test_replacements_that_change_sizes_cost_one_run_more_however_many() -> None:
    patch = {"replace": {"type": "conv", "params": {"stride": 2}}}
    many = runs({"body.0": patch, "body.1": patch, "body.2": patch, "body.3": patch}, 4)
    assert (
        many
        <= runs({"body.0": patch, "norms.0": {"wrap": "scale"}}, 4)
        == runs({"body.3": patch, "norms.3": {"wrap": "scale"}}, 4)
    )


def test_a_chain_of_widths_is_followed_whatever_the_order_of_the_patches() -> None:
    wider = {"replace": {"type": "conv", "params": {"channels": 12}}}
    back = {"replace": {"type": "conv", "params": {"channels": 8}}}
    patches = {"body.1": back, "norms.0": {"replace": "scale"}, "body.0": wider}
    model = build(patches).eval()
    assert [(c.in_channels, c.out_channels) for c in model.body[:2]] == [(8, 12), (12, 8)]
    assert model.norms[0].weight.shape == (12,) and model(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_of_several_replacements_the_one_that_does_not_fit_is_named() -> None:
    smaller = {"replace": {"type": "conv", "params": {"stride": 2}}}
    patches = {
        "body.0": smaller,
        "body.1": {"replace": {"type": "conv", "params": {"channels": 5}}},
        "body.3": smaller,
    }
    with pytest.raises(
        PatchError, match=r"body\.1'\]\.replace: .*'body\.1' \(Conv2d\).*channels=8 wo"
    ):
        build(patches)
    network = Chain()
    before = dict(network.named_modules())
    with pytest.raises(PatchError):
        build(patches, network)
    assert dict(network.named_modules()) == before


def test_a_plugins_block_takes_over_what_it_says_how_to() -> None:
    network = Chain().eval()
    for norm in network.norms:
        norm.eps = 0.25
        norm.running_var.fill_(4.0 - norm.eps)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(x)
        model = build({"norms.*": {"replace": "scale"}}, network).eval()
        torch.testing.assert_close(model(x), expected)  # means and shifts are 0
    assert model.norms[0].made_for == "BatchNorm2d"
    record = model.patch_records[0]
    assert record.changed == ("weight",) and record.kept == ()
    assert record.lost == ("bias", "running_mean", "running_var", "num_batches_tracked")
    assert "changes weight; loses bias, running_mean" in model.explain()


@pytest.mark.parametrize("init", [None, "paper"])
def test_what_takes_nothing_over_says_that_all_is_lost(init: str | None) -> None:
    target = "wide" if init is None else "norms.0"
    block = "conv" if init is None else "scale"
    params = {"channels": 16} if init is None else {}
    model = build({target: {"replace": {"type": block, "init": init, "params": params}}})
    record = model.patch_records[0]
    assert not record.kept and not record.changed and record.lost[:2] == ("weight", "bias")
    if init:
        assert model.norms[0].made_for == ""


def test_a_shared_module_is_replaced_by_what_does_not_depend_on_the_width() -> None:
    network = Chain()
    model = build({"act": {"replace": "power"}}, network).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.isfinite(model(x)).all() and isinstance(model.act, Power)
    with pytest.raises(
        TargetError, match="7 times with the widths 8, 16, and power is made for one"
    ):
        build({"act": {"replace": {"type": "power", "params": {"by_width": True}}}})
    with pytest.raises(TargetError, match="'replace' also takes it"):
        build({"act": {"wrap": "power"}})
