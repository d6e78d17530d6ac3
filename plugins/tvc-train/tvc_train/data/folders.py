"""Images in folders: one for each class, perhaps below `train/` and `val/`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tvc_core import join_names

from ..errors import DataError
from .files import FileSamples, is_hidden, walk
from .problems import Problem, unknown_class
from .settings import DataSettings

__all__ = ["find_parts", "list_classes", "list_folder"]

_NAMES_OF_PARTS = ("train", "training", "val", "valid", "validation", "dev", "eval", "test")


def find_parts(folder: Path) -> tuple[Path, Path | None, list[Problem]]:
    """Return what to train on and what to hold out; None where that is to be split off.

    Raises:
        DataError: there is nothing, or it cannot be said which is which.
    """
    names = _folders(folder)
    train, val = (folder / "train" if "train" in names else None), folder / "val"
    parts = [name for name in names if name.lower() in _NAMES_OF_PARTS]
    if train is not None and "val" in names:
        others = [name for name in names if name not in ("train", "val")]
        what = "stands beside train/ and val/, and is not used"
        return train, val, [Problem(where=str(folder / n), what=what, kind="note") for n in others]
    if train is not None and names == ["train"]:
        what = "there is no val/ beside it, so a part of it is held out (data.split)"
        return train, None, [Problem(where=str(train), what=what, kind="note")]
    if "val" in names and names == ["val"]:
        raise DataError(f"{folder}: there is val/, and no train/ beside it to train on")
    if len(parts) >= 2:
        raise DataError(
            f"{folder}: has the folders {join_names(names)}. Those to train on and to hold out are "
            "called train/ and val/; give each that name, or leave only folders of classes there"
        )
    what = "is taken for the folder of a class, since there is no val/ beside it"
    notes = [Problem(where=str(folder / name), what=what, kind="note") for name in parts]
    return folder, None, notes


def list_classes(folder: Path) -> list[str]:
    """Return the names of the classes of a folder, in their order.

    Raises:
        DataError: there is none.
    """
    names = _folders(folder)
    if not names:
        there = sorted(os.listdir(folder))  # noqa: PTH208
        said = f"There is only {join_names(there[:5])}." if there else "It is empty."
        raise DataError(
            f"{folder}: there is no folder of a class in it, such as {folder.name}/cat with "
            f"pictures of cats. {said}"
        )
    return names


def list_folder(
    folder: Path, classes: tuple[str, ...], settings: DataSettings, *, lacking: str
) -> tuple[FileSamples, list[Problem]]:
    """Return the images of a folder that has one for each class, and what is wrong with it.

    Args:
        folder: where the folders of classes are.
        classes: their names, in the order of the outputs. A folder of another is a problem.
        settings: what may be decoded.
        lacking: what does not have a class that is none of them, as `unknown_class` says it.
    """
    root = os.path.realpath(folder)
    problems: list[Problem] = []
    names: list[str] = []
    targets: list[int] = []
    for entry in sorted(os.listdir(folder)):  # noqa: PTH208
        path = os.path.join(folder, entry)  # noqa: PTH118
        is_folder = os.path.isdir(path)  # noqa: PTH112
        if is_hidden(entry):
            what = "a hidden folder is no class" if is_folder else "a hidden file is no data"
            problems.append(Problem(where=path, what=what, kind="note"))
            continue
        if not is_folder:
            what = "lies beside the folders of classes, so it has none: move it into one"
            problems.append(Problem(where=path, what=what, kind="image"))
            continue
        if os.path.islink(path) and not os.path.realpath(path).startswith(root + os.sep):  # noqa: PTH114
            what = f"a link to a folder outside, {os.path.realpath(path)}: copy it there"
            problems.append(Problem(where=path, what=what))
            continue
        found = list(walk(path, root, settings))
        images = [each for each in found if isinstance(each, str)]
        problems += [each for each in found if isinstance(each, Problem)]
        if not images:
            what = "an empty folder is no class: there is no image in it that can be read"
            problems.append(Problem(where=path, what=what))
        elif entry not in classes:
            problems.append(unknown_class(path, entry, classes, lacking=lacking))
        else:
            names += [os.path.relpath(image, folder) for image in images]
            targets += [classes.index(entry)] * len(images)
    return FileSamples(folder, np.array(targets, np.int64), names, settings), problems


def _folders(folder: Path) -> list[str]:
    try:
        entries = sorted(os.listdir(folder))  # noqa: PTH208
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from error
    return [name for name in entries if not is_hidden(name) and (folder / name).is_dir()]
