"""Where something stands in what the user wrote: what an error about it begins with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..advice import words
from ..errors import RecipeError, TvcError, join_names, short_repr, what_there_is

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

    def __truediv__(self, key: Any) -> Place:
        return Place(self.source, (*self.path, key), self.lines)

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
    def before_errors(self) -> Iterator[None]:
        """Put this place before the message of an error that is raised inside."""
        try:
            yield
        except TvcError as error:
            raise type(error)(f"{self}: {error}") from error

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
                raise (self / key).error(f"unknown key {short_repr(key)} in {name}.{hint or known}")
        return data
