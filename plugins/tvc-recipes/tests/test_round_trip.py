"""`model.recipe` builds the same model, whatever way the model was made."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from tvc_core import HybridBuilder, HybridModel, UnknownNameError

BACKBONES = ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5"]
BLOCKS: list[dict[str, Any]] = [
    {"type": "se", "params": {"reduction": 4}},
    {"type": "eca"},
    {"type": "cbam_block", "params": {"reduction": 8}, "init": "paper"},
    {"type": "simam"},
    {"type": "spatial_attention", "name": "looks"},
]


def generated(rng: random.Random) -> dict[str, Any]:
    """Return a recipe as the mapping of its YAML form."""
    backbone: dict[str, Any] = {"name": rng.choice(BACKBONES), "weights": None}
    head: dict[str, Any] = {}
    data = {"backbone": backbone, "head": head}
    stages = rng.randrange(1, 3)
    for stage in rng.sample([f"stage:{stage}" for stage in range(stages)], rng.randrange(0, 2)):
        block = rng.choice(BLOCKS)
        op = {"inject": {**block, "position": rng.choice(["after", "before"])}}
        backbone.setdefault("patches", {})[stage] = rng.choice([{"wrap": block}, op])
    if rng.random() < 0.2:
        backbone["stages"] = 3
        head["num_classes"] = 4
    if rng.random() < 0.3:
        backbone |= {"in_channels": rng.choice([1, 4]), "in_channels_policy": "repeat"}
    kind = rng.randrange(5)
    if kind == 0:
        head["num_classes"] = rng.randrange(0, 6)
    elif kind == 1:
        head["class_names"] = ["a", "b", "c"]
        head.pop("num_classes", None)
    elif kind == 2:
        head |= {"num_classes": 3, "hidden": [8, 6], "activation": "gelu", "dropout": 0.25}
    elif kind == 3 and backbone["name"] != "squeezenet1_1":
        head.pop("num_classes", None)
        head["heads"] = {"breed": ["pug", "beagle"], "age": {"num_classes": 1, "hidden": [5]}}
    if rng.random() < 0.2:
        data |= {"freeze_backbone": True, "unfreeze_stages": [-1]}
    if rng.random() < 0.2:
        data["grad_checkpointing"] = rng.choice([True, [0]])
    return data


def as_keywords(data: dict[str, Any]) -> HybridModel:
    keys = dict(data["backbone"])
    name, weights = keys.pop("name"), keys.pop("weights")
    rest = {key: value for key, value in data.items() if key not in ("backbone", "head")}
    return HybridBuilder.from_backbone(name, weights, **keys, **data["head"], **rest)


def as_yaml(data: dict[str, Any], path: Any) -> HybridModel:
    path.write_text(yaml.safe_dump(data))
    return HybridBuilder.build(path)


def change(rng: random.Random, model: HybridModel) -> None:
    """Change a model after its build, in one of the ways that its recipe follows."""
    kind = rng.randrange(6)
    if kind < 4 and model.recipe.heads:
        model.reset_classifier(rng.choice([{"breed": 2}, {"breed": 4}, {"age": ["x", "y"]}]))
    elif kind == 0 and model.patch_records:
        model.unpatch(model.patch_records[0].target)
    elif kind == 1:
        model.reset_classifier(rng.randrange(0, 5))
    elif kind == 2:
        model.reset_classifier(["x", "y"])
    elif kind == 3:
        model.reset_classifier(4, dropout=0.5)
    elif kind == 4:
        model.set_grad_checkpointing()
    elif kind == 5:
        model.set_grad_checkpointing(False)


def dropouts(model: nn.Module) -> dict[str, float]:
    return {name: each.p for name, each in model.named_modules() if isinstance(each, nn.Dropout)}


def check(model: HybridModel) -> None:
    again = HybridBuilder.build(model.recipe)
    states = model.state_dict(), again.state_dict()
    assert list(states[0]) == list(states[1])
    shapes = [[each.shape for each in state.values()] for state in states]
    assert shapes[0] == shapes[1]
    again.load_state_dict(states[0])
    channels = model.recipe.in_channels or 3
    image = torch.rand(1, channels, 64, 64)
    with torch.no_grad():
        outputs = [each.eval()(image) for each in (model, again)]
    if isinstance(outputs[0], dict):
        outputs = [torch.cat([*each.values()], 1) for each in outputs]
    assert torch.equal(outputs[0], outputs[1])
    assert dropouts(model) == dropouts(again)
    assert model.recipe == again.recipe
    assert model.class_names == again.class_names


def run(seed: int, path: Any) -> None:
    rng = random.Random(seed)
    data = generated(rng)
    ways: list[Callable[[], HybridModel]] = [
        lambda: as_keywords(data),
        lambda: HybridBuilder.build(data),
        lambda: as_yaml(data, path),
    ]
    model = rng.choice(ways)()
    if rng.random() < 0.6:
        change(rng, model)
    check(model)


@pytest.mark.parametrize("start", [0, 4])
def test_generated_models_come_back(tmp_path: Any, start: int) -> None:
    for seed in range(start, start + 4):
        run(seed, tmp_path / "recipe.yaml")


@pytest.mark.sweep
def test_200_generated_models_come_back(tmp_path: Any) -> None:
    for seed in range(200):
        run(seed, tmp_path / "recipe.yaml")


def test_a_block_of_ones_own_says_what_to_hand_over_again() -> None:
    class Doubling(nn.Module):
        def __init__(self, in_channels: int) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(in_channels, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    model = HybridBuilder.from_backbone("resnet18", None, patches={"layer1": {"wrap": Doubling}})
    with pytest.raises(UnknownNameError, match=r"LocalPlugin\('local'\)"):
        HybridBuilder.build(model.recipe)
