"""Weights for the plain network, and what differs between two."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import tvc_core
from tvc_core import HybridBuilder, WeightsError, diff_weights, plain_state_dict

B = HybridBuilder()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "mnasnet0_5"])
def test_the_plain_network_loads_it_strictly(name: str, tmp_path: Path) -> None:
    model = B.from_backbone(
        name, None, num_classes=7, dropout=0.3, patches={"stage:1": {"wrap": "se"}}
    )
    with pytest.warns(UserWarning, match="left out.*patches.*se"):
        state = plain_state_dict(model)
    torch.save(state, tmp_path / "plain.pt")
    plain = torchvision.models.get_model(name, num_classes=7)
    plain.load_state_dict(torch.load(tmp_path / "plain.pt", weights_only=True), strict=True)
    model.unpatch()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(plain.eval()(x), model.eval()(x))


def test_timm_loads_it_strictly() -> None:
    timm = pytest.importorskip("timm")
    model = B.from_backbone(
        "timm/test_resnet", None, num_classes=5, patches={"stage:*": {"wrap": "se"}}
    )
    with pytest.warns(UserWarning, match="left out"):
        state = plain_state_dict(model)
    timm.create_model("test_resnet", num_classes=5).load_state_dict(state, strict=True)


def test_what_was_replaced_comes_back_with_what_it_had() -> None:
    model = B.from_backbone("resnet18", None, patches={"layer1.0.bn1": {"replace": "group_norm"}})
    with pytest.warns(UserWarning, match=r"what replaced layer1\.0\.bn1"):
        state = plain_state_dict(model)
    plain = torchvision.models.resnet18()
    assert list(state) == list(plain.state_dict())
    plain.load_state_dict(state, strict=True)
    assert torch.equal(plain.layer1[0].bn1.running_var, torch.ones(64))


def test_without_patches_nothing_is_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = plain_state_dict(B.from_backbone("resnet18", None))
    torchvision.models.resnet18().load_state_dict(state, strict=True)


@pytest.mark.parametrize("given", [{"hidden": [8]}, {"heads": {"a": 2, "b": 3}}, {"stages": 2}])
def test_what_no_plain_network_is_like_is_refused(given: Any) -> None:
    model = B.from_backbone(
        "resnet18", None, **{"num_classes": 3, **given} if "heads" not in given else given
    )
    with pytest.raises(WeightsError, match=r"plain"):
        plain_state_dict(model)
    with pytest.raises(tvc_core.BackboneError, match="hybrid"):
        plain_state_dict(nn.Linear(2, 2))


def test_a_difference_has_every_key_once(tmp_path: Path) -> None:
    a = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.Linear(2, 1))
    b = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 4), nn.Identity())
    b[0].load_state_dict(a[0].state_dict())
    b.register_buffer("new", torch.zeros(1))
    with torch.no_grad():
        a[0].weight.fill_(2.0)
        b[0].weight.copy_(a[0].weight)[1, 2] += 0.5
    b[1].half()
    torch.save(b.state_dict(), tmp_path / "b.pt")
    found = diff_weights(a, tmp_path / "b.pt")
    assert [change.key for change in found.changed] == ["0.weight"]
    change = found.changed[0]
    assert change.max_difference == 0.5 and (change.num_changed, change.num_values) == (1, 6)
    assert change.relative == pytest.approx(0.5 / math.sqrt(6 * 4))
    assert found.equal == ("0.bias", "1.num_batches_tracked") and found.only_in_b == ("new",)
    assert found.only_in_a == ("3.weight", "3.bias") and len(found.unlike) == 4 + 2
    assert "float32 [2] and float16 [2]" in found.unlike[0] and not found.is_equal
    count = sum(len(getattr(found, name)) for name in found.__dataclass_fields__)
    assert count == len({**a.state_dict(), **b.state_dict()})
    assert "0.weight: by at most 0.5" in str(found)
    assert diff_weights(a, a.state_dict()).is_equal


@pytest.mark.parametrize(
    ("x", "y", "most", "changed"),
    [
        ([1.0, math.nan], [2.0, math.nan], 1.0, 1),
        ([0.0], [-0.0], 0.0, 0),
        ([0.0], [3.0], 3.0, 1),
        ([math.inf, 1.0], [math.inf, 1.5], 0.5, 1),
        ([1.0], [math.nan], math.nan, 1),
    ],
)
def test_values_that_are_not_finite(x: Any, y: Any, most: float, changed: int) -> None:
    found = diff_weights({"w": torch.tensor(x)}, {"w": torch.tensor(y)}).changed[0]
    assert found.num_changed == changed
    assert found.max_difference == most or (math.isnan(most) and math.isnan(found.max_difference))


def test_a_tune_shows_where_it_has_been(tmp_path: Path) -> None:
    model = B.from_backbone("resnet18", None, num_classes=3)
    model.save(tmp_path / "before.safetensors")
    with torch.no_grad():
        model.fc.bias += 1
    found = diff_weights(tmp_path / "before.safetensors", model)
    assert [change.key for change in found.changed] == ["fc.bias"]
    with pytest.raises(WeightsError, match="modules, state dicts or paths"):
        diff_weights(3, model)  # type: ignore[arg-type]
