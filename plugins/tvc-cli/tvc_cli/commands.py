"""The commands of `tvc`. Each collects its facts first, then prints them, so that a failure prints
no half result.
"""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import click

from tvc_core import (
    AmbiguousNameError,
    BackboneFamilySpec,
    BackboneSpec,
    BlockSpec,
    HybridBuilder,
    PatchOpSpec,
    Registry,
    RegistryWarning,
    UnknownNameError,
    load_recipe,
    read_changes,
)

from . import facts
from .group import tvc
from .guard import Command, common_options, in_commands
from .output import as_text, print_json, print_pairs, print_table, say

__all__ = [
    "build_command",
    "check_command",
    "doctor_command",
    "list_command",
    "new_plugin_command",
    "plugins_command",
    "show_command",
    "tvc",
]

_COLUMNS = {
    BackboneSpec: (
        *("name", "num_params", "gflops", "acc1"),
        *("family", "origin", "plugin", "shown_weights", "summary"),
    ),
    BlockSpec: ("name", "category", "layouts", "plugin", "source", "summary"),
    PatchOpSpec: ("name", "takes_block", "options", "plugin", "summary"),
}
_PIECES = ("block", "backbone", "op", "initializer")
_ONLY_FOR = {
    "origin": "backbones",
    "category": "blocks",
    "sort": "backbones",
    "weights": "backbones",
}
_FIGURES = {"num_params": "params", "gflops": "GFLOPs", "acc1": "acc@1"}
"""Headers of the columns with numbers."""

_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout."
)


@click.command("list", cls=Command)
@click.argument("kind", default="backbones")
@click.argument("pattern", required=False)
@click.option("--origin", help="Only backbones of this origin, such as torchvision.")
@click.option("--owner", help="Only what this distribution offers, such as tvc-resnet.")
@click.option("--category", help="Only blocks of this category, such as attention.")
@click.option(
    "--sort",
    type=click.Choice(tuple(facts.SORTS)),
    help="Sort backbones: the smallest params or gflops first, or the best acc.",
)
@click.option(
    "--weights",
    "every_set",
    is_flag=True,
    help="One line for each set of weights, not for each backbone with its default set.",
)
@_json_option
@common_options
def list_command(
    kind: str,
    pattern: str | None,
    origin: str | None,
    owner: str | None,
    category: str | None,
    sort: str | None,
    every_set: bool,
    as_json: bool,
) -> None:
    """List what is installed: backbones, blocks, ops (patch operations), initializers, or what
    plugins define besides; kinds lists those words.

    PATTERN is shell-style and best quoted: tvc list backbones 'resnet*'. What a family offers
    without listing every name (timm/resnet50) is shown for a PATTERN with a slash, or for its
    --owner.

    Of backbones it shows parameters, multiply-adds of one image of the weights' size, and accuracy
    on ImageNet-1K, as the publisher of the default weights states them; "-" where nothing does.
    """
    registry = Registry()
    if pattern is None and facts.is_pattern(kind):  # a pattern by itself is one of backbones
        kind, pattern = "backbones", kind
    spec_type = _kind(registry, kind, "'KIND'")
    options = {"origin": origin, "category": category, "sort": sort, "weights": every_set or None}
    for option, value in options.items():
        if value is not None and spec_type is not facts.kind_of(registry, _ONLY_FOR[option]):
            word = _ONLY_FOR[option]
            write = f"tvc list {word} --{option}{'' if value is True else f' {value}'}"
            raise click.UsageError(f"--{option} is for {word}; {kind} have none. Write {write}")
    found = facts.list_facts(
        registry,
        spec_type,
        origin=origin,
        owner=owner,
        category=category,
        pattern=pattern,
        sort=sort or "name",
        every_set=every_set,
    )
    if as_json:
        print_json(found)
    elif found:
        columns = _COLUMNS.get(spec_type) or [
            name for name in found[0] if name not in ("qualified", "source")
        ]
        print_table(
            [_title(column) for column in columns],
            [[_cell(column, fact[column]) for column in columns] for fact in found],
            right=tuple(_FIGURES.values()),
        )
        column = facts.SORTS[sort or "name"][0]
        if unknown := sum(fact[column] is None for fact in found):
            click.echo(
                f"--sort {sort}: {unknown} of {len(found)} state no {_FIGURES[column]}, so they "
                "stand last, by name; tvc show NAME says what is known of one",
                err=True,
            )
    else:
        said = f"no {kind} are installed"
        if pattern:
            near = facts.near_pattern(registry, spec_type, pattern)
            said = f"no {kind} match {pattern!r}. {near or f'tvc list {kind} shows all'}"
        click.echo(said, err=True)
    if spec_type is BackboneSpec and not (origin or owner or "/" in (pattern or "")):
        for family in registry.all(BackboneFamilySpec):
            name = registry.label(family)
            more = f"the family {name} of {family.owner} has more, which are not listed here"
            click.echo(f"{more}: tvc list backbones '{name}/*'", err=True)


