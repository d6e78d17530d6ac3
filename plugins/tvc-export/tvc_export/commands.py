"""The commands that this plugin adds to `tvc`. Each collects its facts first, then prints them."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from tvc_core import HybridBuilder, Named, read_changes, what_there_is

from .kinds import ExporterSpec
from .registry import files_beside, find_format

__all__ = ["bench_command", "export_command", "verify_command"]

_AXES = ("batch", "hw")

_set_option = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="PATH=VALUE",
    help="Use this in the place of the recipe's: backbone.weights=null. May be repeated.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_FILE = click.Path(path_type=Path)


def _numbers(text: str, count: int, option: str) -> tuple[int, ...]:
    parts = text.replace("x", ",").split(",")
    if len(parts) == 1 and count == 2:
        parts *= 2
    if len(parts) != count or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise click.UsageError(f"{option} takes {count} numbers with commas between, not {text!r}")
    return tuple(int(part) for part in parts)


def _dynamic(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if words == ("none",):
        return ()
    if not words or "none" in words:
        raise click.UsageError(f"--dynamic: {text!r} is one of batch, hw, batch,hw, or none alone")
    for word in words:
        if word not in _AXES:
            there = what_there_is(word, [*_AXES, "none"])
            raise click.UsageError(f"--dynamic: {word!r} is unknown.{there}")
    return words


@click.command("export")
@click.argument("model")
@click.option("--format", "format_name", required=True, help="pt2, onnx, openvino, ...")
@click.option("--out", required=True, type=_FILE, help="The file to write.")
@click.option(
    "--dynamic",
    default="batch",
    show_default=True,
    help="What of the images may vary: batch, hw (height and width), batch,hw or none.",
)
@click.option("--size", help="Height and width that the export sees, such as 224 or 200,320.")
@click.option("--photos", type=_FILE, help="A folder of photos to try as well as noise and zeros.")
@click.option("--int8", type=_FILE, help="Quantize by the photos in this folder.")
@click.option(
    "--max-drop",
    type=click.IntRange(min=0),
    help="Photos that int8 may lose; by default 5 % of those that judge.",
)
@click.option(
    "--keep-names", is_flag=True, help="Keep all names of parameters: fold and leave out nothing."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    help="Largest difference of an output, as part of the largest output; by default 1e-5, and "
    "1e-4 in litert.",
)
@click.option(
    "--limit",
    type=click.FloatRange(min=1),
    default=120,
    show_default=True,
    help="Seconds that torch may compute what the network asks of sizes.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@_set_option
@_json_option
def export_command(
    model: str,
    format_name: str,
    out: Path,
    dynamic: str,
    size: str | None,
    photos: Path | None,
    int8: Path | None,
    max_drop: int | None,
    changes: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Write MODEL for another runtime, and prove that it gives torch's answers there.

    MODEL is a saved model (.safetensors), a recipe (.yaml), or the name of a backbone with its
    default weights. A file that fails the proof is not written.
    """
    if max_drop is not None and int8 is None:
        raise click.UsageError("--max-drop is for --int8")
    axes = _dynamic(dynamic)
    sides = None if size is None else _numbers(size, 2, "--size")
    builder = HybridBuilder()
    given = read_changes(changes)

    exporter = find_format(format_name, builder.registry)
    from .exporting import check_output, export_model  # import torch
    from .models import read_model
    from .photos import find_photos

    check_output(
        out,
        exporter,
        int8=int8 is not None,
        keep_names=options["keep_names"],
        force=options["force"],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is no photo, which is told when they are read
        for folder in (photos, int8):
            if folder is not None:
                find_photos(folder)
    certificate = export_model(
        read_model(model, given, builder),
        exporter.qualified,
        out,
        dynamic=axes,
        size=sides,
        photos=photos,
        int8=int8,
        max_drop=max_drop,
        name=Path(model).name,
        registry=builder.registry,
        **options,
    )
    if as_json:
        click.echo(certificate.to_json())
    else:
        click.echo(f"wrote {out} ({_size_of(out, exporter):,} bytes)\n{certificate}")


def _size_of(path: Path, exporter: Named[ExporterSpec]) -> int:
    """Return the size of a file, or of all in a folder, and of what belongs to it [bytes]."""
    files = [path, *path.rglob("*"), *files_beside(path, exporter)]
    return sum(each.stat().st_size for each in files if each.is_file())


@click.command("verify")
@click.argument("file", type=_FILE)
@click.option("--model", help="What it was exported from: compare on new inputs as well.")
@click.option("--shape", "shapes", multiple=True, help="Of noise to try, such as 1,3,200,320.")
@click.option("--photos", type=_FILE, help="A folder of photos to try, with --model.")
@_set_option
@_json_option
def verify_command(
    file: Path,
    model: str | None,
    shapes: tuple[str, ...],
    photos: Path | None,
    changes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Repeat the proof of an exported FILE: whether it is the one that was proved, and whether it
    gives the answers that torch gave. With --model it is compared with torch again, on new inputs.

    Exit code 1 where it does not.
    """
    wanted = [_numbers(shape, 4, "--shape") for shape in shapes]
    if changes and model is None:
        raise click.UsageError("--set is for the recipe of --model")
    builder, given = HybridBuilder(), read_changes(changes)
    from .certificate import in_one_line
    from .models import read_model
    from .verifying import open_exported, verify

    exported = open_exported(file, registry=builder.registry)
    for shape in wanted:  # before a model is built
        exported.certificate.claims.check(shape, str(file))
    source = None if model is None else read_model(model, given, builder)
    tried = verify(file, model=source, shapes=wanted, photos=photos, registry=builder.registry)
    photos_left = [
        each.name
        for each in exported.certificate.trials
        if each.name is not None and each.name not in {one.name for one in tried}
    ]
    # of a file in int8 only all photos of its proof say how right it is
    is_judged = exported.certificate.int8 is None or not photos_left
    if as_json:
        rows = [{**asdict(each), "expected": None} for each in tried]
        equal = True if is_judged else None
        click.echo(json.dumps({"file": str(file), "equal": equal, "trials": rows}))
        return
    said = "and gives the same answers"
    if exported.certificate.int8 is not None:
        lost = f"of its photos no more are lost than the {exported.certificate.int8['max_drop']}"
        said = f"and {lost} that were allowed" if is_judged else "but how right it is was not tried"
    click.echo(f"{file}: is the file that was proved, {said}")
    click.echo(f"runs in: {exported.runtime}, {exported.precision}")
    click.echo(f"images: {exported.certificate.claims}")
    for each in tried:
        name = in_one_line(each.name or "")
        what = f"{each.input} {name} {'x'.join(map(str, each.shape))}"
        share = each.difference / (each.largest or 1)
        click.echo(
            f"  {' '.join(what.split())}: {share:.2g} of the largest output, "
            f"{each.equal} of {each.shape[0]} answers equal"
        )
    if photos_left:
        click.echo(
            f"not repeated: {len(photos_left)} photos of the proof; --photos and --model do",
            err=True,
        )


@click.command("bench")
@click.argument("models", nargs=-1, required=True)
@click.option("--size", help="Height and width of the images; default those of the first model.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(min=10), default=30, show_default=True)
@click.option("--no-patches", is_flag=True, help="Do not measure what each patch costs.")
@_set_option
@_json_option
def bench_command(
    models: tuple[str, ...],
    size: str | None,
    batch: int,
    rounds: int,
    no_patches: bool,
    changes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure how long MODELS take, in turn: saved models, recipes, backbones' names, and exported
    files, each in its runtime. A model is also measured without each of its patches.
    """
    sides = None if size is None else _numbers(size, 2, "--size")
    builder, given = HybridBuilder(), read_changes(changes)
    from .benching import bench
    from .certificate import in_one_line
    from .models import read_model
    from .program import image_size
    from .verifying import ExportedModel, open_exported

    suffixes = {offer.spec.suffix for offer in builder.registry.all(ExporterSpec)}
    files = {".safetensors", *suffixes}
    if given and all(Path(text).suffix in files for text in models):
        raise click.UsageError("--set is for recipes and backbones, and all of these are files")
    subjects: dict[str, Any] = {}
    for text in models:
        name, number = text, 2
        while name in subjects:
            name, number = f"{text} ({number})", number + 1
        if Path(text).suffix in suffixes:
            subjects[name] = open_exported(text, registry=builder.registry)
        else:
            changed = {} if Path(text).suffix == ".safetensors" else given
            subjects[name] = read_model(text, changed, builder)
    first = next(iter(subjects.values()))
    if isinstance(first, ExportedModel):
        channels, *found = first.certificate.claims.example[1:]
    else:
        channels, found = first.num_channels, list(sides or image_size(first))
    height, width = sides or found
    rows = bench(
        subjects, shape=(batch, channels, height, width), rounds=rounds, without=not no_patches
    )
    if as_json:
        click.echo(json.dumps([asdict(each) for each in rows]))
        return
    names = [in_one_line(each.name) for each in rows]
    wide = max(map(len, names))
    click.echo(f"{'':{wide}}  {'median':>9}  {'p90':>9}  {'spread':>9}  [ms], {rounds} rounds of")
    click.echo(f"{'':{wide}}  {batch} x {channels} x {height} x {width}, one thread")
    for name, each in zip(names, rows, strict=True):
        figures = "  ".join(f"{value:9.3f}" for value in (each.median, each.p90, each.spread))
        click.echo(f"{name:{wide}}  {figures}  {each.runtime}")
        for target, cost in each.patches.items():
            less = ", less than the spread" if abs(cost) < each.spread else ""
            click.echo(f"{'':{wide}}  {cost:+9.3f}  of it for the patch at {target}{less}")
