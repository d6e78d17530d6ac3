"""The commands that this plugin adds to `tvc`. Each collects its facts first, then writes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import click

from tvc_core import read_changes

__all__ = ["cam_command", "inspect_command"]

_weights_option = click.option(
    "--weights/--no-weights",
    "pretrained",
    default=None,
    help="Take pretrained weights, or leave a recipe's out. Default: those of a recipe, and of a "
    "bare backbone none.",
)
_class_option = click.option(
    "--class", "target", help="Number or name of the class of the map; default the largest logit."
)
_set_option = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="PATH=VALUE",
    help="Use this in the place of the recipe's: head.num_classes=5. May be repeated.",
)
_force_option = click.option("--force", is_flag=True, help="Overwrite a file that exists.")
_FILE = click.Path(path_type=Path)


@click.command("inspect")
@click.argument("model")
@click.argument("other", required=False)
@click.option("--out", type=_FILE, help="Write the page to this file, such as page.html.")
@click.option("--photo", type=_FILE, help="Draw class activation map and gate maps on this photo.")
@click.option("--gates", type=_FILE, help="Draw this log, which tvc_inspect.GateLog wrote.")
@_class_option
@click.option("--size", type=click.IntRange(min=1), help="Side of the image that is sent through.")
@_weights_option
@_set_option
@click.option("--json", "as_json", is_flag=True, help="Print the facts of the page as JSON.")
@_force_option
def inspect_command(
    model: str,
    other: str | None,
    out: Path | None,
    photo: Path | None,
    gates: Path | None,
    target: str | None,
    size: int | None,
    pretrained: bool | None,
    changes: tuple[str, ...],
    as_json: bool,
    force: bool,
) -> None:
    """Write a page on MODEL, a recipe, a saved file or a backbone's name: every path with shape,
    parameters, FLOPs, bytes kept for backward and time, patches with their gates, and what the
    patches change at the start. With OTHER: in what the two differ; --set changes both.
    """
    from tvc_core import check_target

    from .gate_log import read_gate_log
    from .opening import open_model, write_out
    from .pictures import open_photo
    from .writing import look_at, page_of

    if out is None and not as_json:
        raise click.UsageError("give --out page.html, or --json")
    if out is None and (photo or gates):
        raise click.UsageError("--photo and --gates are for a page: give --out page.html")
    if target is not None and photo is None:
        raise click.UsageError("--class is for the map on a photo: give --photo")
    if out is not None:
        check_target(out, force=force)
    given = read_changes(changes)
    if photo is not None:  # as the log, before what takes long
        open_photo(photo)
        pretrained = True if pretrained is None else pretrained
    if gates is not None:
        read_gate_log(gates)
    how: dict[str, Any] = {"pretrained": pretrained, "changes": given}
    first, note = open_model(model, **how)
    second, other_note = (None, "") if other is None else open_model(other, **how)
    notes = [f"{name}: {text}" for name, text in ((model, note), (other, other_note)) if text]
    if out is None:
        seen, page = look_at(first, second, size=size), ""
    else:
        seen, page = page_of(
            first, second, photo=photo, gates=gates, target=target, size=size, source=model,
            notes=notes,
        )  # fmt: skip
    if as_json:
        data: dict[str, Any] = {"model": seen.facts.as_data(), "notes": [*notes, *seen.notes]}
        if seen.comparison is not None:
            data["comparison"] = seen.comparison.as_data()
        click.echo(json.dumps(data, indent=1, allow_nan=False))
    if out is not None:
        write_out(out, page.encode())
        click.echo(f"wrote {out} ({out.stat().st_size:,} bytes)", err=True)
    for text in (*notes, *seen.notes):
        click.echo(f"note: {text}", err=True)


@click.command("cam")
@click.argument("model")
@click.argument("photo", type=_FILE)
@click.option("--out", type=_FILE, required=True, help="Write this picture, such as map.png.")
@_class_option
@click.option("--layer", help="Path of the module to look at; default the last stage.")
@_weights_option
@_set_option
@_force_option
def cam_command(
    model: str,
    photo: Path,
    out: Path,
    target: str | None,
    layer: str | None,
    pretrained: bool | None,
    changes: tuple[str, ...],
    force: bool,
) -> None:
    """Draw where MODEL, a recipe, a saved file or a backbone's name, looks on PHOTO for a class:
    red speaks for the class, blue against it.
    """
    from tvc_core import check_target

    from .opening import open_model, write_out
    from .pictures import check_format, open_photo
    from .writing import cam_picture

    given = read_changes(changes)
    check_target(out, force=force)
    kind = check_format(out)
    open_photo(photo)  # before what takes long
    pretrained = True if pretrained is None else pretrained
    network, note = open_model(model, pretrained=pretrained, changes=given)
    picture, found = cam_picture(network, photo, target, layer=layer)
    picture.save(drawn := io.BytesIO(), kind)
    write_out(out, drawn.getvalue())
    click.echo(f"{found.name}: logit {found.score:.4g}, at {found.layer}")
    click.echo(f"wrote {out}", err=True)
    if note:
        click.echo(f"note: {note}", err=True)
