"""Average the weights of models that were fine-tuned from one starting point (model soups: Wortsman
et al. 2022, arXiv:2203.05482). The average costs no more to run than one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tvc_core import HybridModel, join_names, load, short_repr

from .errors import TrainingError
from .filling import fill
from .judging import Judged, judge
from .modes import own_modes
from .scores import best_temperature, best_thresholds
from .trained import Trained

__all__ = ["Soup", "average"]

_OWN = (
    "version", "name", "description", "requires", "seed", "max_params", "freeze_backbone",
    "unfreeze_stages", "grad_checkpointing", "training", "data", "tune", "lock",
)  # fmt: skip
"""Keys of a recipe in which models of one soup may differ: they say how it was trained."""

_LOWER_IS_BETTER = ("loss", "calibration_error")


@dataclass(frozen=True, kw_only=True)
class Soup:
    """Models as one.

    Args:
        taken: the files that are in the average, in the order in which they came in.
        left_out: the others: with them it did worse.
        figures: of the average on the data; empty where there were none.
        notes: what the user should know.
    """

    taken: tuple[Path, ...]
    left_out: tuple[Path, ...] = ()
    figures: Mapping[str, float]
    notes: tuple[str, ...] = ()


@own_modes()
def average(
    files: Sequence[str | Path],
    out: str | Path,
    *,
    greedy: bool = False,
    data: str | Path | None = None,
    by: str = "accuracy",
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "cpu",
    max_bad: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> Soup:
    """Write a model whose weights are the mean of those of several saved models.

    Floating-point tensors are summed in float64; of integers (how many batches a normalization has
    seen) the largest is taken.

    Args:
        files: of at least two models, of one network, one recipe but for its training, and the same
            classes and preprocessing.
        out: the new file.
        greedy: take the best model first, then each other one, from better to worse, only where the
            average is not worse with it (recipe 1 of the paper). Needs `data`.
        data: held-out images, as `judge` takes them. Calibration is done again on them; without
            them the new file has none.
        by: the figure to compare by, one of those that `tvc evaluate` shows.
        batch_size: images that go through the network together.
        workers: processes that read images; 0 for none but this one.
        device: where the network runs.
        max_bad: as many images of the data may be left out because something is wrong with them.
        changes: of the recipe that `data` is, as `tvc_core.load_recipe` takes them.

    Raises:
        TrainingError: the models do not fit together, `greedy` has no data, or `by` is no such
            figure, or is given without `greedy`.
        WeightsError: a file is not that of a model, or the new one cannot be written.
        DataError: something is wrong with the data.
    """
    paths = [Path(each) for each in files]
    out = Path(out)
    if len(paths) < 2 or len({path.resolve() for path in paths}) < len(paths):
        said = join_names([str(path) for path in paths])
        raise TrainingError(f"an average needs two different files or more, not {said}")
    if greedy and data is None:
        raise TrainingError("a greedy soup is tried out on held-out images: give it data")
    if by != "accuracy" and not greedy:
        raise TrainingError(
            f"by={by!r} is what a greedy soup compares by: make it greedy (--greedy)"
        )
    model, about = _first(paths)
    known: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "device": device}
    known |= {"max_bad": max_bad, "changes": changes}
    if not greedy:
        taken, left = paths, list[Path]()
        fill(model, _mean([_tensors(path) for path in taken]))
    else:
        assert data is not None
        taken, left = _greedy(paths, model, about, Path(data), by, known)
    about = replace(about, temperature=1.0, thresholds=None, figures={})
    notes: list[str] = []
    if data is None:
        notes.append("without data the average is neither evaluated nor calibrated")
    else:
        found = judge((model, about), Path(data), **known)
        notes += map(str, found.problems)
        logits, targets = found.evaluation.logits, found.evaluation.targets
        about = replace(about, temperature=best_temperature(logits, targets, labels=about.labels))
        if about.labels == "many":
            limits = best_thresholds(logits, targets, temperature=about.temperature)
            about = replace(about, thresholds=tuple(limits))
        calibrated = Judged.of(model, about, found.samples, found.evaluation)
        about = replace(about, figures=calibrated.scores.figures)
    about.save(model.to("cpu"), out, average_of=[path.name for path in taken])
    return Soup(
        taken=tuple(taken), left_out=tuple(left), figures=dict(about.figures), notes=tuple(notes)
    )


def _first(paths: Sequence[Path]) -> tuple[HybridModel, Trained]:
    """Return the first model, after all others were compared with it."""
    model, about = Trained.open(paths[0])
    for path in paths[1:]:
        other, said = Trained.open(path)
        _compare(paths[0], path, _parts(model, about), _parts(other, said))
        own, new = model.state_dict(), other.state_dict()
        lacking = [f"it has no {name}" for name in own if name not in new]
        more = [f"it has also {name}" for name in new if name not in own]
        shapes = [
            f"{name} is {list(new[name].shape)} of {new[name].dtype}, not {list(own[name].shape)} "
            f"of {own[name].dtype}"
            for name in own
            if name in new
            and (new[name].shape, new[name].dtype) != (own[name].shape, own[name].dtype)
        ]
        if wrong := [*lacking, *more, *shapes]:
            raise TrainingError(
                f"{path} does not fit {paths[0]}, so they have no average: "
                f"{join_names(wrong, most=4)}"
            )
    return model, about


def _parts(model: HybridModel, about: Trained) -> dict[str, Any]:
    """Return what has to be equal besides tensors, by where it stands."""
    recipe = {k: v for k, v in model.recipe.to_mapping().items() if k not in _OWN}
    said = {"labels": about.labels, "preprocessing": about.preprocessing.to_mapping()}
    return _flat({**recipe, **said, "classes": list(Trained.class_names(model))})


def _flat(data: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(data, Mapping) or not data:
        return {path: data}
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= _flat(value, f"{path}.{key}" if path else str(key))
    return found


def _compare(first: Path, path: Path, own: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    keys = [key for key in {**own, **new} if own.get(key) != new.get(key)]
    if keys:
        said = [
            f"{key} is {short_repr(new.get(key))}, not {short_repr(own.get(key))}" for key in keys
        ]
        raise TrainingError(
            f"{path} is another model than {first}, so they have no average: "
            f"{join_names(said, most=4)}"
        )


def _tensors(path: Path) -> dict[str, Tensor]:
    return load(path).state_dict()


def _mean(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    found = {}
    for name, first in states[0].items():
        each = [state[name] for state in states]
        if first.is_floating_point() or first.is_complex():
            wide = torch.promote_types(first.dtype, torch.float64)
            total = torch.zeros_like(first, dtype=wide)
            for tensor in each:
                total += tensor
            found[name] = (total / len(each)).to(first.dtype)
        else:
            found[name] = torch.stack(each).amax(0)
    return found


def _greedy(
    paths: Sequence[Path],
    model: HybridModel,
    about: Trained,
    data: Path,
    by: str,
    known: Mapping[str, Any],
) -> tuple[list[Path], list[Path]]:
    """Put the greedy soup into the model; return what is in it and what is not."""
    sign = -1 if by in _LOWER_IS_BETTER else 1
    about = replace(about, temperature=1.0, thresholds=None)  # of the first model alone

    def figure(states: Sequence[Mapping[str, Tensor]]) -> float:
        fill(model, _mean(states))
        found = judge((model, about), data, **known).scores.figures
        if by not in found:
            raise TrainingError(f"there is no figure {by!r}; there are {join_names(found)}")
        return sign * found[by]

    alone = {path: figure([_tensors(path)]) for path in paths}
    ranked = sorted(paths, key=lambda path: -alone[path])  # of equal ones the first given first
    taken, best = [ranked[0]], alone[ranked[0]]
    states = [_tensors(ranked[0])]
    for path in ranked[1:]:
        new = [*states, _tensors(path)]
        if (found := figure(new)) >= best:
            taken, states, best = [*taken, path], new, found
    fill(model, _mean(states))
    return taken, [path for path in paths if path not in taken]
