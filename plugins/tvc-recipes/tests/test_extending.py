"""`extends` and `macros`: what they put together, and what they refuse to open."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tvc_recipes import TemplateSpec

from tvc_core import LocalPlugin, RecipeError, Registry, load_recipe

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write files by their names ("a__b" is a/b.yaml); return the path of the first."""

    def write(**files: str) -> Path:
        paths = [tmp_path / f"{name.replace('__', '/')}.yaml" for name in files]
        for path, text in zip(paths, files.values(), strict=True):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return paths[0]

    return write


def refused(path: Path) -> str:
    start = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert time.monotonic() - start < 2 + 10  # a loaded machine; what would hang never comes back
    return str(caught.value).replace(f"{path.parent}/", "")


def test_later_sources_win_key_by_key_and_the_recipe_last(write: Write) -> None:
    recipe = load_recipe(
        write(
            recipe="extends: [a.yaml, sub/b.yaml]\nhead: {dropout: 0.5}\n"
            "backbone: {patches: {layer1: null, layer3: {wrap: eca}}}",
            a="backbone: {name: resnet18, weights: null, patches: {layer1: {wrap: se}, "
            "layer2: {wrap: se}}}\nhead: {num_classes: 3, dropout: 0.1}",
            sub__b="backbone: resnet34\nseed: 3",
        )
    )
    assert (recipe.backbone, recipe.weights, recipe.seed) == ("resnet34", None, 3)
    assert (recipe.num_classes, recipe.dropout) == (3, 0.5)
    assert [(each.target, each.block) for each in recipe.patches] == [
        ("layer2", "se"),
        ("layer3", "eca"),
    ]


def test_a_diamond_is_read_once(write: Write) -> None:
    path = write(
        recipe="extends: [a.yaml, b.yaml]",
        a="extends: base.yaml\nseed: 1",
        b="extends: base.yaml\nhead: {num_classes: 3}",
        base="backbone: resnet18\nseed: 5",
    )
    recipe = load_recipe(path)
    assert (recipe.backbone, recipe.seed, recipe.num_classes) == ("resnet18", 5, 3)


@pytest.mark.parametrize("named", ["own.pth", "own.pth#model_ema", "./own#model_ema", "o#n.pth"])
def test_a_file_of_weights_is_beside_the_recipe_that_names_it(write: Write, named: str) -> None:
    base = f"backbone: {{name: resnet18, weights: '{named}'}}"
    path = write(recipe="extends: sub/base.yaml", sub__base=base)
    assert load_recipe(path).weights == f"sub/{named.removeprefix('./')}"


def test_a_patch_that_is_not_inherited_cannot_be_taken_away(write: Write) -> None:
    base = "backbone: {name: resnet18, weights: null, patches: {layer2: {wrap: se}}}"
    path = write(recipe="extends: base.yaml\nbackbone:\n  patches:\n    layer22: null\n", base=base)
    said = refused(path)
    assert said.startswith("recipe.yaml:4:14: backbone.patches.layer22: null takes"), said
    assert "none is inherited there. Did you mean 'layer2'?" in said


def test_the_order_of_changes_decides_nothing(write: Write) -> None:
    """Also where one of them goes into a list, for which macros have to be in their places."""
    path = write(
        recipe="extends: base.yaml\nmacros: {p: 0.1}\nhead: {num_classes: 3, hidden: [8, 16]}",
        base="backbone: {name: resnet18, weights: null, patches: {layer1: {wrap: se}}}",
    )
    changes = {
        "head.hidden[0]": 4, "head.dropout": "@p", "macros.p": 0.5, "backbone.patches.layer1": None,
    }  # fmt: skip
    for order in itertools.permutations(changes.items()):
        recipe = load_recipe(path, changes=dict(order))
        assert (list(recipe.hidden or ()), recipe.dropout, recipe.patches) == ([4, 16], 0.5, ())


def test_an_error_is_where_the_value_stands_in_whichever_file(write: Write) -> None:
    said = refused(
        write(
            recipe="extends: base.yaml\nhead: {num_classes: 3}",
            base="backbone: resnet18\nhead:\n  dropout: 2\n",
        )
    )
    assert said.startswith("base.yaml:3:12: head.dropout: dropout is a probability")


def test_an_error_in_a_macro_is_where_the_macro_is(write: Write) -> None:
    text = "macros:\n  many: [x, -2]\nbackbone: resnet18\nhead: {hidden: '@many'}\n"
    assert refused(write(recipe=text)).startswith("recipe.yaml:2:9: head.hidden: hidden is a list")


