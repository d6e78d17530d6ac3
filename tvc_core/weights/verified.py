"""Know an open file by what the system says of it: where it lies on disk, its size, and when it and
its entry changed last, which no program can set back.

So its hash is computed once for each state of the file, also for the next process. A file that has
changed a moment ago is looked at every time, since the next change could bear the same time.
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import BinaryIO

from ..remembered import recall, remember

__all__ = ["FileState", "is_steady", "sha256_of", "state_of"]

FileState = tuple[int, ...]
"""Device, inode, size [bytes], time of the last change, and of that of its entry [ns]."""

_STEADY = 0.1
"""How long a file must have been as it is: clocks of file systems tick in steps [s]."""

_KNOWN: dict[FileState, str] = {}


def state_of(file: BinaryIO) -> FileState:
    """Return what the system says of an open file; it differs after any change."""
    stat = os.fstat(file.fileno())
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def is_steady(state: FileState) -> bool:
    """Return whether a later change of the file would show in its state."""
    return time.time_ns() - max(state[3:]) > _STEADY * 1e9


def sha256_of(file: BinaryIO) -> str:
    """Return the SHA-256 of an open file, in hexadecimal; it is read only where that is not
    known.
    """
    state = state_of(file)
    known = _KNOWN.get(state) or recall("hashes", state)
    if isinstance(known, str):
        _KNOWN[state] = known
        return known
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    file.seek(0)
    found = digest.hexdigest()
    if is_steady(state) and state_of(file) == state:
        _KNOWN[state] = found
        remember("hashes", state, found)
    return found
