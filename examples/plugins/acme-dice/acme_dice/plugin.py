"""Offers the loss dice where acme-losses is installed. Light: imports no torch."""

from __future__ import annotations

from typing import Any

from tvc_core import hookimpl

TVC_API = (1, 1)


@hookimpl(optionalhook=True)
def acme_losses() -> list[Any]:
    """Offer dice."""
    from acme_losses import LossSpec  # called only where acme-losses is installed

    return [
        LossSpec(
            name="dice",
            targets="masks",
            factory="acme_dice.dice:Dice",
            summary="One minus the overlap of two masks.",
            source="Milletari et al. 2016, arXiv:1606.04797",
        )
    ]
