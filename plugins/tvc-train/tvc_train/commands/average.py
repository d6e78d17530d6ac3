"""The command `tvc average`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tvc_core import check_target, read_changes

from .options import device_of, force_option, max_bad_option, running_options, set_option

__all__ = ["average_command"]


@click.command("average")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Write this file.")
@force_option
@click.option(
    "--greedy", is_flag=True, help="Leave out models with which the average does worse on --data."
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Held-out images, as tvc evaluate takes them."
)
@click.option(
    "--by",
    default="accuracy",
    show_default=True,
    help="The figure by which --greedy compares, as tvc evaluate shows it.",
)
@max_bad_option
@set_option(", where --data is one: data.path=photos")
@running_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def average_command(
    files: tuple[Path, ...],
    out: Path,
    force: bool,
    greedy: bool,
    data: Path | None,
    by: str,
    max_bad: int,
    changes: tuple[str, ...],
    batch_size: int,
    workers: int,
    device: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Average the weights of the trained models FILES into one, which is often better than each
    and costs no more to run.

    They have to start from the same weights, and to have the same classes and preprocessing; how
    they were trained may differ. With --data the average is evaluated and calibrated.
    """
    if greedy and data is None:
        raise click.UsageError("--greedy tries models out on held-out images: give --data")
    check_target(out, force=force, suffix=".safetensors")
    given = read_changes(changes, like="data.path=photos")
    if given and data is None:
        raise click.UsageError("--set is for the recipe of --data")
    where = device_of(device)
    from ..soups import average

    soup = average(
        files, out, greedy=greedy, data=data, by=by, batch_size=batch_size, workers=workers,
        device=where, max_bad=max_bad, changes=given,
    )  # fmt: skip
    if as_json:
        found = {
            "out": str(out),
            "taken": [str(path) for path in soup.taken],
            "left_out": [str(path) for path in soup.left_out],
            "figures": soup.figures,
        }
        click.echo(json.dumps(found, indent=1))
    else:
        for path in soup.taken:
            click.echo(f"taken     {path}")
        for path in soup.left_out:
            click.echo(f"left out  {path}")
        for name, value in soup.figures.items():
            click.echo(f"{name.replace('_', ' ')}: {value:.4f}")
    for note in soup.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"wrote {out}", err=True)
