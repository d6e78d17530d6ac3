"""Build arguments stand in one place: signatures, help, checks and types follow from it."""

from __future__ import annotations

import ast
import inspect
import pydoc
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import tvc_core
from tvc_core import HybridBuilder, Recipe, RecipeError, Registry
from tvc_core.recipe.arguments import BuildArguments, ModuleArguments
from tvc_core.recipe.schema import SECTIONS

CORE = Path(tvc_core.__file__).parent
LIGHT = [
    *(CORE / f"{name}.py" for name in ("__init__", "builder", "errors", "specs")),
    *(
        file
        for room in ("recipe", "registry", "written")
        for file in sorted((CORE / room).glob("*.py"))
    ),
]
DOORS = {
    "from_backbone": HybridBuilder.from_backbone,
    "from_torchvision": HybridBuilder.from_torchvision,
    "from_module": HybridBuilder.from_module,
}
OF_ALL = {
    "patches": None,
    "num_classes": None,
    "dropout": None,
    "freeze_backbone": False,
    "unfreeze_stages": None,
    "grad_checkpointing": False,
    "seed": None,
    "class_names": None,
    "hidden": None,
    "activation": None,
    "heads": None,
    "in_channels": None,
    "in_channels_policy": None,
}
OF_NAMED = {**OF_ALL, "options": None, "stages": None, "image_size": None}


@pytest.fixture(scope="module")
def alone() -> HybridBuilder:
    return HybridBuilder(registry=Registry(installed=False))


@pytest.mark.parametrize("door", DOORS)
def test_a_signature_lists_every_argument_with_type_and_default(door: str) -> None:
    parameters = inspect.signature(DOORS[door]).parameters
    expected = OF_ALL if door == "from_module" else {"weights": "DEFAULT", **OF_NAMED}
    assert {name: parameters[name].default for name in expected} == expected
    assert all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values())
    first = {"from_module": ["self", "module", "stem", "stages", "head"]}.get(
        door, ["self", "name", "weights"]
    )
    for name, parameter in parameters.items():
        by_position = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        assert by_position is (name in first)
        assert name == "self" or (isinstance(parameter.annotation, str) and parameter.annotation)
    assert parameters.get("weights", parameters["patches"]).annotation in (
        "Weights",
        "Patches | None",
    )


@pytest.mark.parametrize("door", DOORS)
def test_help_documents_every_argument(door: str) -> None:
    text = pydoc.plain(pydoc.render_doc(DOORS[door]))
    for name in [*inspect.signature(DOORS[door]).parameters][1:]:
        assert re.search(rf"^\s+{name}: \S", text, re.MULTILINE), name
    assert ("{arguments}" not in text and "position embeddings" in text) or door == "from_module"


def test_a_recipe_has_a_field_for_each_and_the_written_form_a_key() -> None:
    own = {"backbone", "name", "weights", "where", "by_code", "sections"}
    own |= {"version", "description", "requires", "max_params"}  # of what is written down only
    names = {entry.name for entry in fields(Recipe)} - own
    assert names == set(BuildArguments.__annotations__) == set(OF_NAMED)
    assert set(ModuleArguments.__annotations__) == set(OF_ALL)
    keys = [key for section in SECTIONS.values() for key in section]
    assert all(keys.count(name) == 1 for name in names)


def places(name: str) -> Counter[str]:
    """Count the names, keywords, fields and strings of that text in the half without torch."""
    found: Counter[str] = Counter()
    for file in LIGHT:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            texts = [getattr(node, key, None) for key in ("id", "attr", "arg", "value", "name")]
            found[file.name] += name in [text for text in texts if isinstance(text, str)]
    return +found


def test_an_argument_stands_in_two_places_and_where_something_acts_on_it() -> None:
    """A new one is three edits: `BuildArguments`, the field of `Recipe`, and what acts on it."""
    assert places("in_channels_policy") >= Counter({"arguments.py": 1, "schema.py": 1})
    # and in rules.py what one of several heads takes
    assert places("dropout") == {"arguments.py": 1, "schema.py": 1, "rules.py": 1}
    assert places("num_classes") >= Counter({"arguments.py": 1, "schema.py": 1})
    image_size = places("image_size")
    assert image_size.pop("plan.py") <= 2, "acts on it: an option of the factory, an error's line"
    assert image_size == {"arguments.py": 1, "schema.py": 1, "specs.py": 1}  # a default of its own


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"freez_backbone": True}, "'freez_backbone' of from_backbone. Did you mean 'freeze_back"),
        ({"num_class": 3}, "Did you mean 'num_classes'"),
        ({"pretrained": True}, "pretrained=True is weights='DEFAULT', and False is None"),
        ({"where": "x"}, "Unknown argument 'where' of from_backbone"),
        ({"backbone": "x"}, "Unknown argument 'backbone'"),
    ],
    ids=str,
)
def test_an_unknown_argument_is_named_with_near_ones(
    alone: HybridBuilder, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        alone.from_backbone("net", **given)
    assert said in str(caught.value)
    # the names that there are, where no other library's argument of this name is known
    assert "pretrained" in given or "It takes: name, weights, patches" in str(caught.value)


@pytest.mark.parametrize("name", ["weights", "options", "image_size", "min_sise"])
def test_from_module_says_what_it_does_not_take(alone: HybridBuilder, name: str) -> None:
    from torch import nn

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    before = dict(network.__dict__)
    with pytest.raises(RecipeError, match=f"Unknown argument '{name}' of from_module") as caught:
        alone.from_module(network, "0", ["1"], "3", **{name: None})
    assert ("Did you mean 'min_size'" in str(caught.value)) is (name == "min_sise")
    assert dict(network.__dict__) == before and type(network) is nn.Sequential


@pytest.mark.parametrize(
    "call",
    [
        lambda builder: builder.from_backbone("net", None, {"layer1": {"wrap": "se"}}),
        lambda builder: builder.from_torchvision("net", None, {"layer1": {"wrap": "se"}}),
        lambda builder: builder.from_module(None, "stem", ["one"], "fc", {"one": {"wrap": "se"}}),
    ],
)
def test_arguments_are_given_by_keyword(
    alone: HybridBuilder, call: Callable[[HybridBuilder], Any]
) -> None:
    with pytest.raises(TypeError, match="positional arguments"):
        call(alone)


def test_a_subclass_may_wrap_the_doors_with_a_signature_of_its_own(alone: HybridBuilder) -> None:
    class Mine(HybridBuilder):
        def from_backbone(self, name: str, *more: Any, **arguments: Any) -> Any:
            return super().from_backbone(name, *more, **arguments)

    mine = Mine(registry=alone.registry)
    with pytest.raises(tvc_core.UnknownNameError, match="Unknown backbone 'net'"):
        mine.from_backbone("net", None, num_classes=3, image_size=64)
    with pytest.raises(RecipeError, match="Did you mean 'num_classes'"):
        mine.from_backbone("net", None, num_class=3)
