"""The kind `command`: what plugins add to the command line. Light: imports no click."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tvc_core import Spec, hookspec

__all__ = ["CommandSpec", "tvc_cli_commands"]


@dataclass(frozen=True, kw_only=True)
class CommandSpec(Spec):
    """A command of `tvc`.

    The factory is a `click.Command`, imported when the command is used. Its `summary` is what `tvc
    --help` shows. A name with underscores is written with hyphens on the command line: `new_plugin`
    is `tvc new-plugin`, and of several owners `tvc tvc-cli:new-plugin`.
    """

    kind: ClassVar[str] = "command"


@hookspec
def tvc_cli_commands() -> list[CommandSpec]:
    """Offer commands of `tvc`. Must not import click or torch. Since tvc-cli 0.1.

    Example:

        from tvc_core import hookimpl

        TVC_API = (1, 1)

        @hookimpl(optionalhook=True)  # works where tvc-cli is not installed
        def tvc_cli_commands():
            from tvc_cli import CommandSpec

            return [
                CommandSpec(
                    name="hello", factory="acme_blocks.commands:hello", summary="Say hello.",
                )
            ]
    """
    raise NotImplementedError
