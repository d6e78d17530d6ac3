"""Bring a hybrid in step with what other tools did to its modules since the last look.

One place, called by `forward`, `train`, `to` and `save`: patches hang on the modules that stand at
their paths, taps read at the ends of stages, and frozen statistics have not moved. Where
all is in place it costs some microseconds and changes nothing.
"""

from __future__ import annotations

from torch import nn

from ..errors import PatchError, join_names
from ..surgery.head import find_last_layer
from ..surgery.patches import hang
from .freezing import keep_statistics
from .fused import fused_across
from .state import HybridState

__all__ = ["place", "settle"]


def settle(network: nn.Module, state: HybridState) -> None:
    """Put everything in its place.

    Raises:
        PatchError: a patch has no place any more, or another tool computed across it.
    """
    lost = place(network, state)
    if lost:
        raise PatchError(
            f"the model has patches that cannot run: {join_names(lost, most=4)}. What stood there "
            "was exchanged after the build, by hand or by another tool: take the patches out first "
            "(unpatch), or build the model from the changed network (from_module)"
        )


def place(network: nn.Module, state: HybridState) -> list[str]:
    """Put in place what has one, and return in words which patches have none."""
    # In this order: patches first, since taps have to come after them at the same module to read
    # the patched map. The head's last layer is looked up each time, as reset_classifier and other
    # tools exchange it.
    lost = [f"{home} ({reason})" for home, reason in hang(network)]
    last = find_last_layer(network, state.anatomy.head)
    state.taps.place(network, last[0] if last else None)
    if state.statistics and network.training:
        keep_statistics(network, state)
    return lost + fused_across(network, state)
