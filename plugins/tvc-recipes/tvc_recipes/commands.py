"""The commands that this plugin adds to `tvc`. Each collects its facts first, then prints them."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import click

from tvc_core import RecipeDocument, RecipeError, read_changes, write_file

__all__ = [
    "diff_command", "fmt_command", "init_command", "lock_command", "schema_command",
    "validate_command",
]  # fmt: skip

_set_option = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="PATH=VALUE",
    help="Use this in the place of the recipe's: head.num_classes=5. May be repeated.",
)
_force_option = click.option("--force", is_flag=True, help="Overwrite a file that exists.")
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_FILE = click.Path(path_type=Path, allow_dash=True)


def _source(path: Path) -> Any:
    return sys.stdin.buffer if str(path) == "-" else path


def _new_file(path: Path, text: str, force: bool) -> None:
    """Write a file that must not be there yet."""
    if os.path.lexists(path) and not force:
        raise RecipeError(f"{path} exists: --force overwrites it, or choose another --out")
    _write(path, text)


def _write(path: Path, text: str) -> None:
    """Write a file whole; where that fails, what was there still is."""
    try:
        write_file(path, [text.encode()])
    except OSError as error:
        raise RecipeError(f"{path} cannot be written: {error.strerror or error}") from error


@click.command("init")
@click.argument("backbone")
@click.option("--out", type=click.Path(path_type=Path), help="Write this file, not to stdout.")
@_force_option
def init_command(backbone: str, out: Path | None, force: bool) -> None:
    """Write a recipe for BACKBONE, with comments that say what else there is.

    tvc validate checks a recipe, tvc check a plugin, tvc doctor the installation.
    """
    from .starting import first_recipe

    text = first_recipe(backbone)
    if out is None:
        click.echo(text, nl=False)
    else:
        _new_file(out, text, force)
        click.echo(f"wrote {out}", err=True)


@click.command("validate")
@click.argument("recipes", nargs=-1, required=True, type=_FILE)
@_set_option
@_json_option
@click.pass_context
def validate_command(
    ctx: click.Context, recipes: tuple[Path, ...], changes: tuple[str, ...], as_json: bool
) -> None:
    """Say everything that is wrong with RECIPES: keys, values, and names of what is not installed,
    in what a search (`tune.space`) makes of them as well. Nothing is built, and torch is not
    imported; `tvc build` finds what only a build can find.

    Exit code 1 where something is wrong. `tvc check` is for plugins, `tvc doctor` for the
    installation.
    """
    from .checking import check_recipe

    given = read_changes(changes)
    found = {str(path): check_recipe(_source(path), changes=given) for path in recipes}
    errors = [error for each in found.values() for error in each]
    if as_json:
        rows = {path: [_fact(error) for error in each] for path, each in found.items()}
        click.echo(json.dumps(rows, indent=1))
    else:
        for error in errors:
            click.echo(f"error: {_in_commands(str(error))}", err=True)
        for path in (path for path, each in found.items() if not each):
            click.echo(f"{path}: fine")
    ctx.exit(1 if errors else 0)


def _in_commands(text: str) -> str:
    """Return an error of the core's with the command for the call that it advises."""
    text = text.replace("HybridBuilder.list_patch_ops()", "'tvc list ops'")
    text = re.sub(r"Registry\(\)\.names\('(\w+)'\)", r"'tvc list \1'", text)
    return re.sub(r"HybridBuilder\.list_(\w+)\(\)", r"'tvc list \1'", text)


def _fact(error: Any) -> dict[str, Any]:
    return {"error": type(error).__name__, "path": list(error.path or ()), "said": str(error)}


@click.command("fmt")
@click.argument("recipes", nargs=-1, required=True, type=_FILE)
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 where something would be.")
@click.pass_context
def fmt_command(ctx: click.Context, recipes: tuple[Path, ...], check: bool) -> None:
    """Write RECIPES in their canonical form: the order of keys of the reference, two spaces of
    indentation, comments where they were. With - the recipe is read from stdin and printed.
    """
    from .formatting import format_recipe

    changed = []
    for path in recipes:
        text = _text(path)
        new = format_recipe(text, str(path))
        if str(path) == "-":
            click.echo(new, nl=False)
        elif new != text:
            changed.append((path, new))
    for path, new in changed:
        if not check:
            _write(path, new)
        click.echo(f"{'would change' if check else 'changed'} {path}")
    ctx.exit(1 if check and changed else 0)


def _text(path: Path) -> str:
    if str(path) != "-":
        RecipeDocument.read(path)  # it says what else a file is
    try:
        if str(path) == "-":
            return sys.stdin.buffer.read().decode("utf-8")
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise RecipeError(f"{path}: the recipe cannot be read: {error}") from error


@click.command("diff")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path), required=False)
@click.option("--weights", is_flag=True, help="Compare the tensors as well.")
@_set_option
@_json_option
@click.pass_context
def diff_command(
    ctx: click.Context,
    a: Path,
    b: Path | None,
    weights: bool,
    changes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say in what the models of A and B differ, each a recipe or a saved model, whatever their
    texts look like. --set changes B, which is A where only one recipe is given. Exit code 1 where
    they differ.
    """
    from .comparing import changed, compare

    if b is None and not changes:
        raise click.UsageError(f"{a} is compared with what? Give another model, or --set")
    other = changed(b or a, read_changes(changes)) if changes else b
    found = compare(a, other, weights=weights)
    if as_json:
        rows = [{"path": each.path, "a": each.a, "b": each.b} for each in found]
        click.echo(json.dumps(rows, indent=1, default=str))
    else:
        for each in found:
            click.echo(str(each))
        if not found:
            click.echo("the same model")
    ctx.exit(1 if found else 0)


@click.command("lock")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Default: RECIPE with .lock.yaml.")
@_force_option
@_set_option
def lock_command(recipe: Path, out: Path | None, force: bool, changes: tuple[str, ...]) -> None:
    """Write down with which versions and weights RECIPE is built. The lock is a recipe itself, and
    is built only where these are the same.
    """
    from .formatting import format_recipe
    from .locking import lock_recipe

    folder = out.parent if out else None
    locked = lock_recipe(recipe, changes=read_changes(changes), folder=folder)
    target = out or recipe.with_suffix(".lock.yaml")  # only now: what is no file was refused
    _new_file(target, format_recipe(locked.to_yaml(), str(target)), force)
    click.echo(f"wrote {target}", err=True)


@click.command("schema")
def schema_command() -> None:
    """Print a JSON Schema of recipes, made from what is installed: names of backbones, weights and
    blocks, with their parameters.
    """
    from .schema import recipe_schema

    click.echo(json.dumps(recipe_schema(), indent=1, ensure_ascii=False))
