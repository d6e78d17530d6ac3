"""Rules (placeholder until the recipe room lands)."""

from __future__ import annotations

from typing import Any

from ..errors import ParameterError


def check_class_names(names: Any, num_classes: int | None, error: Any) -> tuple[str, ...]:
    """Check."""
    if num_classes is not None and len(names) != num_classes:
        raise error(
            f"class_names has {len(names)} entries; the head has {num_classes} outputs, each needs "
            "a name"
        )
    return tuple(names)


def check_hybrid(model: object, what: str) -> None:
    """Check."""
    if not hasattr(type(model), "_hybrid_base"):
        raise ParameterError(f"{what} takes a model that HybridBuilder made")
