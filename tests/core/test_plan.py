"""Plans: every name of a recipe bound to its owner, before torch is imported."""

from __future__ import annotations

import copy
import enum
import importlib.util
import pickle
from pathlib import Path
from typing import Any

import pytest

from tvc_core import (
    AmbiguousNameError,
    BackboneSpec,
    BlockSpec,
    InitializerSpec,
    ParameterError,
    PatchOpSpec,
    RecipeError,
    Registry,
    TvcError,
    UnknownNameError,
    WeightsSpec,
    hookimpl,
)
from tvc_core.recipe import Plan, Recipe, load_recipe, make_plan

NET = BackboneSpec(
    name="net",
    origin="torchvision",
    factory="acme.net:build",
    weights=(WeightsSpec(name="IMAGENET1K_V1"), WeightsSpec(name="IMAGENET1K_V2")),
    default_weights="IMAGENET1K_V2",
    stages=("layer1",),
    head="fc",
    options={"width": 1.0, "progress": True},
)


class Acme:
    @hookimpl
    def tvc_backbones(self) -> list[BackboneSpec]:
        return [NET, BackboneSpec(name="untrained", factory="acme.net:build")]

    @hookimpl
    def tvc_blocks(self) -> list[BlockSpec]:
        return [
            BlockSpec(name="gate", factory="acme:Gate"),
            BlockSpec(name="shared", factory="acme:Shared"),
        ]

    @hookimpl
    def tvc_patch_ops(self) -> list[PatchOpSpec]:
        return [
            PatchOpSpec(name="drop", factory="acme:drop", takes_block=False, options={"rate": 0.1})
        ]

    @hookimpl
    def tvc_initializers(self) -> list[InitializerSpec]:
        return [InitializerSpec(name="orthogonal", factory="acme:orthogonal")]


class Rival:
    @hookimpl
    def tvc_blocks(self) -> list[BlockSpec]:
        return [BlockSpec(name="shared", factory="rival:Shared")]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry([Acme(), Rival()], installed=False)


def plan(registry: Registry, patches: Any = None, **more: Any) -> Plan:
    return make_plan(Recipe(**{"backbone": "net", "patches": patches, **more}), registry)


def test_every_name_is_bound_to_its_owner_and_the_recipe_is_qualified(registry: Registry) -> None:
    made = plan(
        registry,
        {"layer1": {"wrap": {"type": "gate", "init": "orthogonal"}}, "fc": {"drop": {"rate": 0.5}}},
    )
    assert made.backbone.qualified == made.recipe.backbone == "acme:net"
    wrap, drop = made.patches
    assert (wrap.op.qualified, wrap.block and wrap.block.qualified) == (
        "tvc-core:wrap",
        "acme:gate",
    )
    assert wrap.init is not None and wrap.init.qualified == "acme:orthogonal"
    assert (drop.op.qualified, drop.block, drop.init) == ("acme:drop", None, None)
    assert [(p.op, p.block, p.init) for p in made.recipe.patches] == [
        ("tvc-core:wrap", "acme:gate", "acme:orthogonal"),
        ("acme:drop", None, None),
    ]


def test_a_qualified_recipe_gives_the_same_plan_whoever_comes_later(registry: Registry) -> None:
    written = plan(registry, {"layer1": {"wrap": "gate"}}).recipe.to_mapping()

    class Newcomer:
        @hookimpl
        def tvc_backbones(self) -> list[BackboneSpec]:
            return [NET]

        @hookimpl
        def tvc_blocks(self) -> list[BlockSpec]:
            return [BlockSpec(name="gate", factory="new:Gate")]

    crowded = Registry([Acme(), Newcomer()], installed=False)
    again = make_plan(Recipe.from_mapping(written), crowded)
    assert (again.backbone.owner, again.patches[0].block and again.patches[0].block.owner) == (
        "acme",
        "acme",
    )
    with pytest.raises(AmbiguousNameError):
        plan(crowded, {"layer1": {"wrap": "gate"}})


# -- weights ---------------------------------------------------------------------------------------

Net_Weights = enum.Enum("Net_Weights", {"IMAGENET1K_V1": 1, "DEFAULT": 1, "IMAGENET1K_V2": 2})


@pytest.mark.parametrize(
    ("given", "bound"),
    [
        ("IMAGENET1K_V1", "IMAGENET1K_V1"),
        ("DEFAULT", "IMAGENET1K_V2"),
        ("Net_Weights.IMAGENET1K_V1", "IMAGENET1K_V1"),
        (Net_Weights.IMAGENET1K_V1, "IMAGENET1K_V1"),
        (Net_Weights.IMAGENET1K_V2, "IMAGENET1K_V2"),
        (None, None),
    ],
    ids=str,
)
def test_weights_are_bound_to_the_set_of_that_name(
    registry: Registry, given: Any, bound: str | None
) -> None:
    made = plan(registry, weights=given)
    assert (made.weights.name if made.weights else None) == made.recipe.weights == bound


