"""Write a file whole or not at all, whatever interrupts it.

The bytes go into a file beside the target, in the same folder and so on the same file system; it is
synced and closed, and takes the target's place in one step, after which nothing can fail. Who is
killed on the way leaves that file behind; the next save removes it. Whether its writer still lives
is told by a lock, which ends with the process.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ParameterError

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None  # type: ignore[assignment]

__all__ = ["check_target", "write_file"]


def check_target(path: str | Path, *, force: bool = False, suffix: str | None = None) -> None:
    """Say before any work why a file could not be written at its end.

    Args:
        path: the file.
        force: it may take the place of a file that exists.
        suffix: what its name has to end in, such as ".safetensors".

    Raises:
        ParameterError: its name ends in something else; it is a folder; its folder is not there, or
            cannot be written to; or it exists, and `force` is not set.
    """
    path = Path(path)
    if suffix is not None and path.suffix != suffix:
        raise ParameterError(f"{path}: the name does not end in {suffix}, the format of the file")
    if path.is_dir():
        raise ParameterError(f"{path}: is a folder; name a file in it")
    what = f"{path}: the folder {str(path.parent)!r}"
    if not path.parent.is_dir():
        raise ParameterError(f"{what} does not exist")
    if path.exists() and not force:
        raise ParameterError(f"{path} exists: --force, or force=True, puts the new file there")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ParameterError(f"{what} cannot be written to: {error.strerror or error}") from error


def write_file(path: Path, pieces: Iterable[Any]) -> None:
    """Put bytes into a file.

    A link is followed, the permissions of a file that is replaced are kept, and what is no regular
    file (a device, a pipe) is written to and stays what it is.

    Args:
        path: the file.
        pieces: its content, bytes or memory of bytes.

    Raises:
        OSError: it cannot be written; where it was a regular file, it is as before.
    """
    path = Path(os.path.realpath(path))
    try:
        before = path.stat()
    except FileNotFoundError:
        before = None
    if before is not None and not stat.S_ISREG(before.st_mode):
        with path.open("wb", buffering=0) as file:
            _write_all(file.fileno(), pieces)
        return
    # Readers of the target see the old file or the new one and nothing between: replacing is one
    # step in the file system. That holds only if the bytes are on the disk before the new name is,
    # hence the sync first. While it is written the file has the owner's permissions at most, and
    # gets those of the file that it replaces at the end.
    _remove_leftovers(path)
    temporary, descriptor = _create(path, 0o666 if before is None else before.st_mode & 0o700)
    try:
        try:
            _write_all(descriptor, pieces)
            if before is not None and hasattr(os, "fchmod"):
                os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    # not every file system can sync a folder, and the file is in its place
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _create(path: Path, mode: int) -> tuple[Path, int]:
    """Make the file beside the target and lock it. The system takes the umask off its mode."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.tmp")
        descriptor = os.open(temporary, flags, mode)
        if fcntl is None:
            return temporary, descriptor
        try:
            with suppress(OSError):  # there are file systems without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if temporary.exists():  # else another process took it for a leftover first
                return temporary, descriptor
        except BaseException:
            _discard(temporary, descriptor)
            raise
        os.close(descriptor)


def _discard(temporary: Path, descriptor: int) -> None:
    os.close(descriptor)
    with suppress(OSError):
        temporary.unlink()


def _write_all(descriptor: int, pieces: Iterable[Any]) -> None:
    for piece in pieces:
        rest = memoryview(piece)
        while len(rest):
            rest = rest[os.write(descriptor, rest) :]


def _remove_leftovers(path: Path) -> None:
    """Remove what killed writers of this file left: its drafts that no process locks."""
    with suppress(OSError):
        form = re.compile(rf"\.{re.escape(path.name[:200])}\.[0-9a-f]{{8}}\.tmp")
        for other in path.parent.iterdir():
            if form.fullmatch(other.name):
                with suppress(OSError):
                    _remove_unless_locked(other)


def _remove_unless_locked(leftover: Path) -> None:
    if fcntl is None:
        leftover.unlink()
        return
    # A writer holds the lock from the moment it has made the file until it ends, in whatever way.
    # So a lock that can be taken says that the writer is gone. There is a moment between making and
    # locking: another process may then remove the file, which `_create` sees and makes another one.
    descriptor = os.open(leftover, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        leftover.unlink()
    finally:
        os.close(descriptor)
