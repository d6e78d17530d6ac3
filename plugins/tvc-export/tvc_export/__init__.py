"""Export hybrids of tvc to other runtimes, with a proof of equal answers. Importing this package
imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .benching import Timing, bench
    from .certificate import Certificate, read_certificate
    from .claims import Claims
    from .exporting import export_model
    from .kinds import ExporterSpec
    from .program import ExportOptions
    from .verifying import ExportedModel, open_exported, verify

__all__ = [
    "Certificate", "Claims", "ExportOptions", "ExportedModel", "ExporterSpec", "Timing", "bench",
    "export_model", "open_exported", "read_certificate", "verify",
]  # fmt: skip

_HOMES = {
    "Certificate": "certificate", "Claims": "claims", "ExportOptions": "program",
    "ExportedModel": "verifying", "ExporterSpec": "kinds", "Timing": "benching",
    "bench": "benching", "export_model": "exporting", "open_exported": "verifying",
    "read_certificate": "certificate", "verify": "verifying",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
