"""The section `macros`: values by name. Wherever a recipe says "@name", the value stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from tvc_core import RecipeDocument

__all__ = ["expand"]

MAX_VALUES = 10_000
MAX_DEPTH = 50


def expand(document: RecipeDocument) -> RecipeDocument:
    """Return a recipe with the values of its macros in their places. "@@name" is the text "@name".

    Raises:
        RecipeError: `macros` is no mapping, a macro that is not there, one that holds itself, or
            more values than a recipe may have.
    """
    macros, place = document.data["macros"], document.place / "macros"
    if not isinstance(macros, Mapping):
        raise place.error('macros is a mapping of names to values, such as {"attention": "se"}')
    data = {key: value for key, value in document.data.items() if key != "macros"}
    return replace(document, data=_Expansion(macros).value(data, document.place, ()))


class _Expansion:
    def __init__(self, macros: Mapping[str, Any]) -> None:
        self.macros, self.values = macros, 0

    def value(self, data: Any, place: Any, inside: tuple[str, ...]) -> Any:
        """Return a value with its macros expanded.

        Args:
            data: the value.
            place: where it stands.
            inside: the macros that led here.
        """
        self.values += 1
        if self.values > MAX_VALUES:
            raise place.error(f"its macros expand to more than {MAX_VALUES:,} values")
        if len(place.path) > MAX_DEPTH:
            raise place.error(f"its macros are nested deeper than {MAX_DEPTH} levels")
        if isinstance(data, Mapping):
            return {key: self.value(each, place / key, inside) for key, each in data.items()}
        if isinstance(data, list):
            return [self.value(each, place / index, inside) for index, each in enumerate(data)]
        if not isinstance(data, str) or not data.startswith("@"):
            return data
        if data.startswith("@@"):
            return data[1:]
        name = data[1:]
        if name not in self.macros:
            near = get_close_matches(name, self.macros, n=1)
            hint = f" Did you mean '@{near[0]}'?" if near else ""
            names = ", ".join(list(self.macros)[:12]) or "none"
            raise place.error(f"there is no macro {name[:60]!r}.{hint} The macros are {names}")
        if name in inside:
            raise place.error(f"the macro {name!r} holds itself: {' -> '.join((*inside, name))}")
        return self.value(self.macros[name], place, (*inside, name))