@pytest.mark.parametrize(
    "given",
    ["IMAGENET1K_V3", "imagenet1k_v1", enum.Enum("Other", {"IMAGENET1K_V3": 1}).IMAGENET1K_V3],
    ids=str,
)  # type: ignore[attr-defined]
def test_unknown_weights_say_which_there_are(registry: Registry, given: Any) -> None:
    with pytest.raises(UnknownNameError) as caught:
        plan(registry, weights=given)
    for part in (
        "Unknown weights",
        "'acme:net'",
        "Did you mean",
        "IMAGENET1K_V1, IMAGENET1K_V2",
        "'DEFAULT' stands for IMAGENET1K_V2",
    ):
        assert part in str(caught.value)


def test_weights_of_another_networks_class_are_refused(registry: Registry) -> None:
    other = enum.Enum("Other_Weights", {"IMAGENET1K_V1": 1})
    for given in ("Other_Weights.IMAGENET1K_V2", other.IMAGENET1K_V1, "Nets.IMAGENET1K_V2"):
        with pytest.raises(UnknownNameError, match=r"to another network\. It has IMAGENET1K_V1, "):
            plan(registry, weights=given)


def test_default_weights_of_an_untrained_backbone_are_an_error(registry: Registry) -> None:
    with pytest.raises(
        UnknownNameError, match="'acme:untrained' has no pretrained weights: pass weights=None"
    ):
        plan(registry, backbone="untrained")
    assert plan(registry, backbone="untrained", weights=None).weights is None


# -- wrong names, each with its place --------------------------------------------------------------


@pytest.mark.parametrize(
    ("patches", "error", "said"),
    [
        (
            {"x": {"wrp": "gate"}},
            UnknownNameError,
            "arguments, x.wrp: Unknown patch op 'wrp'. Did you mean 'wrap'",
        ),
        (
            {"x": {"wrap": "gat"}},
            UnknownNameError,
            "arguments, x.wrap.type: Unknown block 'gat'. Did you mean 'gate'",
        ),
        ({"x": {"wrap": "wrap"}}, UnknownNameError, "There is the patch op 'wrap'."),
        (
            {"x": {"wrap": {"type": "gate", "init": "orthogonl"}}},
            UnknownNameError,
            "Unknown initializer 'orthogonl'. Did you mean 'orthogonal'",
        ),
        ({"x": {"wrap": "shared"}}, AmbiguousNameError, "write 'acme:shared' or 'rival:shared'"),
        (
            {"x": {"wrap": None}},
            RecipeError,
            "wrap needs a block: write {'wrap': 'se'}, or give 'type'",
        ),
        ({"x": {"wrap": {"params": {"a": 1}}}}, RecipeError, "wrap needs a block"),
        (
            {"x": {"wrap": {"type": "gate", "parms": {}}}},
            RecipeError,
            "unknown key 'parms' of tvc-core:wrap. Did you mean 'params'",
        ),
        ({"x": {"wrap": {"type": "gate", "parms": None}}}, RecipeError, "unknown key 'parms'"),
        (
            {"x": {"wrap": {"type": "gate", "place": "before"}}},
            RecipeError,
            "unknown key 'place' of tvc-core:wrap",
        ),
        (
            {"x": {"inject": {"type": "gate", "postion": "before"}}},
            RecipeError,
            "Did you mean 'position'",
        ),
        (
            {"x": {"drop": "gate"}},
            RecipeError,
            "unknown key 'type' of acme:drop. It takes: name, rate",
        ),
        (
            {"x": {"drop": {"rate": 0.5, "init": "zero"}}},
            RecipeError,
            "unknown key 'init' of acme:drop",
        ),
        (
            {"x": {"drop": {"params": {"rate": 0.5}}}},
            RecipeError,
            "unknown key 'params' of acme:drop",
        ),
    ],
    ids=str,
)
def test_a_wrong_name_or_key_in_a_patch_stops_here(
    registry: Registry, patches: Any, error: type[TvcError], said: str
) -> None:
    with pytest.raises(error) as caught:
        plan(registry, patches)
    assert type(caught.value) is error and said in str(caught.value)
    assert str(caught.value).startswith("arguments, x.")


def test_a_wrong_name_in_a_file_is_named_by_file_and_line(
    registry: Registry, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "backbone:\n  name: net\n  patches:\n    layer1:\n      wrap:\n        type: gat\n"
    )
    with pytest.raises(UnknownNameError) as caught:
        make_plan(load_recipe(path), registry)
    assert str(caught.value).startswith(
        f"{path}:6:15: backbone.patches.layer1.wrap.type: Unknown bl"
    )


def test_an_unknown_backbone_stops_here(registry: Registry) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown backbone 'nett'\. Did you mean 'net'"):
        plan(registry, backbone="nett")


