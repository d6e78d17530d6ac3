"""Where something stands in what the user wrote: what an error about it begins with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..advice import words
from ..errors import RecipeError, TvcError, join_names, short_repr, what_there_is

__all__ = ["Mark", "Marks", "Place", "written"]


@dataclass(frozen=True)
class Mark:
    """Where something begins in a text: "recipe.yaml:7:3".

    Args:
        source: the file.
        line, column: counted from 1; None where they are not known.
    """

    source: str
    line: int | None = None
    column: int = 1

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"


Marks = Mapping[tuple[Any, ...], tuple[Mark, Mark]]
"""Where each value of a file stands, by its path: its key (of an item of a list, itself) and what
an error about it points at.
"""


@dataclass(frozen=True)
class Place:
    """A place in what the user wrote. Its text is file, line, column and path, or the path in a
    mapping.

    Args:
        source: the file, or what else the recipe came as.
        path: the keys that lead there.
        marks: of a file, where each value stands; several files may have been put together.
        of_key: the last key itself, not its value.
        note: which of several things that are meant by it, as errors say it.
    """

    source: str
    path: tuple[Any, ...] = ()
    marks: Marks | None = None
    of_key: bool = False
    note: str = ""

    def __truediv__(self, key: Any) -> Place:
        return replace(self, path=(*self.path, key), of_key=False)

    def down(self, *keys: Any) -> Place:
        """Return the place of what is written below this one as these keys; where a file has it in
        a short form, this place itself.
        """
        place = self
        for key in keys:
            below = place / key
            place = below if self.marks is None or below.path in self.marks else place
        return place

    @property
    def key(self) -> Place:
        """The place of the last key itself."""
        return replace(self, of_key=True)

    @property
    def mark(self) -> Mark:
        """Where it stands in a file; of a value that was left out, what it belongs to."""
        path, marks = self.path, self.marks or {}
        while path and path not in marks:
            path = path[:-1]
        found = marks.get(path)
        return Mark(self.source) if found is None else found[0 if self.of_key else 1]

    def __str__(self) -> str:
        path = written(self.path)
        if self.marks is None:
            start = f"{self.source}, {path}" if path else self.source
        else:
            start = f"{self.mark}: {path}" if path else str(self.mark)
        return f"{start}: {self.note}" if self.note else start

    def __reduce__(self) -> tuple[Any, ...]:
        return Place, (str(self),)  # a model's pickle need not hold the marks of a file

    def error(self, message: str) -> RecipeError:
        """Return the error about what stands here."""
        return RecipeError(f"{self}: {message}")

    @contextmanager
    def before_errors(self) -> Iterator[None]:
        """Put this place, or the one below it that the error itself names, before the message of
        an error that is raised inside. One that says already where in the file it is stays.
        """
        try:
            yield
        except TvcError as error:
            if str(error).startswith(f"{self.source}:"):
                raise
            place = self if self.marks is None else self.down(*error.below)
            place = place.key if error.below and place != self else place
            raise type(error)(f"{place}: {error}") from error

    def section(
        self, data: Any, name: str, keys: Iterable[str], elsewhere: Mapping[str, str] = {}
    ) -> Mapping[str, Any]:
        """Return what stands here as a mapping; `elsewhere` says of other keys what to do.

        Raises:
            RecipeError: it is not a mapping, or has another key than `keys`.
        """
        keys = list(keys)
        if not isinstance(data, Mapping):
            wanted = f"a mapping with the keys {join_names(keys)}"
            hint = words.on_backbone(data)
            raise self.error(f"{name} is {wanted}, not {short_repr(data)}{hint and f'.{hint}'}")
        for key in data:
            if key not in keys:
                known = what_there_is(str(key), keys, "The keys are")
                hint = f" {elsewhere[key]}" if key in elsewhere else ""
                raise (self / key).key.error(
                    f"unknown key {short_repr(key)} in {name}.{hint or known}"
                )
        return data


def written(path: Iterable[Any]) -> str:
    """Return a path as it is written, "backbone.patches['layer3.0'].wrap"; what is no plain word
    stands in brackets.
    """
    text = ""
    for key in path:
        if isinstance(key, str) and _WORD.fullmatch(key):
            text += f".{key}" if text else key
        else:
            text += f"[{short_repr(key)}]"
    return text


_WORD = re.compile(r"[^\s.\[\]'\"]+")
