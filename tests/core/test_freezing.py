"""Frozen parts stay bit for bit as they are, whatever a training loop calls."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tvc_core import BackboneSpec, FreezeError, HybridBuilder, StageError


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def steps(
    network: nn.Module,
    model: nn.Module,
    images: Tensor,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Three steps with everything that could move a frozen tensor: momentum, weight decay, stale
    gradients.
    """
    optimizer = optimizer or torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1
    )
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), torch.arange(len(images)) % 7).backward()
        optimizer.step()


def moved(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


PATCHES = {"layer1": {"wrap": "gate"}, "layer3.0": {"wrap": "conv"}}


# -- what is trainable -----------------------------------------------------------------------------


def test_exactly_the_head_and_new_blocks_are_trainable(tiny: Any) -> None:
    model = tiny(PATCHES, freeze_backbone=True)
    expected = {
        "fc.weight",
        "fc.bias",
        *(name for name, _ in model.named_parameters() if name.startswith("patches.")),
    }
    assert trainable(model) == expected and len(expected) > 6
    assert model.count_parameters(trainable_only=True) == sum(
        dict(model.named_parameters())[n].numel() for n in expected
    )


def test_resnets_frozen_count_is_that_of_its_head(builder: HybridBuilder) -> None:
    model = builder.from_backbone("resnet18", None, num_classes=10, freeze_backbone=True)
    assert model.count_parameters(trainable_only=True) == 512 * 10 + 10
    assert model.count_parameters() == 11_176_512 + 5130  # torchvision's own count without its head


def test_a_replacement_in_a_frozen_stage_learns_since_it_is_new(tiny: Any, images: Tensor) -> None:
    model = tiny({"layer3.0.conv": {"replace": "conv"}}, freeze_backbone=True)
    new = {name for name, _ in model.named_parameters() if name.startswith("layer3.0.conv.")}
    assert trainable(model) == {*new, "fc.weight", "fc.bias"} and len(new) == 3
    before = state(model.train())
    steps(model, model, images)
    assert {name for name in moved(model, before) if not name.startswith("fc.")} == {
        *new,
        *(
            f"layer3.0.conv.norm.{buffer}"
            for buffer in ("running_mean", "running_var", "num_batches_tracked")
        ),
    }
    model.freeze_backbone(freeze_patches=True)
    assert trainable(model) == {"fc.weight", "fc.bias"} and not model.layer3[0].conv.norm.training


def test_freeze_patches_freezes_those_in_frozen_parts_only(tiny: Any) -> None:
    model = tiny(PATCHES)
    model.freeze_backbone(unfreeze_stages=[2], freeze_patches=True)
    assert roots({n for n in trainable(model) if not n.startswith("patches.")}) == {"layer3", "fc"}
    assert {n.split(".")[1] for n in trainable(model) if n.startswith("patches.")} == {"layer3"}
    assert not model.patches.layer1.gate.training and model.patches.layer3.training


@pytest.mark.parametrize(
    ("head", "expected"), [("all", {"0", "3"}), ("last", {"3"}), ("none", set())]
)
def test_what_of_the_head_is_trainable_is_chosen(
    builder: HybridBuilder, head: str, expected: set[str]
) -> None:
    model = builder.from_backbone("mobilenet_v3_small", None, num_classes=4)
    model.freeze_backbone(head=head)
    assert {name.split(".")[1] for name in trainable(model)} == expected
    model.reset_classifier(6)
    assert {name.split(".")[1] for name in trainable(model)} == expected


def test_a_new_head_in_a_frozen_model_is_trainable(tiny: Any) -> None:
    model = tiny(freeze_backbone=True)
    model.reset_classifier(3)
    assert trainable(model) == {"fc.weight", "fc.bias"}
    assert not model.layer1.training and model.fc.training


def test_an_unknown_choice_for_the_head_changes_nothing(tiny: Any) -> None:
    model = tiny()
    with pytest.raises(FreezeError, match="Did you mean 'last'"):
        model.freeze_backbone(head="lasst")
    assert trainable(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_thawing_one_more_stage_adds_parameters(builder: HybridBuilder, name: str) -> None:
    model = builder.from_backbone(name, None, freeze_backbone=True)
    counts = [model.count_parameters(trainable_only=True)]
    for index in reversed(range(len(model.stage_info))):
        model.freeze_backbone(unfreeze_stages=range(index, len(model.stage_info)))
        counts.append(model.count_parameters(trainable_only=True))
    model.unfreeze_all()
    counts.append(model.count_parameters(trainable_only=True))
    assert counts == sorted(set(counts)) and counts[-1] == model.count_parameters()


def test_stage_numbers_are_those_of_the_features(tiny: Any) -> None:
    for stages in ([1, 2], [-2, -1], (2, 1, -1)):
        model = tiny(freeze_backbone=True, unfreeze_stages=list(stages))
        assert roots(trainable(model)) == {"layer2", "layer3", "fc"}
    assert [info.module for info in model.stage_info][1:] == ["layer2", "layer3"]


def test_freezing_again_starts_anew(tiny: Any) -> None:
    model = tiny(freeze_backbone=True, unfreeze_stages=[0])
    model.freeze_backbone(unfreeze_stages=[2])
    assert roots(trainable(model)) == {"layer3", "fc"}


def test_stage_9_is_an_error_that_lists_the_stages(tiny: Any) -> None:
    with pytest.raises(
        StageError, match=r"no stage 9: the 3 stages are 0: layer1, 1: layer2, 2: layer3"
    ):
        tiny(freeze_backbone=True, unfreeze_stages=[9])
    model = tiny(freeze_backbone=True, unfreeze_stages=[1])
    before = trainable(model)
    with pytest.raises(StageError):
        model.freeze_backbone(unfreeze_stages=[0, 9])
    assert trainable(model) == before and model.freeze_state()["stages"] == [0, 2]


# -- frozen is frozen ------------------------------------------------------------------------------


def copied(model: Any) -> tuple[nn.Module, Any]:
    other = copy.deepcopy(model)
    return other, other


def pickled(model: Any) -> tuple[nn.Module, Any]:
    other = pickle.loads(pickle.dumps(model))
    return other, other


def wrapped(model: Any) -> tuple[nn.Module, Any]:
    outer = nn.ModuleDict({"inner": nn.Sequential(model)})
    outer.eval()
    outer.train()
    return outer["inner"], model


def toggled(model: Any) -> tuple[nn.Module, Any]:
    model.eval()
    # what some loops do around an evaluation, here without effect on the end
    model.requires_grad_(model.training)
    model.load_freeze_state(model.freeze_state())
    model.train()
    return model, model


@pytest.mark.parametrize("way", [lambda m: (m.train(), m), copied, pickled, wrapped, toggled])
def test_three_steps_leave_every_frozen_tensor_and_buffer_as_it_was(
    tiny: Any, images: Tensor, way: Any
) -> None:
    network, model = way(tiny(PATCHES, freeze_backbone=True, unfreeze_stages=[1]).train())
    before = state(model)
    steps(network, model, images)
    changed = moved(model, before)
    assert roots(changed) == {"layer2", "patches", "fc"}
    assert "layer2.norm.num_batches_tracked" in changed and "layer2.norm.running_mean" in changed


def test_gradients_from_before_freezing_move_nothing(tiny: Any, images: Tensor) -> None:
    model = tiny().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    model(images).sum().backward()
    optimizer.step()
    model.freeze_backbone()
    before = state(model)
    steps(model, model, images, optimizer)
    assert roots(moved(model, before)) == {"fc"}


def test_dropout_of_frozen_parts_is_off_and_of_thawed_ones_on(tiny: Any) -> None:
    model = tiny(freeze_backbone=True, unfreeze_stages=[2]).train()
    x = torch.ones(1, 8, 64, 64)
    assert torch.equal(model.stem.drop(x), x) and torch.equal(model.layer1.drop(x), x)
    assert not torch.equal(model.layer3[0].drop(x), x)


def test_stochastic_depth_of_frozen_parts_is_off(builder: HybridBuilder) -> None:
    model = builder.from_backbone(
        "efficientnet_b0",
        None,
        options={"stochastic_depth_prob": 0.9},
        dropout=0.0,
        freeze_backbone=True,
    )
    x = torch.randn(2, 3, 64, 64)
    assert any(isinstance(module, torchvision.ops.StochasticDepth) for module in model.modules())
    assert torch.equal(model.train()(x), model.train()(x)) and torch.equal(
        model.train()(x), model.eval()(x)
    )


def test_new_blocks_in_frozen_parts_are_in_training_mode(tiny: Any) -> None:
    model = tiny(PATCHES, freeze_backbone=True).train()
    assert model.patches.layer3.training and all(
        module.training for module in model.patches.modules()
    )
    assert not any(module.training for module in model.layer3.modules())


def test_evaluation_reaches_everything_and_training_returns(tiny: Any) -> None:
    model = tiny(PATCHES, freeze_backbone=True, unfreeze_stages=[1])
    model.eval()
    assert not any(module.training for module in model.modules())
    model.train()
    assert (
        model.training and model.layer2.training and model.fc.training and not model.layer1.training
    )
    model.unfreeze_all()
    assert all(module.training for module in model.modules())


def test_thawing_in_evaluation_mode_does_not_start_training(tiny: Any) -> None:
    model = tiny(freeze_backbone=True).eval()
    model.unfreeze_all()
    assert not any(module.training for module in model.modules())


def test_norms_before_the_heads_last_layer_are_held_when_only_that_learns(
    lab: Any, images: Tensor
) -> None:
    def build(spec: BackboneSpec, *, weights: Any) -> nn.Module:
        head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 8),
            nn.BatchNorm1d(8),
            nn.Linear(8, 7),
        )
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
        network.add_module("head", head)
        return network

    spec = BackboneSpec(name="normed", factory=build, stem=("0",), stages=("1",), head="head")
    model = lab(spec).from_backbone("normed", None)
    model.freeze_backbone(head="last")
    before = state(model.train())
    steps(model, model, images)
    assert moved(model, before) == {"head.4.weight", "head.4.bias"}


