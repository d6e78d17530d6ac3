"""Compare a file with the hash that its name carries, once for each state of the file.

What was found is remembered by what the system says of the file: where it lies on disk, its size,
and when it and its entry changed last, which no program can set back. It is remembered in the
process, and for the next one in a folder that only the user can write. A file that has changed a
moment ago is compared every time, since the next change could bear the same time.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["cache_folder", "sha256_of"]

_STEADY = 0.1
"""How long a file must have been as it is: clocks of file systems tick in steps [s]."""

_KNOWN: dict[tuple[int, ...], str] = {}


def cache_folder() -> Path:
    """Return the folder for what tvc remembers: $XDG_CACHE_HOME/tvc, by default ~/.cache/tvc.
    Losing it costs time only.
    """
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path("~/.cache").expanduser()) / "tvc"


def sha256_of(file: BinaryIO) -> str:
    """Return the SHA-256 of an open file, in hexadecimal; it is read only where that is not
    known.
    """
    state = _state(file)
    entry = cache_folder() / "verified" / hashlib.sha256(repr(state).encode()).hexdigest()
    if (known := _KNOWN.get(state) or _read(entry)) is not None:
        _KNOWN[state] = known
        return known
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    file.seek(0)
    found = digest.hexdigest()
    steady = time.time_ns() - max(state[3:]) > _STEADY * 1e9
    if steady and _state(file) == state:
        _KNOWN[state] = found
        _write(entry, found)
    return found


def _state(file: BinaryIO) -> tuple[int, ...]:
    stat = os.fstat(file.fileno())
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _read(entry: Path) -> str | None:
    """Return what an entry says, if nobody but the user can have written it."""
    with suppress(OSError, ValueError):
        folder = entry.parent.stat()
        private = folder.st_mode & 0o022 == 0
        if hasattr(os, "geteuid") and not (private and folder.st_uid == os.geteuid()):
            return None
        found = json.loads(entry.read_text(encoding="utf-8"))
        if isinstance(found, str) and len(found) == 64:
            return found
    return None


def _write(entry: Path, digest: str) -> None:
    """Write an entry for other processes, where there is a place for it."""
    with suppress(OSError):
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = entry.with_name(f"{entry.name}.{os.getpid()}")
        draft.write_text(json.dumps(digest), encoding="utf-8")
        draft.replace(entry)
