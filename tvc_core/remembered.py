"""What tvc remembers from one process to the next: entries of plain data in a private folder.

Losing an entry costs time only, so a folder that cannot be read or written is none. One that others
can write is not believed.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["folder", "recall", "remember"]

_MAX_BYTES = 10_000_000


def folder() -> Path:
    """Return where entries are: $XDG_CACHE_HOME/tvc, by default ~/.cache/tvc."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path("~/.cache").expanduser()) / "tvc"


def recall(kind: str, key: object) -> Any:
    """Return what is remembered under a key; None where nothing is, or others can have written it.

    Args:
        kind: what it is, such as "hashes".
        key: anything whose repr says it all.
    """
    with suppress(OSError, ValueError, RecursionError):
        entry = _entry(kind, key)
        stat = entry.parent.stat()
        if hasattr(os, "geteuid") and (stat.st_uid != os.geteuid() or stat.st_mode & 0o022):
            return None
        if entry.stat().st_size <= _MAX_BYTES:
            return json.loads(entry.read_text(encoding="utf-8"))
    return None


def remember(kind: str, key: object, value: Any) -> None:
    """Keep plain data under a key, where there is a place for it."""
    with suppress(OSError):
        entry = _entry(kind, key)
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = entry.with_name(f"{entry.name}.{os.getpid()}.{threading.get_ident()}")
        draft.write_text(json.dumps(value), encoding="utf-8")
        draft.replace(entry)  # whole at once, whoever else writes it


def _entry(kind: str, key: object) -> Path:
    return folder() / kind / hashlib.sha256(repr(key).encode()).hexdigest()