# -- normalization layers of frozen parts ----------------------------------------------------------

STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize("way", [lambda m: (m.train(), m), copied, pickled, wrapped, toggled])
@pytest.mark.parametrize(
    ("normalization", "moving"),
    [("frozen", set()), ("eval", {"weight", "bias"}), ("train", {"weight", "bias", *STATISTICS})],
)
def test_what_norms_of_frozen_parts_do_is_chosen(
    tiny: Any, images: Tensor, normalization: str, moving: set[str], way: Any
) -> None:
    model = tiny()
    model.freeze_backbone(unfreeze_stages=[1], normalization=normalization)
    network, model = way(model.train())
    before = state(model)
    steps(network, model, images)
    changed = {name for name in moved(model, before) if not name.startswith(("layer2.", "fc."))}
    norms = {
        path
        for path, m in model.named_modules()
        if isinstance(m, nn.BatchNorm2d) and not path.startswith("layer2")
    }
    assert changed == {f"{path}.{name}" for path in norms for name in moving} and len(norms) == 4
    assert not model.layer1.conv.training and not model.layer1.drop.training
    assert model.layer1.norm.training == (normalization == "train")
    assert not any(m.training for m in model.eval().modules())


@pytest.mark.parametrize("normalization", ["eval", "train"])
def test_the_choice_for_norms_leaves_head_and_blocks_alone(
    builder: HybridBuilder, tiny: Any, normalization: str
) -> None:
    model = builder.from_backbone("convnext_tiny", None)  # its head has a LayerNorm
    model.freeze_backbone(head="none", normalization=normalization)
    norms = {
        path
        for path, m in model.named_modules()
        if isinstance(m, nn.LayerNorm) and not path.startswith("classifier")
    }
    assert trainable(model) == {f"{path}.{name}" for path in norms for name in ("weight", "bias")}
    model = tiny({"layer1": {"wrap": "conv"}, "layer3.0.conv": {"replace": "conv"}})
    model.freeze_backbone(freeze_patches=True, normalization=normalization)
    assert not {
        name for name in trainable(model) if name.startswith(("patches.", "layer3.0.conv."))
    }
    assert not any(
        m.training for m in model.patches.layer1.modules() if not isinstance(m, type(model.patches))
    )
    assert not any(m.training for m in model.layer3[0].conv.modules())