def test_an_unknown_option_of_the_backbone_says_which_it_takes(registry: Registry) -> None:
    with pytest.raises(
        ParameterError,
        match=r"Unknown option 'widht' .*Did you mean 'width'.*It takes: width, progress",
    ):
        plan(registry, options={"widht": 2.0})
    assert plan(registry, options={"width": 2.0}).options == {"width": 2.0}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_classes": True}, "num_classes is a whole number"),
        ({"dropout": 1.0}, "dropout is a probability"),
        ({"unfreeze_stages": (3,)}, "set freeze_backbone=True"),
        ({"patches": {"layer1": "gate"}}, "layer1: a patch is an operation and its block"),
    ],
    ids=str,
)
def test_a_recipe_that_is_made_by_hand_is_checked_where_it_is_made(values: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe(backbone="net", **values)


# -- what a plan is --------------------------------------------------------------------------------


def test_making_a_plan_changes_neither_the_recipe_nor_the_registry(registry: Registry) -> None:
    recipe = Recipe(
        backbone="net", patches={"layer1": {"wrap": {"type": "gate", "params": {"reduction": 4}}}}
    )
    before = copy.deepcopy(recipe)
    names = registry.names(BlockSpec)
    first, second = make_plan(recipe, registry), make_plan(recipe, registry)
    assert first == second and recipe == before and registry.names(BlockSpec) == names


def test_a_plan_survives_pickle_and_deepcopy(registry: Registry) -> None:
    made = plan(
        registry,
        {"layer1": {"wrap": {"type": "gate", "init": "zero"}}},
        options={"width": 2.0},
        weights="DEFAULT",
    )
    for twin in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert twin == made
        assert twin.backbone.qualified == "acme:net" and twin.backbone.spec.options == {
            "width": 1.0,
            "progress": True,
        }
        assert twin.patches[0].block.qualified == "acme:gate"


def test_nothing_but_a_tvc_error_escapes_from_planning_seeded_malformed_recipes(
    tmp_path: Path,
) -> None:
    from_file = importlib.util.spec_from_file_location(
        "mutants", Path(__file__).with_name("test_yaml.py")
    )
    assert from_file is not None and from_file.loader is not None
    mutants = importlib.util.module_from_spec(from_file)
    from_file.loader.exec_module(mutants)
    installed, planned = Registry(), 0
    path = tmp_path / "recipe.yaml"
    for seed in range(500):
        path.write_bytes(mutants.mutant(seed))
        try:
            make_plan(load_recipe(path), installed)
            planned += 1
        except TvcError:
            pass
    assert 5 < planned < 250, "neither all harmless nor all stopped by the parser"


@pytest.mark.parametrize(
    ("at", "old", "new", "said"),
    [
        ("2:9: backbone.name", "name: net", "name: nett", "Unknown backbone 'nett'"),
        ("3:12: backbone.weights", "IMAGENET1K_V1", "IMAGENET1K_V3", "Unknown weights"),
        ("5:5: backbone.options.widht", "width: 2.0", "widht: 2.0", "Unknown option 'widht'"),
        ("6:15: backbone.image_size", "size: null", "size: 64", "image_size=64 is not needed"),
    ],
)
def test_what_only_a_registry_knows_is_named_by_file_and_line(
    registry: Registry, tmp_path: Path, at: str, old: str, new: str, said: str
) -> None:
    text = (
        "backbone:\n  name: net\n  weights: IMAGENET1K_V1\n  options:\n    width: 2.0\n  "
        "image_size: null\n"
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    assert make_plan(load_recipe(path), registry).options == {"width": 2.0}
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(TvcError) as caught:
        make_plan(load_recipe(path), registry)
    assert str(caught.value).startswith(f"{path}:{at}: {said}")


# -- what a recipe requires ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("installed", "required", "problem"),
    [
        ("0.2.0", "acme-x", ""),
        ("0.10.0", "acme-x>=0.9", ""),
        ("0.10.0", "acme-x >= 0.2, < 0.10", "is required, and 0.10.0 is installed"),
        ("1.0", "acme-x==1.0.0", ""),
        ("2.14.0+cu126", "acme-x==2.14.0", ""),
        ("2.14.0+cu126", "acme-x<=2.14", ""),
        ("2.0.0rc1", "acme-x>2.0", "is required, and 2.0.0rc1 is installed"),
        ("1.2.3", "acme-x!=1.2.3", "is required, and 1.2.3 is installed"),
        ("1.2.3", "acme-y", "is not installed"),
    ],
)
def test_a_recipe_is_built_only_with_the_versions_that_it_requires(
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    installed: str,
    required: str,
    problem: str,
) -> None:
    home = tmp_path / f"acme_x-{installed}.dist-info"
    home.mkdir()
    (home / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-x\nVersion: {installed}\n")
    monkeypatch.syspath_prepend(tmp_path)
    recipe = Recipe(backbone="net", requires=("pluggy>=1", required))
    if not problem:
        assert make_plan(recipe, registry).backbone.spec == NET
        return
    with pytest.raises(RecipeError) as caught:
        make_plan(recipe, registry)
    install = f"To install what the recipe requires: pip install 'pluggy>=1' {required!r}"
    assert str(caught.value) == f"arguments: {required} {problem}. {install}"
