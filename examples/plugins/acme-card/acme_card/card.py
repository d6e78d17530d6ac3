"""What acts on the section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvc_core import Recipe, Registry

__all__ = ["Card", "card_of", "make_card", "small"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """Who made a model, and for what.

    Args:
        author: a name.
        license: an SPDX name in lower case.
        use: a sentence.
    """

    author: str
    license: str = "unknown"
    use: str = ""

    def __str__(self) -> str:
        return f"by {self.author}, license {self.license}{f': {self.use}' if self.use else ''}"


def make_card(data: Mapping[str, Any]) -> Card:
    """Return what the section says, which was held against its schema already."""
    return Card(**data)


def card_of(recipe: Recipe, registry: Registry | None = None) -> Card | None:
    """Return the card of a recipe, or of a model's (`card_of(model.recipe)`); None without one."""
    if "card" not in recipe.sections:
        return None
    card: Card = (registry or Registry()).resolve("section", "card").load()(recipe.sections["card"])
    return card


def small() -> dict[str, Any]:
    """Return a recipe to extend."""
    return {"backbone": {"name": "resnet18", "weights": None}, "head": {"dropout": 0.1}}
