"""The section card of recipes: who made a model, and for what."""

from __future__ import annotations

from .card import Card, card_of

__all__ = ["Card", "card_of"]
