"""The format `coreml`, which runs on macOS and iOS only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..program import ExportOptions
from ..quieting import quiet

__all__ = ["export"]


def export(program: Any, path: Path, options: ExportOptions) -> None:
    """Write a program for Core ML, its numbers in float32."""
    import coremltools

    with quiet():
        model = coremltools.convert(
            program.run_decompositions({}),
            source="pytorch",
            compute_precision=coremltools.precision.FLOAT32,
        )
        model.save(str(path))
