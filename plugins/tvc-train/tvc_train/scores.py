"""Figures of a model from its logits on held-out images: over all, by class, confusion and
calibration.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .evaluating import figures_of

__all__ = [
    "Bin",
    "ClassScores",
    "Scores",
    "best_temperature",
    "best_thresholds",
    "probabilities",
    "scores_of",
]

_BINS = 15
"""Of the calibration error (Guo et al. 2017, arXiv:1706.04599, section 4)."""


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Figures of one class.

    Args:
        name: of the class.
        images: that are of it [images].
        predicted: that were said to be of it [images].
        precision: the part of `predicted` that is right; 0 where nothing was predicted.
        recall: the part of `images` that was found; 0 where there are none.
        f1: harmonic mean of both.
        average_precision: area below precision by recall; None with one label an image, NaN where
            no image is of the class.
        threshold: probability from which on an image is said to be of the class; None with one
            label an image, where the most probable class is said.
    """

    name: str
    images: int
    predicted: int
    precision: float
    recall: float
    f1: float
    average_precision: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Predictions of about the same confidence, for a reliability diagram.

    Args:
        low: confidence from which on the bin reaches.
        high: to which it reaches.
        count: predictions in it.
        confidence: their mean; NaN where there are none.
        accuracy: the part that is right; NaN where there are none.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How good a model is on held-out images.

    Args:
        labels: "one" class an image, or "many".
        num_images: that were looked at [images].
        figures: as in metrics.csv, and "calibration_error" of several labels also.
        classes: in the order of the outputs.
        confusion: images by true class (rows) and predicted class (columns), [classes, classes]; of
            several labels, [classes, 2, 2], not being of the class first.
        reliability: bins of equal width, of the most probable class, or of all classes of all
            images.
    """

    labels: str
    num_images: int
    figures: dict[str, float]
    classes: tuple[ClassScores, ...]
    confusion: tuple[Any, ...]
    reliability: tuple[Bin, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Return all as plain data; None stands for what is not a number."""
        return {
            "labels": self.labels,
            "num_images": self.num_images,
            **{name: _plain(value) for name, value in self.figures.items()},
            "classes": [{k: _plain(v) for k, v in asdict(each).items()} for each in self.classes],
            "confusion": self.confusion,
            "reliability": [
                {k: _plain(v) for k, v in asdict(each).items()} for each in self.reliability
            ],
        }

    def confused(self, most: int = 10) -> list[tuple[str, str, int]]:
        """Return true class, predicted class and how often, the most frequent mistakes first.

        Args:
            most: at most so many. Of several labels an image there are none.
        """
        if self.labels == "many":
            return []
        names = [each.name for each in self.classes]
        pairs = [
            (names[true], names[said], count)
            for true, row in enumerate(self.confusion)
            for said, count in enumerate(row)
            if count and true != said
        ]
        return sorted(pairs, key=lambda pair: -pair[2])[:most]


def probabilities(logits: Tensor, *, labels: str, temperature: float = 1.0) -> Tensor:
    """Return calibrated probabilities [N, classes], in float64.

    Args:
        logits: [N, classes].
        labels: "one" (they add up to 1 for each image) or "many" (each class by itself).
        temperature: logits are divided by it (Guo et al. 2017).
    """
    scaled = logits.double() / temperature
    return scaled.sigmoid() if labels == "many" else scaled.softmax(1)


def scores_of(
    logits: Tensor,
    targets: Tensor,
    *,
    classes: Sequence[str],
    labels: str = "one",
    temperature: float = 1.0,
    thresholds: Sequence[float] | None = None,
) -> Scores:
    """Return how good predictions are.

    Args:
        logits: [N, classes], N at least 1.
        targets: class numbers [N]; of several labels an image zeros and ones [N, classes].
        classes: names, in the order of the outputs.
        labels: "one" or "many".
        temperature: logits are divided by it.
        thresholds: of several labels, one for each class; by default 0.5 each.
    """
    from torchmetrics.functional import classification as metrics  # takes seconds

    count = len(classes)
    with warnings.catch_warnings():  # torchmetrics tells of classes that no image is of
        warnings.simplefilter("ignore", UserWarning)
        figures = figures_of(logits / temperature, targets, labels=labels)
    said = probabilities(logits, labels=labels, temperature=temperature)
    extra: list[dict[str, float]] = [{} for _ in classes]
    if labels == "many":
        true = targets.long()
        limits = torch.tensor(list(thresholds or [0.5] * count), dtype=said.dtype)
        chosen = (said >= limits).long()
        kind: dict[str, Any] = {"num_labels": count, "validate_args": False}  # one class is enough
        table = metrics.multilabel_confusion_matrix(chosen, true, **kind)
        figures["accuracy"] = float(
            metrics.multilabel_accuracy(chosen, true, average="micro", **kind)
        )
        figures["f1"] = float(metrics.multilabel_f1_score(chosen, true, **kind))
        figures["exact_match"] = float(metrics.multilabel_exact_match(chosen, true, **kind))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            area = metrics.multilabel_average_precision(said, true, average=None, **kind)
        area = area.where(true.sum(0) > 0, torch.nan)
        figures["calibration_error"] = float(
            metrics.binary_calibration_error(said.flatten(), true.flatten(), _BINS)
        )
        each = [
            metric(chosen, true, average=None, **kind).reshape(count)
            for metric in (
                metrics.multilabel_precision,
                metrics.multilabel_recall,
                metrics.multilabel_f1_score,
            )
        ]
        images, predicted = true.sum(0), chosen.sum(0)
        for index, found in enumerate(extra):
            found |= {"average_precision": float(area[index]), "threshold": float(limits[index])}
        # of each class by itself: how sure it is of being there, and whether it is
        sure, right = said.flatten(), true.flatten()
    else:
        chosen = said.argmax(1)
        table = metrics.multiclass_confusion_matrix(chosen, targets, count)
        each = [
            metric(chosen, targets, count, average=None)
            for metric in (
                metrics.multiclass_precision,
                metrics.multiclass_recall,
                metrics.multiclass_f1_score,
            )
        ]
        images, predicted = targets.bincount(minlength=count), chosen.bincount(minlength=count)
        sure, right = said.amax(1), (chosen == targets).long()
    by_class = tuple(
        ClassScores(
            name=name,
            images=int(images[index]),
            predicted=int(predicted[index]),
            precision=float(each[0][index]),
            recall=float(each[1][index]),
            f1=float(each[2][index]),
            **extra[index],
        )
        for index, name in enumerate(classes)
    )
    return Scores(
        labels=labels,
        num_images=len(logits),
        figures=figures,
        classes=by_class,
        confusion=tuple(table.tolist()),
        reliability=_bins(sure, right),
    )


