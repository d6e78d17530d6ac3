"""From the section `data:` to images: finds where they come from, and opens that."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np

from tvc_core import did_you_mean, join_names

from ..errors import DataError
from .files import FileSamples, walk
from .folders import find_parts, list_classes, list_folder
from .problems import Problem, similar_classes
from .samples import ArraySamples, Samples
from .settings import DataSettings
from .shards import INDEX, open_shards
from .splitting import copies, split_indices
from .tables import read_table
from .torchvision_sets import open_torchvision

__all__ = ["Data", "open_data", "open_files", "open_labeled", "source_of"]

_NOT_KNOWN = "the model does not know"


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a model is trained on, and what it is held against.

    Args:
        train: images to train on.
        val: images that are held out.
        classes: names, in the order of the outputs.
        labels: each image has "one", or "many".
        problems: what was found wrong without opening an image. `inspect_data` finds the rest.
    """

    train: Samples
    val: Samples
    classes: tuple[str, ...]
    labels: Literal["one", "many"] = "one"
    problems: tuple[Problem, ...] = ()


def open_data(
    settings: DataSettings, *, folder: Path, seed: int, classes: tuple[str, ...] | None = None
) -> Data:
    """Open what the section says. No image is decoded.

    Args:
        settings: the section.
        folder: from which paths go on: that of the recipe.
        seed: of the split, where the data do not say what is held out.
        classes: of a model, in the order of its outputs, in the place of the section's.

    Raises:
        DataError: there is nothing to train on, or it is not what the section says.
    """
    source = source_of(settings, folder)
    trained_on = "what is trained on" if source == "torchvision" else "train/"
    lacking = "data.classes does not name" if settings.classes else f"{trained_on} does not have"
    if classes is not None:
        settings, lacking = replace(settings, classes=classes), _NOT_KNOWN
    for key in ("columns", "separator"):
        if source != "csv" and getattr(settings, key) != getattr(DataSettings, key):
            raise DataError(f"data.{key}: only a CSV file has that, and these data are {source}")
    if source == "digits":
        return _digits(settings, seed)
    if source == "torchvision":
        return _torchvision(settings, folder, seed, lacking)
    path = _path(settings, folder)
    if source == "shards":
        train, held, classes = open_shards(path, settings)
        labels = cast('Literal["one", "many"]', settings.labels)
        whole = Data(train=train, val=held, classes=classes, labels=labels)
        return _split(whole, settings, seed, held)
    if source == "csv":
        return _table(settings, path, seed, lacking)
    return _folder(settings, path, seed, lacking)


def open_labeled(
    path: Path, settings: DataSettings, classes: tuple[str, ...]
) -> tuple[Samples, tuple[Problem, ...]]:
    """Open images with labels to evaluate a model on, and say what is wrong with them.

    Of a folder with `train/` and `val/`, of a CSV file that says which is which, and of shards, it
    is what is held out; otherwise all.

    Args:
        path: a folder, a CSV file or a folder of shards.
        settings: what may be decoded, and how many labels an image has.
        classes: of the model, in the order of its outputs.

    Raises:
        DataError: there is nothing, or it is not what it should be.
    """
    settings = replace(settings, source=None, path=str(path), name=None, download=False)
    settings = replace(settings, classes=classes)
    source = source_of(settings, Path())
    path = _path(settings, Path())
    if source == "shards":
        samples: Samples = open_shards(path, settings)[1]
        return samples, ()
    if source == "csv":
        table, parts, _, problems = read_table(path, settings, classes, lacking=_NOT_KNOWN)
        held = np.flatnonzero(parts != "train")
        samples = table if not (parts == "val").any() else table.take(held)
        return samples, tuple(problems)
    _refuse_many(settings, path)
    found = {each.name for each in path.iterdir() if each.is_dir()}
    top = path / "val" if {"train", "val"} <= found or found == {"val"} else path
    list_classes(top)
    samples, problems = list_folder(top, classes, settings, lacking=_NOT_KNOWN)
    return samples, tuple(problems)


def open_files(
    paths: Sequence[Path], settings: DataSettings
) -> tuple[FileSamples, tuple[Problem, ...]]:
    """Open images without labels: files, and folders with all that is in them, in a fixed order.

    Targets are -1. A file that is named is opened whatever its name ends in.

    Args:
        paths: files and folders.
        settings: what may be decoded.

    Raises:
        DataError: a path is not there.
    """
    names: list[str] = []
    problems: list[Problem] = []
    for path in paths:
        if not path.exists() and not path.is_symlink():
            raise _missing(path)
        if path.is_dir():
            found = list(walk(str(path), os.path.realpath(path), settings))
            names += [each for each in found if isinstance(each, str)]
            problems += [each for each in found if isinstance(each, Problem)]
        else:
            names.append(str(path))
    targets = np.full(len(names), -1, np.int64)
    return FileSamples(Path(), targets, names, settings), tuple(problems)


def source_of(settings: DataSettings, folder: Path) -> str:
    """Return where the data come from: what the section says, or what its path is."""
    if settings.source is not None:
        return settings.source
    if settings.path is None:
        return "digits"
    path = _path(settings, folder)
    if path.is_dir():
        return "shards" if (path / INDEX).is_file() else "folder"
    if path.suffix.lower() == ".csv":
        return "csv"
    raise DataError(
        f"{path}: is a file, and data are a folder, a CSV file (.csv) or a folder of shards"
    )


