"""The commands of `tvc`. Each collects its facts first, then prints them, so that a failure prints
no half result.
"""

from __future__ import annotations

import fnmatch
import shlex
import textwrap
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import click

from tvc_core import (
    API_VERSION,
    BackboneFamilySpec,
    BackboneSpec,
    HybridBuilder,
    Registry,
    RegistryWarning,
)

from . import facts
from .guard import GuardedGroup, common_options
from .output import as_text, print_json, print_pairs, print_table, say

__all__ = ["tvc"]

_COLUMNS = {
    "backbones": ("name", "family", "origin", "plugin", "default_weights", "summary"),
    "blocks": ("name", "category", "layouts", "plugin", "summary"),
    "ops": ("name", "takes_block", "options", "plugin", "summary"),
    "initializers": ("name", "plugin", "summary"),
}
_PIECES = ("block", "backbone", "op", "initializer")
_ONLY_FOR = {"origin": "backbones", "category": "blocks"}

_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout."
)


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib import metadata

        api = ".".join(str(number) for number in API_VERSION)
        click.echo(
            f"tvc {metadata.version('tvc-cli')} (tvc-core {metadata.version('tvc-core')}, plugin "
            f"API {api})"
        )
        ctx.exit()


@click.group(
    cls=GuardedGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
@common_options
def tvc() -> None:
    """Change pretrained vision backbones by name: see what is installed, look inside a network,
    build a recipe.

    \b
    tvc list                       what networks are there
    tvc list blocks                what can be put into them
    tvc show resnet50              where it can be put
    tvc build recipe.yaml          build, explain
    tvc plugins                    where all this comes from
    tvc doctor                     what is wrong, and what to do
    tvc new-plugin acme-blocks     a plugin of your own
    tvc check acme-blocks          whether it keeps the rules

    Exit codes: 0 fine, 1 an error, 2 wrong usage.
    """


@tvc.command("list", short_help="List what is installed.")
@click.argument("kind", type=click.Choice(list(facts.KINDS)), default="backbones")
@click.argument("pattern", required=False)
@click.option("--origin", help="Only backbones of this origin, such as torchvision.")
@click.option("--plugin", help="Only what this distribution offers, such as tvc-resnet.")
@click.option("--category", help="Only blocks of this category, such as attention.")
@_json_option
@common_options
def list_command(
    kind: str,
    pattern: str | None,
    origin: str | None,
    plugin: str | None,
    category: str | None,
    as_json: bool,
) -> None:
    """List what is installed: backbones, blocks, ops (patch operations) or initializers.

    PATTERN is shell-style and best quoted: tvc list backbones 'resnet*'. What a family offers
    without listing every name (timm/resnet50) is shown for a PATTERN with a slash, or for its
    --plugin.
    """
    for option, value in (("origin", origin), ("category", category)):
        if value is not None and kind != _ONLY_FOR[option]:
            raise click.UsageError(f"--{option} is for {_ONLY_FOR[option]}; {kind} have none")
    registry = Registry()
    found = facts.list_facts(
        registry, kind, origin=origin, plugin=plugin, category=category, pattern=pattern
    )
    if kind != "backbones":
        found = [
            fact for fact in found if pattern is None or fnmatch.fnmatchcase(fact["name"], pattern)
        ]
    if as_json:
        print_json(found)
    elif found:
        columns = _COLUMNS[kind]
        print_table(
            [_title(column) for column in columns],
            [[fact[column] for column in columns] for fact in found],
        )
    else:
        asked = f" match {pattern!r}" if pattern else " are installed"
        click.echo(
            f"no {kind}{asked}{'; without the pattern, tvc list shows all' if pattern else ''}",
            err=True,
        )
    if kind == "backbones" and not (origin or plugin or "/" in (pattern or "")):
        for family in registry.all(BackboneFamilySpec):
            name = registry.label(family)
            more = f"the family {name} of {family.owner} has more, which are not listed here"
            click.echo(f"{more}: tvc list backbones '{name}/*'", err=True)


@tvc.command("show", short_help="Show a backbone and its paths, or a block, op or initializer.")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(list(facts.KINDS)),
    help="What NAME is, where a block and an initializer share it.",
)
@click.option(
    "--size",
    type=click.IntRange(min=1),
    help="Side of the image sent through a backbone; default its own crop.",
)
@click.option(
    "--depth",
    type=click.IntRange(min=1),
    help="Show a backbone's paths only down to this many parts.",
)
@click.option(
    "--target",
    help="Show only the paths that this target means, such as 'layer*.*.bn3' or 'stage:*.-1'.",
)
@_json_option
@common_options
def show_command(
    name: str,
    kind: str | None,
    size: int | None,
    depth: int | None,
    target: str | None,
    as_json: bool,
) -> None:
    """Show one thing: a backbone with all paths that patches can take, or a block, op or
    initializer.

    Channels, sizes and layouts of a backbone are those of the map that a module returns, measured
    by one forward pass of the network with random weights. A path with a reason in the last column
    cannot be patched. A target with `*` in it needs quotes.
    """
    registry = Registry()
    spec_type, named = facts.find(registry, name, kind)
    is_backbone = spec_type is BackboneSpec
    if not is_backbone and any(option is not None for option in (size, depth, target)):
        raise click.UsageError(
            f"--size, --depth and --target are for backbones; {name!r} is a {named.spec.kind}"
        )
    found = (
        facts.backbone_facts(named, registry, size, target)
        if is_backbone
        else facts.thing_facts(named)
    )
    if is_backbone and depth is not None:
        found["paths"] = [path for path in found["paths"] if path["path"].count(".") < depth]
    if as_json:
        print_json(found)
    elif is_backbone:
        _print_backbone(found)
    else:
        _print_thing(found)