@click.command("show", cls=Command)
@click.argument("name")
@click.option(
    "--kind", help="What NAME is, such as blocks, where a block and an initializer share it."
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
@click.option(
    "--weights",
    "only_weights",
    is_flag=True,
    help="Show a backbone's weights, without building it to measure its paths.",
)
@_json_option
@common_options
def show_command(
    name: str,
    kind: str | None,
    size: int | None,
    depth: int | None,
    target: str | None,
    only_weights: bool,
    as_json: bool,
) -> None:
    """Show one thing: a backbone with all paths that patches can take, or a block, op, initializer,
    or something of another kind; or what is in a file of weights: recipe, classes, hash, and
    plugins that are missing here.

    What has a path separator or the suffix of a file (.safetensors, .pth, ...) is a file.

    Channels, sizes and layouts of a backbone are those of the map that a module returns, measured
    by one forward pass of the network with random weights. A path with a reason in the last column
    cannot be patched. A target with `*` in it needs quotes.
    """
    registry = Registry()
    if kind is None and facts.is_file(registry, name):
        if any(option is not None for option in (size, depth, target)) or only_weights:
            raise click.UsageError("--size, --depth, --target and --weights are for backbones")
        told = facts.file_facts(name, registry)
        if as_json:
            print_json(told)
        else:
            _print_file(told)
        return
    if kind is not None:
        _kind(registry, kind, "'--kind'")
    named = facts.find(registry, name, kind)
    is_backbone = isinstance(named.spec, BackboneSpec)
    measuring = any(option is not None for option in (size, depth, target))
    if not is_backbone and (measuring or only_weights):
        raise click.UsageError(
            "--size, --depth, --target and --weights are for backbones; "
            f"{name!r} is a {named.spec.kind}"
        )
    if only_weights and measuring:
        raise click.UsageError(
            "--weights leaves out the paths, which --size, --depth and --target are about"
        )
    if only_weights:
        found = facts.stated_facts(named)
    elif is_backbone:
        found = facts.backbone_facts(named, registry, size, target)
    else:
        found = facts.thing_facts(named)
    if depth is not None:
        found["paths"] = [path for path in found["paths"] if path["path"].count(".") < depth]
    if as_json:
        print_json(found)
    elif is_backbone:
        _print_backbone(found)
    else:
        _print_thing(found)


@click.command("build", cls=Command)
@click.argument("recipe", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Save the model to this .safetensors file.",
)
@click.option("--force", is_flag=True, help="Let --out take the place of a file that exists.")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="PATH=VALUE",
    help="Use this in the place of the recipe's: head.num_classes=5, or just num_classes=5; "
    "weights=path/to/own.pth. VALUE is what it would be in the file. May be repeated.",
)
@click.option(
    "--seed",
    type=int,
    help="Start new parameters from this, so that two builds give the same model.",
)
@_json_option
@common_options
def build_command(
    recipe: Path,
    out: Path | None,
    force: bool,
    changes: tuple[str, ...],
    seed: int | None,
    as_json: bool,
) -> None:
    """Build the model that the YAML file RECIPE describes, and explain it. With - for RECIPE, it is
    read from stdin.
    """
    if out is not None:  # looked at first, since building may download weights and take minutes
        from tvc_core import check_target  # imports torch

        check_target(out, force=force, suffix=".safetensors")
    given: dict[str, Any] = {**read_changes(changes)}
    if seed is not None:
        if "seed" in given:
            raise click.UsageError("the seed is given twice, by --seed and by --set")
        given["seed"] = seed
    source: Any = sys.stdin.buffer if str(recipe) == "-" else recipe
    builder = HybridBuilder()
    model = builder.build(load_recipe(source, changes=given, registry=builder.registry))
    if out is not None:
        model.save(out)
    found = facts.model_facts(model)
    if as_json:
        print_json({**found, "out": str(out) if out is not None else None})
        return
    say(found["explain"])
    if out is not None:
        say(f"saved: {out} ({out.stat().st_size:,} bytes)")