def _path(settings: DataSettings, folder: Path) -> Path:
    assert settings.path is not None
    path = settings.place(folder)
    if not path.exists():
        raise _missing(path)
    if settings.source in ("folder", "shards") and not path.is_dir():
        raise DataError(f"{path}: is a file, and 'source: {settings.source}' needs a folder")
    if settings.source == "shards" and not (path / INDEX).is_file():
        raise DataError(f"{path}: has no {INDEX}, which says where in the shards each image is")
    if settings.source == "csv" and not path.is_file():
        raise DataError(f"{path}: is a folder, and 'source: csv' needs a file")
    return path


def _missing(path: Path) -> DataError:
    try:
        there = sorted(each.name for each in path.parent.iterdir())
    except OSError:
        return DataError(f"{path}: is not there, nor is {path.parent} a folder that can be read")
    return DataError(f"{path}: is not there.{did_you_mean(path.name, there)}")


def _refuse_many(settings: DataSettings, path: Path) -> None:
    if settings.labels == "many":
        raise DataError(
            f"{path}: in a folder each image has one label; 'labels: many' takes a CSV file or "
            "shards"
        )


def _folder(settings: DataSettings, path: Path, seed: int, lacking: str) -> Data:
    _refuse_many(settings, path)
    top, held, notes = find_parts(path)
    there = list_classes(top)
    classes = settings.classes or tuple(there)
    problems = [*notes, *([] if settings.classes else similar_classes(classes))]
    for name in classes:
        if name not in there:
            what = f"there is no folder for the class {name!r}.{did_you_mean(name, there)}"
            problems.append(Problem(where=str(top), what=what))
    train, found = list_folder(top, classes, settings, lacking=lacking)
    problems += found
    if held is None:
        data = Data(train=train, val=train, classes=classes, problems=tuple(problems))
        return _split(data, settings, seed, None)
    list_classes(held)
    val, found = list_folder(held, classes, settings, lacking=lacking)
    problems += found
    data = Data(train=train, val=val, classes=classes, problems=tuple(problems))
    return _split(data, settings, seed, val)


def _table(settings: DataSettings, path: Path, seed: int, lacking: str) -> Data:
    samples, parts, classes, problems = read_table(path, settings, lacking=lacking)
    labels = cast('Literal["one", "many"]', settings.labels)
    problems += [] if settings.classes else similar_classes(classes)
    data = Data(
        train=samples, val=samples, classes=classes, labels=labels, problems=tuple(problems)
    )
    if not (parts != "").any():
        return _split(data, settings, seed, None)
    train, val = (samples.take(np.flatnonzero(parts == part)) for part in ("train", "val"))
    return _split(replace(data, train=train, val=val), settings, seed, val)


def _split(data: Data, settings: DataSettings, seed: int, val: Samples | None) -> Data:
    """Hold out a part of what there is to train on, unless there is something held out."""
    if val is not None:
        if settings.split == DataSettings.split:
            return data
        what = f"is {settings.split}, and not used: the data say what is held out"
        note = Problem(where="data.split", what=what, kind="note")
        return replace(data, problems=(*data.problems, note))
    whole = data.train
    groups = copies(whole) if isinstance(whole, FileSamples) else None
    train, held = split_indices(whole.targets, part=settings.split, seed=seed, groups=groups)
    problems = data.problems
    if data.labels == "many" and len(held) < settings.split * len(whole) / 2:
        what = (
            f"is {settings.split}, and {len(held)} of {len(whole)} images are held out, since a "
            "set of labels that one image alone has is trained on: a column split says which are"
        )
        problems = (*problems, Problem(where="data.split", what=what, kind="note"))
    return replace(data, train=whole.take(train), val=whole.take(held), problems=problems)


def _torchvision(settings: DataSettings, folder: Path, seed: int, lacking: str) -> Data:
    root = settings.place(folder)
    if not root.exists() and not settings.download and settings.name != "FakeData":
        raise _missing(root)
    train, val, classes, problems = open_torchvision(
        settings, root, settings.classes, lacking=lacking
    )
    held = train if val is None else val
    data = Data(train=train, val=held, classes=classes, problems=tuple(problems))
    return _split(data, settings, seed, val)


def _digits(settings: DataSettings, seed: int) -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the digits come with scikit-learn, which is not installed: pip install scikit-learn, "
            "or name data of your own: data.path"
        ) from error
    found = load_digits()
    classes = tuple(str(name) for name in found.target_names)
    if settings.classes not in (None, classes):
        raise DataError(f"data.classes: the digits' classes are {join_names(classes)}")
    if settings.labels == "many":
        raise DataError("data.labels: each of the digits has one label")
    images = np.round(found.images * (255 / 16)).astype(np.uint8)
    targets = found.target.astype(np.int64)
    names = [f"digits/{index:04d}" for index in range(len(targets))]
    whole = ArraySamples(images, targets, names)
    return _split(Data(train=whole, val=whole, classes=classes), settings, seed, None)
