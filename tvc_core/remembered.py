"""What tvc remembers: plain data, in this process and in a private folder for the next one.

Losing an entry costs time only, so a folder that cannot be read or written is none, and where there
are many entries the oldest go. A folder or an entry that others can write is not believed, and
nothing is written there.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["code_states", "folder", "is_plain", "key_of", "recall", "remember"]

_MAX_BYTES = 10_000_000
"""Of an entry."""
_MOST = 1_000
_MOST_BYTES = 100_000_000
"""Of a kind, in the folder."""
_MOST_HERE = 500
"""Of all kinds, in the process."""

_BEGAN = time.time_ns()
_HERE: dict[tuple[str, str], Any] = {}
_SEEN: dict[str, tuple[Any, list[Any]]] = {}
"""Of Python's modules: the `__spec__` that they were loaded by, and the state of their file."""


def folder() -> Path:
    """Return where entries are: $XDG_CACHE_HOME/tvc, by default ~/.cache/tvc."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path("~/.cache").expanduser()) / "tvc"


def key_of(*parts: Any) -> str:
    """Return a short key for things whose repr says all that they are; empty where it does not,
    but has the address of an object, which another one can have later.
    """
    key = repr(parts)
    return "" if " at 0x" in key else hashlib.sha256(key.encode()).hexdigest()


def is_plain(value: Any) -> bool:
    """Return whether a value is data, whose repr says it all."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def code_states(names: Iterable[str]) -> list[list[Any]] | None:
    """Return the files of Python's modules and their states, in the order of the names; None where
    these do not say what code runs: there is no file, or it has changed since it can have been
    imported.
    """
    # Size and times of change stand for a file's content: to read and hash the sources of all
    # classes would cost about as much as what is to be saved, and a file that was touched without a
    # change only costs that once. A file that has changed since this process began may no longer be
    # the code that was imported. What a file was at its first look goes on to be what runs, also if
    # it changes later (an installer that shares files between environments touches those of a
    # process that runs), until the module is loaded again, which gives it another `__spec__`.
    found: list[list[Any]] = []
    for name in sorted(set(names)):
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None)
        known, state = _SEEN.get(name, (None, []))
        if spec is None or spec is not known:
            file = getattr(module, "__file__", None)
            try:
                stat = Path(file or "/nowhere").stat()
            except OSError:
                return None
            if max(stat.st_mtime_ns, stat.st_ctime_ns) > _BEGAN:
                return None
            state = [name, str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            _SEEN[name] = spec, state
        found.append([*state])
    return found


def recall(kind: str, key: object) -> Any:
    """Return what is remembered under a key; None where nothing is, or others can have written it.
    It is not to be changed: whoever asks next gets the same object.

    Args:
        kind: what it is, such as "hashes".
        key: anything whose repr says it all.
    """
    name = _name(key)
    if (kind, name) in _HERE:
        return _HERE[kind, name]
    # RuntimeError: there is no home
    with suppress(OSError, ValueError, RuntimeError):
        place = folder() / kind
        with (place / name).open("rb") as file:
            if all(map(_is_private, (place.parent.stat(), place.stat(), os.fstat(file.fileno())))):
                digest, _, text = file.read(_MAX_BYTES).partition(b"\n")
                if hashlib.sha256(text).hexdigest().encode() == digest:  # else it is damaged
                    return _keep(kind, name, json.loads(text))
    return None


def remember(kind: str, key: object, value: Any) -> None:
    """Keep plain data under a key, in the folder where there is a place for it."""
    name, text = _name(key), json.dumps(value).encode()
    _keep(kind, name, json.loads(text))  # what the next process will get, not what is alike
    with suppress(OSError, RuntimeError):
        place = folder() / kind
        for each in (place.parent, place):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_private(each.stat()):
                return
        handle, draft = tempfile.mkstemp(dir=place)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
            Path(draft).replace(place / name)  # whole at once, whoever else writes it
        except BaseException:
            Path(draft).unlink(missing_ok=True)  # an interrupt may come after its new name
            raise
        _delete_oldest(place)


def _keep(kind: str, name: str, value: Any) -> Any:
    with suppress(RuntimeError, StopIteration, KeyError):  # another thread does the same
        while len(_HERE) >= _MOST_HERE:
            del _HERE[next(iter(_HERE))]
    _HERE[kind, name] = value
    return value


def _delete_oldest(place: Path) -> None:
    """Keep a folder small; drafts of processes that were killed are among what goes."""
    found = []
    for each in os.scandir(place):
        with suppress(OSError):
            found.append((each.stat().st_mtime_ns, each.stat().st_size, each.path))
    total = 0
    for count, (_, size, path) in enumerate(sorted(found, reverse=True), 1):
        total += size
        if count > _MOST or total > _MOST_BYTES:
            with suppress(OSError):
                Path(path).unlink()


def _is_private(stat: os.stat_result) -> bool:
    """Return whether no one else can write it, as far as this system has such a thing."""
    if hasattr(os, "geteuid"):
        return stat.st_uid == os.geteuid() and not stat.st_mode & 0o022
    return True


def _name(key: object) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()
