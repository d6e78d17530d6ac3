"""Compilation by numba."""

from __future__ import annotations

from typing import Any

import numba

__all__ = ["compiled"]

# Sums may be taken in any order, else they are not vectorized. With "nnan" a maximum over NaN may
# be any number; the mean beside it is NaN then, and with it the gate.
RELAXED = {"arcp", "contract", "nnan", "nsz", "reassoc"}


if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
    raise ImportError("NUMBA_DISABLE_JIT is set")  # hundreds of times as slow as operators


def compiled(function: Any) -> Any:
    """Compile a function at its first call and keep the result on disk, where there is a place."""
    options: Any = {"nogil": True, "fastmath": RELAXED, "error_model": "numpy"}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # no folder can be written
        return numba.njit(function, **options)
