"""The command `tvc tune`."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from tvc_core import RecipeDocument, load_recipe, read_changes

from .options import as_table, set_option

__all__ = ["tune_command"]


@click.command("tune")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("data", required=False, type=click.Path(path_type=Path))
@click.option(
    "--space",
    multiple=True,
    metavar="PATH=DOMAIN",
    help="From what a value is drawn: 'training.weight_decay={loguniform: [0.0001, 0.1]}'. "
    "May be repeated; in the place of the recipe's space.",
)
@click.option("--trials", type=click.IntRange(min=1), help="How many values are tried.")
@click.option("--concurrent", type=click.IntRange(min=1), help="Trials that run at once.")
@click.option(
    "--by",
    type=click.Choice(["accuracy", "balanced_accuracy", "f1", "average_precision", "loss"]),
    help="The figure that decides. Default: training.best.",
)
@set_option(", in all trials: training.seed=1")
@click.option("--out", type=click.Path(path_type=Path), help="Folder. Default: runs/RECIPE-tune.")
@click.option("--resume", is_flag=True, help="Go on with the search, or start where there is none.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def tune_command(
    ctx: click.Context,
    recipe: Path,
    data: Path | None,
    space: tuple[str, ...],
    trials: int | None,
    concurrent: int | None,
    by: str | None,
    changes: tuple[str, ...],
    out: Path | None,
    resume: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Search for the values of RECIPE that train best. What is searched stands in its section tune,
    or in --space.

    Each trial is a run of tvc train with its values. One that is killed goes on from its last
    checkpoint, and a search that is killed goes on with --resume.

    Exit code 143 where SIGTERM was received, 130 for Ctrl-C.
    """
    from ..extras import require_extra

    require_extra("tune", "tvc tune")
    from ..faults import StoppedError
    from ..runs import Run
    from ..tuning.searching import Trial, tune
    from ..tuning.settings import TuneSettings

    given = read_changes(changes, like="training.seed=1")
    section = load_recipe(recipe, changes=given).sections.get("tune") or {}
    settings = TuneSettings.from_mapping(section)
    if space:
        settings = replace(settings, space=_space(space))
    options: dict[str, Any] = {"trials": trials, "concurrent": concurrent, "by": by}
    settings = replace(settings, **{k: v for k, v in options.items() if v is not None})
    name = f"{recipe.stem}-tune"
    folder = out or (Path("runs") / name if resume else Run.new_name(Path("runs"), name))

    def tell(trial: Trial, done: int) -> None:
        said = f"failed: {trial.error}" if trial.error else _pairs(trial.figures)
        click.echo(f"trial {done} of {settings.trials}: {_pairs(trial.values)}: {said}", err=True)

    try:
        found = tune(
            recipe, data=data, out=folder, changes=given, settings=settings, resume=resume,
            on_trial=tell,
        )  # fmt: skip
    except StoppedError as error:
        click.echo(str(error), err=True)
        ctx.exit(error.code)
    best = found.best
    command = ["tvc", "train", str(recipe), *([str(data)] if data else [])]
    for path, value in {**given, **best.values}.items():
        command += ["--set", f"{path}={value if isinstance(value, str) else json.dumps(value)}"]
    if as_json:
        facts = {
            "folder": str(found.folder),
            "by": found.by,
            "best": {"values": best.values, "figures": best.figures, "folder": str(best.folder)},
            "trials": [
                {"values": e.values, "figures": e.figures, "error": e.error} for e in found.trials
            ],
            "command": shlex.join(command),
        }
        click.echo(json.dumps(facts, indent=1))
        return
    columns = list(best.values)
    rows = [
        [each.folder.name, *(_shown(each.values[c]) for c in columns),
         _shown(each.figures.get(found.by)) if not each.error else "failed"]
        for each in found.trials
    ]  # fmt: skip
    for line in as_table(["trial", *columns, found.by], rows):
        click.echo(line)
    click.echo(f"best: {best.folder / 'model.safetensors'}")
    click.echo(f"again: {shlex.join(command)}")


def _space(pairs: tuple[str, ...]) -> dict[str, Any]:
    read = read_changes(pairs, like="'training.weight_decay={loguniform: [0.0001, 0.1]}'")
    return {
        path: RecipeDocument.parse(f"domain: {text}", "--space").data["domain"]
        for path, text in read.items()
    }


def _pairs(values: Any) -> str:
    return ", ".join(f"{name} {_shown(value)}" for name, value in values.items())


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