def best_temperature(logits: Tensor, targets: Tensor, *, labels: str = "one") -> float:
    """Return the number by which logits have to be divided so that these targets are most likely
    (Guo et al. 2017, section 4.2); from 0.001 to 1000.

    Where all images are right, any smaller number makes them more likely, down to certainty. Then
    their mean probability becomes (N + 1) / (N + 2), which after N of N is Laplace's rule of
    succession; with several labels an image N counts all decisions.

    Args:
        logits: [N, classes] of held-out images.
        targets: class numbers [N]; of several labels an image zeros and ones [N, classes].
        labels: "one" or "many".
    """
    double = logits.detach().double()

    def slope(scale: float) -> float:
        factor = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            if labels == "many":
                loss = F.binary_cross_entropy_with_logits(factor * double, targets.double())
            else:
                loss = F.cross_entropy(factor * double, targets)
        return float(torch.autograd.grad(loss, factor)[0])

    def doubt(scale: float) -> float:
        if labels == "many":
            sure = ((2 * targets.double() - 1) * scale * double).sigmoid()
        else:
            sure = (scale * double).softmax(1).gather(1, targets[:, None])
        return float(sure.mean()) - (sure.numel() + 1) / (sure.numel() + 2)

    low, high = 1e-3, 1e3
    # the loss is convex in the scale, so its slope changes sign once, if at all
    negative = doubt if slope(high) <= 0 else slope
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if negative(middle) < 0 else (low, middle)
    return 1 / math.sqrt(low * high)


def best_thresholds(logits: Tensor, targets: Tensor, *, temperature: float = 1.0) -> list[float]:
    """Return, for each class of several labels an image, the probability from which on it is best
    said to be there: F1 on these images is highest (Lipton et al. 2014, arXiv:1402.1892).

    Lies in the middle between the two probabilities that it parts. 0.5 for a class that no image
    or every image is of, since nothing says where its threshold is.

    Args:
        logits: [N, classes] of held-out images.
        targets: zeros and ones [N, classes].
        temperature: logits are divided by it.
    """
    said = probabilities(logits, labels="many", temperature=temperature)
    found = []
    for values, true in zip(said.T, targets.T.bool(), strict=True):
        if not true.any() or true.all():
            found.append(0.5)
            continue
        order = values.argsort(descending=True)
        ranked, hits = values[order], true[order].cumsum(0)
        count = torch.arange(1, len(ranked) + 1)
        f1 = 2 * hits / (count + true.sum())
        # images of one probability are said to be of the class together
        last = torch.cat([ranked[:-1] != ranked[1:], torch.tensor([True])])
        best = int(f1.where(last, -1).argmax())
        below = float(ranked[best + 1]) if best + 1 < len(ranked) else 0.0
        found.append((float(ranked[best]) + below) / 2)
    return found


def _bins(sure: Tensor, right: Tensor) -> tuple[Bin, ...]:
    # torchmetrics keeps its bins to itself; these are the same, a border is part of the upper one
    borders = torch.linspace(0, 1, _BINS + 1, dtype=sure.dtype)
    place = (torch.bucketize(sure, borders, right=True) - 1).clamp(0, _BINS - 1)
    count = place.bincount(minlength=_BINS)
    confidence = place.bincount(sure, minlength=_BINS) / count
    accuracy = place.bincount(right.double(), minlength=_BINS) / count
    return tuple(
        Bin(
            low=float(borders[i]),
            high=float(borders[i + 1]),
            count=int(count[i]),
            confidence=float(confidence[i]),
            accuracy=float(accuracy[i]),
        )
        for i in range(_BINS)
    )


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value
