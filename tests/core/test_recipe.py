"""Recipes: what they accept, and the file, line and nearest right key of everything else."""

from __future__ import annotations

import copy
import enum
import math
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from tvc_core import HybridBuilder, Recipe, RecipeError, Registry, TvcError
from tvc_core.recipe import PatchEntry, Place, load_recipe
from tvc_core.written.place import Mark

GUIDE = """\
# hybrid_model.yaml
name: ResNet50-SE-Custom

backbone:
  name: resnet50
  weights: IMAGENET1K_V2
  patches:
    layer3:
      wrap:
        type: se
        params:
          reduction: 16
    layer4:
      wrap: cbam_block

head:
  num_classes: 100
  dropout: 0.3
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def refused(path: Path, text: str) -> str:
    """Return what is said about a file, without its folder."""
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message[len(str(path.parent)) + 1 :]


def wrong(**arguments: Any) -> str:
    """Return what is said about keyword arguments."""
    with pytest.raises(RecipeError) as caught:
        Recipe(**{"backbone": "resnet50", **arguments})
    return str(caught.value)


# -- the same thing in three forms -----------------------------------------------------------------


def test_the_guides_recipe_is_read_as_it_is_written(path: Path) -> None:
    path.write_text(GUIDE)
    recipe = load_recipe(path)
    assert (recipe.name, recipe.backbone, recipe.weights) == (
        "ResNet50-SE-Custom",
        "resnet50",
        "IMAGENET1K_V2",
    )
    assert (recipe.num_classes, recipe.dropout, recipe.freeze_backbone, recipe.unfreeze_stages) == (
        100,
        0.3,
        False,
        None,
    )
    assert [(p.target, p.op, p.block, dict(p.params)) for p in recipe.patches] == [
        ("layer3", "wrap", "se", {"reduction": 16}),
        ("layer4", "wrap", "cbam_block", {}),
    ]


def test_yaml_a_mapping_and_arguments_give_equal_recipes(path: Path) -> None:
    path.write_text(GUIDE)
    arguments = {
        "backbone": "resnet50",
        "weights": "IMAGENET1K_V2",
        "patches": {
            "layer3": {"wrap": {"type": "se", "params": {"reduction": 16}}},
            "layer4": {"wrap": "cbam_block"},
        },
        "num_classes": 100,
        "dropout": 0.3,
        "name": "ResNet50-SE-Custom",
    }
    assert load_recipe(path) == Recipe.from_mapping(yaml.safe_load(GUIDE)) == Recipe(**arguments)


def test_the_short_forms_are_the_full_forms() -> None:
    short = Recipe.from_mapping({"backbone": "resnet18"})
    assert short == Recipe.from_mapping(
        {"backbone": {"name": "resnet18", "weights": "DEFAULT"}, "head": None}
    )
    one = Recipe(backbone="r", patches={"layer1": {"wrap": "se"}})
    assert one == Recipe(backbone="r", patches={"layer1": {"wrap": {"type": "se"}}})
    assert one == Recipe(
        backbone="r", patches={"layer1": [{"wrap": {"type": "se", "params": None}}]}
    )


def test_patches_keep_the_order_in_which_they_are_written() -> None:
    written = {
        "b": [{"wrap": "se"}, {"inject": "eca"}, {"wrap": "se"}],
        "a": {"wrap": "se", "inject": "eca"},
    }
    patches = Recipe(backbone="r", patches=written).patches
    assert [(p.target, p.op) for p in patches] == [
        ("b", "wrap"),
        ("b", "inject"),
        ("b", "wrap"),
        ("a", "wrap"),
        ("a", "inject"),
    ]


def test_what_a_patch_says_beside_the_known_keys_are_options_of_the_operation() -> None:
    (patch,) = Recipe(
        backbone="r", patches={"x": {"inject": {"type": "se", "position": "before"}}}
    ).patches
    assert (patch.block, dict(patch.options)) == ("se", {"position": "before"})


def test_where_a_patch_was_written_is_no_part_of_what_it_is() -> None:
    marks = {("a",): (Mark("x.yaml", 3, 1), Mark("x.yaml", 3, 4))}
    there = PatchEntry(target="a", op="wrap", where=Place("x.yaml", ("a",), marks))
    assert there == PatchEntry(target="a", op="wrap")
    assert str(there.where) == "x.yaml:3:4: a" and "x.yaml" not in repr(there)


def test_weights_may_be_none_a_name_or_a_member_of_an_enum() -> None:
    weights = enum.Enum("Net_Weights", {"IMAGENET1K_V1": 1})
    for given in (None, "DEFAULT", "IMAGENET1K_V1", weights.IMAGENET1K_V1):
        assert Recipe(backbone="r", weights=given).weights is given
    assert (
        Recipe(backbone="r", weights=weights.IMAGENET1K_V1).to_mapping()["backbone"]["weights"]
        == "IMAGENET1K_V1"
    )


@pytest.mark.parametrize(
    "text",
    [
        "backbone: r\nhead:\n",
        "\ufeffbackbone: r\n",
        "---\nbackbone: r\n...\n",
        "{backbone: r}",
        "backbone: r\r\n",
    ],
)
def test_harmless_ways_of_writing_are_accepted(path: Path, text: str) -> None:
    path.write_bytes(text.encode())
    assert load_recipe(path) == Recipe(backbone="r")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("1.5e3", 1500.0), ("-2E+4", -2e4), ("3", 3), ("1_000", 1000), ("0.5", 0.5)],
)
def test_numbers_are_read_as_people_write_them(path: Path, text: str, value: float) -> None:
    path.write_text(f"backbone: {{name: r, options: {{eps: {text}}}}}")
    read = load_recipe(path).options["eps"]
    assert (type(read), read) == (type(value), value)


# -- wrong, by arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [-1, True, False, 1.0, "10", "ten", math.nan, [10], 10**12, 10**5000, {}, b"3"],
    ids=lambda v: type(v).__name__,
)
def test_num_classes_is_a_whole_number_in_range(value: Any) -> None:
    message = wrong(num_classes=value)
    assert message.startswith(
        "arguments: num_classes is a whole number from 0 (no classifier) to 10,000,000, not "
    )
    assert len(message) < 300


@pytest.mark.parametrize(
    "value",
    [1.0, 1, -0.1, math.nan, math.inf, -math.inf, True, "0.3", "1e-1", [0.3], 10**5000],
    ids=lambda v: type(v).__name__,
)
def test_dropout_is_a_probability_below_one(value: Any) -> None:
    assert wrong(dropout=value).startswith(
        "arguments: dropout is a probability from 0 to below 1, not "
    )


@pytest.mark.parametrize("value", [0, 0.0, 0.999])
def test_dropout_zero_is_a_probability(value: float) -> None:
    assert Recipe(backbone="r", dropout=value).dropout == value


@pytest.mark.parametrize("value", [1, 0, "true", None, []])
def test_freeze_backbone_is_true_or_false(value: Any) -> None:
    keys = "a mapping with the keys head, freeze_patches, normalization"
    said = f"arguments: freeze_backbone is true or false, or {keys}, not {value!r}"
    assert wrong(freeze_backbone=value).startswith(said)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "true or false, or a mapping"),
        ({"heads": "all"}, "unknown key 'heads' in 'freeze_backbone'. Did you mean 'head'?"),
        (
            {"head": "lost"},
            "what of the head is trainable: all, last, none, not 'lost'. Did you mean 'last'?",
        ),
        ({"head": ["last"]}, "all, last, none, not ['last']"),
        ({"freeze_patches": 1}, "frozen: True, False, not 1"),
        ({"normalization": None}, "frozen, eval, train, not None"),
    ],
    ids=str,
)
def test_a_mapping_of_what_to_freeze_has_the_methods_arguments(value: Any, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_mapping({"backbone": "r", "freeze_backbone": value})
    assert said in str(caught.value)


def test_a_mapping_of_what_to_freeze_is_kept_and_written() -> None:
    data = {
        "backbone": {"name": "r", "weights": None},
        "freeze_backbone": {"head": "last", "normalization": "eval"},
    }
    recipe = Recipe.from_mapping({**data, "unfreeze_stages": [1]})
    assert recipe.freeze_backbone == {"head": "last", "normalization": "eval"}
    assert recipe.to_mapping() == {**data, "unfreeze_stages": [1]}


@pytest.mark.parametrize("value", [True, "", [True], [1.0], {2: 3}, {" "}, [None], 2.0], ids=str)
def test_unfreeze_stages_is_a_list_of_stages_or_one(value: Any) -> None:
    assert wrong(freeze_backbone=True, unfreeze_stages=value).startswith(
        "arguments: unfreeze_stages is a list of stages, by number or path, such as [2, 'layer4']"
    )


@pytest.mark.parametrize("value", [1, 0, "layer2", [True], [1.5]], ids=str)  # 1 is no true
def test_grad_checkpointing_is_true_or_false_or_a_list_of_stages(value: Any) -> None:
    assert wrong(grad_checkpointing=value).startswith(
        "arguments: grad_checkpointing is true or false, or a list of stages"
    )


@pytest.mark.parametrize("value", [True, 2.5, [], "", [None], {"a": 1}], ids=str)
def test_stages_is_a_number_a_path_or_a_list(value: Any) -> None:
    assert wrong(stages=value).startswith("arguments: stages is how many stages there are to be")


@pytest.mark.parametrize("value", [0, [64], [64, 0], [64, 64, 64], "64", [64.0, 64], True], ids=str)
def test_image_size_is_a_side_or_height_and_width(value: Any) -> None:
    message = wrong(image_size=value)
    assert "image_size is a whole number from 1 to 100,000, or [height, width]" in message


def test_sizes_and_stages_are_written_as_they_were_given() -> None:
    data = {"backbone": {"name": "r", "weights": None, "stages": ["a", 1], "image_size": [96, 64]}}
    recipe = Recipe.from_mapping(data)
    assert (recipe.stages, recipe.image_size) == (("a", 1), (96, 64))
    assert recipe.to_mapping() == data
    assert Recipe(backbone="r", image_size=[96, 96]).image_size == 96  # type: ignore[arg-type]


@pytest.mark.parametrize("more", [{}, {"freeze_backbone": False}])
@pytest.mark.parametrize("stages", [[], [3], (2, 3)])
def test_unfreeze_stages_needs_a_frozen_backbone(stages: Any, more: dict[str, Any]) -> None:
    message = wrong(unfreeze_stages=stages, **more)
    assert "set freeze_backbone=True, or leave unfreeze_stages out" in message


@pytest.mark.parametrize(
    "value", [3, "cat", ["cat", 3], ["cat", "cat"], {"cat": 1}, [None], []], ids=str
)
def test_class_names_are_different_names(value: Any) -> None:
    assert "class_names is a list of different names" in wrong(class_names=value)


def test_class_names_are_as_many_as_classes() -> None:
    assert (
        wrong(class_names=["cat", "dog"], num_classes=3)
        == "arguments: class_names has 2 entries; the head has 3 outputs, each needs a name. "
        "num_classes=2 gives it a new last layer with 2."
    )


@pytest.mark.parametrize("value", [None, "", "  ", 3, ["r"], True])
def test_the_backbone_is_a_name(value: Any) -> None:
    assert "backbone is the name of a backbone" in wrong(backbone=value)


@pytest.mark.parametrize("value", ["", 3, True, ["V1"], 0.5], ids=str)
def test_weights_are_a_name_a_member_or_none(value: Any) -> None:
    assert wrong(weights=value).startswith("arguments: weights is a name such as")


@pytest.mark.parametrize(
    "value", [3, "width", ["width"], {3: 1}, {"not a name": 1}, {"": 1}], ids=str
)
def test_options_are_a_mapping_of_argument_names(value: Any) -> None:
    assert "options is a mapping of option names to values" in wrong(options=value)


@pytest.mark.parametrize(
    ("patches", "said"),
    [
        ("se", "patches is a mapping of targets to operations"),
        ([("layer3", "se")], "patches is a mapping"),
        (
            {"layer3": "se"},
            "arguments, layer3: a patch is an operation and its block, such as {'wrap': 'se'}",
        ),
        ({"layer3": None}, "arguments, layer3: a patch is"),
        ({"layer3": {}}, "arguments, layer3: a patch is"),
        ({"layer3": []}, "arguments, layer3: a patch is"),
        ({"layer3": [{"wrap": "se"}, "eca"]}, "arguments, layer3[1]: a patch is"),
        ({"layer3": [{"wrap": "se"}, {}]}, "arguments, layer3[1]: a patch is"),
        ({3: {"wrap": "se"}}, "a patch target is the path of a module, such as 'layer3', not 3"),
        ({"": {"wrap": "se"}}, "a patch target is the path of a module, such as 'layer3', not ''"),
        ({"layer3": {3: "se"}}, "a patch operation is a name such as 'wrap', not 3"),
        (
            {"layer3": {"wrap": ["se"]}},
            "arguments, layer3.wrap: wrap takes the name of a block, or a mapping",
        ),
        ({"layer3": {"wrap": 16}}, "not 16"),
        ({"layer3": {"wrap": ""}}, "wrap takes the name of a block, or a mapping"),
        ({"layer3": {"wrap": True}}, "not True"),
        (
            {"layer3": {"wrap": {"type": 3}}},
            "arguments, layer3.wrap.type: type is a name, or in code a class or a module, not 3",
        ),
        ({"layer3": {"wrap": {"type": "se", "init": True}}}, "init is a name, not True"),
        (
            {"layer3": {"wrap": {"type": "se", "params": 16}}},
            "params is a mapping of parameter names to values, not 16",
        ),
        (
            {"layer3": {"wrap": {"type": "se", "params": {16: 1}}}},
            "params is a mapping of parameter names",
        ),
        (
            {"layer3": {"wrap": {"type": "se", "name": "a.b"}}},
            "name is one part of a path, letters, digits and '_', not 'a.b'",
        ),
        (
            {"layer3": {"wrap": {"type": "se", "not a key": 1}}},
            "wrap takes the name of a block, or a mapping",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_every_wrong_patch_is_named_by_its_place(patches: Any, said: str) -> None:
    assert said in wrong(patches=patches)


# -- wrong, by file --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "head:",
            "heads:",
            "recipe.yaml:16:1: heads: unknown key 'heads' in a recipe. It belongs under 'head'",
        ),
        (
            "backbone:",
            "backbones:",
            "4:1: backbones: unknown key 'backbones' in a recipe. Did you mean 'backbone'",
        ),
        (
            "  weights:",
            "  weight:",
            "6:3: backbone.weight: unknown key 'weight' in 'backbone'. Did you mean 'weights'",
        ),
        (
            "  num_classes:",
            "  num_class:",
            "17:3: head.num_class: unknown key 'num_class' in 'head'. Did you mean 'num_c",
        ),
        (
            "  name: resnet50",
            "  nam: resnet50",
            "recipe.yaml:5:3: backbone.nam: unknown key 'nam' in 'backbone'. Did you mean 'name'",
        ),
        ("  name: resnet50\n", "", "4:1: backbone: the key 'name' is missing in"),
        (
            "num_classes: 100",
            "num_classes: '100'",
            "recipe.yaml:17:16: head.num_classes: num_classes is a whole number",
        ),
        (
            "num_classes: 100",
            "num_classes: -1",
            "recipe.yaml:17:16: head.num_classes: num_classes is a whole number",
        ),
        (
            "num_classes: 100",
            "num_classes: yes",
            "recipe.yaml:17:16: head.num_classes: num_classes is a whole number",
        ),
        (
            "num_classes: 100",
            "num_classes: 1:40",
            "recipe.yaml:17:16: YAML reads '1:40' as another number",
        ),
        (
            "num_classes: 100",
            "num_classes: 0100",
            "recipe.yaml:17:16: YAML reads '0100' as another number",
        ),
        ("num_classes: 100", "num_classes: 0x" + "f" * 5000, "recipe.yaml:17:16: YAML reads '0xff"),
        ("num_classes: 100", "num_classes: " + "9" * 5000, "recipe.yaml:17:16: the number '999"),
        (
            "num_classes: 100",
            "num_classes: 100000000000000000000",
            "recipe.yaml:17:16: the number '1000",
        ),
        (
            "num_classes: 100",
            "num_classes: [100]",
            "recipe.yaml:17:16: head.num_classes: num_classes is a whole number",
        ),
        ("dropout: 0.3", "dropout: .nan", "yaml:18:12: head.dropout: dropout is a prob"),
        ("dropout: 0.3", "dropout: .inf", "yaml:18:12: head.dropout: dropout is a prob"),
        ("dropout: 0.3", "dropout: 1.0", "yaml:18:12: head.dropout: dropout is a prob"),
        (
            "dropout: 0.3",
            "num_classes: 10",
            "18:3: the key 'num_classes' stands here for the second time (first on line 17)",
        ),
        (
            "    layer4:",
            "    layer3:",
            "13:5: the key 'layer3' stands here for the second time (first on line 8)",
        ),
        (
            "type: se",
            "type: [se]",
            "10:15: backbone.patches.layer3.wrap.type: type is a name, or in code a class",
        ),
        (
            "reduction: 16",
            "16: reduction",
            "recipe.yaml:12:11: the key '16' reads as 16, not as text; put it in quotes",
        ),
        (
            "reduction: 16",
            "on: 16",
            "recipe.yaml:12:11: the key 'on' reads as True, not as text; put it in quotes",
        ),
        (
            "wrap: cbam_block",
            "wrap: [cbam_block]",
            "recipe.yaml:14:13: backbone.patches.layer4.wrap: wrap takes the name of a block",
        ),
        (
            "wrap: cbam_block",
            "- cbam_block",
            "recipe.yaml:14:9: backbone.patches.layer4[0]: a patch is an operation and its block",
        ),
        (
            "name: ResNet50-SE-Custom",
            "name: 2024-01-01",
            "recipe.yaml:2:7: '2024-01-01' is a timestamp in YAML",
        ),
        ("name: ResNet50-SE-Custom", "name: 50", "recipe.yaml:2:7: name: name is text, not 50"),
        (
            "head:",
            "unfreeze_stages: [3]\nhead:",
            "recipe.yaml:16:18: unfreeze_stages: unfreeze_stages says what stays trainable",
        ),
        (
            "head:",
            "freeze_backbone: 1\nhead:",
            "yaml:16:18: freeze_backbone: freeze_backbone is true or false, or a mapping with",
        ),
    ],
    ids=lambda value: value.strip()[:30],
)
def test_every_mistake_in_a_file_is_named_by_file_and_line(
    path: Path, old: str, new: str, said: str
) -> None:
    assert GUIDE.count(old) == 1 or old in ("  name: resnet50",)
    assert said in refused(path, GUIDE.replace(old, new))


@pytest.mark.parametrize("text", ["3", "resnet50", "[backbone]", "null", "- backbone: resnet50"])
def test_a_file_that_is_no_mapping_is_told_the_keys(path: Path, text: str) -> None:
    assert "a recipe is a mapping with the keys version, name, descr" in refused(path, text)


def test_a_file_without_a_backbone_says_what_a_recipe_needs(path: Path) -> None:
    assert "'backbone' is missing; a recipe needs at least 'backbone: resnet50'" in refused(
        path, "name: x\n"
    )


def test_files_that_cannot_be_read_are_recipe_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path, tmp_path / ("x" * 5000), Path("nul\0byte")):
        with pytest.raises(RecipeError, match="the recipe cannot be read"):
            load_recipe(path)


@pytest.mark.parametrize(
    "given", [3, None, b"backbone: resnet50", ["resnet50"], "backbone: resnet50"], ids=str
)
def test_building_what_is_no_recipe_is_a_recipe_error(given: Any) -> None:
    with pytest.raises(RecipeError):
        HybridBuilder(registry=Registry(installed=False)).build(given)


# -- there and back --------------------------------------------------------------------------------

WORDS = [
    "resnet50",
    "tvc-resnet:resnet18",
    "1e-5",
    "on",
    "null",
    "2024-01-01",
    "010",
    "a: b",
    "ünïcode ✓",
    "- x",
    "#5",
    " x",
    "0x1f",
    "~",
    "1:30",
    "=",
    "<<",
    "'",
    '"',
    "a\nb",
    "\t",
    "\x07",
]
NAMES = [word for word in WORDS if word.strip()]


def any_value(rng: random.Random, depth: int = 0) -> Any:
    """Return seeded plain data."""
    kinds = ["word", "int", "float", "bool", "none"] + ["list", "dict"] * (depth < 3)
    match rng.choice(kinds):
        case "word":
            return rng.choice(WORDS)
        case "int":
            return rng.choice([0, -1, 7, 2**40])
        case "float":
            return rng.choice([0.5, 1e-5, -2.5e300, 5e-324, 0.1 + 0.2, math.inf])
        case "bool":
            return rng.random() < 0.5
        case "list":
            return [any_value(rng, depth + 1) for _ in range(rng.randrange(4))]
        case "dict":
            return {rng.choice(WORDS): any_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return None


def keywords(rng: random.Random) -> dict[str, Any]:
    return {f"key_{index}": any_value(rng) for index in range(rng.randrange(4))}


def any_patch(rng: random.Random) -> Any:
    full = {
        "type": rng.choice(NAMES),
        "params": keywords(rng),
        "init": rng.choice([None, "kaiming"]),
        "name": rng.choice([None, "gate"]),
    }
    return rng.choice(
        [rng.choice(NAMES), full, {**full, **{f"option_{k}": v for k, v in keywords(rng).items()}}]
    )


def any_recipe(seed: int) -> dict[str, Any]:
    """Return seeded arguments for a valid recipe."""
    rng = random.Random(seed)
    steps = [
        rng.choice([any_step(rng), [any_step(rng) for _ in range(rng.randrange(1, 4))]])
        for _ in range(rng.randrange(4))
    ]
    classes = rng.choice([None, 1, 3])
    frozen = rng.random() < 0.5
    return {
        "backbone": rng.choice(WORDS[:2]),
        "name": rng.choice([None, "", *WORDS]),
        "weights": rng.choice([None, "DEFAULT", *NAMES]),
        "patches": {
            f"layer{index}.{rng.choice(['conv1', '0'])}": step for index, step in enumerate(steps)
        },
        "options": keywords(rng),
        "num_classes": classes,
        "dropout": rng.choice([None, 0, 0.3, 0.999999]),
        "class_names": None if classes is None else rng.sample(WORDS, classes),
        "freeze_backbone": frozen,
        "unfreeze_stages": rng.choice([None, [], [-1, 2]]) if frozen else None,
    }


def any_step(rng: random.Random) -> dict[str, Any]:
    return {
        op: any_patch(rng)
        for op in rng.sample(["wrap", "inject", "replace", "acme:twice"], rng.randrange(1, 3))
    }


@pytest.mark.parametrize("seed", range(50))
def test_a_valid_recipe_comes_back_equal_from_a_mapping_and_from_yaml(
    path: Path, seed: int
) -> None:
    arguments = any_recipe(seed)
    recipe = Recipe(**arguments)
    for name in ("backbone", "name", "weights", "num_classes", "dropout", "freeze_backbone"):
        assert getattr(recipe, name) == arguments[name], (
            "the comparison below would be worth nothing"
        )
    assert len(recipe.patches) == sum(
        len(step)
        for steps in arguments["patches"].values()
        for step in ([steps] if isinstance(steps, dict) else steps)
    )
    assert Recipe.from_mapping(recipe.to_mapping()) == recipe
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert yaml.safe_load(recipe.to_yaml()) == recipe.to_mapping(), (
        "any YAML reader gets the same data"
    )


@pytest.mark.parametrize("seed", range(10))
def test_a_recipe_survives_pickle_and_deepcopy(seed: int) -> None:
    recipe = Recipe(**any_recipe(seed))
    assert pickle.loads(pickle.dumps(recipe)) == copy.deepcopy(recipe) == recipe


def test_a_recipe_is_not_changed_by_its_mapping() -> None:
    recipe = Recipe(
        backbone="r",
        options={"a": 1},
        patches={"x": {"wrap": {"type": "se", "params": {"reduction": 4}}}},
    )
    data = recipe.to_mapping()
    data["backbone"]["options"]["a"] = 2
    data["backbone"]["patches"]["x"]["wrap"]["params"]["reduction"] = 8
    assert recipe.options["a"] == 1 and recipe.patches[0].params["reduction"] == 4


def test_a_value_that_yaml_cannot_hold_is_a_recipe_error() -> None:
    with pytest.raises(RecipeError, match="cannot be written as YAML"):
        Recipe(backbone="r", options={"norm_layer": object()}).to_yaml()


def test_a_value_that_is_used_often_is_written_out_and_not_as_aliases(path: Path) -> None:
    shared = [1, 2]
    recipe = Recipe(backbone="r", options={f"option_{number}": shared for number in range(200)})
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe, "200 aliases would be more than a recipe may have"


def test_a_recipe_error_is_a_value_error_and_a_tvc_error() -> None:
    assert issubclass(RecipeError, ValueError) and issubclass(RecipeError, TvcError)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("|", "|"), (">", ">"), ("#1", "#1"), ("~", None), ("null", None), ("''", ""),
        ("'|'", "|"), ("3", 3), ("[1, a]", [1, "a"]), (" ", " "), ("a: b", {"a": "b"}),
    ],
)  # fmt: skip
def test_the_text_of_a_change_is_what_it_would_be_in_a_file_and_never_nothing(
    text: str, wanted: object, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text("backbone: {name: r, options: {a: 1}}")
    recipe = load_recipe(tmp_path / "r.yaml", changes={"backbone.options.a": text})
    assert recipe.options["a"] == wanted
