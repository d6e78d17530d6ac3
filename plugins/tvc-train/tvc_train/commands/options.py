"""What several commands have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..data.problems import visible
from ..errors import TrainingError

__all__ = [
    "as_table",
    "device_of",
    "force_option",
    "max_bad_option",
    "running_options",
    "set_option",
]

force_option = click.option("--force", is_flag=True, help="Overwrite a file that exists.")

max_bad_option = click.option(
    "--max-bad",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="So many images may be left out because something is wrong with them.",
)


def set_option(help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option --set PATH=VALUE, which `tvc_core.read_changes` reads, as `changes`."""
    return click.option(
        "--set",
        "changes",
        multiple=True,
        metavar="PATH=VALUE",
        help=f"Use this in the place of the recipe's{help}. May be repeated.",
    )


def running_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of how images go through a network: --batch-size, --workers, --device."""
    options = (
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            default=32,
            show_default=True,
            help="Images that go through the network together.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Processes that read images; 0 for none but this one.",
        ),
        click.option(
            "--device", default="cpu", show_default=True, help="Where the network runs: cuda."
        ),
    )
    for option in reversed(options):  # as decorators are applied: the last one first
        command = option(command)
    return command


def device_of(name: str) -> Any:
    """Return a torch device by its name.

    Raises:
        TrainingError: there is no such device here.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = str(error).partition("\n")[0]
        raise TrainingError(f"--device {name}: there is no such device here: {said}") from error
    return device


def as_table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table, the first column to the left and numbers to the right."""
    columns, *rows = [[*map(visible, row)] for row in [columns, *rows]]
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        ).rstrip()
        for row in [columns, *rows]
    ]  # fmt: skip
