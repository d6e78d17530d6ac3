"""Compare a file in its runtime with the model in torch."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree

from tvc_core import WeightsError, foreign

from .certificate import Trial
from .claims import Claims
from .photos import Photo

__all__ = [
    "Run",
    "inputs_for",
    "misses",
    "noise",
    "outputs_of",
    "photo_inputs",
    "repeat",
    "try_input",
]

Run = Callable[[Any], list[Any]]
"""What runs a file: an array [N, C, H, W] to its outputs."""

_NOT_FINITE = float(np.finfo(np.float32).max)
"""The difference from torch of a NaN or an infinity, as JSON, which has neither, can hold it."""


def inputs_for(claims: Claims, seed: int) -> Iterator[tuple[Trial, Any]]:
    """Yield inputs inside the claims, as trials that are not run yet: noise in shapes that the
    export did not see, then in the one that it saw, and zeros.
    """
    shapes = [*claims.draw(3, seed), claims.example]
    for number, shape in enumerate(shapes + [claims.example] * (4 - len(shapes))):
        yield noise(shape, seed + number)
    trial = Trial(input="zeros", shape=shapes[0])
    yield _signed(trial, np.zeros(shapes[0], np.float32))


def noise(shape: Sequence[int], seed: int) -> tuple[Trial, Any]:
    """Return noise as a trial that is not run yet."""
    trial = Trial(input="noise", seed=seed, shape=tuple(shape))
    return _signed(trial, _noise(trial))


def photo_inputs(photos: Sequence[Photo]) -> Iterator[tuple[Trial, Any]]:
    """Yield photos as trials that are not run yet, each by itself."""
    for photo in photos:
        images = photo.image[None].numpy()
        yield _signed(Trial(input="photo", name=photo.name, shape=images.shape), images)


def outputs_of(model: nn.Module, images: Any) -> list[Any]:
    """Return what a model gives in torch, as float32 arrays."""
    with torch.no_grad():
        found = model(torch.from_numpy(images))
    return [each.float().numpy() for each in _pytree.tree_leaves(found)]


def try_input(trial: Trial, images: Any, expected: list[Any], run: Run, tolerance: float) -> Trial:
    """Run a file on an input, and return the trial with what came out.

    Raises:
        WeightsError: the runtime fails, or gives outputs of other shapes; or torch's own are NaN or
            infinite.
    """
    if not all(np.isfinite(each).all() for each in expected):
        raise WeightsError(
            f"on {_named(trial)} the model's own outputs are NaN or infinite in torch, which no "
            "file can be compared with: export weights from before they went wrong"
        )
    what = f"the file does not run on {trial.input} {list(trial.shape)}"
    with foreign(WeightsError, what):
        found = [np.asarray(each, np.float32) for each in run(images)]
        if [each.shape for each in found] != [each.shape for each in expected]:
            raise ValueError(
                f"its outputs are {[each.shape for each in found]}, and those of torch "
                f"{[each.shape for each in expected]}"
            )
    difference = max(_largest(a - b) for a, b in zip(found, expected, strict=True))
    largest = max(map(_largest, expected))
    trial = replace(trial, difference=difference, largest=largest)
    room = 2 * trial.allowed(tolerance)  # two answers that are as good as equal in torch
    same = np.ones(trial.shape[0], bool)
    for mine, theirs in zip(found, expected, strict=True):
        rows = theirs.reshape(len(theirs), -1)
        chosen = mine.reshape(len(mine), -1).argmax(1)
        same &= rows[np.arange(len(rows)), chosen] >= rows.max(1) - room
    return replace(
        trial,
        equal=int(same.sum()),
        expected=tuple(base64.b64encode(each.tobytes()).decode() for each in expected),
    )


def misses(trial: Trial, tolerance: float) -> str:
    """Say in what a trial is not equal; an empty string where it is."""
    what, allowed = _named(trial), trial.allowed(tolerance)
    if trial.difference == _NOT_FINITE:
        return f"on {what} an output is NaN or infinite, and torch's is not"
    if not trial.difference <= allowed:
        of = trial.largest or 1
        return (
            f"on {what} an output differs by {trial.difference / of:.3g} of the largest one, and "
            f"{allowed / of:.3g} is allowed"
        )
    if trial.equal != trial.shape[0]:
        return f"on {what} {trial.shape[0] - trial.equal} of {trial.shape[0]} answers are others"
    return ""


def repeat(trial: Trial, run: Run, tolerance: float, photo: Photo | None = None) -> Trial:
    """Run a file again on the input of a trial, and compare with torch's outputs of then.

    Args:
        trial: of the certificate.
        run: runs the file.
        tolerance: of the certificate.
        photo: of a trial with one.

    Raises:
        WeightsError: the input is another one than that of the trial, or the runtime fails.
    """
    images = photo.image[None].numpy() if photo else np.zeros(trial.shape, np.float32)
    if trial.input == "noise":
        images = _noise(trial)
    if _digest(images) != trial.sha256:
        raise WeightsError(
            f"{_named(trial)} is not the input of the proof: it was changed, or prepared by "
            "another version of a library"
        )
    expected = [
        np.frombuffer(base64.b64decode(each), np.float32).reshape(trial.shape[0], -1)
        for each in trial.expected
    ]
    return try_input(trial, images, expected, run, tolerance)


def _named(trial: Trial) -> str:
    return f"{trial.input} {trial.name or list(trial.shape)}"


def _signed(trial: Trial, images: Any) -> tuple[Trial, Any]:
    return replace(trial, sha256=_digest(images)), images


def _digest(images: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()


def _noise(trial: Trial) -> Any:
    chance = np.random.default_rng(trial.seed)
    return chance.standard_normal(trial.shape, dtype=np.float32)


def _largest(values: Any) -> float:
    found = float(np.abs(values).max(initial=0.0))
    return found if np.isfinite(found) else _NOT_FINITE
