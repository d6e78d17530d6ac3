"""The errors of this plugin. Light: imports no torch."""

from __future__ import annotations

from tvc_core import TvcError

__all__ = ["DataError", "TrainingError", "without_place"]


class DataError(TvcError, ValueError):
    """Data are missing, damaged, or not what a recipe says of them."""


class TrainingError(TvcError, RuntimeError):
    """Training cannot start, go on or be written; what was saved before is whole."""


def without_place(error: object, place: str) -> str:
    """Return the text of an error without the place that it begins with, which stands in it as
    errors write names that cannot be printed.
    """
    return str(error).removeprefix(str(DataError(f"{place}: ")))
