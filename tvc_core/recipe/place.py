"""Where something stands in what the user wrote: what an error about it begins with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import RecipeError, TvcError

__all__ = ["Place"]


@dataclass(frozen=True)
class Place:
    """A place in what the user wrote. Its text is file and line, or the path in a mapping.

    Args:
        source: the file, or what else the recipe came as.
        path: the keys that lead there.
        lines: of a file, the line of each value by its path.
    """

    source: str
    path: tuple[Any, ...] = ()
    lines: Mapping[tuple[Any, ...], int] | None = None

    def under(self, *keys: Any) -> Place:
        """Return the place to which keys lead from here."""
        return Place(self.source, (*self.path, *keys), self.lines)

    __truediv__ = under

    def line_of(self, *keys: Any) -> Place:
        """Return where a value stands whose name is in the message: its line in a file. Elsewhere
        its name says enough.
        """
        return self if self.lines is None else self.under(*keys)

    def __str__(self) -> str:
        if self.lines is None:
            keys = [str(key) or "''" for key in self.path]
            return f"{self.source}, {'.'.join(keys)}" if keys else self.source
        path = self.path
        while path and path not in self.lines:  # of a value that was left out, what it belongs to
            path = path[:-1]
        return f"{self.source}, line {self.lines.get(path, 1)}"

    def __reduce__(self) -> tuple[Any, ...]:
        return Place, (str(self),)  # a model's pickle need not hold the lines of a file

    def error(self, message: str) -> RecipeError:
        """Return the error about what stands here."""
        return RecipeError(f"{self}: {message}")

    @contextmanager
    def before_errors(self, *, in_files_only: bool = False) -> Iterator[None]:
        """Put this place before the message of an error that is raised inside, once."""
        try:
            yield
        except TvcError as error:
            if (in_files_only and self.lines is None) or str(error).startswith(str(self)):
                raise
            raise type(error)(f"{self}: {error}") from error
