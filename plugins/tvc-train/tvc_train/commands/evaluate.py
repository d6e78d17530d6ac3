"""The command `tvc evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from tvc_core import check_target, read_changes

from .options import as_table, device_of, force_option, max_bad_option, running_options, set_option

__all__ = ["evaluate_command"]

_MOST_CLASSES = 12
"""In a confusion matrix that is printed; of more, the most frequent mistakes are."""


@click.command("evaluate")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="Also write this HTML file, with pictures of the worst mistakes.",
)
@force_option
@max_bad_option
@set_option(", where DATA is one: data.path=photos")
@running_options
def evaluate_command(
    file: Path,
    data: Path,
    as_json: bool,
    report: Path | None,
    force: bool,
    max_bad: int,
    changes: tuple[str, ...],
    batch_size: int,
    workers: int,
    device: str,
) -> None:  # fmt: skip
    """Evaluate the trained model FILE on DATA: accuracy, F1, figures of each class, confusion,
    calibration.

    DATA is a folder with a folder for each class, a CSV file, a folder of shards, or a recipe. Of a
    folder with train/ and val/, and of a recipe, what is held out is evaluated.
    """
    from ..extras import require_extra

    if report is not None:
        require_extra("report", "--report")
        check_target(report, force=force)
    where = device_of(device)
    from .. import judging

    judged = judging.judge(
        file,
        data,
        batch_size=batch_size,
        workers=workers,
        device=where,
        max_bad=max_bad,
        changes=read_changes(changes, like="data.path=photos"),
    )
    if report is not None:
        judging.report(judged, report, title=f"{file.name} on {data}", facts={"file": str(file)})
    for problem in judged.problems:
        click.echo(f"note: {problem}", err=True)
    if as_json:
        facts = {"file": str(file), "data": str(data), "temperature": judged.trained.temperature}
        found = judged.scores.to_mapping()
        click.echo(json.dumps({**facts, **found}, indent=1))
    else:
        for line in _lines(judged.scores):
            click.echo(line)
    if report is not None:
        click.echo(f"wrote {report}", err=True)


def _lines(scores: Any) -> list[str]:
    many = scores.labels == "many"
    figures = {"images": scores.num_images, **scores.figures}
    width = max(map(len, figures))
    lines = [f"{name.replace('_', ' '):<{width}}  {_shown(v)}" for name, v in figures.items()]
    columns = ["images", "predicted", "precision", "recall", "f1"]
    columns += ["average_precision", "threshold"] if many else []
    rows = [
        [each.name, *(_shown(getattr(each, column)) for column in columns)]
        for each in scores.classes
    ]
    lines += ["", *as_table(["class", *(name.replace("_", " ") for name in columns)], rows)]
    if many:
        return lines
    if len(scores.classes) <= _MOST_CLASSES:
        names = [each.name for each in scores.classes]
        rows = [[name, *map(str, row)] for name, row in zip(names, scores.confusion, strict=True)]
        return [*lines, "", *as_table(["true \\ predicted", *names], rows)]
    pairs = [[true, said, str(count)] for true, said, count in scores.confused()]
    return [*lines, "", *as_table(["true", "predicted", "images"], pairs)]


def _shown(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
