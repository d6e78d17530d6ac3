"""Turn what goes wrong into a line on stderr and an exit code; the options that every
command has.
"""

from __future__ import annotations

import contextlib
import os
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from tvc_core import RegistryWarning, TvcError

from .streams import given, while_running

__all__ = [
    "Command",
    "GuardedGroup",
    "common_options",
    "environment",
    "in_commands",
    "show_warnings",
]

_COMMANDS = (
    (r"HybridBuilder\.list_backbones\('(.*?)'\) lists them", r"tvc list '\1' lists them"),
    (
        r'In Python, HybridBuilder\(\)\.from_backbone\("(.*?)"\) builds a network by its name',
        r"A recipe is a YAML file; the shortest is 'backbone: \1'",
    ),
    (r"HybridBuilder\.list_backbones\(\)", "'tvc list'"),
    (r"list_backbones\(origin='(\w+)'\)", r"'tvc list --origin \1'"),
    (r"HybridBuilder\.list_patch_ops\(\)", "'tvc list ops'"),
    (r"HybridBuilder\.list_(\w+)\(\)", r"'tvc list \1'"),
    (r"Registry\(\)\.names\('command'\) lists them", "'tvc --help' tells of each"),
    (r"Registry\(\)\.names\(.*?\)", "'tvc list kinds'"),
    (r", or build with HybridBuilder\(prefer=.*?\)(?=\.)", ""),
    (r"model\.named_(children|modules)\(\) and ('tvc show .*?') list", r"\2 lists"),
    (r"HybridBuilder\(plugins=", "In Python, HybridBuilder(plugins="),
    (r"(: |\. )In Python, HybridBuilder\(plugins=", r"\1in Python, HybridBuilder(plugins="),
)
"""What the core's errors advise in Python, and the command that does it."""

_ONE_AT_A_TIME = {
    "show": "It shows one thing; --target chooses paths: tvc show NAME --target 'layer4.*'",
    "build": "It builds one recipe",
    "check": "It checks one plugin, and 'tvc doctor' looks at all",
    "doctor": "It looks at all plugins, and 'tvc check NAME' at one",
    "plugins": "It lists all plugins; 'tvc list --owner NAME' shows what one offers",
}
"""What is said of one argument too many."""

_DEBUG = "tvc_cli.debug"

F = TypeVar("F", bound=Callable[..., Any])


class Command(click.Command):
    """A command of tvc itself: stdout is for results only, and for its help."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> Any:
        """Parse the arguments."""
        helping = {"-h", "--help"} & {*args}
        try:
            with given() if helping else contextlib.nullcontext():
                return super().make_context(info_name, args, *more, **extra)
        except click.UsageError as error:
            if "unexpected extra argument" not in error.message or info_name not in _ONE_AT_A_TIME:
                raise
            text = f"{error.message}. {_ONE_AT_A_TIME[info_name]}"
            raise click.UsageError(text, error.ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with while_running():
            return super().invoke(ctx)


class GuardedGroup(click.Group):
    """A group of commands that shows a traceback only where `--debug` was given.

    Exit codes: 1 for a TvcError and for a bug, 130 for Ctrl-C; wrong usage stays click's own 2.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        with warnings.catch_warnings():
            show_warnings(ctx)
            try:
                return super().invoke(ctx)
            except click.NoSuchOption as error:
                options = error.ctx.command.params if error.ctx else ()
                if not any("--set" in option.opts for option in options):
                    raise
                text = f"{error.message} A value of the recipe is changed by --set PATH=VALUE."
                near = error.possibilities
                raise click.NoSuchOption(error.option_name, text, near, error.ctx) from error
            except (click.exceptions.Exit, click.ClickException, BrokenPipeError):
                # click has its own ways with these: usage, and a reader such as `head` that has
                # seen enough
                raise
            except TvcError as error:
                _fail(ctx, f"error: {in_commands(str(error))}", 1)
            except (KeyboardInterrupt, click.Abort):
                _fail(ctx, "interrupted", 130)
            except OSError as error:  # a full disk, a folder that cannot be written
                _fail(ctx, f"error: {error}", 1)
            except RuntimeError as error:
                if "allocate memory" not in str(error) and "out of memory" not in str(error):
                    _fail_as_bug(ctx, error)
                _fail(ctx, f"error: not enough memory: {' '.join(str(error).split())}", 1)
            except MemoryError:
                _fail(ctx, "error: not enough memory", 1)
            except Exception as error:  # the last resort: whatever it is, the user gets a sentence
                _fail_as_bug(ctx, error)


def in_commands(text: str) -> str:
    """Return an error of the core's in the words of the command line."""
    for python, command in _COMMANDS:
        text = re.sub(python, command, text)
    return text


def common_options(command: F) -> F:
    """Add `--debug` and `--no-plugins`, which are understood before and after the name of a
    command.
    """

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            ctx.meta[_DEBUG] = True  # shared by a group's context and its command's

    def leave_out(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            ctx.with_resource(environment(TVC_ONLY="tvc-core"))

    debug = click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=remember,
        is_eager=True,
        help="Show tracebacks of errors.",
    )
    no_plugins = click.option(
        "--no-plugins",
        is_flag=True,
        expose_value=False,
        callback=leave_out,
        is_eager=True,
        help="Load no plugin: only what the core offers, as with TVC_ONLY=tvc-core.",
    )
    return debug(no_plugins(command))


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables, and restore them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def _debugging(ctx: click.Context) -> bool:
    return bool(ctx.meta.get(_DEBUG))


def _fail(ctx: click.Context, message: str, code: int) -> None:
    if _debugging(ctx):
        traceback.print_exc()
    click.echo(message, err=True)
    ctx.exit(code)


def _fail_as_bug(ctx: click.Context, error: Exception) -> None:
    advice = "" if _debugging(ctx) else " --debug shows where."
    _fail(
        ctx,
        f"error: {type(error).__name__}: {error}\nThis is a bug in tvc or in a plugin.{advice}",
        1,
    )


def show_warnings(ctx: click.Context) -> None:
    """Print warnings as lines on stderr; to be called inside of `warnings.catch_warnings`."""
    usual = warnings.showwarning
    # said, whatever PYTHONWARNINGS would make of it
    warnings.simplefilter("always", RegistryWarning)

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any
    ) -> None:
        if _debugging(ctx):
            usual(message, category, filename, lineno, *rest)
        else:
            click.echo(f"warning: {message}", err=True)

    warnings.showwarning = show  # type: ignore[assignment]
