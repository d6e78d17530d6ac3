"""Offers the commands of tvc-hub. Light: imports neither click nor torch."""

from __future__ import annotations

from typing import Any

from tvc_core import hookimpl

TVC_API = (1, 1)
TVC_OWNER = "tvc-hub"

_COMMANDS = {
    "push": "Put a saved model on a hub, with its recipe, certificates and a card.",
    "pull": "Fetch a model from a hub, after its header was compared with its network.",
}
"""The summary of each, by its name."""


@hookimpl(optionalhook=True)  # works where tvc-cli is not installed
def tvc_cli_commands() -> list[Any]:
    """Offer the commands of this plugin."""
    from tvc_cli import CommandSpec

    return [
        CommandSpec(name=name, factory=f"tvc_hub.commands:{name}_command", summary=summary)
        for name, summary in _COMMANDS.items()
    ]
