"""Write the report of a trained model: one HTML file that asks for nothing else.

Its Content-Security-Policy allows only its own style sheet, by hash, and pictures inside of the
file, so nothing in it can run or call out, whatever a class or a file is named.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.problems import visible
from ..extras import require_extra
from ..runs import write_text
from ..scores import Scores, probabilities
from .charts import confusion_chart, curves_chart, gates_chart, reliability_chart

__all__ = ["Mistake", "worst_mistakes", "write_report"]

_HERE = Path(__file__).parent
_MOST_CLASSES = 25
"""In a confusion matrix that is a table; more are a picture."""
_SIDE = 192
"""Longer side of a picture of a mistake [pixels]."""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An image whose class was not found.

    Args:
        name: of the image.
        true: its class, or its classes.
        said: what was predicted.
        confidence: the probability that was given to what is wrong.
        picture: a PNG or JPEG file; None where the image cannot be read.
        problem: why it cannot.
    """

    name: str
    true: str
    said: str
    confidence: float
    picture: bytes | None
    problem: str = ""


def worst_mistakes(
    logits: Tensor,
    targets: Tensor,
    indices: Tensor,
    samples: Any,
    *,
    classes: Sequence[str],
    labels: str = "one",
    temperature: float = 1.0,
    thresholds: Sequence[float] | None = None,
    most: int = 24,
) -> list[Mistake]:
    """Return the images that are predicted wrongly with the highest loss.

    Args:
        logits: [N, classes].
        targets: class numbers [N]; of several labels an image zeros and ones [N, classes].
        indices: of the images in the samples [N].
        samples: a `tvc_train.data.Samples`.
        classes: names, in the order of the outputs.
        labels: "one" or "many".
        temperature: logits are divided by it.
        thresholds: of several labels, one for each class; by default 0.5 each.
        most: at most so many.
    """
    said = probabilities(logits, labels=labels, temperature=temperature)
    if labels == "many":
        limits = torch.tensor(list(thresholds or [0.5] * len(classes)), dtype=said.dtype)
        chosen = said >= limits
        losses = torch.nn.functional.binary_cross_entropy(said, targets.double(), reduction="none")
        wrong, loss = (chosen != targets.bool()).any(1), losses.sum(1)
    else:
        chosen = said.argmax(1)
        wrong, loss = chosen != targets, -said.gather(1, targets[:, None])[:, 0].log()
    # of equal losses the earlier image first, so that two reports of a run are one
    order = loss.argsort(descending=True, stable=True)
    found = []
    for row in order[wrong[order]][:most].tolist():
        if labels == "many":
            true, guess = (_names(each[row], classes) for each in (targets.bool(), chosen))
            missed = (chosen[row] != targets[row].bool()).nonzero()[:, 0]
            unsure = torch.where(chosen[row], said[row], 1 - said[row])[missed]
            confidence = float(unsure.max())
        else:
            true, guess = classes[int(targets[row])], classes[int(chosen[row])]
            confidence = float(said[row].max())
        index = int(indices[row])
        picture, problem = _picture_of(samples, index)
        found.append(
            Mistake(
                name=str(samples.names[index]), true=true, said=guess, confidence=confidence,
                picture=picture, problem=problem,
            )
        )  # fmt: skip
    return found


