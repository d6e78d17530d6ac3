"""Checks of backbones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["BASIC", "CHECKS"]

BASIC: tuple[Callable[[Any], None], ...] = ()
CHECKS: tuple[Callable[[Any], None], ...] = ()
