"""Offers the commands of tvc-inspect. Light: imports neither click nor torch."""

from __future__ import annotations

from typing import Any

from tvc_core import hookimpl

TVC_API = (1, 1)
TVC_OWNER = "tvc-inspect"

_COMMANDS = {
    "inspect": "Write a page on a model: every path, cost, patch and map.",
    "cam": "Draw where a model looks on a photo.",
}
"""The summary of each, by its name."""


@hookimpl(optionalhook=True)  # works where tvc-cli is not installed
def tvc_cli_commands() -> list[Any]:
    """Offer inspect and cam."""
    from tvc_cli import CommandSpec

    return [
        CommandSpec(name=name, factory=f"tvc_inspect.commands:{name}_command", summary=summary)
        for name, summary in _COMMANDS.items()
    ]
