"""What was found of files of images, kept for the next start: hashes of their bytes and pixels.

To read and decode all images takes as long as an epoch, and a run that goes on after each failure
of a machine would do it each time. A file is known by what the system says of it: device, inode,
size, and when it and its entry changed last, which no program can set back. One that has changed a
moment ago is looked at again, since the next change could bear the same time. Losing what is kept
costs time only; what others can write, or what is damaged, is not believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

__all__ = ["SIZE", "Memory", "cache_folder", "memory_file", "recall", "remember"]

SIZE = 16
"""Of a hash [bytes]."""

_MOST_ROWS = 5_000_000
_MOST_FILES = 100
_STEADY, _STEADY_IN_SECONDS = 0.1, 3.0
"""How long a file must have been as it is, as clocks of file systems tick in steps; the second one
where the times are whole seconds [s]."""

_COLUMNS = ("states", "contents", "prints")


class Memory:
    """What is known of some files, a row each.

    Args:
        states: device, inode, size [bytes] and both times [ns], int64 [N, 5]; zeros where there is
            no file that could be known again.
        contents: hashes of their bytes, uint8 [N, 16], zeros where not known.
        prints: of their pixels, likewise.
    """

    def __init__(self, states: np.ndarray, contents: np.ndarray, prints: np.ndarray) -> None:
        self.states, self.contents, self.prints = states, contents, prints
        self.is_new = False

    @staticmethod
    def of(paths: Iterable[str]) -> Memory:
        """Return a memory of files of which nothing is known."""
        states = np.array([_state_of(path) for path in paths], np.int64).reshape(-1, 5)
        now, changed = time.time_ns(), states[:, 3:].max(1, initial=0)
        whole = states[:, 4] % 1_000_000_000 == 0
        age = np.where(whole, _STEADY_IN_SECONDS, _STEADY) * 1e9
        states[(now - changed <= age) | (os.name == "nt")] = 0  # Windows' times can be set
        return Memory(states, *(np.zeros((len(states), SIZE), np.uint8) for _ in range(2)))

    def take(self, rows: np.ndarray) -> Memory:
        """Return the rows at these indices."""
        found = Memory(self.states[rows], self.contents[rows], self.prints[rows])
        found.is_new = self.is_new
        return found

    def learn(self, row: int, *, content: bytes = b"", pixels: bytes = b"") -> None:
        """Note a hash of a file's bytes and one of its pixels, unless they are known."""
        for column, value in ((self.contents, content), (self.prints, pixels)):
            if value and not column[row].any():
                column[row] = np.frombuffer(value, np.uint8)
                self.is_new = True


def cache_folder() -> Path | None:
    """Return $XDG_CACHE_HOME/tvc, by default ~/.cache/tvc; None where there is no home."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    with contextlib.suppress(RuntimeError):
        return (Path(home) if Path(home).is_absolute() else Path("~/.cache").expanduser()) / "tvc"
    return None


def memory_file(folder: Path, *decoding: Any) -> Path | None:
    """Return where what is known of a folder's images is kept; None where there is no place.

    Args:
        folder: of images.
        decoding: what their pixels depend on, besides versions.
    """
    from PIL import features

    versions = [metadata.version(name) for name in ("pillow", "tvc-train")]
    codecs = [features.version(name) for name in ("jpg", "zlib", "libtiff", "webp")]
    text = repr((os.path.realpath(folder), decoding, versions, codecs))
    base = cache_folder()
    return base and base / "pictures" / hashlib.sha256(text.encode()).hexdigest()[:32]


def recall(file: Path | None, memory: Memory) -> None:
    """Fill in what is known of files that are unchanged."""
    kept = None if file is None else _read(file)
    if kept is None or not len(kept.states):
        return
    order = np.argsort(kept.states[:, 1], kind="stable")
    inodes = kept.states[order, 1]
    rows = order[np.searchsorted(inodes, memory.states[:, 1]).clip(max=len(order) - 1)]
    same = (kept.states[rows] == memory.states).all(1) & memory.states.any(1)
    memory.contents[same] = kept.contents[rows[same]]
    memory.prints[same] = kept.prints[rows[same]]


def remember(file: Path | None, memory: Memory) -> None:
    """Keep what is known of files, beside what was known of others in their folder."""
    parts = [memory.take(np.flatnonzero(memory.states.any(1)))]
    if file is None or not memory.is_new or not len(parts[0].states):
        return
    kept = _read(file)
    if kept is not None and len(kept.states) + len(parts[0].states) <= _MOST_ROWS:
        parts.append(kept)
    columns = {name: np.concatenate([getattr(p, name) for p in parts]) for name in _COLUMNS}
    _, first = np.unique(columns["states"][:, 1], return_index=True)  # the newest of each inode
    columns = {name: np.ascontiguousarray(column[first]) for name, column in columns.items()}
    content = save({**columns, "digest": _digest(columns)})
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(file.parent.stat()):
            return
        handle, draft = tempfile.mkstemp(dir=file.parent)
        try:
            with os.fdopen(handle, "wb") as opened:
                opened.write(content)
            Path(draft).replace(file)  # whole at once, whoever else writes it
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
        files = sorted(file.parent.iterdir(), key=lambda each: each.stat().st_mtime, reverse=True)
        for old in files[_MOST_FILES:]:
            old.unlink(missing_ok=True)


def _state_of(path: str) -> tuple[int, ...]:
    try:
        stat = os.stat(path)  # noqa: PTH116  pathlib takes 5 times
    except (OSError, ValueError):
        return (0,) * 5
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _read(file: Path) -> Memory | None:
    try:
        with file.open("rb") as opened:
            if not _is_private(os.fstat(opened.fileno())) or not _is_private(file.parent.stat()):
                return None
            found = load(opened.read())
        digest = found.pop("digest")
        rows = len(found["states"])
        fits = found.keys() == set(_COLUMNS) and digest.tobytes() == _digest(found).tobytes()
        fits = fits and found["states"].shape == (rows, 5) and found["states"].dtype == np.int64
        fits = fits and all(
            found[name].shape == (rows, SIZE) and found[name].dtype == np.uint8
            for name in _COLUMNS[1:]
        )
    except (OSError, RuntimeError, SafetensorError, ValueError, KeyError):
        return None
    return Memory(**found) if fits else None


def _is_private(stat: os.stat_result) -> bool:
    """Return whether no other user can write there."""
    if hasattr(os, "getuid"):
        return stat.st_uid == os.getuid() and not stat.st_mode & 0o022
    return True


def _digest(columns: dict[str, np.ndarray]) -> np.ndarray:
    whole = hashlib.blake2b(digest_size=32)
    for name in _COLUMNS:
        whole.update(np.ascontiguousarray(columns[name]).tobytes())
    return np.frombuffer(whole.digest(), np.uint8)
