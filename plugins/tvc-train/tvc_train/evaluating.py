"""Evaluate a model on held-out images: logits once, in the order of the images, and figures from
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tvc_core import ParameterError, short_repr

from .modes import modes_kept

__all__ = ["Evaluation", "evaluate", "figures_of"]

_BINS = 15
"""Of the calibration error (Guo et al. 2017, arXiv:1706.04599, section 4)."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model says about images.

    Args:
        figures: by name: "loss", "accuracy", "balanced_accuracy", "f1", "calibration_error"; of
            several labels an image "loss", "accuracy", "f1" and "average_precision".
        logits: [N, classes], on the CPU, in the order of the indices.
        targets: class numbers [N]; of several labels an image zeros and ones [N, classes].
        indices: of the images in their samples [N], rising.
    """

    figures: dict[str, float]
    logits: Tensor
    targets: Tensor
    indices: Tensor


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    labels: str = "one",
    device: torch.device | str = "cpu",
    gather: Callable[[Tensor], Tensor] | None = None,
    before_batch: Callable[[], None] | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Evaluation:
    """Run a model in eval mode over batches and return figures over all images.

    Args:
        model: each of its modules is in the mode in which it was afterwards.
        batches: of `images`, `targets` and `indices`, as `tvc_train.data.evaluation_batches` yields
            them.
        labels: "one" class an image, or "many".
        device: where the model is.
        gather: return the rows of all processes for those of this one.
        before_batch: called before each batch; what it raises ends the evaluation.
        forward: what runs in the place of the model, such as the same compiled.

    Raises:
        ParameterError: no model, no images, or a batch that has not all three.
    """
    if not isinstance(model, nn.Module):
        raise ParameterError(
            f"evaluate runs a model, not {short_repr(model)}; tvc_train.judge takes its file and "
            "a folder of images"
        )
    run = forward or model
    logits, targets, indices = [], [], []
    with modes_kept(model):
        model.eval()
        for batch in batches:
            if before_batch is not None:
                before_batch()
            if not all(hasattr(batch, part) for part in ("images", "targets", "indices")):
                raise ParameterError(
                    "a batch has images, targets and indices, as tvc_train.data.evaluation_batches "
                    f"yields them; this is of type {type(batch).__name__}"
                )
            found = run(batch.images.to(device))
            logits.append(found.detach().to("cpu", torch.promote_types(found.dtype, torch.float32)))
            targets.append(batch.targets.cpu())
            indices.append(batch.indices.cpu())
    nothing = [torch.empty(0)]  # of a process without images
    rows = [torch.cat(each or nothing) for each in (logits, targets, indices)]
    if gather is not None:
        rows = [gather(each) for each in rows]
    if not len(rows[2]):
        raise ParameterError(
            "there are no images to evaluate the model on; an iterator of batches yields them once"
        )
    order = rows[2].argsort()
    logit, target, index = (each[order] for each in rows)
    figures = figures_of(logit, target, labels=labels)
    return Evaluation(figures=figures, logits=logit, targets=target, indices=index)


def figures_of(logits: Tensor, targets: Tensor, *, labels: str = "one") -> dict[str, float]:
    """Return figures by name.

    Args:
        logits: [N, classes].
        targets: class numbers [N], or zeros and ones [N, classes].
        labels: "one" or "many".
    """
    from torchmetrics.functional import classification as metrics  # takes seconds

    classes = logits.shape[1]
    double = logits.double()
    if labels == "many":
        loss = nn.functional.binary_cross_entropy_with_logits(double, targets.double())
        said, true = double.sigmoid(), targets.long()
        args = (said, true, classes)
        unchecked: Any = {"validate_args": False}  # which would refuse a single class
        found = {
            "accuracy": metrics.multilabel_accuracy(*args, average="micro", **unchecked),
            "f1": metrics.multilabel_f1_score(*args, **unchecked),
            "average_precision": metrics.multilabel_average_precision(*args, **unchecked),
        }
    else:
        loss = nn.functional.cross_entropy(double, targets)
        said = double.softmax(1)
        found = {
            "accuracy": metrics.multiclass_accuracy(said, targets, classes, average="micro"),
            "balanced_accuracy": metrics.multiclass_accuracy(said, targets, classes),
            "f1": metrics.multiclass_f1_score(said, targets, classes),
            "calibration_error": metrics.multiclass_calibration_error(
                said, targets, classes, _BINS
            ),
        }
    return {"loss": float(loss), **{name: float(value) for name, value in found.items()}}
