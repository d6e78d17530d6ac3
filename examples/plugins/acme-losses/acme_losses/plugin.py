"""Defines the kind `loss`, offers two, and a command. Light: imports no torch."""

from __future__ import annotations

from typing import Any

from tvc_core import Kind, hookimpl

from . import kinds
from .kinds import LossSpec

TVC_API = (1, 1)
TVC_KINDS = (Kind(spec=LossSpec, hook=kinds.acme_losses, plural="losses"),)


@hookimpl
def acme_losses() -> list[LossSpec]:
    """Offer focal and smooth."""
    return [
        LossSpec(
            name="focal",
            factory="acme_losses.losses:Focal",
            summary="Cross entropy that counts easy samples less.",
            source="Lin et al. 2017, arXiv:1708.02002",
        ),
        LossSpec(
            name="smooth",
            factory="acme_losses.losses:smooth",
            summary="Cross entropy with smoothed labels.",
            source="Szegedy et al. 2016, arXiv:1512.00567",
        ),
    ]


@hookimpl(optionalhook=True)  # works where tvc-cli is not installed
def tvc_cli_commands() -> list[Any]:
    """Offer the command losses."""
    from tvc_cli import CommandSpec

    return [
        CommandSpec(
            name="losses", factory="acme_losses.commands:losses", summary="List installed losses."
        )
    ]
