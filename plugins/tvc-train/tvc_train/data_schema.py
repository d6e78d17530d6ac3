"""The section `data` as a JSON Schema. Light: imports nothing."""

from __future__ import annotations

from typing import Any

__all__ = ["DATA"]

DATA: dict[str, Any] = {"type": "object"}
