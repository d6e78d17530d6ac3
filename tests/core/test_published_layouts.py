"""A plugin reads the layouts in which its network was published: `BackboneSpec.migrate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tvc_core import HybridBuilder, LoadReport, LocalPlugin, Registry, WeightsError, partial_load

State = dict[str, Tensor]


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.layer1 = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(8, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.layer2(self.layer1(self.stem(x)))).flatten(1))


class Gate(nn.Module):
    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(in_channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def builder(function: Any) -> HybridBuilder:
    plugin = LocalPlugin("lab")
    plugin.block(name="gate")(Gate)

    @plugin.backbone(
        name="tiny", stem="stem", stages=["layer1", "layer2"], head="fc", migrate=function
    )
    def build(spec: Any, *, weights: Any) -> nn.Module:
        return Tiny()

    return HybridBuilder(registry=Registry([plugin], installed=False))


def migrate(spec: Any, network: Any, tensors: Mapping[str, Tensor]) -> State | None:
    """Read the layout of `published`: another name, a weight as a matrix, halves, a mask."""
    assert spec.name == "tiny" and network.fc.weight.ndim == 2
    state = {k: v for k, v in tensors.items() if k != "mask"}
    state["fc.weight"] = state.pop("classifier.weight").reshape(network.fc.weight.shape)
    state["fc.bias"] = state.pop("classifier.bias")
    state["layer2.0.weight"] = torch.cat([state.pop("a"), state.pop("b")])
    return state


def published(state: Mapping[str, Tensor]) -> State:
    found = dict(state)
    found["classifier.weight"] = found.pop("fc.weight")[:, :, None, None]
    found["classifier.bias"] = found.pop("fc.bias")
    weight = found.pop("layer2.0.weight")
    found["a"], found["b"] = weight[:10].clone(), weight[10:].clone()
    return {**found, "mask": torch.zeros(3)}


@pytest.fixture
def source() -> State:
    return {
        k: torch.rand_like(v) if v.is_floating_point() else v
        for k, v in Tiny().state_dict().items()
    }


def load(model: nn.Module, state: Mapping[str, Tensor], **arguments: Any) -> LoadReport:
    report = partial_load(model, state, **arguments)
    # every tensor of the checkpoint is in one place of the report
    both = [*report.sources.values(), *report.unexpected, *report.migrated]
    assert sorted(both) == sorted(state)
    return report


def same(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


@pytest.mark.parametrize("front", ["", "module.", "net.backbone."])
def test_a_published_checkpoint_is_loaded_and_explained(source: State, front: str) -> None:
    model = builder(migrate).from_backbone("tiny", None, patches={"layer1": {"wrap": "gate"}})
    given = {front + k: v for k, v in published(source).items()} | {
        "criterion.weight": torch.ones(2)
    }
    report = load(model, given)
    assert same(model, source)
    said = dict(str(each).split(": ", 1) for each in report.converted)
    assert said == {
        "layer2.0.weight": "made by the migration of lab:tiny",
        "fc.weight": "reshaped from [7, 32, 1, 1] to [7, 32]",
    }
    assert report.sources["fc.weight"] == f"{front}classifier.weight"
    assert report.migrated == tuple(front + each for each in ("a", "b", "mask"))
    below = f" below {front!r}" if front else ""
    assert report.rules[0].startswith(f"as lab:tiny was published{below} (")
    assert "criterion.weight" in report.unexpected or not front
    assert all(key.startswith("patches.") for key in report.missing)


def test_a_wrapped_hybrid_takes_it_as_well(source: State) -> None:
    model = builder(migrate).from_backbone("tiny", None)
    assert load(nn.DataParallel(model), published(source)).load_ratio == 1.0
    assert same(model, source)


def test_a_file_of_ones_own_may_be_published_elsewhere(source: State, tmp_path: Path) -> None:
    source["fc.weight"], source["fc.bias"] = torch.rand(4, 32), torch.rand(4)
    torch.save(published(source), tmp_path / "p.pth")

    def as_many_classes(spec: Any, network: Any, tensors: Mapping[str, Tensor]) -> State | None:
        state = {k: v for k, v in tensors.items() if k != "mask"}
        state["fc.weight"] = state.pop("classifier.weight").flatten(1)
        state["fc.bias"] = state.pop("classifier.bias")
        state["layer2.0.weight"] = torch.cat([state.pop("a"), state.pop("b")])
        return state

    model = builder(as_many_classes).from_backbone("tiny", tmp_path / "p.pth")
    assert model.num_classes == 4 and same(model, source)


def test_it_is_asked_only_where_names_do_not_do(source: State) -> None:
    def refuse(spec: Any, network: Any, tensors: Mapping[str, Tensor]) -> State:
        pytest.fail("the names are the network's own")

    model = builder(refuse).from_backbone("tiny", None, patches={"layer1": {"wrap": "gate"}})
    assert load(model, {f"module.{k}": v for k, v in source.items()}).rules and same(model, source)


def test_what_it_does_not_know_is_loaded_by_names(source: State) -> None:
    given = {**source, "ema": torch.ones(2)}
    for function in (migrate, lambda spec, network, tensors: None, lambda *_: {"x": 1}):
        model = builder(function).from_backbone("tiny", None)
        report = load(model, given)
        assert report.unexpected == ("ema",) and report.rules == () and same(model, source)
    with pytest.raises(WeightsError, match="nothing would be loaded"):
        partial_load(builder(migrate).from_backbone("tiny", None), {"x": torch.ones(2)})


def test_what_fills_less_does_not_count(source: State) -> None:
    def worse(spec: Any, network: Any, tensors: Mapping[str, Tensor]) -> State:
        return {k: v + 1 for k, v in tensors.items() if k.startswith("fc")}

    model = builder(worse).from_backbone("tiny", None)
    load(model, {**source, "ema": torch.ones(2)})
    assert same(model, source)


def test_a_transposed_matrix_is_no_loaded_one(source: State) -> None:
    """The same memory in another order is other values."""
    kernel = torch.rand(32, 7)

    def turned(spec: Any, network: Any, tensors: Mapping[str, Tensor]) -> State:
        return {**{k: v for k, v in tensors.items() if k != "kernel"}, "fc.weight": kernel.t()}

    model = builder(turned).from_backbone("tiny", None)
    given = {k: v for k, v in source.items() if k != "fc.weight"} | {"kernel": kernel}
    report = load(model, given)
    assert "fc.weight" not in report.loaded and torch.equal(model.fc.weight, kernel.t())
    assert report.migrated == ("kernel",)
