"""`tvc data`: everything that is wrong with data, before a model is trained on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from tvc_core import Recipe, RecipeDocument, load_recipe, read_changes

from .options import as_table, set_option

__all__ = ["data_command"]


@click.command("data")
@click.argument("recipe", type=click.Path(path_type=Path))
@set_option(": data.max_bad=3")
@click.option(
    "--workers", type=click.IntRange(0), default=0, show_default=True,
    help="Processes that read images.",
)  # fmt: skip
@click.option(
    "--write-shards", "shards", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Write the files of images into tar files with an index, if all is fine.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def data_command(
    ctx: click.Context, recipe: Path, changes: tuple[str, ...], workers: int, shards: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Look at all data of RECIPE, which may also be a folder of images or a CSV file, and list
    what is wrong: broken images, formats that are not allowed, images above the limit of pixels,
    links that lead out of the folder, empty folders, classes that only one part has, images that
    are both trained on and held out. Training looks in the same way before its first step.

    Exit code 1 where training would refuse the data.
    """
    from ..data import inspect_data, open_data, write_shards
    from ..data.files import FileSamples
    from ..errors import DataError

    given = read_changes(changes, like="data.max_bad=3")
    settings, folder, seed = _settings_of(recipe, given)
    report = inspect_data(open_data(settings, folder=folder, seed=seed), settings, workers=workers)
    data = report.data
    if shards is not None and report.is_fine:
        if not isinstance(data.train, FileSamples) or not isinstance(data.val, FileSamples):
            raise DataError(f"{recipe}: only files of images become shards, and these are none")
        write_shards(data.train, data.val, data.classes, shards)
    counts = {
        name: [_count(samples, place) for samples in (data.train, data.val)]
        for place, name in enumerate(data.classes)
    }
    if as_json:
        facts: dict[str, Any] = {
            "fine": report.is_fine,
            "classes": {name: {"train": a, "val": b} for name, (a, b) in counts.items()},
            "problems": [_fact(each) for each in report.problems],
            "notes": [_fact(each) for each in report.notes],
        }
        click.echo(json.dumps(facts, indent=1))
    else:
        rows = [[name, f"{a:,}", f"{b:,}"] for name, (a, b) in counts.items()]
        rows.append(["images", f"{len(data.train):,}", f"{len(data.val):,}"])
        for line in as_table(["class", "train", "val"], rows):
            click.echo(line)
        for each in report.notes:
            click.echo(f"note: {each}")
        for each in report.problems:
            click.echo(f"error: {each}", err=True)
        _conclude(report, shards)
    ctx.exit(0 if report.is_fine else 1)


def _settings_of(recipe: Path, changes: dict[str, str]) -> tuple[Any, Path, int]:
    """Return the section `data`, the folder from which its paths go on, and the seed."""
    from ..data import DataSettings
    from ..settings import TrainingSettings

    if recipe.is_dir() or recipe.suffix.lower() == ".csv":  # a recipe of these data alone
        text = f"backbone: resnet18\ndata: {{path: {json.dumps(str(recipe.absolute()))}}}\n"
        document = Recipe.changed_document(RecipeDocument.parse(text, str(recipe)), changes)
        read = Recipe.from_document(document)
    else:
        read = load_recipe(recipe, changes=changes)
    with (read.where / "data").before_errors():
        settings = DataSettings.from_mapping(read.sections.get("data"))
    return settings, recipe.parent, TrainingSettings.of(read).seed


def _count(samples: Any, place: int) -> int:
    targets = samples.targets
    return int((targets == place).sum() if targets.ndim == 1 else targets[:, place].sum())


def _fact(problem: Any) -> dict[str, str]:
    return {"where": problem.where, "what": problem.what, "kind": problem.kind}


def _conclude(report: Any, shards: Path | None) -> None:
    bad = report.bad_images
    if report.is_fine and bad:
        click.echo(f"fine: {bad} of at most {report.max_bad} images are left out (data.max_bad)")
    elif report.is_fine:
        click.echo("fine" if shards is None else f"fine; wrote {shards}")
    elif bad == len(report.problems):
        said = f"{bad} images cannot be used, and data.max_bad is {report.max_bad}"
        click.echo(f"{said}: mend or remove them, or raise it", err=True)
    else:
        click.echo(f"{len(report.problems)} things are wrong", err=True)
