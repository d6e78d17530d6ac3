"""Compare weight files with the hashes that they are to have, and compute each hash once.

An open file is known by what the system says of it: where it lies on disk, its size, and when it
and its entry changed last, which no program can set back. So its hash is computed once for each
state of the file, also for the next process. A file that has changed a moment ago is looked at
every time, since the next change could bear the same time.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import WeightsError
from ..remembered import recall, remember
from .cache import SHARED, hash_in_name, shared_folders
from .looking import foreign_kind

__all__ = [
    "FileState", "compare_hash", "is_steady", "sha256_of", "state_of", "unchanged",
    "verification_is_off",
]  # fmt: skip

FileState = tuple[int, ...]
"""Device, inode, size [bytes], time of the last change, and of that of its entry [ns]."""

SWITCH = "TVC_VERIFY_WEIGHTS"
_warned = False

_STEADY = 0.1
"""How long a file must have been as it is: clocks of file systems tick in steps [s]."""

_STEADY_IN_SECONDS = 3.0
"""The same where the times are whole seconds, or even ones [s]."""


def state_of(file: BinaryIO) -> FileState:
    """Return what the system says of an open file; it differs after any change."""
    stat = os.fstat(file.fileno())
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@contextmanager
def unchanged(file: BinaryIO, path: Path) -> Iterator[None]:
    """Read an open file inside; a mixture of two states is refused.

    Raises:
        WeightsError: it changed during this.
    """
    before = state_of(file)
    yield
    if state_of(file) != before:
        raise WeightsError(f"{path}: was changed while it was read; try again")


def is_steady(state: FileState) -> bool:
    """Return whether a later change of the file would show in its state."""
    if os.name == "nt":  # the last time is that of the file's creation, and the other can be set
        return False
    age = time.time_ns() - max(state[3:])
    return age > 1e9 * (_STEADY if state[4] % 1_000_000_000 else _STEADY_IN_SECONDS)


def sha256_of(file: BinaryIO) -> str:
    """Return the SHA-256 of an open file, in hexadecimal; it is read only where that is not
    known.
    """
    state = state_of(file)
    known = recall("hashes", state)
    if isinstance(known, str):
        return known
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    file.seek(0)
    found = digest.hexdigest()
    if is_steady(state) and state_of(file) == state:
        remember("hashes", state, found)
    return found


def verification_is_off() -> bool:
    """Tell whether TVC_VERIFY_WEIGHTS=0 skips the comparison of hashes."""
    return os.environ.get(SWITCH, "1").strip() == "0"


def compare_hash(file: BinaryIO, path: Path, sha256: str) -> None:
    """Compare an open file with the hash that it is to have, unless that is switched off, which a
    warning says once a process; another says that a value of the switch is none.

    Args:
        file: at its beginning.
        path: where it was found.
        sha256: start of its SHA-256, in hexadecimal.

    Raises:
        WeightsError: it has another one.
    """
    if verification_is_off():
        _warn_once(f"{SWITCH}=0: weight files are used without comparing their hash")
        return
    if (value := os.environ.get(SWITCH, "").strip()) not in ("", "1"):
        _warn_once(
            f"{SWITCH} is {value!r}, which is neither 0 nor 1: hashes are compared. Unset it, or "
            "set it to 0 to skip the comparison"
        )
    found = sha256_of(file)
    if not found.startswith(sha256.lower()):
        who = "its name" if sha256 == hash_in_name(path.name) else "its plugin"
        raise WeightsError(
            f"{path}: its SHA-256 starts with {found[: len(sha256)]}, {who} promises {sha256}: "
            f"{_what_it_is(file, path)}. Delete {_what_to_delete(path)} and build again to "
            f"download it, or set {SWITCH}=0 to use it all the same."
        )


def _what_it_is(file: BinaryIO, path: Path) -> str:
    head = file.read(64)
    if not head:
        return "it is empty"
    if kind := foreign_kind(head):
        return f"it is {kind}"
    if head.startswith(b"PK") and not zipfile.is_zipfile(file):
        return "it begins as a file of torch.save and its end is missing, so it is truncated"
    if head.startswith((b"PK", b"\x80")) or head[8:9] == b"{" or path.suffix == ".bin":
        return "the file is damaged or not the official one"
    return f"it begins with {head[:12]!r}, so it is damaged or no file of weights"


def _what_to_delete(path: Path) -> str:
    if path.is_symlink():
        return f"this link to {os.path.realpath(path)}"
    if path.parent in shared_folders():
        return f"it, or leave its folder out of {SHARED},"
    return "it"


def _warn_once(text: str) -> None:
    global _warned
    if not _warned:
        warnings.warn(text, UserWarning, stacklevel=8)
        _warned = True
