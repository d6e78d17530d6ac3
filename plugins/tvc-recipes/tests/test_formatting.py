"""`tvc fmt`: nothing changes but the layout, and twice is once. The core reads YAML 1.1 with
PyYAML, ruamel.yaml lays out YAML 1.2.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from click.testing import CliRunner
from tvc_recipes import format_recipe
from tvc_recipes.commands import fmt_command
from tvc_recipes.starting import first_recipe

from tvc_core import RecipeDocument, RecipeError

VALUES = {
    "name": ["x", "'yes'", "'a: b'", "1e1x", "|\n  block # not\n  text", "'# no'"],
    "seed": ["0", "7", "1_000"],
    "freeze_backbone": ["true", "yes", "on", "off"],
    "description": [
        ">-\n  folded\n   # keeps\n  text",
        '"\\u00e9 a"',
        "plain é text",
        '"one\n\n  two # three"',
        "'it''s'",
        "0o17",
        "''",
    ],
    "unfreeze_stages": ["[1, layer4]", "\n- 1\n- layer4", "\n  - 1\n  # c\n  - 2"],
    "head": [
        "{num_classes: 3}",
        "\n    dropout: .5\n    # n\n    num_classes: +5  # five\n",
        "\n  class_names: [a, \"no\", 'null']\n  dropout: 1e-1",
        "~",
        "",
    ],
    "macros": ["{a: '@b', b: [1, 0.1e1]}", "\n  a:\n  - se\n  -   eca # last\n"],
    "backbone": [
        "resnet18",
        "{name: resnet50, weights: null}",
        "\n  weights:\n  name: resnet18",
        "\n   patches:\n     layer3.0: &p {wrap: se}\n     'layer4.*': *p\n   name: r",
        "\n  patches:\n    layer1:\n    - wrap: se   # first\n    - wrap:\n        params: "
        "{reduction: 0.5e1}\n        type: se\n  # the name\n  name: r\n  weights: ~",
    ],
}
COMMENTS = ("# top", "# end", "# about", "# first", "# the name", "# five", "# n\n", "# last")


def generated(seed: int) -> str:
    """Return the text of a recipe, with comments, blank lines and the keys in any order."""
    rng = random.Random(seed)
    keys = rng.sample([*VALUES], rng.randint(1, len(VALUES)))
    text = rng.choice(["", "# top\n", "# top\n\n", "\n\n", "---\n"])
    for key in keys:
        text += rng.choice(["", f"# about {key}\n", "\n", "\n# x\n# y\n"])
        text += f"{key}: {rng.choice(VALUES[key])}".rstrip(" ") + rng.choice(["\n", "\n\n"])
    return text + rng.choice(["", "# end\n"])


def check(text: str) -> None:
    laid_out = format_recipe(text)
    assert RecipeDocument.parse(laid_out).data == RecipeDocument.parse(text).data
    assert format_recipe(laid_out) == laid_out
    for comment in COMMENTS:
        assert laid_out.count(comment.strip()) == text.count(comment.strip())


@pytest.mark.parametrize("start", range(0, 100, 25))
def test_100_recipes_read_the_same_and_keep_their_comments(start: int) -> None:
    for seed in range(start, start + 25):
        check(generated(seed))


@pytest.mark.sweep
def test_2000_recipes_read_the_same_and_keep_their_comments() -> None:
    for seed in range(2000):
        check(generated(seed))


def test_keys_stand_in_the_order_of_the_reference_with_their_comments() -> None:
    text = """\
# all of it
head:
    dropout: 0.1   # little
    num_classes: 3
# what it starts from
backbone:
  weights: null
  name: resnet18
name: x
"""
    assert (
        format_recipe(text)
        == """\
# all of it
name: x
# what it starts from
backbone:
  name: resnet18
  weights: null
head:
  num_classes: 3
  dropout: 0.1     # little
"""
    )


def test_a_comment_at_the_end_of_a_block_stays_in_it() -> None:
    text = """\
data:
    path: photos
    # size: 32
backbone:
    name: resnet18
    patches:
        layer3:
        - wrap: se
        # - wrap: eca
        #   # first
    # weights: null
# the end
"""
    laid_out = """\
backbone:
  name: resnet18
  patches:
    layer3:
      - wrap: se
      # - wrap: eca
      #   # first
  # weights: null
# the end
data:
  path: photos
  # size: 32
"""
    assert format_recipe(text) == laid_out
    assert format_recipe(laid_out) == laid_out


@pytest.mark.parametrize("backbone", ["resnet18", "vgg11"])
def test_a_first_recipe_is_in_its_canonical_form(backbone: str) -> None:
    text = first_recipe(backbone)
    assert format_recipe(text) == text


def test_windows_line_ends_become_plain_ones() -> None:
    assert format_recipe("name: x\r\nbackbone: r\r\n") == "name: x\nbackbone: r\n"


@pytest.mark.parametrize("text", ["a: [", "", "a: 1\na: 2", "a: !!python/name:os.system x"])
def test_what_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        format_recipe(text)


@pytest.mark.parametrize("text", ["hello", "- a\n- b\n", "3"])
def test_yaml_that_is_no_recipe_stays_as_it_is(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(text)
    found = CliRunner().invoke(fmt_command, [str(path)])
    assert "a recipe is a mapping of keys to values" in str(found.exception)
    assert path.read_text() == text


def test_the_file_of_a_model_is_known_for_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = b'{"__metadata__": {"tvc": "{}"}, "tvc": {}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\xc0\xff")
    found = CliRunner().invoke(fmt_command, [str(path)])
    assert "not a recipe. It is a saved model" in str(found.exception)


def test_a_recipe_is_not_lost_where_there_is_no_room(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.yaml"
    text = f"head: {{num_classes: 5}}\nbackbone: resnet18\ndescription: {'x' * 5000}\n"
    path.write_text(text)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        found = CliRunner().invoke(fmt_command, [str(path)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(found.exception, RecipeError)
    assert "cannot be written: File too large" in str(found.exception)
    assert path.read_text() == text
    assert [each.name for each in tmp_path.iterdir()] == ["a.yaml"]
