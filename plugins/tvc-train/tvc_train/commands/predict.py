"""The command `tvc predict`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from tvc_core import check_target

from .options import device_of, force_option, running_options

__all__ = ["predict_command"]


@click.command("predict")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line, not CSV.")
@click.option("--out", type=click.Path(path_type=Path), help="Write this file, not to stdout.")
@force_option
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Name so many of the most probable classes.",
)
@running_options
def predict_command(
    file: Path,
    paths: tuple[Path, ...],
    as_json: bool,
    out: Path | None,
    force: bool,
    top: int,
    batch_size: int,
    workers: int,
    device: str,
) -> None:  # fmt: skip
    """Predict the classes of images with the trained model FILE, a line for each file: path, class,
    calibrated probability, error, and the most probable classes.

    PATHS are files, and folders with all that is in them. Lines come in the order of PATHS, and in
    a folder in the order of the names. A file that cannot be read has a line that says why.

    FILE alone says how images are prepared and what the outputs mean: tvc train writes it.
    """
    from ..predicting import Prediction, as_csv, as_json_lines, find_files, predict
    from ..runs import write_durably
    from ..trained import Trained

    if out is not None:
        check_target(out, force=force)
    where = device_of(device)
    files, hidden = find_files(paths)
    model, trained = Trained.open(file)
    top = min(top, model.num_classes)
    errors = 0

    def counted(predictions: Iterator[Prediction]) -> Iterator[Prediction]:
        nonlocal errors
        for each in predictions:
            errors += each.error is not None
            yield each

    found = counted(
        predict(
            model, trained, files, top=top, batch_size=batch_size, workers=workers, device=where
        )
    )
    lines = as_json_lines(found) if as_json else as_csv(found, top=top)
    if out is None:
        for line in lines:
            click.echo(line if _is_text(line) else _encoded(line), nl=False)
        sys.stdout.flush()
    else:
        write_durably(out, map(_encoded, lines))
    said = f"{len(files)} files, {errors} with an error"
    if hidden:
        said += f"; left out {len(hidden)} hidden ones, such as {hidden[0]}"
    click.echo(said, err=True)


def _is_text(line: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in line)


def _encoded(line: str) -> bytes:
    """Return a line as bytes, in which names of files that are no text have their own again."""
    return line.encode("utf-8", "surrogateescape")
