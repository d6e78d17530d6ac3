"""--set PATH=VALUE is there wherever a recipe is taken, and means the same."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tvc_cli.group import tvc

from tvc_core import Recipe, RecipeError, read_changes

TAKES_NO_RECIPE = {
    "check": "a plugin",
    "doctor": "nothing",
    "fmt": "the text of recipes, whose values stay",
    "init": "a backbone",
    "list": "a kind",
    "new-plugin": "the name of a plugin",
    "plugins": "nothing",
    "predict": "a saved model and photos",
    "pull": "a repository",
    "push": "a saved model",
    "schema": "nothing",
    "show": "one name, or a file of weights",
}
"""What the other commands take."""

ARGUMENTS = {
    "average": ["a.safetensors", "b.safetensors", "--out", "c.safetensors", "--data", "r.yaml"],
    "bench": ["r.yaml"],
    "build": ["r.yaml"],
    "cam": ["r.yaml", "photo.jpg", "--out", "map.png"],
    "data": ["r.yaml"],
    "diff": ["r.yaml"],
    "evaluate": ["a.safetensors", "r.yaml"],
    "export": ["r.yaml", "--format", "pt2", "--out", "a.pt2"],
    "inspect": ["r.yaml", "--json"],
    "lock": ["r.yaml"],
    "train": ["r.yaml"],
    "tune": ["r.yaml"],
    "validate": ["r.yaml"],
    "verify": ["a.pt2", "--model", "r.yaml"],
}
"""What those take that can be given a recipe."""


def commands() -> dict[str, click.Command]:
    context = click.Context(tvc)
    found = {name: tvc.get_command(context, name) for name in tvc.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def test_every_command_says_whether_it_takes_a_recipe() -> None:
    ours = {name for name in commands() if not name.startswith("acme")}
    assert ours == TAKES_NO_RECIPE.keys() | ARGUMENTS.keys()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_command_that_takes_a_recipe_takes_changes_of_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("backbone: {name: resnet18, weights: null}\n")
    Path("photo.jpg").write_bytes(b"no photo")
    options = {word for each in commands()[name].params for word in each.opts}
    assert "--set" in options
    for given in (["head.num_classes"], ["=5"], ["seed=1", "--set", "seed=2"]):
        done = CliRunner().invoke(tvc, [name, *ARGUMENTS[name], "--set", *given])
        assert done.exit_code == 1 and "Traceback" not in done.output, (given, done.output)
        said = "given twice" if len(given) > 1 else "is not of the form"
        assert said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("name", sorted({*ARGUMENTS} - {"average", "cam", "evaluate", "verify"}))
def test_a_wrong_key_among_the_changes_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("backbone: {name: resnet18, weights: null}\n")
    done = CliRunner().invoke(tvc, [name, *ARGUMENTS[name], "--set", "head.num_clases=5"])
    assert done.exit_code == 1 and "num_classes" in done.stderr, done.output
    assert "Traceback" not in done.output and list(tmp_path.iterdir()) == [tmp_path / "r.yaml"]


def test_a_value_keeps_all_after_the_first_equals_sign() -> None:
    texts = ["description=a = b", "name=", " seed =1", "backbone.patches['layer3.0'].wrap=se"]
    assert read_changes(texts) == {
        "description": "a = b",
        "name": "",
        "seed": "1",
        "backbone.patches['layer3.0'].wrap": "se",
    }


@pytest.mark.parametrize("texts", [["seed"], ["=1"], [" =1"], [""], ["seed=1", "seed=1"]])
def test_what_is_no_change_is_refused(texts: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"is not of the form a=b|is given twice"):
        read_changes(texts, like="a=b")


def test_short_and_long_form_of_a_path_exclude_each_other() -> None:
    from tvc_core import RecipeDocument

    document = RecipeDocument.parse("backbone: resnet18")
    for changes in ({"num_classes": 3, "head.num_classes": 4}, {"head.dropout": 0, "dropout": 1}):
        with pytest.raises(RecipeError, match="and both are given"):
            Recipe.changed_document(document, changes)
