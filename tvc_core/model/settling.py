"""Bring a hybrid in step with what other tools did to its modules since the last look.

One place, called by `forward`, `train`, `to` and `save`: patches hang on the modules that stand at
their paths, taps read at the ends of stages, and frozen statistics have not moved. Where
all is in place it costs some microseconds and changes nothing.
"""

from __future__ import annotations

from torch import nn

from ..errors import PatchError, join_names
from ..surgery.head import find_last_layer
from ..surgery.patches import hang, placed_patches
from ..surgery.sites import find_module
from .freezing import keep_statistics
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
    return lost + _folded(network, state)


def _folded(network: nn.Module, state: HybridState) -> list[str]:
    """Return the patches across which a normalization was folded into a convolution.

    Fusing takes conv -> norm for one linear function. A patch between the two is not linear, and
    runs after both then.
    """
    found: list[str] = []
    for home, path, patch in placed_patches(network):
        parent = path.rpartition(".")[0]
        built = state.modules.get(path, "")
        after, before = patch.position.runs_after, patch.position.runs_before
        if after and "bias=False" in built and _has_bias(network, path):
            norm = next((n for n in _norms(network, state, parent) if n != path), None)
            if norm is not None:
                found.append(f"{home} ({norm!r} was folded into {path!r}, on whose output it runs)")
        if before and "BatchNorm" in built and _is_identity(network, path):
            found.append(f"{home} ({path!r} was folded into a layer before it)")
    return found


def _has_bias(network: nn.Module, path: str) -> bool:
    module = find_module(network, path)
    modules = [] if module is None else list(module.modules())
    return any(getattr(each, "bias", None) is not None for each in modules)


def _norms(network: nn.Module, state: HybridState, parent: str) -> list[str]:
    """Return the normalizations beside a module that are an identity now."""
    return [
        path
        for path, line in state.modules.items()
        if path.rpartition(".")[0] == parent and "BatchNorm" in line and _is_identity(network, path)
    ]


def _is_identity(network: nn.Module, path: str) -> bool:
    return isinstance(find_module(network, path), nn.Identity)
