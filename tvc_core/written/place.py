"""Where something stands in what the user wrote: what an error about it begins with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import RecipeError, TvcError, short_repr

__all__ = ["Mark", "Marks", "Place", "keys_of", "written"]


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

    def in_file(self, *keys: str) -> Place:
        """Return where a value stands whose name is in the message: its place in a file. Elsewhere
        its name says enough.
        """
        return self if self.marks is None else replace(self, path=(*self.path, *keys))

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

    @property
    def folder(self) -> Path:
        """The recipe's folder; the working directory where it is no file."""
        return Path() if self.marks is None else Path(self.source).parent

    def inside(self, path: str, what: str, advice: str) -> Path:
        """Return the path of a file that a recipe names, which is in the recipe's folder.

        Args:
            path: as it is written.
            what: the file holds.
            advice: for a file that cannot be put there.

        Raises:
            RecipeError: it is outside.
        """
        found = self.folder / path
        is_outside = Path(path).is_absolute() or ".." in Path(path).parts
        if self.marks is not None:  # a link may lead elsewhere
            is_outside |= not found.resolve().is_relative_to(self.folder.resolve())
        if is_outside:
            raise self.error(
                f"the {what} {short_repr(path)} are outside of the recipe's folder, where it must "
                f"not reach. Put the file there, or {advice}"
            )
        return found

    def error(self, message: str) -> RecipeError:
        """Return the error about what stands here."""
        error = RecipeError(f"{self}: {message}")
        error.path = self.path
        return error

    @contextmanager
    def before_errors(self, *, in_files_only: bool = False) -> Iterator[None]:
        """Put this place, or the one below it that the error itself names, before the message of
        an error that is raised inside. One that says already where it is stays.
        """
        try:
            yield
        except TvcError as error:
            if (in_files_only and self.marks is None) or error.path is not None:
                raise
            place = self if self.marks is None else self.down(*error.below)
            place = place.key if error.below and place != self else place
            said = str(error).removeprefix(f"{written(place.path)}: ")  # which the place says
            placed = type(error)(f"{place}: {said}")
            placed.path = place.path
            raise placed from error


def written(path: Iterable[Any]) -> str:
    """Return a path as it is written, "backbone.patches['layer3.0'].wrap"; what is no plain word
    stands in brackets.
    """
    text = ""
    for key in path:
        if isinstance(key, str) and len(key) < 80 and _WORD.fullmatch(key):
            text += f".{key}" if text else key
        else:
            text += f"[{short_repr(key)}]"
    return text


def keys_of(path: str) -> tuple[Any, ...]:
    """Return the keys of a path that is given as `written` writes it.

    Raises:
        RecipeError: it is not of that form.
    """
    keys, at = [], 0
    while at < len(path):
        found = _KEY.match(path, at)
        if found is None or (at == 0 and path[0] == ".") or (at and path[at] not in ".["):
            raise RecipeError(
                f"{short_repr(path)} is no path in a recipe: write keys with dots between them, "
                "such as head.num_classes, and a key with a dot in brackets, such as "
                "backbone.patches['layer3.0'].wrap"
            )
        word, index, *quoted = found.groups()
        keys.append(int(index) if index else next(k for k in (word, *quoted) if k is not None))
        at = found.end()
    return tuple(keys)


_WORD = re.compile(r"[^\s.\[\]'\"]+")
_KEY = re.compile(rf"""\.?({_WORD.pattern})|\[(?:(\d+)|'([^']*)'|"([^"]*)")\]""")
