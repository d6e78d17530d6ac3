"""The group `tvc`: which commands there are. What a command does is imported when it is called."""

from __future__ import annotations

import gc
import os
import re
import sys
import warnings

import click

from tvc_core import (
    API_VERSION,
    AmbiguousNameError,
    Named,
    Registry,
    RegistryWarning,
    UnknownNameError,
)

from . import plugin
from .first_party import FIRST_PARTY, WITH_COMMANDS, normalized
from .guard import Command, GuardedGroup, common_options, environment, in_commands, show_warnings
from .kinds import CommandSpec
from .streams import given, results, while_running

__all__ = ["tvc"]

RESCUE = "doctor"
"""The command for installations in which loading plugins ends the process. So it is found without
loading any, even where a plugin offers one of this name; `doctor` reports that.
"""

TABLES = ("plugins",)
"""Commands whose result says what the warnings about plugins say."""


class PluginGroup(GuardedGroup):
    """A group whose commands are what plugins offer as `CommandSpec`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands; those of several owners are qualified."""
        return [_written(name) for name in _commands().names(CommandSpec)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        """Import and return a command.

        Raises:
            UsageError: no plugin offers it.
            AmbiguousNameError: several plugins do.
            PluginError: it cannot be imported, or is not a command.
        """
        # plugins are imported from here on, and may print until the end
        ctx.with_resource(while_running())
        short = name.replace("-", "_") if ":" not in name else _meant(name)
        if short in (RESCUE, f"{plugin.TVC_OWNER}:{RESCUE}"):
            specs = {spec.name: spec for spec in plugin.tvc_cli_commands()}
            found = Named(plugin.TVC_OWNER, specs[RESCUE])
        else:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", RegistryWarning)
                registry = _commands()
            try:
                found = registry.resolve(CommandSpec, short)
            except AmbiguousNameError:
                raise
            except UnknownNameError as error:
                # commands are written with hyphens
                text = re.sub(r"(?<=[a-z])_(?=[a-z])", "-", in_commands(str(error)))
                raise click.UsageError(text, ctx) from error
            # each plugin is named once a process; of variables the command's own registry warns
            for warning in said if short not in TABLES else ():
                if str(warning.message).startswith("The plugin "):
                    warnings.warn(warning.message, stacklevel=2)
        command = found.load()
        if not isinstance(command, click.Command):
            raise click.ClickException(
                f"the command {found.qualified!r} is of type {type(command).__name__}, not a click "
                f"command. This is a fault of the distribution {found.owner!r}."
            )
        _end_of_start()
        if not isinstance(command, Command):
            ctx.with_resource(given())  # of another plugin, which prints to stdout itself
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments name, in the plugins that `--no-plugins` leaves."""
        if "--no-plugins" in args:
            ctx.with_resource(environment(TVC_ONLY="tvc-core"))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the names and summaries of all commands, which imports none of them."""
        with warnings.catch_warnings(), while_running():
            show_warnings(ctx)
            registry = _commands()
            stdout = results()
        sys.stdout = stdout
        rows = [
            (_written(registry.label(offer)), offer.spec.summary)
            for offer in registry.all(CommandSpec)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
        _end_of_start()


def _end_of_start() -> None:
    """Leave what was imported, which stays until the end, out of garbage collection, and switch it
    on, which `main` switched off.
    """
    gc.freeze()  # the process looks through everything again at its end: 6 % of `tvc --help`
    gc.enable()


def _commands() -> Registry:
    """Return a registry of the plugins that may offer commands. Those of tvc itself are never
    missing.
    """
    disabled = {normalized(name) for name in os.environ.get("TVC_DISABLE", "").split(",")}
    disabled |= {*FIRST_PARTY} - {"tvc-core", *WITH_COMMANDS}
    disabled -= {plugin.TVC_OWNER}
    # not strict: tvc must be able to say what is wrong
    leaving = {"TVC_STRICT": "0", "TVC_DISABLE": ",".join(sorted(disabled))}
    if only := os.environ.get("TVC_ONLY", "").strip():
        leaving["TVC_ONLY"] = f"{only},{plugin.TVC_OWNER}"
    with environment(**leaving), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TVC_", category=RegistryWarning)
        registry = Registry()
        # run from a folder that is not installed
        missing = all(info.owner != plugin.TVC_OWNER for info in registry.plugins)
        return Registry([plugin]) if missing else registry


def _written(name: str) -> str:
    """Return a command's name as the command line has it."""
    return name.replace("_", "-")


def _meant(name: str) -> str:
    owner, _, short = name.partition(":")
    return f"{owner}:{short.replace('-', '_')}"


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
    cls=PluginGroup,
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

    Plugins add commands. Exit codes: 0 fine, 1 an error, 2 wrong usage.
    """
