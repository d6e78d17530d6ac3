"""Everything that is wrong with data, found before the first step and told as one list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tvc_core import join_names

from ..errors import DataError, without_place
from .opening import Data
from .problems import Problem, listed
from .samples import Samples
from .settings import DataSettings

__all__ = ["DataReport", "inspect_data", "usable"]

_CHUNK = 64  # images that a worker looks at before it answers


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What was found.

    Args:
        data: the images that can be used.
        problems: what is wrong, whatever the budget.
        notes: what a user should know, though nothing is wrong.
        max_bad: images that may be left out.
    """

    data: Data
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]
    max_bad: int

    @property
    def bad_images(self) -> int:
        """How many images cannot be used."""
        return sum(each.kind == "image" for each in self.problems)

    @property
    def is_fine(self) -> bool:
        """Whether training may begin: nothing is wrong, or no more than may be left out."""
        others = len(self.problems) > self.bad_images
        return not others and self.bad_images <= self.max_bad

    def ensure_fine(self) -> Data:
        """Return the images that can be used.

        Raises:
            DataError: training may not begin; the message lists why.
        """
        if self.is_fine:
            return self.data
        count, others = len(self.problems), len(self.problems) - self.bad_images
        if count == 1:
            said = str(self.problems[0])
        else:
            ordered = sorted(self.problems, key=lambda each: each.kind == "image")
            said = f"{count} things are wrong with the data:\n{listed(ordered)}"
        if not others and self.max_bad:
            said += f"\nThat is more than data.max_bad, which is {self.max_bad}."
        elif not others:
            said += (
                f"\nMend or remove what is wrong; or 'max_bad: {self.bad_images}' in the section "
                "data leaves out as many images."
            )
        raise DataError(said)


def inspect_data(data: Data, settings: DataSettings, *, workers: int = 0) -> DataReport:
    """Look at every image, and at all of them together.

    Args:
        data: as `open_data` returns them.
        settings: of the data; with `check: headers` no image is decoded.
        workers: processes that read images; 0 for none but this one.
    """
    problems = list(data.problems)
    kept: list[Samples] = []
    prints: list[np.ndarray] = []
    full = settings.check == "full"
    for samples in (data.train, data.val):
        good, fingerprints, found = _usable(samples, full, workers)
        problems += found
        kept.append(good)
        prints.append(fingerprints)
    train, val = kept
    # two sets of the world's benchmarks share images; their authors' split is not ours to mend
    ours = settings.source != "torchvision"
    both = _in_both(train, val, prints if full else None)
    for index, other in both:
        what = f"the same image is held out as {val.where(other)}: remove one of them"
        kind: Literal["image", "note"] = "image" if ours else "note"
        problems.append(Problem(where=train.where(index), what=what, kind=kind))
    if both and ours:
        train = train.take(np.setdiff1d(np.arange(len(train)), [index for index, _ in both]))
    problems += _contradictions(train, prints[0] if full and not both else None, data.classes)
    problems += _about_classes(train, val, data)
    rest = replace(data, train=train, val=val, problems=())
    return DataReport(
        data=rest,
        problems=tuple(each for each in problems if each.kind != "note"),
        notes=tuple(each for each in problems if each.kind == "note"),
        max_bad=settings.max_bad,
    )


def usable(samples: Samples, *, workers: int = 0) -> tuple[Samples, list[Problem]]:
    """Decode every image; return those that can be, and what is wrong with the others."""
    good, _, found = _usable(samples, True, workers)
    return good, found


def _usable(
    samples: Samples, full: bool, workers: int
) -> tuple[Samples, np.ndarray, list[Problem]]:
    """Return the images that can be used, the fingerprint of each, and what is wrong elsewhere."""
    prints, found = _looked_at(samples, full, workers)
    good = np.flatnonzero(prints.any(1))
    kept = samples if len(good) == len(samples) else samples.take(good)
    return kept, prints[good], found


