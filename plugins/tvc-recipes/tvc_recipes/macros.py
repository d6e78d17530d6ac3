"""The section `macros`: values by name. Wherever a recipe says "@name", the value stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tvc_core import RecipeDocument, Registry
from tvc_core.errors import short_repr, what_there_is

__all__ = ["expand"]

MAX_VALUES = 10_000
MAX_DEPTH = 50


def expand(document: RecipeDocument, registry: Registry) -> RecipeDocument:
    """Return a recipe with the values of its macros in their places. "@@name" is the text "@name".

    Args:
        document: the recipe.
        registry: where sections are looked up; none is here.

    Raises:
        RecipeError: `macros` is no mapping, a macro that is not there, one that holds itself, or
            more values than a recipe may have.
    """
    macros, place = document.data["macros"], document.place / "macros"
    if not isinstance(macros, Mapping):
        raise place.error('macros is a mapping of names to values, such as {"attention": "se"}')
    data = {key: value for key, value in document.data.items() if key != "macros"}
    expansion = _Expansion(macros, document.place.marks)
    expanded = expansion.value(data, document.place, (), ())
    marks = None if document.place.marks is None else expansion.marks
    return replace(document, data=expanded, place=replace(document.place, marks=marks))


class _Expansion:
    def __init__(self, macros: Mapping[str, Any], marks: Mapping[Any, Any] | None) -> None:
        self.macros, self.values = macros, 0
        self.written = marks or {}
        self.marks = dict(self.written)

    def value(self, data: Any, place: Any, home: tuple[Any, ...], inside: tuple[str, ...]) -> Any:
        """Return a value with its macros expanded.

        Args:
            data: the value.
            place: where it is to stand.
            home: the path at which it is written.
            inside: the macros that led here.
        """
        self.values += 1
        if self.values > MAX_VALUES:
            raise place.error(f"its macros expand to more than {MAX_VALUES:,} values")
        if len(place.path) > MAX_DEPTH:
            raise place.error(f"its macros are nested deeper than {MAX_DEPTH} levels")
        if isinstance(data, Mapping):
            return {key: self.below(data, key, place, home, inside) for key in data}
        if isinstance(data, list):
            return [self.below(data, key, place, home, inside) for key in range(len(data))]
        if not isinstance(data, str) or not data.startswith("@"):
            return data
        if data.startswith("@@"):
            return data[1:]
        name = data[1:]
        here = replace(place, marks=self.written, path=home) if self.written else place
        if name not in self.macros:
            names = [f"@{each}" for each in self.macros]
            known = what_there_is(data, names, "The macros are:")
            raise here.error(f"there is no macro {short_repr(data)}.{known}")
        if name in inside:
            circle = " -> ".join(map(short_repr, (*inside, name)))
            raise here.error(f"the macro {short_repr(name)} holds itself: {circle}")
        home = ("macros", name)
        if home in self.written:  # an error about the value is an error in the macro
            key, _ = self.marks.get(place.path, self.written[home])
            self.marks[place.path] = (key, self.written[home][1])
        return self.value(self.macros[name], place, home, (*inside, name))

    def below(
        self, data: Any, key: Any, place: Any, home: tuple[Any, ...], inside: tuple[str, ...]
    ) -> Any:
        """Return one value of a mapping or list with its macros expanded."""
        at, place = (*home, key), place / key
        if inside and at in self.written:
            self.marks[place.path] = self.written[at]
        return self.value(data[key], place, at, inside)
