"""Predict the classes of images: a row for each file, in a fixed order, also for a file that cannot
be read.
"""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tvc_core import HybridModel

from .data import Transforms, read_image
from .data.files import is_hidden
from .errors import DataError, without_place
from .modes import each_in_own_modes
from .scores import probabilities
from .trained import Trained

__all__ = ["Found", "Prediction", "as_csv", "as_json_lines", "find_files", "predict"]

_DIGITS = 9
"""Of a probability that is written, without leading zeros: float32 has fewer."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says about one file.

    Args:
        path: of the file.
        said: the most probable class with its calibrated probability; with several labels an image
            each class whose probability reaches its threshold, in the order of the outputs, which
            may be none.
        top: classes and their probabilities, the most probable first.
        error: why nothing can be said; None where all went well.
    """

    path: str
    said: tuple[tuple[str, float], ...] = ()
    top: tuple[tuple[str, float], ...] = ()
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file to predict.

    Args:
        path: where it is.
        problem: why it is not even opened; "" where it is.
    """

    path: Path
    problem: str = ""


def find_files(paths: Iterable[str | Path]) -> tuple[list[Found], list[Path]]:
    """Return the files that are meant, each once, and what is hidden and left out.

    Files come in the order of the paths; those of a folder and of all folders in it in the order of
    their names. Hidden files and folders (".ipynb_checkpoints") are left out unless they are named
    themselves. What is not a file (a pipe, or a link to a folder, which could lead around in a
    circle) has a problem.

    Raises:
        DataError: a path is not there, or there is no file at all.
    """
    given = [Path(path) for path in paths]
    if missing := [path for path in given if not os.path.lexists(path)]:
        raise DataError(f"{missing[0]} does not exist")
    found: dict[Path, Found] = {}
    hidden: list[Path] = []
    for path in given:
        for each in _below(path, hidden) if path.is_dir() else [_looked_at(path)]:
            found.setdefault(each.path, each)
    if not found:
        said = f" but {len(hidden)} hidden ones" if hidden else ""
        raise DataError(f"there are no files{said} in {', '.join(map(str, given))}")
    return list(found.values()), hidden


def predict(
    model: HybridModel,
    trained: Trained,
    files: Sequence[Found],
    *,
    top: int = 5,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Prediction]:
    """Return what a model says about each file, one after another, in their order.

    Args:
        model: in eval mode afterwards.
        trained: what its file says: `Trained.open(path)` gives both.
        files: as `find_files` returns them.
        top: how many classes to name with their probabilities, at most.
        batch_size: images that go through the network together.
        workers: processes that read images; 0 for none but this one.
        device: where the network runs.
    """
    given: dict[str, Any] = {"top": top, "batch_size": batch_size, "workers": workers}
    return each_in_own_modes(_predicted(model, trained, files, device=device, **given))


def _predicted(
    model: HybridModel, trained: Trained, files: Sequence[Found], *, top: int, batch_size: int,
    workers: int, device: torch.device | str,
) -> Iterator[Prediction]:  # fmt: skip
    classes = Trained.class_names(model)
    transforms = Transforms(trained.preprocessing)
    model.to(device).eval()
    dtype = next(model.parameters()).dtype
    for batch in _batches(files, transforms, batch_size, workers):
        pixels = [each for _, each in batch if isinstance(each, Tensor)]
        said: Iterator[Tensor] = iter(())
        if pixels:
            with torch.no_grad():
                logits = model(transforms.normalize(torch.stack(pixels).to(device)).to(dtype)).cpu()
            said = iter(
                probabilities(logits, labels=trained.labels, temperature=trained.temperature)
            )
        for found, each in batch:
            if isinstance(each, str):
                yield Prediction(path=str(found.path), error=each)
            else:
                yield _prediction(found.path, next(said), classes, trained, top)


def as_csv(predictions: Iterable[Prediction], *, top: int) -> Iterator[str]:
    """Yield the lines of a CSV file, its header first: path, class, probability, error, and the
    most probable classes. Several classes of one image are separated by ";".

    Args:
        predictions: of the files.
        top: how many classes have columns.
    """
    more = [f"top{i}_{name}" for i in range(1, top + 1) for name in ("class", "probability")]
    yield _line(["path", "class", "probability", "error", *more])
    for each in predictions:
        names = ";".join(name for name, _ in each.said)
        values = ";".join(_number(value) for _, value in each.said)
        pairs = [text for name, value in each.top for text in (name, _number(value))]
        pairs += [""] * (len(more) - len(pairs))
        yield _line([each.path, names, values, each.error or "", *pairs])


def as_json_lines(predictions: Iterable[Prediction]) -> Iterator[str]:
    """Yield a JSON object for each file, a line each, with the keys "path", "said" and "top" (lists
    of "class" and "probability") and "error".
    """
    for each in predictions:
        lists = {
            key: [{"class": name, "probability": float(_number(p))} for name, p in pairs]
            for key, pairs in (("said", each.said), ("top", each.top))
        }
        yield json.dumps({"path": each.path, **lists, "error": each.error}) + "\n"


def _below(folder: Path, hidden: list[Path]) -> Iterator[Found]:
    """Yield the files of a folder and of the folders in it, as they are sorted."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        yield Found(path=folder, problem=f"the folder cannot be read: {error.strerror or error}")
        return
    for entry in entries:
        path = folder / entry.name
        if is_hidden(entry.name):
            hidden.append(path)
        elif entry.is_dir(follow_symlinks=False):
            yield from _below(path, hidden)
        else:
            yield _looked_at(path)