@tvc.command("build", short_help="Build a recipe and explain the model.")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Save the model to this .safetensors file.",
)
@_json_option
@common_options
def build_command(recipe: Path, out: Path | None, as_json: bool) -> None:
    """Build the model that the YAML file RECIPE describes, and explain it."""
    if out is not None:  # looked at first, since building may download weights and take minutes
        _check_out(out)
    model = HybridBuilder().build(recipe)
    if out is not None:
        model.save(out)
    found = facts.model_facts(model)
    if as_json:
        print_json({**found, "out": str(out) if out is not None else None})
        return
    say(found["explain"])
    if out is not None:
        say(f"saved: {out} ({out.stat().st_size:,} bytes)")


@tvc.command("plugins", short_help="List plugins and whether they work.")
@click.option(
    "--traceback", "with_traceback", is_flag=True, help="Show where faulty plugins failed."
)
@_json_option
@common_options
def plugins_command(with_traceback: bool, as_json: bool) -> None:
    """List installed plugins with status, version, plugin API and what they offer."""
    with warnings.catch_warnings():
        # the table says the same
        warnings.filterwarnings("ignore", message="The plugin ", category=RegistryWarning)
        found = [facts.plugin_facts(info) for info in Registry().plugins]
    if as_json:
        print_json(found)
        return
    counts = [*facts.KINDS, "families"]
    columns = ["plugin", "version", "status", "api", *counts, "seconds", "error"]
    rows = [
        [*(fact[column] for column in columns[:-1]), fact["error"] or _side_effects(fact)]
        for fact in found
    ]
    print_table(
        [_title(column) for column in columns],
        rows,
        right=[*(_title(word) for word in counts), "seconds"],
    )
    for fact in found:
        if with_traceback and fact["traceback"]:
            say(f"\n{fact['plugin']} ({fact['module']}):\n{fact['traceback'].rstrip()}")
    if not with_traceback and any(fact["traceback"] for fact in found):
        click.echo("tvc plugins --traceback shows where they failed", err=True)


@tvc.command("doctor", short_help="Look for what is wrong, and say what to do.")
@click.option(
    "--traceback", "with_traceback", is_flag=True, help="Show where faulty plugins failed."
)
@_json_option
@common_options
@click.pass_context
def doctor_command(ctx: click.Context, with_traceback: bool, as_json: bool) -> None:
    """Look for what is wrong with the installation: faulty and slow plugins, clashing names,
    versions, variables.

    Each plugin is loaded in a process of its own, so that one that crashes or hangs is found, too.
    Exit code 1 where there is a problem; a note is none.
    """
    from . import doctor

    found = doctor.examine()
    if as_json:
        print_json(found)
    else:
        _print_diagnosis(found, with_traceback)
    ctx.exit(0 if found["fine"] else 1)


@tvc.command("check", short_help="Run the conformance kit on a plugin.")
@click.argument("plugin")
@_json_option
@common_options
@click.pass_context
def check_command(ctx: click.Context, plugin: str, as_json: bool) -> None:
    """Run every check of the conformance kit on PLUGIN: its module (acme_blocks.plugin) or its
    distribution (acme-blocks).

    Exit code 1 where a check fails. In tests of a plugin the same is
    tvc_core.testing.parametrize_with_checks.
    """
    from .checking import check_facts, plugin_module

    module = plugin_module(plugin)
    found = check_facts(module)
    failed = [check for check in found if check["result"] == "failed"]
    if as_json:
        print_json(found)
    else:
        for check in found:
            if check["result"] != "passed":
                say(f"{check['result']}: {check['said']}")
        counts = Counter(check["result"] for check in found)
        say(
            f"{module}: "
            + ", ".join(f"{counts[result]} {result}" for result in ("passed", "skipped", "failed"))
        )
    ctx.exit(1 if failed else 0)


