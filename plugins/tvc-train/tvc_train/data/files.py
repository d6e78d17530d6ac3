"""Images that are files of their own, and how folders of them are gone through."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from .images import SUFFIXES, check_header, decode, read_bytes
from .names import Names
from .problems import Problem
from .remembering import SIZE, Memory, memory_file, recall, remember
from .samples import HEADER_PRINT, Samples, pixel_print
from .settings import DataSettings

__all__ = ["FileSamples", "is_hidden", "problem_of_file", "walk"]

_BY_TOOLS = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")


class FileSamples(Samples):
    """Images in files.

    Args:
        folder: from which names go on.
        targets: as of `Samples`.
        names: of the files, from `folder` on.
        settings: what may be decoded.
        lines: of a list of files, where each image stands in it, int64 [N].
        source: that list.
        memory: what is known of the files; by default what earlier starts have kept.
    """

    def __init__(
        self,
        folder: Path,
        targets: np.ndarray,
        names: Sequence[str],
        settings: DataSettings,
        *,
        lines: np.ndarray | None = None,
        source: str = "",
        memory: Memory | None = None,
    ) -> None:
        super().__init__(targets, names)
        self.folder, self.settings, self.lines, self.source = folder, settings, lines, source
        self._memory = memory

    def path(self, index: int) -> str:
        """Return an image's file."""
        return os.path.join(self.folder, self.names[index])  # noqa: PTH118  pathlib takes 5 times

    def where(self, index: int) -> str:
        """Return an image's file, and the line of the list in which it stands."""
        if self.lines is None:
            return self.path(index)
        return f"{self.source}:{int(self.lines[index])}: {self.path(index)}"

    def read(self, index: int) -> Tensor:
        """Return an image, uint8 [3, H, W].

        Raises:
            DataError: it cannot be read, or is more than may be decoded.
        """
        path, settings = self.path(index), self.settings
        return decode(
            read_bytes(path), path, max_pixels=settings.max_pixels, formats=settings.formats
        )

    def raw(self, index: int) -> bytes:
        """Return the content of an image's file.

        Raises:
            DataError: it cannot be read.
        """
        return read_bytes(self.path(index))

    def check(self, index: int) -> None:
        """Look at an image's header.

        Raises:
            DataError: it cannot be decoded, or may not be.
        """
        path, settings = self.path(index), self.settings
        content = read_bytes(path)
        check_header(content, path, max_pixels=settings.max_pixels, formats=settings.formats)

    def content(self, index: int) -> bytes:
        """Return a hash of a file's bytes.

        Raises:
            DataError: it cannot be read.
        """
        known = self.memory.contents[index]
        if known.any():
            return known.tobytes()
        found = _hash(read_bytes(self.path(index)))
        self.memory.learn(index, content=found)
        return found

    def look(self, index: int, *, full: bool) -> tuple[bytes, bytes]:
        """Return a fingerprint of an image's pixels, and a hash of its file's bytes.

        Raises:
            DataError: it cannot be decoded, or may not be.
        """
        known = self.memory.prints[index]
        if known.any():
            return known.tobytes(), self.memory.contents[index].tobytes()
        path, settings = self.path(index), self.settings
        content = read_bytes(path)
        act = decode if full else check_header
        found = act(content, path, max_pixels=settings.max_pixels, formats=settings.formats)
        return HEADER_PRINT if found is None else pixel_print(found), _hash(content)

    @property
    def memory(self) -> Memory:
        """What is known of the files: at first, what earlier starts have kept of those that are
        unchanged.
        """
        if self._memory is None:
            self._memory = Memory.of(map(self.path, range(len(self))))
            recall(self._memory_file(), self._memory)
        return self._memory

    def recall(self) -> None:
        """Load what earlier starts have kept, before other processes are started."""
        _ = self.memory

    def learn(self, index: int, prints: bytes, content: bytes) -> None:
        """Take note of what `look` has returned in another process."""
        self.memory.learn(index, content=content, pixels=prints)

    def remember(self) -> None:
        """Keep what is known of the files for the next start."""
        remember(self._memory_file(), self.memory)

    def _memory_file(self) -> Path | None:
        settings = self.settings
        return memory_file(self.folder, settings.max_pixels, settings.formats, settings.check)

    def size_hint(self, index: int) -> int:
        """Return the size of a file [bytes]; -1 where there is none."""
        try:
            return os.stat(self.path(index)).st_size  # noqa: PTH116
        except OSError:
            return -1

    def take(self, indices: np.ndarray) -> FileSamples:
        """Return the images at these indices, in their order."""
        lines = None if self.lines is None else self.lines[indices]
        names: Names = self.names.take(indices)
        return FileSamples(
            self.folder, self.targets[indices], names, self.settings, lines=lines,
            source=self.source, memory=None if self._memory is None else self._memory.take(indices),
        )  # fmt: skip


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=SIZE).digest()


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is none that a user put there as data."""
    return name.startswith(".") or name in _BY_TOOLS


def problem_of_file(path: str, root: str, settings: DataSettings, *, may_leave: bool = True) -> str:
    """Say why a file is none that may be read as an image, without opening it; "" where it may.

    Args:
        path: the file.
        root: the folder that no link may leave, with every link in it followed.
        settings: the formats that are allowed.
        may_leave: the path may lead out of the folder, which takes long to find out.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except FileNotFoundError:
        if os.path.islink(path):  # noqa: PTH114
            return f"a link to what is not there: {os.readlink(path)}"  # noqa: PTH115
        slashes = os.path.exists(path.replace("\\", "/"))  # noqa: PTH110
        return "there is no such file" + ("; with / in the place of \\ there is" if slashes else "")
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if may_leave and leaves(path, root):
        return f"leads out of {root}, to {os.path.realpath(path)}: copy it there"
    if not stat.S_ISREG(mode):
        return "is not a file" if not stat.S_ISDIR(mode) else "is a folder, not an image"
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
    if not any(suffix in SUFFIXES[name] for name in settings.formats):
        allowed = ", ".join(settings.formats)
        ends = f"ends in {suffix!r}" if suffix else "has no ending"
        return f"{ends}, and the formats that are allowed are {allowed} (data.formats)"
    return ""