class _Looks(Dataset[tuple[torch.Tensor, torch.Tensor, list[str]]]):
    """Fingerprints, contents and errors of images, in chunks; what a worker process holds."""

    def __init__(self, samples: Samples, full: bool) -> None:
        self.samples, self.full = samples, full

    def __len__(self) -> int:
        return -(-len(self.samples) // _CHUNK)

    def __getitem__(self, chunk: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        start = chunk * _CHUNK
        indices = range(start, min(start + _CHUNK, len(self.samples)))
        prints, contents = (np.zeros((len(indices), 16), np.uint8) for _ in range(2))
        errors = []
        for row, index in enumerate(indices):
            try:
                print_, content = self.samples.look(index, full=self.full)
            except DataError as error:
                errors.append(str(error))
                continue
            errors.append("")
            prints[row] = np.frombuffer(print_, np.uint8)
            contents[row] = np.frombuffer(content or bytes(16), np.uint8)
        return torch.from_numpy(prints), torch.from_numpy(contents), errors


def _looked_at(samples: Samples, full: bool, workers: int) -> tuple[np.ndarray, list[Problem]]:
    """Return a fingerprint of each image, uint8 [N, 16], zeros where it cannot be used; and why."""
    samples.recall()
    looks = _Looks(samples, full)
    prints, problems = np.zeros((len(samples), 16), np.uint8), []
    for chunk, (found, contents, errors) in enumerate(_results(looks, workers)):
        start = chunk * _CHUNK
        prints[start : start + len(errors)] = found.numpy()
        for row, error in enumerate(errors):
            if not error:
                known = (each[row].numpy().tobytes() for each in (found, contents))
                samples.learn(start + row, *known)
            else:
                where = samples.where(start + row)
                what = without_place(error, where)
                place = samples.names[start + row]
                if what == error and place in error:  # the list and its line, before the file
                    where, what = where.rpartition(": ")[0] or where, error
                problems.append(Problem(where=where, what=what, kind="image"))
    samples.remember()
    return prints, problems


def _results(looks: _Looks, workers: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[str]]]:
    if workers and len(looks) > 1:
        generator = torch.Generator().manual_seed(0)  # not the user's
        yield from DataLoader(looks, batch_size=None, num_workers=workers, generator=generator)
    else:
        yield from (looks[chunk] for chunk in range(len(looks)))


def _in_both(
    train: Samples, val: Samples, prints: list[np.ndarray] | None
) -> list[tuple[int, int]]:
    """Return which images to train on are also held out, and as which.

    Args:
        train: images to train on.
        val: images that are held out.
        prints: of both, uint8 [N, 16] of their pixels; without them, files of one size are read.
    """
    if prints is None:
        return _files_in_both(train, val)
    held = {row.tobytes(): index for index, row in reversed(list(enumerate(prints[1])))}
    rows = enumerate(row.tobytes() for row in prints[0])
    return [(index, held[row]) for index, row in rows if row in held]


def _files_in_both(train: Samples, val: Samples) -> list[tuple[int, int]]:
    sizes = [{each.size_hint(index) for index in range(len(each))} for each in (train, val)]
    shared = sizes[0] & sizes[1]
    held = {
        val.content(index): index
        for index in reversed(range(len(val)))
        if val.size_hint(index) in shared
    }
    candidates = (index for index in range(len(train)) if train.size_hint(index) in shared)
    pairs = ((index, held.get(train.content(index))) for index in candidates)
    return [(index, other) for index, other in pairs if other is not None]


def _contradictions(
    train: Samples, prints: np.ndarray | None, classes: tuple[str, ...]
) -> list[Problem]:
    """Note images that are there under two classes."""
    if prints is None or train.targets.ndim == 2:
        return []
    first: dict[bytes, int] = {}
    found = []
    for index, row in enumerate(prints):
        other = first.setdefault(row.tobytes(), index)
        if train.targets[other] != train.targets[index]:
            pair = [classes[int(train.targets[each])] for each in (index, other)]
            what = f"is a {pair[0]!r}, and the same image {train.where(other)} is a {pair[1]!r}"
            found.append(Problem(where=train.where(index), what=what, kind="note"))
    return found


def _about_classes(train: Samples, val: Samples, data: Data) -> list[Problem]:
    """Say what is wrong with the classes, and how many images each has."""
    found: list[Problem] = []
    if len(data.classes) < (2 if data.labels == "one" else 1):
        what = f"there is one class, {join_names(data.classes)}, so there is nothing to learn"
        what = what if data.classes else "there is no class: no image has a label"
        found.append(Problem(where="data", what=what))
    if not len(train):
        found.append(Problem(where="data", what="there is no image to train on"))
        return found
    if not len(val):
        what = "no image is held out; add some to each class, or to val where the data name parts"
        found.append(Problem(where="data", what=what))
    counts = [_counts(samples, len(data.classes)) for samples in (train, val)]
    for name, num, held in zip(data.classes, *counts, strict=True):
        if not num and held:
            what = f"{held} images are held out, and there is none to train on"
            found.append(Problem(where=f"class {name!r}", what=what))
        elif not num:
            found.append(Problem(where=f"class {name!r}", what="there is no image of it"))
        elif not held and len(val):
            what = "no image of it is held out, so nothing says how well it is told"
            found.append(Problem(where=f"class {name!r}", what=what, kind="note"))
    return found


def _counts(samples: Samples, num: int) -> list[int]:
    if samples.targets.ndim == 2:
        return [int(count) for count in samples.targets.sum(0)]
    return [int(count) for count in np.bincount(samples.targets, minlength=num)]
