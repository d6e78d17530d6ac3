"""A recipe as data with the place of each value, before its keys are looked at: what is changed by
a dotted path, put together from several files, and claimed by plugins, is that here.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from ..advice import hints
from ..errors import RecipeError, UnknownNameError, foreign, short_repr
from ..registry import Named, Registry
from ..written.place import Place, keys_of, written

__all__ = ["RecipeDocument"]

SECTION = "section"
"""The kind of what plugins claim of a recipe; tvc-recipes defines it."""


@dataclass(frozen=True, kw_only=True)
class RecipeDocument:
    """A recipe as data.

    Args:
        data: what stands there, plain data.
        place: where it stands; what errors about a value begin with, by `place / key`.
        by_code: arguments that a program has put in place of the recipe's.
    """

    data: Any
    place: Place = field(default=Place("recipe"))
    by_code: frozenset[str] = frozenset()

    @staticmethod
    def read(path: str | Path | IO[bytes]) -> RecipeDocument:
        """Read a YAML file, or one that is open.

        Raises:
            RecipeError: it cannot be read, is not YAML, or exceeds a limit; the message names file,
                line and column.
        """
        from ..written.yaml_text import read_yaml  # PyYAML is a fifth of what listing names takes

        data, place = read_yaml(path)
        return RecipeDocument(data=data, place=place)

    @staticmethod
    def parse(text: str, name: str = "recipe") -> RecipeDocument:
        """Read YAML text; `name` is what errors call it.

        Raises:
            RecipeError: as for `read`.
        """
        from ..written.yaml_text import parse_yaml  # see read

        data, place = parse_yaml(text, name)
        return RecipeDocument(data=data, place=place)

    def with_value(self, path: str, value: Any) -> RecipeDocument:
        """Return the recipe with another value at a path, which need not be there yet.

        Args:
            path: as errors show it: "head.num_classes", "backbone.patches['layer3.0'].wrap",
                "heads.age[0]".
            value: plain data.

        Raises:
            RecipeError: the path is not of this form, or leads through what has no keys.
        """
        keys = keys_of(path)
        data = _put(self.data, keys, value, path, ())
        marks = self.place.marks
        if marks is not None:  # what stood there is gone, and its places with it
            marks = {p: both for p, both in marks.items() if p[: len(keys)] != keys}
        return replace(self, data=data, place=replace(self.place, marks=marks))

    def expanded(self, registry: Registry | None = None) -> RecipeDocument:
        """Return what is left after every section that stands for other text, such as `extends`,
        has put that in its place.

        Args:
            registry: where sections are looked up; by default what is installed.

        Raises:
            RecipeError: what a section says is wrong.
        """
        document, registry = self, registry or Registry()
        for offer in _sections(registry):
            name = offer.spec.name
            if getattr(offer.spec, "expands", False):
                expand = offer.load()  # all of them, so that no recipe decides what is imported
                if isinstance(document.data, Mapping) and name in document.data:
                    with foreign(RecipeError, f"{document.place / name}: {offer.qualified} fails"):
                        document = expand(document, registry=registry)
        return document


def _put(data: Any, keys: tuple[Any, ...], value: Any, path: str, above: tuple[Any, ...]) -> Any:
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(data, list) and isinstance(key, int):
        if key >= len(data):
            raise RecipeError(f"{path}: {written(above)} has {len(data)} items, counted from 0")
        return [*data[:key], _put(data[key], rest, value, path, (*above, key)), *data[key + 1 :]]
    if data is None:
        data = {}
    if above == ("backbone",) and isinstance(data, str):  # its short form
        data = {"name": data}
    if not isinstance(data, Mapping) or isinstance(key, int):
        what = f"{written(above)} is {short_repr(data)}" if above else f"it is {short_repr(data)}"
        raise RecipeError(f"{path} cannot be set: {what}, which has no {key!r}")
    return {**data, key: _put(data.get(key), rest, value, path, (*above, key))}


# -- sections of plugins ---------------------------------------------------------------------------


def claimed(
    data: Mapping[str, Any], place: Place, registry: Registry | None
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Return the sections of a recipe that installed plugins claim, each as its plugin reads it;
    what to do about the keys that no one claims, as far as that is known; and the names of all
    sections.

    Args:
        data: what of the recipe is not the core's.
        place: where the recipe stands.
        registry: where sections are looked up; by default what is installed.

    Raises:
        RecipeError: what a section says is wrong.
    """
    if not data:  # most recipes, for which no plugin need be looked at
        return {}, {}, []
    registry = registry or Registry()
    known = [offer.spec.name for offer in _sections(registry)]
    installed = {info.owner for info in registry.plugins}
    found: dict[str, Any] = {}
    unclaimed: dict[str, str] = {}
    for name in data:
        if name in known:
            offer: Named[Any] = registry.resolve(SECTION, name)
            with foreign(RecipeError, f"{place / name}: the section cannot be read"):
                found[name] = offer.spec.read(data[name], place / name)
        elif isinstance(name, str) and (provider := hints.table(SECTION).get(name)):
            state = f"which is not {'active' if provider in installed else 'installed'}"
            unclaimed[name] = f"It is a section of {provider}, {state}: pip install {provider}"
    return found, unclaimed, known


def _sections(registry: Registry) -> list[Named[Any]]:
    with suppress(UnknownNameError):  # tvc-recipes is not installed
        return registry.all(SECTION)
    return []
