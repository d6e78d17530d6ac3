"""The section card: by the conformance kit, in recipes, in models, in the schema."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import acme_card.plugin
import pytest
from acme_card import Card, card_of
from tvc_recipes import check_recipe, recipe_schema

from tvc_core import HybridBuilder, RecipeError, Registry, load_recipe
from tvc_core.testing import parametrize_with_checks


@parametrize_with_checks("acme_card.plugin")
def test_conformance(check: Callable[[], None]) -> None:
    check()


@pytest.fixture
def registry() -> Registry:
    is_installed = any(info.owner == "acme-card" for info in Registry().plugins)
    return Registry() if is_installed else Registry([acme_card.plugin])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("extends: small\nhead: {num_classes: 3}\ncard: {author: Ada, license: mit}\n")
    return path


def test_a_model_keeps_the_card_of_its_recipe(path: Path, registry: Registry) -> None:
    pytest.importorskip("tvc_resnet", reason="the template's backbone is tvc-resnet's")
    model = HybridBuilder(registry=registry).build(path)
    assert card_of(model.recipe, registry) == Card(author="Ada", license="mit")
    assert model.num_classes == 3


def test_a_wrong_card_is_refused_at_its_place(path: Path, registry: Registry) -> None:
    path.write_text(path.read_text().replace("author", "auhtor"))
    with pytest.raises(RecipeError, match=r"recipe.yaml:3:8: card.auhtor: .*mean 'author'"):
        load_recipe(path, registry=registry)
    assert "Did you mean 'author'" in str(check_recipe(path, registry=registry)[0])


def test_without_the_plugin_the_key_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if any(info.owner == "acme-card" for info in Registry().plugins):
        monkeypatch.setenv("TVC_DISABLE", "acme-card")
    path.write_text("backbone: resnet18\ncard: {author: Ada}\n")
    with pytest.raises(RecipeError, match=r"recipe.yaml:2:1: card: unknown key 'card'"):
        load_recipe(path)


def test_editors_know_the_card(registry: Registry) -> None:
    card = recipe_schema(registry)["properties"]["card"]
    assert "apache-2.0" in card["properties"]["license"]["enum"]
