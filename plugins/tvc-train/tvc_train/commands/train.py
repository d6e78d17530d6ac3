"""The command `tvc train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from tvc_core import read_changes

from ..data.problems import visible
from .options import set_option

__all__ = ["train_command"]


@click.command("train")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("data", required=False, type=click.Path(path_type=Path))
@set_option(": training.seed=1")
@click.option("--out", type=click.Path(path_type=Path), help="Folder. Default: runs/NAME.")
@click.option("--resume", is_flag=True, help="Go on with the run, or start where there is none.")
@click.option("--force", is_flag=True, help="Start over in --out, in the place of what is there.")
@click.option("--dry-run", is_flag=True, help="Check everything, and print what would be trained.")
@click.option("--devices", type=click.IntRange(1), default=1, help="Processes on each machine.")
@click.option("--nodes", type=click.IntRange(1), default=1, help="Machines.")
@click.option("--strategy", type=click.Choice(["ddp", "fsdp"]), default="ddp", show_default=True)
@click.option(
    "--accelerator",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
)
@click.option("--backbone", help="Without a recipe: the network to train on the images.")
@click.option(
    "--patch",
    "patches",
    multiple=True,
    metavar="TARGET=BLOCK",
    help="Without a recipe: a block to wrap. May be repeated.",
)
@click.option("--tensorboard", is_flag=True, help="Write curves for TensorBoard into the run.")
@click.pass_context
def train_command(
    ctx: click.Context,
    recipe: Path,
    data: Path | None,
    changes: tuple[str, ...],
    out: Path | None,
    resume: bool,
    force: bool,
    dry_run: bool,
    devices: int,
    nodes: int,
    strategy: str,
    accelerator: str,
    backbone: str | None,
    patches: tuple[str, ...],
    tensorboard: bool,
) -> None:
    """Train the model of RECIPE, on DATA if it is given, evaluate it on held-out images, and save
    it into a folder.

    RECIPE may be a folder of images with --backbone instead: then the head is trained, and after it
    the last stages; rates and batch size are found out, and the recipe is written down.

    Exit code 143 where SIGTERM was received; --resume goes on from there.
    """
    from ..errors import DataError
    from ..extras import has_extra, require_extra
    from ..faults import StoppedError
    from ..fitting import fit, preview
    from ..showing import display_for
    from ..starting import RECIPES, first_recipe, is_data

    if tensorboard:
        require_extra("report", "--tensorboard")
    given = read_changes(changes, like="training.seed=1")
    source: Any = recipe
    if is_data(recipe):
        if data is not None:
            raise click.UsageError(f"two data: {recipe} and {data}. Name a recipe, or one of them")
        if backbone is None:
            raise click.UsageError(
                f"{recipe} is no recipe, but images: say which network to train on them, such as "
                "--backbone efficientnet_lite0. 'tvc list' lists them"
            )
        read = (read_changes([each], like="features.6=se") for each in patches)
        pairs = [pair for each in read for pair in each.items()]  # a target may have several
        source = first_recipe(recipe, backbone, pairs)
    elif not recipe.exists():
        raise DataError(f"{recipe} does not exist")
    elif recipe.suffix.lower() not in RECIPES:
        raise click.UsageError(
            f"{recipe} is neither a recipe, a .yaml file, nor data: a folder of images, a CSV file"
        )
    elif backbone is not None or patches:
        raise click.UsageError("--backbone and --patch are for images without a recipe")
    wanted: dict[str, Any] = {
        "data": data,
        "out": out,
        "resume": resume,
        "force": force,
        "changes": given,
        "devices": devices,
        "nodes": nodes,
        "strategy": strategy,
        "accelerator": accelerator,
    }
    if dry_run:
        facts = preview(source, **wanted)
        width = max(map(len, facts))
        for name, said in facts.items():
            click.echo(visible(f"{name:<{width}}  {said}".rstrip()))
        return
    try:
        found = fit(source, **wanted, display=display_for(), tensorboard=tensorboard)
    except StoppedError as error:
        click.echo(str(error), err=True)
        ctx.exit(error.code)
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) != "0":
        return  # the first process prints
    figures = ", ".join(f"{name} {value:.4g}" for name, value in found.evaluation.figures.items())
    click.echo(f"held-out images: {figures}")
    click.echo(f"saved {found.run.model}")
    if has_extra("report"):
        from ..judging import report_run

        click.echo(f"report {report_run(found.run, found.plan.data.val)}")
    else:
        click.echo("no report: it needs pip install 'tvc-train[report]'", err=True)