@tvc.command(
    "new-plugin", short_help="Write a new plugin: a complete distribution with one working piece."
)
@click.argument("name")
@click.option(
    "--kind", type=click.Choice(_PIECES), default="block", show_default=True, help="What it offers."
)
@click.option(
    "--into",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    default=".",
    help="Folder in which the folder NAME is made; default the current one.",
)
@_json_option
@common_options
def new_plugin_command(name: str, kind: str, into: Path, as_json: bool) -> None:
    """Write the distribution NAME, such as acme-blocks, with a plugin that works: metadata, code,
    tests and a recipe.
    """
    from .new_plugin import write_plugin

    try:
        folder, files = write_plugin(name, kind, into)
    except (ValueError, OSError) as error:
        raise click.BadParameter(str(error), param_hint="'NAME'") from error
    install, place, recipe = (
        shlex.quote(str(path)) for path in (f"{folder}[test]", folder, folder / "recipe.yaml")
    )
    commands = [f"pip install -e {install}", f"pytest {place}", f"tvc build {recipe}"]
    if as_json:
        print_json({"folder": str(folder), "files": files, "next": commands})
        return
    say(
        f"wrote {folder} with {len(files)} files; {folder / 'README.md'} says which does what. "
        "Next:\n"
    )
    for command in commands:
        say(f"  {command}")


def _print_diagnosis(found: dict[str, Any], with_traceback: bool) -> None:
    plugins, findings = found["plugins"], found["findings"]
    say(
        ", ".join(
            f"{name} {version or '(not installed)'}" for name, version in found["versions"].items()
        )
    )
    statuses = Counter(fact["status"] for fact in plugins)
    counts = ", ".join(f"{count} {status}" for status, count in statuses.items())
    say(
        f"{len(plugins)} plugins{': ' if counts else ''}{counts}; looked at in "
        f"{found['seconds']:.1f} s"
    )
    for finding in findings:
        say(f"\n{finding['level']}: {finding['text']}")
        if finding["advice"]:
            say(f"  -> {finding['advice']}")
        if with_traceback and finding["traceback"]:
            say(textwrap.indent(finding["traceback"].rstrip(), "  | "))
    problems = sum(finding["level"] == "problem" for finding in findings)
    say(f"\n{problems} problem{'s' if problems != 1 else ''}" if problems else "\nnothing is wrong")
    if not with_traceback and any(finding["traceback"] for finding in findings):
        click.echo("tvc doctor --traceback shows where plugins failed", err=True)


def _print_backbone(found: dict[str, Any]) -> None:
    print_pairs(
        {
            "backbone": found["qualified"],
            "summary": found["summary"],
            "family": found["family"],
            "origin": found["origin"],
            "source": found["source"],
            "options": found["options"],
            "stem": " ".join(found["stem"]),
            **{f"stage {index}": " ".join(paths) for index, paths in enumerate(found["stages"])},
            "head": found["head"],
        }
    )
    say()
    if found["weights"]:
        headers = ["weights", "classes", "resize", "crop", "interpolation", "mean", "std", "note"]
        print_table(
            headers,
            [_weights_row(weights, found["default_weights"]) for weights in found["weights"]],
        )
    else:
        say("weights: none; build it with weights=None")
    height, width = found["image"] or (0, 0)
    say(f"\nModules and what they return for an image of {height}x{width} pixels:\n")
    headers = ["path", "type", "part", "in", "out", "size", "layout", "why not"]
    print_table(headers, [_path_row(path) for path in found["paths"]], right=("in", "out", "size"))


def _weights_row(weights: dict[str, Any], default: str | None) -> list[Any]:
    notes = ["default"] if weights["name"] == default else []
    notes += [weights["recipe"]] if weights["recipe"] else []
    mean, std = (" ".join(f"{value:.4g}" for value in weights[key]) for key in ("mean", "std"))
    keys = ("name", "num_classes", "resize_size", "crop_size", "interpolation")
    return [*(weights[key] for key in keys), mean, std, notes]


def _path_row(path: dict[str, Any]) -> list[Any]:
    size = f"{path['height']}x{path['width']}" if path["height"] is not None else None
    keys = ("path", "type", "part", "in_channels", "out_channels")
    return [*(path[key] for key in keys), size, path["layout"], path["problem"] or ""]


def _print_thing(found: dict[str, Any]) -> None:
    hidden = ("kind", "name", "qualified", "plugin", "parameters", "options")
    rest = {_title(key): value for key, value in found.items() if key not in hidden}
    print_pairs({found["kind"]: found["qualified"], **rest})
    parameters = found["parameters"]
    if parameters is None:
        say("parameters: any keyword; see its documentation")
    elif parameters:
        say()
        print_table(
            ["parameter", "default"],
            [
                (p["name"], "must be given" if p["required"] else repr(p["default"]))
                for p in parameters
            ],
        )
    else:
        say("parameters: none")


def _check_out(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise click.BadParameter(
            f"{str(out)!r} does not end in .safetensors, the format of the file",
            param_hint="'--out'",
        )
    if not out.parent.is_dir():
        raise click.BadParameter(
            f"the folder {str(out.parent)!r} does not exist", param_hint="'--out'"
        )


def _side_effects(fact: dict[str, Any]) -> str | None:
    return (
        f"side effects of loading it: {as_text(fact['side_effects'])}"
        if fact["side_effects"]
        else None
    )


def _title(column: str) -> str:
    return {"default_weights": "weights", "takes_block": "takes a block"}.get(
        column, column.replace("_", " ")
    )
