"""Defines the kind `command`, and offers the commands of `tvc` itself. Light: imports no click."""

from __future__ import annotations

from tvc_core import Kind, hookimpl

from . import kinds
from .kinds import CommandSpec

TVC_API = (1, 1)
TVC_OWNER = "tvc-cli"
TVC_KINDS = (Kind(spec=CommandSpec, hook=kinds.tvc_cli_commands),)

_COMMANDS = {
    "list": "List what is installed.",
    "show": "Show a backbone and its paths, or a block, op or initializer.",
    "build": "Build a recipe and explain the model.",
    "plugins": "List plugins and whether they work.",
    "doctor": "Look for what is wrong, and say what to do.",
    "check": "Run the conformance kit on a plugin.",
    "new_plugin": "Write a new plugin: a complete distribution with one working piece.",
}


@hookimpl
def tvc_cli_commands() -> list[CommandSpec]:
    """Offer list, show, build, plugins, doctor, check and new_plugin."""
    return [
        CommandSpec(name=name, factory=f"tvc_cli.commands:{name}_command", summary=summary)
        for name, summary in _COMMANDS.items()
    ]
