"""The schema that editors read, by validators that know nothing of tvc."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from recipe_mutants import VALID
from recipe_typos import COMMON, FIRST, SECOND, typos
from tvc_recipes import TemplateSpec, recipe_schema

from tvc_core import LocalPlugin, Recipe, RecipeError, Registry


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = recipe_schema()
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


@pytest.mark.parametrize("text", [FIRST, SECOND, COMMON, *VALID])
def test_valid_recipes_pass(validator: Any, text: str) -> None:
    assert [error.message[:300] for error in validator.iter_errors(yaml.safe_load(text))] == []


def test_every_typo_fails_but_in_what_a_recipe_names_itself(validator: Any) -> None:
    passed = []
    for text, line, _, word, wrong in typos():
        in_macro = "attention: {" in text.splitlines()[line - 1]  # may hold anything
        own = in_macro or word in ("@attention", "common.yaml", "macros")
        if not own and validator.is_valid(yaml.safe_load(text)):
            passed.append((line, wrong))
    assert passed == []


def test_the_command_check_jsonschema_agrees(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(recipe_schema()), encoding="utf-8")
    valid = [text for text in VALID if ": yes" not in text]  # a word in YAML 1.2, as editors read
    texts = {"valid": [FIRST, SECOND, COMMON, *valid], "typo": [typo[0] for typo in typos()]}
    for name, each in texts.items():
        for count, text in enumerate(each):
            (tmp_path / f"{name}{count:03}.yaml").write_text(text, encoding="utf-8")

    def check(pattern: str) -> list[str]:
        command = [Path(sys.executable).parent / "check-jsonschema", "--schemafile", schema]
        files = sorted(tmp_path.glob(pattern))
        done = subprocess.run(
            [*command, "--output-format", "json", *files], capture_output=True, text=True
        )
        return [Path(error["filename"]).name for error in json.loads(done.stdout)["errors"]]

    assert check("valid*.yaml") == []
    assert len(set(check("typo*.yaml"))) > 0.8 * len(texts["typo"])


def test_null_is_right_where_the_loader_takes_it_and_wrong_elsewhere(validator: Any) -> None:
    first: dict[str, Any] = yaml.safe_load(FIRST)
    first["head"]["heads"] = {"age": {"num_classes": 1, "hidden": [8], "activation": "gelu"}}
    keys = [
        *((key,) for key in first),
        *(("head", key) for key in first["head"]),
        *(("freeze_backbone", key) for key in first["freeze_backbone"]),
        *(("head", "heads", "age", key) for key in first["head"]["heads"]["age"]),
    ]
    for path in keys:
        data = {"backbone": copy.deepcopy(first["backbone"]), "head": {"hidden": [8]}}
        above: Any = data
        for key in path[:-1]:
            above = above.setdefault(key, {"num_classes": 1} if key == "age" else {})
        above[path[-1]] = None
        if "activation" in path:
            above["hidden"] = [8]
        try:
            Recipe.from_mapping(data)
            takes = True
        except RecipeError:
            takes = False
        assert validator.is_valid(data) == takes, (path, takes)


@pytest.mark.parametrize(
    "text",
    [
        "backbone: {name: resnet18, patches: {layer1: {wrap: {type: se, params: {reduction: x}}}}}",
        "backbone: {name: resnet18, patches: {layer1: {wrap: {params: {reduction: 4}}}}}",
        "backbone: {name: resnet18, weights: IMAGENET1K_V3}",
        "backbone: resnet18\nhead: {num_classes: -1}",
        "backbone: resnet18\nfreeze_backbone: {head: some}",
        "backbone: resnet18\nseed: true",
        "head: {num_classes: 3}",
    ],
)
def test_wrong_values_fail(validator: Any, text: str) -> None:
    assert not validator.is_valid(yaml.safe_load(text))


def test_a_new_plugins_block_stands_in_the_schema_with_its_parameters(tmp_path: Path) -> None:
    """The plugin is installed, as far as Python can tell, and nothing of it is imported."""
    info = tmp_path / "acme_new-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-new\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tvc.plugins]\nacme-new = acme_new_plugin\n")
    (tmp_path / "acme_new_plugin.py").write_text(
        "from tvc_core import BlockSpec, hookimpl\n"
        "TVC_API = (1, 0)\n"
        "@hookimpl\n"
        "def tvc_blocks():\n"
        "    return [BlockSpec(name='shiny', factory='acme_new_block:Shiny', summary='New.')]\n"
    )
    (tmp_path / "acme_new_block.py").write_text(
        "raise SystemExit('imported')\n"
        "class Shiny:\n"
        "    def __init__(self, in_channels: int, size: int, mode: str = 'a'): ...\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from tvc_recipes.commands import schema_command; schema_command.main([])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    validator = Draft7Validator(json.loads(done.stdout))
    write = "backbone: {{name: resnet18, patches: {{layer1: {{wrap: {}}}}}}}"

    def fits(patch: str) -> bool:
        return validator.is_valid(yaml.safe_load(write.format(patch)))

    assert fits("{type: acme-new:shiny, params: {size: 3, mode: b}}")
    assert not fits("{type: shiny, params: {mode: b}}")  # which lacks the size
    assert not fits("{type: shiny, params: {size: big}}")


def test_a_registrys_own_names_are_all_that_its_schema_has() -> None:
    plugin = LocalPlugin("acme-own")
    registry = Registry([plugin], installed=False)
    names = recipe_schema(registry)["definitions"]["block"]["anyOf"][0]["enum"]
    assert names == []


NAMES = {
    "extends: base.yaml": True,
    "extends: [acme:head, sub/base.yml]": True,
    "extends: head": True,
    "extends: haed": False,
    "extends: [base]": False,
    "extends: []": False,
    "extends:": False,
    "backbone: resnet18\ntraining: {methods: [soup, {l2_sp: {}}, 'tvc-train:fixres']}": True,
    "backbone: resnet18\ntraining: {methods: [suop]}": False,
    "backbone: resnet18\ntraining: {methods: [soup, {l2_ps: {}}]}": False,
    "backbone: resnet18\nlock: {plugins: {tvc-core: '1'}}": True,
    "backbone: resnet18\nlock: {plugns: {tvc-core: '1'}}": False,
    "backbone: resnet18\nseed: -1": False,
    "backbone: resnet18\nmax_params: 0": False,
    "backbone: resnet18\nhead: {class_names: [a, a]}": False,
    "backbone: {name: resnet18, patches: {a: {wrap: {type: se, params: null, init: null}}}}": True,
    "backbone: {name: resnet18, patches: {a: {wrap: {type: se, name: a.b}}}}": False,
}


def test_names_of_every_kind_and_bounds_are_in_the_schema() -> None:
    plugin = LocalPlugin("acme")
    plugin.add(TemplateSpec(name="head", factory=dict, summary="A head."))
    validator = Draft7Validator(recipe_schema(Registry([plugin])))
    found = {text: validator.is_valid(yaml.safe_load(text)) for text in NAMES}
    assert found == NAMES