def write_report(
    path: Path,
    scores: Scores,
    *,
    title: str,
    facts: Mapping[str, Any] | None = None,
    rows: Sequence[Mapping[str, str]] = (),
    mistakes: Sequence[Mistake] = (),
    patches: str = "",
) -> None:
    """Write a report, whole or not at all.

    Args:
        path: the HTML file.
        scores: of the model on held-out images.
        title: of the page.
        facts: what else to say at its top, by name.
        rows: of metrics.csv, for the curves; none leaves them out.
        mistakes: the worst first.
        patches: the text of a `PatchReport`.

    Raises:
        TrainingError: the extra `report` is not installed, or the file cannot be written.
    """
    require_extra("report", "the report")
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # whatever is put in is escaped, except the style sheet, which is our own
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, loader=FileSystemLoader(_HERE),
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    many, names = scores.labels == "many", [visible(each.name) for each in scores.classes]
    small = len(names) <= _MOST_CLASSES
    columns, class_rows = _class_table(scores)
    text = environment.get_template("page.html.jinja").render(
        policy=policy,
        style=style,
        title=visible(title),
        facts={visible(str(k)): visible(_shown(v)) for k, v in (facts or {}).items()},
        figures={name.replace("_", " "): _shown(v) for name, v in scores.figures.items()},
        curves=_curves(rows),
        reliability=_svg(reliability_chart(scores)),
        class_columns=columns,
        class_rows=class_rows,
        names=names,
        matrix=None if many or not small else _shaded(scores.confusion),
        confusion=None if many or small else _svg(confusion_chart(scores)),
        confused=[(visible(a), visible(b), count) for a, b, count in scores.confused()],
        mistakes=[
            {
                "name": visible(each.name),
                "true": visible(each.true),
                "said": visible(each.said),
                "confidence": f"{each.confidence:.1%}",
                "picture": each.picture and _data(each.picture, "image/png"),
                "problem": visible(each.problem),
            }
            for each in mistakes
        ],
        gates=(chart := gates_chart(rows)) and _svg(chart),
        patches=patches,
    )
    write_text(path, text)


def _curves(rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    columns = list(dict.fromkeys(key for row in rows for key in row if "/" not in key))
    losses = [column for column in columns if column.endswith("loss")]
    others = [column for column in columns if column not in ("rate", *losses)]
    parts = [column for column in others if _is_part(row.get(column) for row in rows)]
    found = {
        "Loss": curves_chart(rows, losses, label="loss"),
        "Held-out figures": curves_chart(rows, parts, label="part"),
        "Rate": curves_chart(rows, ["rate"], label="rate"),
    }
    return {name: _svg(chart) for name, chart in found.items() if chart is not None}


def _is_part(values: Any) -> bool:
    """Return whether a column holds parts of one, of which 0 and 1 alone might be anything."""
    try:
        numbers = [float(each) for each in values if each not in (None, "")]
    except ValueError:
        return False
    return bool(numbers) and all(0 <= n <= 1 for n in numbers)


def _class_table(scores: Scores) -> tuple[list[str], list[list[str]]]:
    columns = ["class", "images", "predicted", "precision", "recall", "f1"]
    if scores.labels == "many":
        columns += ["average_precision", "threshold"]
    keys = ["name", *columns[1:]]
    rows = [
        [visible(_shown(getattr(each, key))) for key in keys] for each in scores.classes
    ]  # fmt: skip
    return [column.replace("_", " ") for column in columns], rows


def _shaded(table: Sequence[Sequence[int]]) -> list[list[tuple[int, int]]]:
    """Return counts with one of ten shades, by their part of the row."""
    return [
        [(count, -(-9 * count // max(sum(row), 1)) if count else 0) for count in row]
        for row in table
    ]


def _picture_of(samples: Any, index: int) -> tuple[bytes | None, str]:
    """Return a small PNG of an image, or why there is none."""
    from PIL import Image
    from torchvision.transforms.v2 import functional

    try:
        image = samples.read(index)
    except (OSError, ValueError) as error:  # the file has changed since it was evaluated
        return None, str(error)
    height, width = image.shape[-2:]
    scale = min(1.0, _SIDE / max(height, width))
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    small = functional.resize(image, size, antialias=True)
    buffer = io.BytesIO()
    picture = Image.fromarray(small.permute(1, 2, 0).numpy())
    picture.save(buffer, "PNG")
    return buffer.getvalue(), ""


def _names(flags: Tensor, classes: Sequence[str]) -> str:
    chosen = [name for name, flag in zip(classes, flags.tolist(), strict=True) if flag]
    return ", ".join(chosen) or "none"


def _svg(picture: bytes) -> str:
    return _data(picture, "image/svg+xml")


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _shown(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