def leaves(path: str, root: str) -> bool:
    """Return whether a path leads out of a folder, if every link is followed."""
    real = os.path.realpath(path)
    return real != root and not real.startswith(root.rstrip(os.sep) + os.sep)


def walk(top: str, root: str, settings: DataSettings) -> Iterator[str | Problem]:
    """Yield the images in a folder and all folders in it, as paths in their order, and problems.

    Args:
        top: the folder.
        root: the folder that no link may leave, with every link in it followed.
        settings: the formats that are allowed.
    """
    seen = {os.path.realpath(top)}
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            names = sorted(os.listdir(folder))  # noqa: PTH208
        except OSError as error:
            yield Problem(where=folder, what=f"cannot be read: {error.strerror or error}")
            continue
        below = []
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118
            is_folder = os.path.isdir(path)  # noqa: PTH112
            if is_hidden(name):
                what = "a hidden folder is no data" if is_folder else "a hidden file is no data"
                yield Problem(where=path, what=what, kind="note")
            elif not is_folder:
                is_link = os.path.islink(path)  # noqa: PTH114
                why = problem_of_file(path, root, settings, may_leave=is_link)
                yield Problem(where=path, what=why, kind="image") if why else path
            elif leaves(path, root):
                what = f"a link to a folder outside, {os.path.realpath(path)}: copy it there"
                yield Problem(where=path, what=what)
            elif (real := os.path.realpath(path)) in seen:
                what = f"a link to a folder that was gone through already, {real}"
                yield Problem(where=path, what=what)
            else:
                seen.add(real)
                below.append(path)
        waiting += reversed(below)
