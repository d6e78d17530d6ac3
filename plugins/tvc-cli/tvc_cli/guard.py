"""Turn what goes wrong into a line on stderr and an exit code, and keep stdout for results."""

from __future__ import annotations

import contextlib
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from tvc_core import TvcError

__all__ = ["GuardedGroup", "debug_option", "nothing_on_stdout"]

_DEBUG = "tvc_cli.debug"

F = TypeVar("F", bound=Callable[..., Any])


class GuardedGroup(click.Group):
    """A group of commands that shows a traceback only where `debug_option` was given.

    Exit codes: 1 for a TvcError and for a bug, 130 for Ctrl-C; wrong usage stays click's own 2.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning(ctx)
            try:
                return super().invoke(ctx)
            except (click.exceptions.Exit, click.ClickException, BrokenPipeError):
                raise  # click has its own ways with these: usage, and a reader such as `head` that has seen enough
            except TvcError as error:
                _fail(ctx, f"error: {error}", 1)
            except (KeyboardInterrupt, click.Abort):
                _fail(ctx, "interrupted", 130)
            except Exception as error:  # the last resort: whatever it is, the user gets a sentence
                advice = "" if _debugging(ctx) else " --debug shows where."
                _fail(ctx, f"error: {type(error).__name__}: {error}\nThis is a bug in tvc or in a plugin.{advice}", 1)


def debug_option(command: F) -> F:
    """Add `--debug`, which is understood before and behind the name of a command."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            ctx.meta[_DEBUG] = True  # shared by a group's context and its command's

    return click.option(
        "--debug", is_flag=True, expose_value=False, callback=remember, is_eager=True, help="Show tracebacks of errors."
    )(command)


@contextlib.contextmanager
def nothing_on_stdout() -> Iterator[None]:
    """Send to stderr what plugins and libraries print meanwhile: stdout belongs to the result."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _debugging(ctx: click.Context) -> bool:
    return bool(ctx.meta.get(_DEBUG))


def _fail(ctx: click.Context, message: str, code: int) -> None:
    if _debugging(ctx):
        traceback.print_exc()
    click.echo(message, err=True)
    ctx.exit(code)


def _show_warning(ctx: click.Context) -> Callable[..., None]:
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
        if _debugging(ctx):
            usual(message, category, filename, lineno, *rest)
        else:
            click.echo(f"warning: {message}", err=True)

    return show
