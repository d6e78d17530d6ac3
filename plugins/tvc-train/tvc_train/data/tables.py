"""Images that a CSV file lists, with their labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tvc_core import did_you_mean, join_names

from ..errors import DataError
from .files import FileSamples, problem_of_file
from .problems import Problem, unknown_class
from .settings import DataSettings

__all__ = ["read_table"]

Row = tuple[int, str, list[str], str]
"""Line, path, labels, and which part it belongs to."""


def read_table(
    file: Path, settings: DataSettings, classes: tuple[str, ...] | None = None, *, lacking: str
) -> tuple[FileSamples, np.ndarray, tuple[str, ...], list[Problem]]:
    """Read a CSV file with the columns path and label, and perhaps split ("train" or "val").

    Paths go on from the file's folder, and may not leave it.

    Args:
        file: the CSV file, in UTF-8, its first line with the names of the columns.
        settings: of the data.
        classes: those that there may be; by default all that the file has.
        lacking: what does not have a class that is none of them, as `unknown_class` says it.

    Returns:
        The images; of each whether it is "train", "val" or "" (the file does not say), of numpy's
        text; the classes; and what is wrong.

    Raises:
        DataError: it cannot be read, or lacks a column.
    """
    problems: list[Problem] = []
    rows = list(_rows(file, settings, problems))
    found = sorted({label for _, _, labels, _ in rows for label in labels})
    names = classes or settings.classes or tuple(found)
    places = {name: place for place, name in enumerate(names)}
    kept = []
    for row in rows:
        unknown = [label for label in row[2] if label not in places]
        if unknown:
            where = f"{file}:{row[0]}"
            problems.append(unknown_class(where, unknown[0], names, lacking=lacking))
        else:
            kept.append(row)
    if settings.labels == "many":
        targets: np.ndarray = np.zeros((len(kept), len(names)), np.float32)
        for index, (_, _, labels, _) in enumerate(kept):
            targets[index, [places[label] for label in labels]] = 1
    else:
        targets = np.array([places[labels[0]] for _, _, labels, _ in kept], np.int64)
    lines = np.array([line for line, _, _, _ in kept], np.int64)
    paths = [path for _, path, _, _ in kept]
    samples = FileSamples(file.parent, targets, paths, settings, lines=lines, source=str(file))
    parts = np.array([part for _, _, _, part in kept], "U5")
    return samples, parts, tuple(names), problems


def _rows(file: Path, settings: DataSettings, problems: list[Problem]) -> Iterator[Row]:
    """Yield the rows that can be used, and add what is wrong with the others to `problems`."""
    root = os.path.realpath(file.parent)
    lines_of: dict[str, int] = {}
    said = {"path": "path", "label": "label", "split": "split", **(settings.columns or {})}
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened, skipinitialspace=True, strict=True)
            header = next(reader, [])
            columns = _columns(file, header, said, settings)
            for fields in reader:
                if not fields:
                    continue
                row = _row(fields, reader.line_num, header, columns, settings)
                if isinstance(row, str):
                    problems.append(Problem(where=f"{file}:{reader.line_num}", what=row))
                    continue
                line, path = row[0], row[1]
                if path in lines_of:
                    what = (
                        f"{path} stands there for the second time, first in line {lines_of[path]}"
                    )
                    problems.append(Problem(where=f"{file}:{line}", what=what))
                    continue
                lines_of[path] = line
                if why := problem_of_file(str(file.parent / path), root, settings):
                    where = f"{file}:{line}"
                    problems.append(Problem(where=where, what=f"{path}: {why}", kind="image"))
                    continue
                yield row
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not text in UTF-8 (byte {error.start}): save it so") from error
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: is not CSV: {error}") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    if not lines_of and not problems:
        raise DataError(f"{file}: has no line below the names of the columns, so no image")


def _columns(
    file: Path, header: list[str], said: dict[str, str], settings: DataSettings
) -> dict[str, int]:
    """Return where each column stands, by what it is for."""
    header = [name.strip() for name in header]
    if not any(header):
        raise DataError(f"{file}:1: there are no names of columns: 'path,label' comes first")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise DataError(f"{file}:1: there are two columns {twice[0]!r}")
    for name in said.values():
        shared = [other for other in said if said[other] == name and name in header]
        if len(shared) > 1:
            raise DataError(
                f"{file}:1: the column {name!r} would be the {' and '.join(shared)} of each image: "
                "data.columns has to name another for one of them"
            )
    needed = ["path", "label", *(["split"] if "split" in (settings.columns or {}) else [])]
    for role in needed:
        if said[role] not in header:
            near = did_you_mean(said[role], header)
            hint = " Are its fields separated by commas?" if len(header) == 1 else near
            raise DataError(
                f"{file}:1: there is no column {said[role]!r}, which has the {role} of each image; "
                f"there are {join_names(header)} (data.columns names others).{hint}"
            )
    return {role: header.index(name) for role, name in said.items() if name in header}


def _row(
    fields: list[str], line: int, header: list[str], columns: dict[str, int], settings: DataSettings
) -> Row | str:
    """Return a row, or what is wrong with it."""
    if len(fields) != len(header):
        return f"has {len(fields)} fields, and there are {len(header)} columns"
    path = fields[columns["path"]].strip()
    label = fields[columns["label"]].strip()
    part = fields[columns["split"]].strip() if "split" in columns else ""
    if not path or "\0" in path:
        return "has no path"
    if "split" in columns and part not in ("train", "val"):
        near = did_you_mean(part, ("train", "val"))
        return f"split is {part!r}, and has to be train or val.{near}"
    if settings.labels == "one":
        if not label:
            return f"{path} has no label"
        return line, os.path.normpath(path), [label], part
    labels = [each.strip() for each in label.split(settings.separator)] if label else []
    if "" in labels:
        return f"{path} has an empty label between two separators {settings.separator!r}"
    if len({*labels}) < len(labels):
        return f"{path} has a label twice"
    return line, os.path.normpath(path), labels, part