@click.command("plugins", cls=Command)
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
        registry = Registry()
        found = [facts.plugin_facts(info, registry) for info in registry.plugins]
    if as_json:
        print_json(found)
        return
    counts = [*facts.kinds_of(registry), "families"]
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


@click.command("doctor", cls=Command)
@click.option(
    "--traceback", "with_traceback", is_flag=True, help="Show where faulty plugins failed."
)
@_json_option
@common_options
@click.pass_context
def doctor_command(ctx: click.Context, with_traceback: bool, as_json: bool) -> None:
    """Look for what is wrong with the installation: faulty and slow plugins, clashing names,
    versions, variables.

    Each plugin is loaded in a process of its own, so that one that crashes or hangs is found.
    Exit code 1 where there is a problem; a note is not one. `tvc check` looks at one plugin, and
    `tvc validate`, of tvc-recipes, at recipes.
    """
    from . import doctor

    found = doctor.examine()
    if as_json:
        print_json(found)
    else:
        _print_diagnosis(found, with_traceback)
    ctx.exit(0 if found["fine"] else 1)


@click.command("check", cls=Command)
@click.argument("plugin")
@_json_option
@common_options
@click.pass_context
def check_command(ctx: click.Context, plugin: str, as_json: bool) -> None:
    """Run every check of the conformance kit on PLUGIN: its folder, which need not be installed,
    its distribution (acme-blocks) or its module (acme_blocks.plugin).

    Exit code 1 where a check fails. In tests of a plugin the same is
    tvc_core.testing.parametrize_with_checks. `tvc doctor` looks at the installation, and `tvc
    validate`, of tvc-recipes, at recipes.
    """
    from .checking import check_facts, importable, plugin_module, skipped_in_short

    module = plugin_module(plugin)
    with importable(plugin, module):
        found = check_facts(module)
    failed = [check for check in found if check["result"] == "failed"]
    if as_json:
        print_json(found)
    else:
        if skipped := skipped_in_short(found):
            say(skipped)
        for check in failed:  # last, where one looks first
            say(f"failed: {check['said']}")
        counts = Counter(check["result"] for check in found)
        say(
            f"{module}: "
            + ", ".join(f"{counts[result]} {result}" for result in ("passed", "skipped", "failed"))
        )
    ctx.exit(1 if failed else 0)


@click.command("new-plugin", cls=Command)
@click.argument("name")
@click.option(
    "--kind", type=click.Choice(_PIECES), default="block", show_default=True, help="What it offers."
)
@click.option("--name", "piece", help="What the piece is called in recipes, such as triplet.")
@click.option(
    "--class", "class_name", help="The class of a block or backbone; default from --name."
)
@click.option(
    "--into",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    default=".",
    help="Folder in which the folder NAME is made; default the current one.",
)
@_json_option
@common_options
def new_plugin_command(
    name: str, kind: str, piece: str | None, class_name: str | None, into: Path, as_json: bool
) -> None:
    """Write the distribution NAME, such as acme-blocks, with a plugin that works: metadata, code,
    tests and a recipe.
    """
    from .new_plugin import write_plugin

    try:
        folder, files = write_plugin(name, kind, into, piece, class_name)
    except (ValueError, OSError) as error:
        if str(error).startswith("--"):
            raise click.UsageError(str(error)) from error
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
        headers = ["weights", "classes", *_FIGURES.values(), "license", "resize", "crop"]
        print_table(
            [*headers, "interpolation", "mean", "std", "note"],
            [_weights_row(weights, found["default_weights"]) for weights in found["weights"]],
            right=tuple(_FIGURES.values()),
        )
    else:
        say("weights: none; build it with weights=None")
    if "paths" not in found:
        return
    height, width = found["image"] or (0, 0)
    say(f"\nModules and what they return for an image of {height}x{width} pixels:\n")
    headers = ["path", "type", "part", "in", "out", "size", "layout", "why not"]
    print_table(headers, [_path_row(path) for path in found["paths"]], right=("in", "out", "size"))