def test_an_unknown_choice_for_norms_changes_nothing(tiny: Any) -> None:
    model = tiny(freeze_backbone=True, unfreeze_stages=[1])
    before, kept = trainable(model), model.freeze_state()
    with pytest.raises(FreezeError, match=r"frozen, eval, train, not 'evall'. Did you mean 'eval'"):
        model.freeze_backbone(normalization="evall")
    with pytest.raises(FreezeError, match="normalization"):
        model.load_freeze_state({**kept, "normalization": ["eval"]})
    assert trainable(model) == before and model.freeze_state() == kept


@pytest.mark.parametrize("normalization", ["frozen", "eval", "train"])
def test_the_choice_for_norms_is_in_files(
    tiny: Any, lab: Any, tmp_path: Any, normalization: str
) -> None:
    model = tiny()
    model.freeze_backbone(unfreeze_stages=[2], normalization=normalization)
    model.save(tmp_path / "model.safetensors")
    other = lab().load(tmp_path / "model.safetensors")
    assert (
        other.freeze_state() == model.freeze_state()
        and other.freeze_state()["normalization"] == normalization
    )
    assert trainable(other) == trainable(model)
    assert [m.training for m in other.train().modules()] == [
        m.training for m in model.train().modules()
    ]


def test_a_state_from_before_there_was_the_choice_loads_as_frozen(tiny: Any) -> None:
    model, other = tiny(), tiny()
    model.freeze_backbone(unfreeze_stages=[1])
    other.freeze_backbone(normalization="train")
    other.load_freeze_state({"stem": True, "stages": [0, 2], "head": "all", "patches": False})
    assert other.freeze_state() == model.freeze_state() and trainable(other) == trainable(model)


