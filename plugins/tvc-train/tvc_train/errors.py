"""The errors of this plugin. Light: imports no torch."""

from __future__ import annotations

from tvc_core import TvcError

__all__ = ["DataError", "TrainingError"]


class DataError(TvcError, ValueError):
    """Data are missing, damaged, or not what a recipe says of them."""


class TrainingError(TvcError, RuntimeError):
    """Training cannot start, go on or be written; what was saved before is whole."""