def _looked_at(path: Path) -> Found:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return Found(path=path, problem=f"cannot be read: {error.strerror or error}")
    if stat.S_ISDIR(mode):
        return Found(path=path, problem="a link to a folder, which is not followed")
    return Found(path=path, problem="" if stat.S_ISREG(mode) else "not a regular file")


class _Pixels(Dataset[Any]):
    """What goes into the network of each file, as 8 bits, or why there is nothing."""

    def __init__(self, files: Sequence[Found], transforms: Transforms) -> None:
        self._files, self._transforms = files, transforms

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Tensor | str:
        found = self._files[index]
        if found.problem:
            return found.problem
        try:
            return self._transforms.pixels(read_image(found.path))
        except Exception as error:  # a decoder may raise anything, and the next file is to be seen
            said = without_place(error, str(found.path)) or type(error).__name__
            return " ".join(said.split())


def _batches(
    files: Sequence[Found], transforms: Transforms, batch_size: int, workers: int
) -> Iterator[list[tuple[Found, Tensor | str]]]:
    loader: DataLoader[Any] = DataLoader(
        _Pixels(files, transforms),
        batch_size=batch_size,
        num_workers=min(workers, len(files)),
        collate_fn=list,
        # of its own, or it would draw from the user's
        generator=torch.Generator().manual_seed(0),
    )
    start = 0
    for batch in loader:
        yield list(zip(files[start : start + len(batch)], batch, strict=True))
        start += len(batch)


def _prediction(
    path: Path, said: Tensor, classes: Sequence[str], trained: Trained, top: int
) -> Prediction:
    if not bool(said.isfinite().all()):
        return Prediction(path=str(path), error="the network's output is not a number")
    order = said.argsort(descending=True, stable=True)[:top].tolist()
    chosen = order[:1]
    if trained.labels == "many":
        limits = trained.limits(classes)
        chosen = [i for i, p in enumerate(said.tolist()) if p >= limits[i]]
    return Prediction(
        path=str(path),
        said=tuple((classes[i], float(said[i])) for i in chosen),
        top=tuple((classes[i], float(said[i])) for i in order),
    )


def _number(value: float) -> str:
    return f"{value:.{_DIGITS}g}"


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