# -- the state -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"unfreeze_stages": [0, 2]},
        {"head": "last"},
        {"head": "none", "freeze_patches": True, "unfreeze_stages": -1},
        {"normalization": "eval"},
        {"normalization": "train", "freeze_patches": True},
    ],
)
def test_the_freeze_state_goes_through_json(tiny: Any, how: Any) -> None:
    model, other = tiny(PATCHES), tiny(PATCHES)
    model.freeze_backbone(**how)
    other.load_freeze_state(json.loads(json.dumps(model.freeze_state())))
    assert trainable(other) == trainable(model) and other.freeze_state() == model.freeze_state()
    assert [m.training for m in other.modules()] == [m.training for m in model.modules()]
    model.unfreeze_all()
    other.load_freeze_state(model.freeze_state())
    assert trainable(other) == {name for name, _ in other.named_parameters()}


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {},
        {"stem": True},
        {"stem": 1, "stages": [], "head": "all", "patches": False},
        {"stem": True, "stages": [9], "head": "all", "patches": False},
        {"stem": True, "stages": None, "head": "all", "patches": False},
        {"stem": True, "stages": [], "head": ["all"], "patches": False},
        {"stem": True, "stages": [], "head": "all", "patches": False, "more": 1},
    ],
)
def test_a_wrong_freeze_state_changes_nothing(tiny: Any, wrong: Any) -> None:
    model = tiny(freeze_backbone=True, unfreeze_stages=[1])
    before, kept = trainable(model), model.freeze_state()
    with pytest.raises((FreezeError, StageError)):
        model.load_freeze_state(wrong)
    assert trainable(model) == before and model.freeze_state() == kept


def test_a_plain_state_dict_has_torchvisions_keys_frozen_or_not(tiny: Any, plain: Any) -> None:
    assert list(tiny(freeze_backbone=True).state_dict()) == list(plain().state_dict())


def test_a_recipe_freezes_as_the_method_does(tiny: Any) -> None:
    how = {"head": "last", "freeze_patches": True, "normalization": "eval"}
    model, by_hand = tiny(freeze_backbone=how, unfreeze_stages=[-1]), tiny()
    by_hand.freeze_backbone(unfreeze_stages=[-1], **how)
    assert (
        model.freeze_state()
        == by_hand.freeze_state()
        != tiny(freeze_backbone=True, unfreeze_stages=[-1]).freeze_state()
    )
    assert model.recipe.freeze_backbone == how
