"""One wrong letter anywhere in a recipe: refused at its line and column, with the right word."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_typos import COMMON, FIRST, SECOND, typos
from tvc_recipes import check_recipe

TYPOS = typos()


def test_there_are_at_least_a_hundred_typos() -> None:
    assert len(TYPOS) >= 100


@pytest.mark.parametrize("text", [FIRST, SECOND])
def test_the_recipes_without_typos_are_fine(tmp_path: Path, text: str) -> None:
    (tmp_path / "common.yaml").write_text(COMMON)
    (tmp_path / "recipe.yaml").write_text(text)
    assert check_recipe(tmp_path / "recipe.yaml") == []


def test_every_typo_is_refused_where_it_stands_with_the_right_word(tmp_path: Path) -> None:
    (tmp_path / "common.yaml").write_text(COMMON)
    path, missed = tmp_path / "recipe.yaml", []
    for text, line, column, word, wrong in TYPOS:
        path.write_text(text)
        said = [str(error) for error in check_recipe(path)]
        start = f"{path}:{line}:{column}: "
        if not any(each.startswith(start) and repr(word) in each for each in said):
            missed.append((start[len(str(path)) :], wrong, word, said))
    assert not missed, "\n".join(map(str, missed))
