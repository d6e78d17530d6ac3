"""The gates of patches: where one is left out, given back, and opened for a look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..errors import PatchError, PluginError, foreign
from ..recipe import PatchPlan
from .noise import noise
from .operations import Insertion
from .patch import Patch
from .patches import placed_patches
from .probing import probing
from .sites import Probe

__all__ = ["gates_open", "leave_out_gate", "restore_gates"]


def leave_out_gate(plan: PatchPlan, insertion: Insertion, probe: Probe) -> None:
    """Drop the gate of a block that by itself leaves the map unchanged at its position.

    Two reasons. A regularizer is the identity in eval mode, and a closed gate would keep it from
    acting in training. And a block with parameters that starts as the identity (or as zero beside
    the target) would never learn under a closed gate: what the gate would mix in is zero, and of
    two factors that are zero, each keeps the gradient from the other.

    Whether a block is like that is declared by its spec, or seen by running it.

    Raises:
        PluginError: the spec declares a start that the block does not have.
        PatchError: the block fails.
    """
    patch, neutral = insertion.patch, insertion.position.neutral
    declared = plan.block is not None and neutral != "" and plan.block.spec.starts_as == neutral
    if neutral == "":
        return
    if probe.image.is_meta:
        patch.neutral = declared and plan.init is None
    else:
        patch.neutral = _is_neutral(patch, insertion, probe)
        if declared and plan.init is None and not patch.neutral:
            assert plan.block is not None
            raise PluginError(
                f"block {plan.block.qualified!r} declares starts_as={neutral!r}, and in eval mode "
                f"it is not: at {insertion.site.path!r} its result is another one. This is a fault "
                f"of the distribution {plan.block.owner!r}."
            )
    if patch.neutral:
        patch.ungate()


def _is_neutral(patch: Patch, insertion: Insertion, probe: Probe) -> bool:
    shape, block = insertion.site.shape(insertion.position.reads), patch.block
    # Random values and not zeros: at zero nearly every block is the identity, and gives zero. They
    # come from a generator of their own, so that a build draws the same numbers from torch's with
    # this look as without it.
    x = noise(shape).to(probe.image)
    given = x.clone()  # which the block may overwrite
    with foreign(PatchError, f"the block fails on {list(shape)}"), probing(block):
        y = block(given) if patch.view is None else patch.view.run(block, given)
    return torch.equal(y, x) if insertion.position.neutral == "identity" else not bool(y.any())


def restore_gates(network: nn.Module, names: Iterable[str]) -> None:
    """Give patches the gates that are in a state dict: one that was saved before their blocks could
    do without computes what it computed.

    Args:
        network: the hybrid.
        names: the keys of the state dict.
    """
    names = set(names)
    for home, _, patch in placed_patches(network):
        if patch.neutral and f"{home}.alpha" in names:
            patch.regate()


@contextmanager
def gates_open(patches: Iterable[Patch], value: float = 0.5) -> Iterator[None]:
    """Open the gates of patches for a look; closed, much of what a block does cannot be seen."""
    gates = [patch.alpha for patch in patches if patch.alpha is not None]
    kept = [gate.detach().clone() for gate in gates]
    try:
        with torch.no_grad():
            for gate in gates:
                gate.fill_(value)
        yield
    finally:
        with torch.no_grad():
            for gate, before in zip(gates, kept, strict=True):
                gate.copy_(before)
