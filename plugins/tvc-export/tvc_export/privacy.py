"""No exported file tells who made it, and where."""

from __future__ import annotations

import getpass
import json
import platform
import re
import sys
import zipfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tvc_core import WeightsError, join_names

__all__ = ["check_private", "without_folders", "words_in"]

_ORDINARY = frozenset({"data", "default", "images", "logits", "model", "pytorch"})
"""Words that the formats say themselves, and that users are called."""

_SHORT = 4
"""A name with fewer letters stands in ordinary texts by chance: it counts in paths and addresses
only.
"""

_TEXT = 12
"""Bytes that can be read are a text if they are as many together; fewer are so in weights as well.
"""


def check_private(folder: Path, path: Path, known: Collection[str] = ()) -> None:
    """Refuse files that name a folder of this machine, its user or itself.

    Folders count wherever their paths stand. Names count as parts of paths (/jane/), in addresses
    (jane@host), and as words of a text, but not inside of words, nor where they are words of the
    model's own.

    Args:
        folder: with the files.
        path: what the file is to be called, for the error.
        known: words that the model says itself: its names, classes and recipe.

    Raises:
        WeightsError: one does.
    """
    folders = [*_folders(), *{str(folder), str(folder.resolve())}]
    names = _names() - _ORDINARY.union(known)
    for file in (each for each in folder.rglob("*") if each.is_file()):
        for data in _contents(file):
            found = [each for each in folders if _has_folder(data, each)]
            found += [each for each in names if _has_name(data, each)]
            if found:
                raise WeightsError(
                    f"{path} is not written, since {file.name} would tell of this machine or its "
                    f"user: {join_names(found)}. Look for it in class names and in the recipe"
                )


def words_in(*texts: str) -> set[str]:
    """Return the words of texts."""
    return {word for text in texts for word in re.findall(r"\w+", text)}


def without_folders(value: Any) -> Any:
    """Return a recipe with the last part alone of each path that begins at the root or at home: of
    files of weights, and of folders of photos in the sections of plugins. Classes may be called
    /m/01g317, so the head stays as it is.
    """
    if isinstance(value, dict):
        return {
            key: each if key == "head" else without_folders(each) for key, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_folders(each) for each in value]
    if isinstance(value, str) and re.match(r"[/~]|\w:[\\/]|\\\\|file:", value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def _folders() -> set[str]:
    checkout = Path(__file__).resolve().parents[3]
    found = {*_home(), Path.cwd(), Path(sys.prefix), Path(sys.base_prefix), checkout}
    return {str(each) for each in found if each.parent != each} - {"/usr", "/usr/local"}


def _names() -> set[str]:
    try:
        user = getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container whose user has no name
        user = ""
    host = platform.node()
    homes = (each.name for each in _home())
    return {each for each in (user, *homes, host, host.partition(".")[0]) if each}


def _home() -> list[Path]:
    with suppress(RuntimeError):  # a container whose user has none
        return [Path.home()]
    return []


def _contents(file: Path) -> Iterator[bytes]:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            yield "\n".join(archive.namelist()).encode()
            yield from map(archive.read, archive.namelist())
    else:
        yield file.read_bytes()


def _has_folder(data: bytes, folder: str) -> bool:
    return any(
        _outside(data, start, end)
        for form in {folder, folder.replace("\\", "/")}
        for start, end in _places(data, form)
        # `/app` alone may be a part of something else
        if form.count("/") > 1 or "\\" in form or data[end : end + 1] == b"/"
    )


def _outside(data: bytes, start: int, end: int) -> bool:
    """Return whether a path stands there: `</data>` and `archive/data/` have no `/data`."""
    before, after = data[max(0, start - 1) : start], data[end : end + 1]
    return not re.match(rb"[\w.<-]", before) and not re.match(rb"[\w-]", after)


def _has_name(data: bytes, name: str) -> bool:
    for start, end in _places(data, name):
        before, after = data[max(0, start - 1) : start], data[end : end + 1]
        if re.match(rb"[\w-]", before) or re.match(rb"[\w-]", after):
            continue
        if data[max(0, start - 2) : start].endswith((b"<", b"</")):  # a tag
            continue
        in_address = (before in (b"/", b"\\") and after in (b"/", b"\\")) or b"@" in before + after
        if (in_address or len(name) >= _SHORT) and _in_text(data, start, end):
            return True
    return False


def _in_text(data: bytes, start: int, end: int) -> bool:
    around = data[max(0, start - _TEXT) : end + _TEXT]
    runs = re.finditer(rb"[\x09\x0a\x0d\x20-\x7e]+", around)
    middle = start - max(0, start - _TEXT)
    return any(
        run.start() <= middle < run.end() and run.end() - run.start() >= _TEXT for run in runs
    )


def _places(data: bytes, text: str) -> Iterator[tuple[int, int]]:
    """Yield where a text begins and ends, as it is and as JSON writes it."""
    for word in {text.encode(), json.dumps(text)[1:-1].encode()}:
        start = data.find(word)
        while start >= 0:
            yield start, start + len(word)
            start = data.find(word, start + 1)
