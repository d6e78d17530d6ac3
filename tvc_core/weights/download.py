"""Download a file once, however many processes ask for it, and let none of them see half of it.

One process at a time downloads a file; the others wait at a lock beside it, and then find the file.
The bytes arrive under a name of their own in the same folder. They get the file's name in one step
when the hash fits, so whatever ends the process earlier leaves a draft that nothing reads, and
that the next download deletes.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch

from ..errors import WeightsError
from .looking import foreign_kind

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["download"]

STALLED = 30.0
"""How long a server may send nothing [s]."""
GIVEN_UP = 2 * STALLED
"""How long another process may make no progress [s]; one that lives has ended its download then."""

_DRAFT = ".tvc-draft"
_RANDOM = "or pass weights=None to start from random weights."
_HELD: set[int] = set()


def download(url: str, path: Path, sha256: str | None, *, progress: bool = True) -> None:
    """Put the file of an address at a path, unless another process does so first.

    Args:
        url: of any scheme that urllib knows.
        path: where the file is to be; its folder is made.
        sha256: start of the SHA-256 that it must have, in lower case; None takes any file.
        progress: show it on stderr.

    Raises:
        WeightsError: the server cannot be reached, fails, or sends nothing for `STALLED` seconds;
            what it sends is another file; the folder cannot be written; or another process has the
            lock and makes no progress. Nothing is left then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _turn(path) as alone:
            if not path.exists():
                _delete_drafts(path, alone)
                _fetch(url, path, sha256, progress)
    except OSError as error:
        raise WeightsError(
            f"{path.name} has to be downloaded, and {path.parent} cannot be written: "
            f"{error.strerror or error}. Set TORCH_HOME to a folder that can be, put the file into "
            f"a folder that TVC_WEIGHTS_PATH names, {_RANDOM}"
        ) from error


def _fetch(url: str, path: Path, sha256: str | None, progress: bool) -> None:
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_DRAFT}")
    digest, head = hashlib.sha256(), b""
    try:
        with draft.open("xb") as file:
            for chunk in _receive(url, path, progress):
                file.write(chunk)
                file.flush()  # whoever waits sees that it grows
                digest.update(chunk)
                head = head or chunk[:64]
            os.fsync(file.fileno())
        if not digest.hexdigest().startswith(sha256 or ""):
            kind = foreign_kind(head)
            raise WeightsError(
                f"what {url} gives is not the file that was meant: its SHA-256 should start with "
                f"{sha256} and is {digest.hexdigest()}{kind and f'; it is {kind}'}. Nothing was "
                f"kept. Look at what the address gives, tell the authors of the plugin, {_RANDOM}"
            )
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _receive(url: str, path: Path, progress: bool) -> Iterator[bytes]:
    """Yield what a server sends, as it comes."""
    try:
        request = Request(url, headers={"User-Agent": "torch.hub"})
        with urlopen(request, timeout=STALLED) as answer:
            length = answer.headers.get("Content-Length")
            size, count = int(length) if length else None, 0
            read = getattr(answer, "read1", answer.read)
            bar: Any = torch.hub.tqdm  # type: ignore[attr-defined]
            unit = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
            with bar(total=size, disable=not progress, **unit) as shown:
                while chunk := read(1 << 20):
                    count += len(chunk)
                    shown.update(len(chunk))
                    yield chunk
        if size is not None and count < size:
            raise EOFError(f"the connection ended after {count} of {size} bytes")
    except (OSError, EOFError, RuntimeError, ValueError, HTTPException) as error:
        is_stalled = isinstance(getattr(error, "reason", error), TimeoutError)
        said = f"it sent nothing for {STALLED:g} s" if is_stalled else error
        raise WeightsError(
            f"{path.name} cannot be downloaded from {urlparse(url).netloc or url}: {said}. Put the "
            f"file into {path.parent} or a folder that TVC_WEIGHTS_PATH names, or try again, "
            f"{_RANDOM}"
        ) from error


# -- one at a time ---------------------------------------------------------------------------------


@contextmanager
def _turn(path: Path) -> Iterator[bool]:
    """Wait until no other process downloads the file, or it is there; then keep others waiting.

    Yields:
        Whether the system vouches for it that no one else is at it. Its locks end with the process
        that holds them, also by a kill. Where it has none, a lock is a file that must not be there,
        and one where nothing happens any more is taken over; two who do so at once download the
        file twice, and no more happens.
    """
    lock = path.with_name(f"{path.name}.lock")
    seen: list[int] | None = None
    since = time.monotonic()
    while (held := _take(lock)) is None:
        if path.exists():
            yield False
            return
        if (now := [stat.st_size for _, stat in _drafts(path.parent, escape(path.name))]) != seen:
            seen, since = now, time.monotonic()
        if time.monotonic() - since > GIVEN_UP:
            if fcntl is not None:
                raise WeightsError(
                    f"{path.name} is being downloaded by another process, which has made no "
                    f"progress for {GIVEN_UP:g} s and holds {lock}: end that process and try again"
                )
            lock.unlink(missing_ok=True)
        time.sleep(0.05)
    handle, alone = held
    _HELD.add(handle)
    try:
        yield alone
    finally:
        _HELD.discard(handle)
        with suppress(OSError):  # on Windows only what is closed can be deleted
            if fcntl is None:
                os.close(handle)
            lock.unlink(missing_ok=True)
        with suppress(OSError):
            if fcntl is not None:
                os.close(handle)


def _take(lock: Path) -> tuple[int, bool] | None:
    """Return the open lock, and whether the system keeps others from it; None where another
    process has it.
    """
    if fcntl is None:
        with suppress(FileExistsError, PermissionError):  # Windows: it is just being deleted
            return os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR), False
        return None
    try:
        handle = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
    except PermissionError:  # left there by another user
        handle = os.open(lock, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # who had it has deleted it, and the next one may have made a new one
        if os.path.samestat(os.fstat(handle), lock.stat()):
            return handle, True
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:  # a file system without locks: each process downloads the file
        return handle, False
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _close_in_child() -> None:
    """Let a forked process not hold what its parent holds: it may outlive it."""
    while _HELD:
        with suppress(OSError):
            os.close(_HELD.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _drafts(folder: Path, name: str = "*") -> list[tuple[Path, os.stat_result]]:
    """Return the drafts in a folder, of one file or of all, with what the system says of them."""
    found = []
    for draft in sorted(folder.glob(f"{name}.*{_DRAFT}")):
        with suppress(OSError):  # it is gone: another process has done with it
            found.append((draft, draft.stat()))
    return found


def _delete_drafts(path: Path, alone: bool) -> None:
    """Delete what killed processes have left: all drafts of this file where no one else can be at
    it, and those of other files where nothing has come for long.
    """
    for draft, stat in _drafts(path.parent):
        is_ours = alone and draft.name.startswith(f"{path.name}.")
        if is_ours or time.time() - stat.st_mtime > 10 * GIVEN_UP:
            with suppress(OSError):
                draft.unlink()
