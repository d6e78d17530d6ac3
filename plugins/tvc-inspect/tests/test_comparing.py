"""Comparisons of models: of 50 generated pairs the difference names exactly what was done."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tvc_inspect import Comparison, Difference, ModelFacts, compare_models, inspect_model

from tvc_core import HybridBuilder, HybridModel, Preprocessing

BACKBONE = "mobilenet_v3_small"
TARGETS = [f"features.{index}" for index in range(2, 12)]
BLOCKS = ["se", "eca", "cbam_block", "coord_attention"]


def _build(**changes: Any) -> HybridModel:
    given: dict[str, Any] = {"patches": {"features.1": {"wrap": "se"}}, "num_classes": 6}
    torch.manual_seed(0)
    return HybridBuilder().from_backbone(BACKBONE, weights=None, **{**given, **changes})


def _facts(model: HybridModel) -> ModelFacts:
    return inspect_model(model, size=64, repeats=1)


@functools.cache
def _base() -> tuple[HybridModel, ModelFacts]:
    """The first model of most pairs, and its facts; the second is a copy of it, or is loaded from
    it.
    """
    model = _build()
    return model, _facts(model)


def _compared(a: HybridModel, b: HybridModel) -> Comparison:
    model, facts = _base()
    return compare_models(a, b, facts if a is model else _facts(a), _facts(b))


def _kinds(found: Comparison) -> list[tuple[str, str]]:
    return [(each.kind, each.path) for each in found.differences]


def _patch(draw: random.Random) -> tuple[HybridModel, HybridModel, tuple[str, str]]:
    target, block = draw.choice(TARGETS), draw.choice(BLOCKS)
    patches = {"features.1": {"wrap": "se"}, target: {"wrap": block}}
    a, b = _base()[0], _build(patches=patches)
    _same_tensors(a, b)
    return a, b, ("patch", target)


def _stage(draw: random.Random) -> tuple[HybridModel, HybridModel, tuple[str, str]]:
    a = _build()
    a.freeze_backbone()
    b = copy.deepcopy(a)
    stage = draw.randrange(len(a.stage_info))
    b.freeze_backbone(unfreeze_stages=stage)
    return a, b, ("trainable", f"stage {stage}")


def _head(draw: random.Random) -> tuple[HybridModel, HybridModel, tuple[str, str]]:
    a = _base()[0]
    b = copy.deepcopy(a)
    b.reset_classifier(draw.choice([2, 5, 9, 100]))
    return a, b, ("head", "classifier.3")


def _tensor(draw: random.Random) -> tuple[HybridModel, HybridModel, tuple[str, str]]:
    a = _base()[0]
    b = copy.deepcopy(a)
    floats = [name for name, t in b.state_dict().items() if t.is_floating_point()]
    name = draw.choice(floats)
    tensor = b.state_dict()[name].reshape(-1)
    tensor[draw.randrange(len(tensor))] += 1e-3
    return a, b, ("tensor", name)


def _same_tensors(a: HybridModel, b: HybridModel) -> None:
    """A patch draws random numbers, and so shifts those of what is made after it."""
    b.load_state_dict(a.state_dict(), strict=False)


CHANGES: list[Callable[[random.Random], Any]] = [_patch, _stage, _head, _tensor]
NUM_PAIRS = 50


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=[pytest.mark.sweep] * (n >= 4)) for n in range(NUM_PAIRS)]
)
def test_the_difference_names_exactly_what_was_done(number: int) -> None:
    draw = random.Random(number)
    a, b, expected = CHANGES[number % len(CHANGES)](draw)
    assert _kinds(_compared(a, b)) == [expected]


def test_a_copy_does_not_differ() -> None:
    a = _base()[0]
    found = _compared(a, copy.deepcopy(a))
    assert found.differences == ()
    assert {cost.name: cost.a == cost.b for cost in found.costs if "milli" not in cost.name} == {
        cost.name: True for cost in found.costs if "milli" not in cost.name
    }


def test_what_is_said_of_each_side() -> None:
    a = _base()[0]
    b = _build(patches={"features.1": {"wrap": {"type": "se", "params": {"reduction": 4}}}})
    _same_tensors_of_backbone(a, b)
    (patch,) = _compared(a, b).differences
    assert patch == Difference(
        kind="patch",
        path="features.1",
        a="tvc-core:wrap tvc-attention:se()",
        b="tvc-core:wrap tvc-attention:se(reduction=4)",
    )


def _same_tensors_of_backbone(a: HybridModel, b: HybridModel) -> None:
    state = {name: t for name, t in a.state_dict().items() if not name.startswith("patches.")}
    b.load_state_dict(state, strict=False)


def test_another_block_at_a_target_is_one_difference() -> None:
    a = _base()[0]
    b = _build(patches={"features.1": {"wrap": "eca"}})
    _same_tensors(a, b)
    (patch,) = _compared(a, b).differences
    assert (patch.kind, patch.path) == ("patch", "features.1")
    assert (patch.a, patch.b) == (
        "tvc-core:wrap tvc-attention:se()",
        "tvc-core:wrap tvc-attention:eca()",
    )


def test_settings_and_paths_differ() -> None:
    a = _base()[0]
    b = copy.deepcopy(a)
    b.features[4].block[1][0].stride = (1, 1)
    b.features[5] = torch.nn.Conv2d(40, 40, 1)
    found = _kinds(_compared(a, b))
    assert ("path", "features.4.block.1.0") in found
    assert ("shape", "features.4") in found


def test_costs_are_those_of_the_facts() -> None:
    a, b = _base()[0], _build(num_classes=60)
    facts = _base()[1], _facts(b)
    costs = {cost.name: (cost.a, cost.b) for cost in compare_models(a, b, *facts).costs}
    assert costs["parameters"][1] - costs["parameters"][0] == 54 * (1024 + 1)
    assert (
        costs["FLOPs of a forward pass"][1] - costs["FLOPs of a forward pass"][0] == 2 * 54 * 1024
    )


def test_a_moved_gate_and_class_names_are_named() -> None:
    a = _build(num_classes=2, class_names=["a", "b"])
    b = copy.deepcopy(a)
    with torch.no_grad():
        b.get_submodule("patches.features.1.se").alpha.fill_(0.5)
    b.class_names = ("a", "c")
    assert _kinds(_compared(a, b)) == [
        ("class names", ""),
        ("tensor", "patches.features.1.se.alpha"),
    ]


def _heads(**head: Any) -> HybridModel:
    torch.manual_seed(0)
    return HybridBuilder().from_backbone("shufflenet_v2_x0_5", weights=None, **head)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (
            {"num_classes": 5, "hidden": [16]},
            {"num_classes": 5, "hidden": [8, 4]},
            ("head", "fc", "5 classes after 16 hidden", "5 classes after 8, 4 hidden"),
        ),
        (
            {"num_classes": 5},
            {"num_classes": 3, "hidden": [8]},
            ("head", "fc", "5 classes after none hidden", "3 classes after 8 hidden"),
        ),
        (
            {"heads": {"kind": 3, "age": 2}},
            {"heads": {"kind": 3, "age": {"num_classes": 2, "class_names": ["old", "new"]}}},
            ("class names", "age", "", "old, new"),
        ),
        (
            {"heads": {"kind": 3, "age": {"num_classes": 2, "hidden": [4]}}},
            {"heads": {"kind": 3, "age": {"num_classes": 2, "hidden": [6]}}},
            ("head", "age", "2 classes after 4 hidden", "2 classes after 6 hidden"),
        ),
        (
            {"heads": {"kind": 3}},
            {"heads": {"kind": 1}},
            ("head", "kind", "3 classes", "1 classes"),
        ),
    ],
)
def test_a_head_of_another_form_is_one_difference(
    first: dict[str, Any], second: dict[str, Any], expected: tuple[str, ...]
) -> None:
    a, b = _heads(**first), _heads(**second)
    state, own = a.state_dict(), b.state_dict()
    for name in [n for n in state if n not in own or own[n].shape != state[n].shape]:
        del state[name]
    b.load_state_dict(state, strict=False)
    found = compare_models(a, b, _facts(a), _facts(b)).differences
    assert [(each.kind, each.path, each.a, each.b) for each in found] == [expected]


def test_patches_in_another_order_are_one_difference() -> None:
    blocks = [{"wrap": "simam"}, {"wrap": "se"}]
    last = {"features.2": {"inject": {"type": "eca", "position": "before"}}}
    a = _build(patches={"features.1": blocks, **last})
    b = _build(patches={**last, "features.1": blocks[::-1]})
    _same_tensors(a, b)
    found = _compared(a, b).differences
    assert [(each.kind, each.path, each.a, each.b) for each in found] == [
        ("patch", "features.1", "simam, then se", "se, then simam")
    ]


def test_class_names_are_shown_from_the_first_that_differs() -> None:
    a = _build(num_classes=12, class_names=list("abcdefghijkl"))
    b = copy.deepcopy(a)
    b.class_names = [*"abcdefghij", "x", "l"]
    (found,) = _compared(a, b).differences
    assert (found.a, found.b) == ("..., k, l", "..., x, l")


def test_a_module_of_another_class_is_one_difference() -> None:
    a = _base()[0]
    b = copy.deepcopy(a)
    b.features[5].block[2] = torch.nn.Identity()  # in the place of a SqueezeExcitation
    assert _kinds(_compared(a, b)) == [("path", "features.5.block.2")]


def test_another_network_is_named_as_such() -> None:
    a = _base()[0]
    b = HybridBuilder().from_backbone("squeezenet1_1", weights=None, num_classes=6)
    found = _compared(a, b).differences
    assert found[0] == Difference(
        kind="backbone",
        path="",
        a="tvc-mobilenet:mobilenet_v3_small",
        b="tvc-convnets:squeezenet1_1",
    )
    assert "freezing" not in {each.kind for each in found}


def test_frozen_statistics_alone_are_named() -> None:
    a = _build()
    a.freeze_backbone(normalization="eval")
    b = copy.deepcopy(a)
    b.freeze_backbone(normalization="train")
    assert _kinds(_compared(a, b)) == [("freezing", "normalization")]


def test_settings_that_modules_do_not_show_are_named() -> None:
    a = _base()[0]
    b = copy.deepcopy(a)
    b.get_submodule("features.3").use_res_connect = False
    assert [(d.kind, d.path, d.a, d.b) for d in _compared(a, b).differences] == [
        ("path", "features.3", *(f"InvertedResidual(use_res_connect={on})" for on in (True, False)))
    ]
    c = copy.deepcopy(a)
    c.transform_input = True  # as GoogLeNet has it, which then changes its images
    assert _kinds(_compared(a, c)) == [("path", "")]


def test_settings_of_a_whole_model_and_the_order_of_heads_are_named() -> None:
    a = _base()[0]
    b, c = copy.deepcopy(a), copy.deepcopy(a)
    b.set_grad_checkpointing()
    c.preprocessing = Preprocessing(size=(96, 64), resize=96)
    assert [(d.kind, d.a, d.b) for d in _compared(a, b).differences] == [
        ("checkpointing", "none", "all stages")
    ]
    (found,) = _compared(a, c).differences
    assert (found.kind, found.a) == ("preprocessing", "none") and "(96, 64)" in found.b
    first, second = (
        HybridBuilder().from_backbone("squeezenet1_1", weights=None, seed=0, heads=heads)
        for heads in ({"x": 2, "y": 3}, {"y": 3, "x": 2})
    )
    second.load_state_dict(first.state_dict())
    (found,) = _compared(first, second).differences
    assert (found.kind, found.a, found.b) == ("head", "x, then y", "y, then x")