OUTSIDE = "is outside of the recipe's folder"
REFUSED = {
    "a file above": ("../other.yaml", OUTSIDE),
    "an absolute path": ("/etc/x.yaml", OUTSIDE),
    "a link to a file above": ("outside.yaml", OUTSIDE),
    "a link to a device": ("zero.yaml", OUTSIDE),
    "a pipe": ("pipe.yaml", "is not a regular file"),
    "a folder": ("folder.yaml", "is not a regular file"),
    "a file that is not there": ("bse.yaml", "Did you mean 'base.yaml'"),
    "a name without its suffix": ("base", "Did you mean 'base.yaml'?"),
    "itself": ("recipe.yaml", "in a circle: recipe.yaml -> recipe.yaml"),
    "a circle": ("circle.yaml", "in a circle: recipe.yaml -> circle.yaml -> recipe.yaml"),
    "a name with NUL": ('"a\\0.yaml"', "cannot be followed"),
    "an address": ("https://example.org/a.yaml", "recipes extend no addresses"),
    "a path of Windows": ("sub\\a.yaml", "written with / between them"),
    "a number": ("3", "extends is a file, a template, or a list"),
    "an empty list": ("[]", "extends is a file, a template, or a list"),
    "no recipe": ("list.yaml", "is a mapping"),
    "a large file": ("large.yaml", "is larger than the 1,000,000 bytes"),
    "a template that no plugin offers": ("acme:nobody", "Unknown template 'acme:nobody'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(write: Write, tmp_path: Path, case: str) -> None:
    name, said = REFUSED[case]
    folder = tmp_path / "inside"
    write(
        other="backbone: resnet18",
        inside__base="backbone: resnet18",
        inside__circle="extends: recipe.yaml",
        inside__list="- 1",
        inside__large="#" * 1_000_001,
    )
    (folder / "outside.yaml").symlink_to(tmp_path / "other.yaml")
    (folder / "zero.yaml").symlink_to("/dev/zero")
    (folder / "folder.yaml").mkdir()
    os.mkfifo(folder / "pipe.yaml")
    path = folder / "recipe.yaml"
    path.write_text(f"seed: 1\nextends: {name}\nbackbone: resnet18\n")
    message = refused(path)
    assert said in message
    assert message.startswith(("recipe.yaml:2:", "circle.yaml:1:", "list.yaml:1:1"))


def test_an_error_never_repeats_a_file_that_is_no_recipe(write: Write, tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text("root:x:0:0:secret-words:/root:/bin/bash\n" * 30)
    assert "secret-words" not in refused(write(recipe="extends: secret.yaml"))


def test_a_long_chain_is_refused(write: Write) -> None:
    files = {f"r{n}": f"extends: r{n + 1}.yaml" for n in range(40)}
    assert "more than 10 recipes extend one another" in refused(write(**files))


def test_many_files_are_refused(write: Write) -> None:
    files = {f"b{n}": "seed: 1" for n in range(60)}
    names = ", ".join(f"{name}.yaml" for name in files)
    path = write(recipe=f"extends: [{names}]\nbackbone: resnet18", **files)
    assert "extends more than 50 files" in refused(path)


MACROS = {
    "itself": ("{a: '@a'}", "'@a'", "holds itself"),
    "two that hold each other": ("{a: ['@b'], b: ['@a']}", "'@a'", "holds itself"),
    "a misspelt one": ("{attention: se}", "'@attentoin'", "Did you mean '@attention'?"),
    "no mapping": ("[a]", "'@a'", "macros is a mapping"),
    "a bomb": (
        "{a0: x, " + ", ".join(f"a{n}: {[f'@a{n - 1}'] * 9}" for n in range(1, 9)) + "}",
        "'@a8'",
        "expand to more than 10,000 values",
    ),
}


@pytest.mark.parametrize("case", MACROS)
def test_macros_that_are_refused(write: Write, case: str) -> None:
    macros, use, said = MACROS[case]
    text = f"macros: {macros}\nbackbone: {{name: resnet18, options: {{a: {use}}}}}\n"
    assert said in refused(write(recipe=text))


def test_two_signs_are_the_text_itself(write: Write) -> None:
    text = "macros: {a: 3}\nname: '@@a'\nbackbone: resnet18\nhead: {num_classes: '@a'}"
    recipe = load_recipe(write(recipe=text))
    assert (recipe.name, recipe.num_classes) == ("@a", 3)


def test_a_template_of_a_plugin_is_extended_by_its_name(write: Write) -> None:
    def small() -> dict[str, object]:
        return {"backbone": {"name": "resnet18", "weights": None}, "head": {"num_classes": 2}}

    plugin = LocalPlugin("acme-templates")
    plugin.offer(TemplateSpec, name="small", summary="A small one.")(small)
    path = write(recipe="extends: small\nhead: {dropout: 0.1}")
    recipe = load_recipe(path, registry=Registry([plugin]))
    assert (recipe.backbone, recipe.num_classes, recipe.dropout) == ("resnet18", 2, 0.1)