def _weights_row(weights: dict[str, Any], default: str | None) -> list[Any]:
    notes = ["default"] if weights["name"] == default else []
    if re.search(r"\bnc\b|non-?commercial", weights["license"] or "", re.IGNORECASE):
        notes.append("not for commercial use")
    if weights["squash"]:
        notes.append("resized without keeping the proportions")
    if weights["test_crop_size"] is not None:
        notes.append(f"evaluated at {weights['test_crop_size']} pixels")
    notes += [weights[key] for key in ("recipe", "url") if weights[key]]
    mean, std = (" ".join(f"{value:.4g}" for value in weights[key]) for key in ("mean", "std"))
    figures = [_cell(key, weights[key]) for key in _FIGURES]
    sizes = (weights["resize_size"], weights["crop_size"], weights["interpolation"])
    stated = weights["license"] or "not stated"
    return [weights["name"], weights["num_classes"], *figures, stated, *sizes, mean, std, notes]


def _path_row(path: dict[str, Any]) -> list[Any]:
    size = f"{path['height']}x{path['width']}" if path["height"] is not None else None
    keys = ("path", "type", "part", "in_channels", "out_channels")
    return [*(path[key] for key in keys), size, path["layout"], path["problem"] or ""]


def _print_thing(found: dict[str, Any]) -> None:
    hidden = ("kind", "name", "qualified", "plugin", "parameters", "options")
    rest = {_title(key): value for key, value in found.items() if key not in hidden}
    print_pairs({found["kind"]: found["qualified"], **rest})
    parameters = found.get("parameters", ())
    if "parameters" not in found:
        pass  # how its factory is called, the plugin that defines the kind says
    elif parameters is None:
        say("parameters: any keyword; see its documentation")
    elif parameters:
        say()
        print_table(
            ["parameter", "type", "default", "what"],
            [
                (
                    p["name"],
                    p["type"],
                    "must be given" if p["required"] else repr(p["default"]),
                    p["summary"],
                )
                for p in parameters
            ],
        )
    else:
        say("parameters: none")


def _print_file(found: dict[str, Any]) -> None:
    recipe, names = found["recipe"], found["class_names"]
    size = f"{found['num_bytes']:,} bytes, {found['num_tensors']} tensors, {found['num_values']:,}"
    heads = names if isinstance(names, dict) else {"": names or ()}
    shown = {
        f"classes {head}".strip(): f"{len(each)}: {as_text(each[:8])}{', ...' * (len(each) > 8)}"
        for head, each in heads.items()
        if each
    }
    print_pairs(
        {
            found["kind"]: found["path"],
            "size": f"{size} values",
            "sha256": found["sha256"],
            "format": found["format"],
            "base": found["base"],
            "module": found["module"],
            **shown,
            "license": found["license"],
            "written by": [f"{name} {version}" for name, version in found["versions"].items()],
            "metadata": found["metadata"],
            "missing": found["missing"],
        }
    )
    if recipe is not None:
        say("\nrecipe:\n" + textwrap.indent(found["yaml"].rstrip(), "  "))
    else:
        say()
        rows = [(name, "x".join(map(str, shape))) for name, shape in found["tensors"].items()]
        print_table(("tensor", "shape"), rows)


def _kind(registry: Registry, word: str, argument: str) -> type[Any]:
    try:
        return facts.kind_of(registry, word)
    except AmbiguousNameError:
        raise
    except UnknownNameError as error:
        raise click.BadParameter(in_commands(str(error)), param_hint=argument) from error


def _side_effects(fact: dict[str, Any]) -> str | None:
    return (
        f"restored after loading it: {as_text(fact['side_effects'])}"
        if fact["side_effects"]
        else None
    )


def _title(column: str) -> str:
    titles = {**_FIGURES, "shown_weights": "weights", "takes_block": "takes a block"}
    return titles.get(column, column.replace("_", " "))


def _cell(column: str, value: Any) -> Any:
    """Return a value as tables show it: figures rounded, with their unit."""
    if value is None or column not in _FIGURES:
        return value
    if column != "num_params":
        return f"{value:.2f}"
    return f"{value / 1e6:.1f}M" if value >= 1e6 else f"{value / 1e3:.1f}K"
