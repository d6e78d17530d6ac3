"""What stands after an option of a command such as --set PATH=VALUE."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import RecipeError, short_repr

__all__ = ["read_changes"]


def read_changes(texts: Iterable[str], *, like: str = "head.num_classes=5") -> dict[str, str]:
    """Return what texts of the form PATH=VALUE say, by path, as `load_recipe` takes its changes.

    Args:
        texts: of all that was given, such as ["head.num_classes=5", "seed=1"]; a value is what
            stands after the first "=".
        like: what errors give as an example.

    Raises:
        RecipeError: a text is not of that form, or a path is there twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        path = path.strip()
        if not equals or not path:
            raise RecipeError(f"{short_repr(text)} is not of the form {like}")
        if path in found:
            raise RecipeError(f"{short_repr(path)} is given twice: {found[path]!r} and {value!r}")
        found[path] = value
    return found
