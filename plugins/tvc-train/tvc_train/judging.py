"""Evaluate a saved model on data, as `tvc evaluate` does, and report what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tvc_core import HybridModel, PatchReport, RecipeError, load_recipe

from .data import DataSettings, Samples, Transforms, evaluation_batches, open_data, open_labeled
from .data.inspecting import usable
from .data.problems import Problem, listed
from .errors import DataError
from .evaluating import Evaluation, evaluate
from .extras import require_extra
from .modes import own_modes
from .reporting.report import worst_mistakes, write_report
from .runs import Run
from .scores import Scores, scores_of
from .settings import TrainingSettings
from .starting import RECIPES
from .trained import Trained

__all__ = ["Judged", "judge", "report", "report_run"]

_LOOKED_AT = 64
"""Images on which each patch is switched off, for the report."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A model on held-out images.

    Args:
        model: in eval mode.
        trained: what its file says.
        classes: names of its outputs.
        samples: the images.
        evaluation: logits and targets.
        scores: figures of them, calibrated.
        problems: what was found wrong with the data, and left out.
    """

    model: HybridModel
    trained: Trained
    classes: tuple[str, ...]
    samples: Samples
    evaluation: Evaluation
    scores: Scores
    problems: tuple[Problem, ...] = ()

    @staticmethod
    def of(
        model: HybridModel, trained: Trained, samples: Samples, evaluation: Evaluation
    ) -> Judged:
        """Return what an evaluation means for a model."""
        classes = Trained.class_names(model)
        scores = scores_of(
            evaluation.logits,
            evaluation.targets,
            classes=classes,
            labels=trained.labels,
            temperature=trained.temperature,
            thresholds=trained.thresholds,
        )
        return Judged(
            model=model, trained=trained, classes=classes, samples=samples, evaluation=evaluation,
            scores=scores,
        )  # fmt: skip


@own_modes()
def judge(
    file: str | Path | tuple[HybridModel, Trained],
    data: str | Path,
    *,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "cpu",
    max_bad: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> Judged:
    """Evaluate a saved model on images with labels.

    Args:
        file: of the model, which alone says how images are prepared; or both as `Trained.open`
            returns them.
        data: a folder with one for each class, a CSV file, a folder of shards, or a recipe, whose
            held-out images are meant.
        batch_size: images that go through the network together.
        workers: processes that read images; 0 for none but this one.
        device: where the network runs.
        max_bad: as many images may be left out because something is wrong with them; where `data`
            is a recipe, at least as many as it says itself.
        changes: of the recipe, as `tvc_core.load_recipe` takes them.

    Raises:
        WeightsError: the file is not that of a model.
        RecipeError: the recipe is wrong, or there are changes and no recipe.
        DataError: there are no images, or more is wrong with them than `max_bad` allows.
    """
    model, trained = file if isinstance(file, tuple) else Trained.open(file)
    samples, found, budget = _opened(
        Path(data), Trained.class_names(model), trained.labels, changes or {}
    )
    if max_bad := max(max_bad, budget):
        samples, broken = usable(samples, workers=workers)
        found = [*found, *broken]
    _refuse(data, found, max_bad)
    if not len(samples):
        raise DataError(f"{data}: there are no images")
    model.to(device).eval()
    dtype = next(model.parameters()).dtype
    try:
        evaluation = evaluate(
            model,
            evaluation_batches(
                samples, Transforms(trained.preprocessing), batch_size=batch_size, workers=workers
            ),
            labels=trained.labels,
            device=device,
            forward=lambda images: model(images.to(dtype)),
        )
    except DataError:  # of the first image that cannot be read
        _refuse(data, [*found, *usable(samples, workers=workers)[1]], max_bad)
        raise
    judged = Judged.of(model, trained, samples, evaluation)
    return replace(judged, problems=tuple(found))


def _refuse(data: str | Path, found: Sequence[Problem], max_bad: int) -> None:
    """Refuse images of which more is wrong than may be left out.

    Raises:
        DataError: the message lists what.
    """
    problems = [each for each in found if each.kind != "note"]
    serious = any(each.kind != "image" for each in problems)
    if serious or len(problems) > max_bad:
        advice = f"\n--max-bad {len(problems)} (in Python max_bad) leaves them out"
        said = f"{data}: wrong with it are\n{listed(problems)}"
        raise DataError(said if serious else said + advice)


@own_modes()
def report(
    judged: Judged,
    path: Path,
    *,
    title: str,
    facts: Mapping[str, Any] | None = None,
    rows: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write the report of a model on held-out images, one HTML file.

    Args:
        judged: the model, and its evaluation.
        path: the file.
        title: of the page.
        facts: what else to say at its top, by name.
        rows: of metrics.csv, for the curves.

    Raises:
        TrainingError: the extra `report` is not installed, or the file cannot be written.
    """
    trained, evaluation = judged.trained, judged.evaluation
    mistakes = worst_mistakes(
        evaluation.logits,
        evaluation.targets,
        evaluation.indices,
        judged.samples,
        classes=judged.classes,
        labels=trained.labels,
        temperature=trained.temperature,
        thresholds=trained.thresholds,
    )
    said = {
        "images": judged.scores.num_images,
        "classes": len(judged.classes),
        "temperature": trained.temperature,
        **(facts or {}),
    }
    patches = _patches(judged)
    write_report(
        path, judged.scores, title=title, facts=said, rows=rows, mistakes=mistakes,
        patches="" if patches is None else str(patches),
    )  # fmt: skip


@own_modes()
def report_run(run: Run, samples: Samples) -> Path:
    """Write the report of a run that came to its end, `report.html` in its folder.

    Args:
        run: with its model, its predictions and metrics.csv.
        samples: the held-out images.

    Returns:
        The file.

    Raises:
        TrainingError: the extra `report` is not installed, or the file cannot be written.
    """
    require_extra("report", "the report")
    model, trained = Trained.open(run.model)
    tensors = load_file(run.predictions)
    evaluation = Evaluation(figures=dict(trained.figures), **tensors)
    judged = Judged.of(model, trained, samples, evaluation)
    report(
        judged, run.report, title=run.folder.name, facts={"run": str(run.folder)}, rows=run.rows()
    )
    return run.report


def _opened(
    data: Path, classes: tuple[str, ...], labels: str, changes: Mapping[str, Any]
) -> tuple[Samples, Sequence[Problem], int]:
    """Return images with labels, what is wrong with them, and how many the data let be left out."""
    if data.suffix.lower() not in RECIPES:
        if changes:
            raise RecipeError(f"--set changes recipes (.yaml), and {data} is none")
        return *open_labeled(data, DataSettings(labels=labels), classes), 0
    recipe = load_recipe(data, changes=changes)
    settings = DataSettings.from_mapping(recipe.sections.get("data"))
    seed = TrainingSettings.of(recipe).seed  # which decides what is held out
    opened = open_data(settings, folder=data.parent, seed=seed, classes=classes)
    if opened.labels != labels:
        raise DataError(
            f"{data}: has 'labels: {opened.labels}', and the model is one for 'labels: {labels}'"
        )
    return opened.val, opened.problems, settings.max_bad


def _patches(judged: Judged) -> PatchReport | None:
    """Return what each patch does on some of the images; None where there is no patch."""
    model, samples = judged.model, judged.samples
    if not model.patch_records:
        return None
    batches = evaluation_batches(
        samples, Transforms(judged.trained.preprocessing), batch_size=_LOOKED_AT
    )
    batch = next(batches)
    loss = _many if judged.trained.labels == "many" else None
    return model.patch_report((batch.images, batch.targets), loss)


def _many(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
