"""The command `tvc losses`."""

from __future__ import annotations

import click

from tvc_core import Registry

from .kinds import LossSpec

__all__ = ["losses"]


@click.command()
@click.option("--targets", help="Only losses for these targets: classes or masks.")
def losses(targets: str | None) -> None:
    """List the losses that plugins offer."""
    registry = Registry()
    for offer in registry.all(LossSpec):
        if targets in (None, offer.spec.targets):
            click.echo(f"{registry.label(offer)}  {offer.owner}  {offer.spec.summary}")
