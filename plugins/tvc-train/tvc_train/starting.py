"""A recipe for images without one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["RECIPES", "first_recipe", "is_data"]

RECIPES = (".yaml", ".yml")


def is_data(path: Path) -> bool:
    """Return whether what `tvc train` is given are images, and no recipe."""
    return path.is_dir() or path.suffix.lower() in (".csv", ".tar")


def first_recipe(data: Path, backbone: str, patches: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return a recipe that does the sensible thing: the head first, then the last stages at a tenth
    of its rate; rate, batch size and layout are found out, and probabilities are calibrated.

    Args:
        data: the images.
        backbone: the name of a network.
        patches: paths, and the blocks to wrap around them, the inner one first.
    """
    found: dict[str, Any] = {"name": backbone}
    for target, block in patches:
        found.setdefault("patches", {}).setdefault(target, []).append({"wrap": block})
    name = f"{data.resolve().stem}-{backbone}"
    return {
        "name": "".join(c if c.isalnum() or c in "-_." else "-" for c in name),
        "backbone": found,
        "data": {"path": str(data.resolve())},
        "training": {
            "batch_size": "auto",
            "layout": "auto",
            "methods": ["temperature"],
            "phases": [
                {"name": "head", "epochs": 5, "rate": "auto"},
                {
                    "name": "last stages",
                    "epochs": 10,
                    "thaw": [-2, -1],
                    "rate": "auto",
                    "warmup": 1,
                    "layer_decay": 0.7,
                },
            ],
        },
    }
