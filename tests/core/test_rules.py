"""What a value may be is decided once: a recipe and a model's methods take and refuse the same, in
the same words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from tvc_core import (
    HybridModel,
    ParameterError,
    Recipe,
    RecipeError,
    StageError,
    TvcError,
    audit,
    param_groups,
)
from tvc_core.surgery.marks import check_hybrid

Call = Callable[[HybridModel], object]


def set_names(names: Any) -> Call:
    return lambda model: setattr(model, "class_names", names)


WRONG: dict[str, tuple[dict[str, Any], Call]] = {}
for value in ("first", "ALL", None, ["all"], True):
    WRONG[f"head {value}"] = (
        {"freeze_backbone": {"head": value}},
        lambda model, value=value: model.freeze_backbone(head=value),
    )
for value in (1, 0, "yes", None, [True]):
    WRONG[f"freeze_patches {value}"] = (
        {"freeze_backbone": {"freeze_patches": value}},
        lambda model, value=value: model.freeze_backbone(freeze_patches=value),
    )
for value in ("evaluate", None, 1, True):
    WRONG[f"normalization {value}"] = (
        {"freeze_backbone": {"normalization": value}},
        lambda model, value=value: model.freeze_backbone(normalization=value),
    )
for value in (-1, True, 2.0, "2", 10_000_001):
    WRONG[f"num_classes {value}"] = (
        {"num_classes": value},
        lambda model, value=value: model.reset_classifier(value),
    )
for value in (1, 1.0, -0.1, True, "0.1", float("nan")):
    WRONG[f"dropout {value}"] = (
        {"dropout": value},
        lambda model, value=value: model.reset_classifier(3, dropout=value),
    )
for value in (["cat"], ["cat", "cat"], ["cat", 3], ["cat", "dog", "fox"], "ab", 2, {"cat": 1}, []):
    WRONG[f"class_names {value}"] = ({"num_classes": 2, "class_names": value}, set_names(value))


@pytest.mark.parametrize("case", WRONG)
def test_both_doors_refuse_it_in_the_same_words(tiny: Any, case: str) -> None:
    arguments, call = WRONG[case]
    with pytest.raises(RecipeError) as by_recipe:
        Recipe(backbone="tiny", **arguments)
    model = tiny(num_classes=2)
    before = model.freeze_state(), model.num_classes, model.class_names
    with pytest.raises(TvcError) as by_model:
        call(model)
    assert str(by_recipe.value) == f"arguments: {by_model.value}"
    assert (model.freeze_state(), model.num_classes, model.class_names) == before


@pytest.mark.parametrize("stages", [0, -1, [0, 2], (1,), [], range(1, 3), {0, 1}], ids=str)
def test_both_doors_take_the_same_stages(tiny: Any, stages: Any) -> None:
    by_recipe = tiny(freeze_backbone=True, unfreeze_stages=stages)
    by_method = tiny()
    by_method.freeze_backbone(unfreeze_stages=stages)
    numbers = {stages} if isinstance(stages, int) else set(stages)
    frozen = [index for index in range(3) if not {index, index - 3} & numbers]
    assert by_recipe.freeze_state() == by_method.freeze_state()
    assert by_recipe.freeze_state()["stages"] == frozen
    again = Recipe.from_mapping(by_recipe.recipe.to_mapping())
    assert again == by_recipe.recipe, "written down as a list"


@pytest.mark.parametrize(
    ("stages", "frozen"), [("layer2", [0, 2]), (["layer3", 0], [1]), ({"layer1"}, [1, 2])], ids=str
)
def test_both_doors_take_paths_as_well(tiny: Any, stages: Any, frozen: list[int]) -> None:
    model = tiny(freeze_backbone=True, unfreeze_stages=stages)
    assert model.freeze_state()["stages"] == frozen
    model.unfreeze_all()
    model.freeze_backbone(unfreeze_stages=stages)
    assert model.freeze_state()["stages"] == frozen
    assert Recipe.from_mapping(model.recipe.to_mapping()) == model.recipe


@pytest.mark.parametrize("stages", ["layer9", "layer3.0", ["stem"], 3], ids=str)
def test_a_stage_that_is_not_there_is_refused_at_both_doors(tiny: Any, stages: Any) -> None:
    for given in (
        lambda: tiny(freeze_backbone=True, unfreeze_stages=stages),
        lambda: tiny().freeze_backbone(unfreeze_stages=stages),
    ):
        with pytest.raises(StageError, match="the 3 stages are 0: layer1"):
            given()


@pytest.mark.parametrize("stages", [True, "", [None], 1.0, [0.0], {"1": 1}], ids=str)
def test_both_doors_refuse_what_is_no_stage(tiny: Any, stages: Any) -> None:
    with pytest.raises(RecipeError, match="a list of stages, by number or path, such as"):
        Recipe(backbone="tiny", freeze_backbone=True, unfreeze_stages=stages)
    with pytest.raises(StageError, match="there is no stage"):
        tiny().freeze_backbone(unfreeze_stages=stages)


def test_both_doors_take_class_names_as_list_or_tuple(tiny: Any) -> None:
    for names in (["cat", "dog"], ("cat", "dog")):
        model = tiny(num_classes=2, class_names=names)
        other = tiny(num_classes=2)
        other.class_names = names
        assert model.class_names == other.class_names == ("cat", "dog")


def test_what_is_no_hybrid_is_one_error_everywhere(tiny: Any, plain: Any) -> None:
    check_hybrid(tiny(), "this")
    for what in (plain(), nn.Sequential(tiny()), "resnet18", None):
        for name, take in {
            "check": lambda what: check_hybrid(what, "check"),
            "param_groups": lambda what: param_groups(what, lr=0.1),
            "audit": lambda what: audit(what, None).__enter__(),
        }.items():
            with pytest.raises(ParameterError) as caught:
                take(what)
            said = f"{name} takes a model that HybridBuilder made, not {type(what).__name__}; "
            assert str(caught.value).startswith(said)


def test_wrap_is_inject_at_the_end_of_the_target(tiny: Any) -> None:
    """Both are addressed and frozen with the target; they differ in the positions they take."""

    def built(op: str) -> HybridModel:
        patches = {"layer3.0": {op: {"type": "gate", "position": "after"}}}
        return tiny(patches, freeze_backbone={"freeze_patches": True})

    wrap, inject = built("wrap"), built("inject")
    assert wrap.patch_records[0].paths == inject.patch_records[0].paths
    frozen = [{n for n, p in m.named_parameters() if not p.requires_grad} for m in (wrap, inject)]
    assert frozen[0] == frozen[1] and any(name.startswith("patches.") for name in frozen[0])
    with pytest.raises(ParameterError, match="wrap takes the position 'after' or 'branch'"):
        tiny({"layer3.0": {"wrap": {"type": "gate", "position": "before"}}})
