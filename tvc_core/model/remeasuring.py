"""Measure a hybrid again, after its network was changed by hand or by a tool that prunes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BackboneError, ParameterError, PatchError, join_names
from ..surgery.anatomy import STEM
from ..surgery.patch import Patch
from ..surgery.patches import placed_patches
from ..surgery.sites import Probe, has_module
from ..written.rules import IMAGE_SIZE
from .bridge import find_bridge
from .heads import unnamed
from .measuring import measure
from .settling import settle
from .state import HybridState

__all__ = ["measure_again", "misfits_noted", "remeasure"]


def remeasure(network: nn.Module, state: HybridState, image_size: Any) -> None:
    """Do the work of `HybridModel.remeasure`."""
    settle(network, state)
    anatomy = state.anatomy
    gone = [path for path in (*anatomy.taps, anatomy.head) if not has_module(network, path)]
    if gone:
        raise BackboneError(
            f"{join_names(gone)} is gone, which ended the stem or a stage or was the head: make a "
            "model of the changed network by from_module, which is told where its stages end"
        )
    # First an image is found that the network accepts, while all patches that do not fit are noted.
    # Only then is anything measured, and the state is written when all of it is. So a model that
    # cannot be measured keeps what was known of it.
    misfits: dict[str, str] = {}
    with _eager(network), unnamed(state), misfits_noted(network, misfits):
        probe = _probe(network, state, image_size)
    if misfits:
        raise PatchError(
            f"patches do not fit the network as it is now ({len(misfits)}): "
            f"{'; '.join(misfits.values())}. Nothing was measured: take them out "
            "(unpatch), or give them the widths that they get"
        )
    measure_again(network, state, probe)


def measure_again(network: nn.Module, state: HybridState, probe: Probe) -> None:
    """Measure the features of a hybrid and the way to its head, and put them into its state."""
    anatomy = state.anatomy
    with _eager(network), unnamed(state):
        _, features = measure(network, anatomy, state.taps, state.records, probe)
        bridge = find_bridge(network, anatomy.taps[-1], anatomy.head, probe)
    state.features, state.bridge = features, bridge
    state.probe_shape = tuple(probe.image.shape)


def _eager(network: nn.Module) -> AbstractContextManager[Any]:
    """Run what `model.compile()` has compiled as it is written: it is not for a look."""
    compiled = any(module._compiled_call_impl is not None for module in network.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _probe(network: nn.Module, state: HybridState, image_size: Any) -> Probe:
    """Find an image that the network accepts now; its first layer may take other channels."""
    # The image that was used at the build comes first. A tool or the user may have changed the
    # first convolution, so its number of channels is tried as well. The error of the first try is
    # the one that is shown: it is about the network as tvc knows it.
    _, before, *likely = state.probe_shape
    asked: tuple[int, int] | None = None
    if image_size is not None:
        size = IMAGE_SIZE.check("image_size", image_size, ParameterError)
        asked = (size, size) if isinstance(size, int) else (size[0], size[1])
    stem = [module for _, root in state.anatomy.modules(network, STEM) for module in root.modules()]
    taken = [each.in_channels for each in stem if isinstance(each, nn.Conv2d)][:1]
    failed: BackboneError | None = None
    for channels in dict.fromkeys((before, *taken)):
        spec = replace(
            state.plan.backbone.spec,
            num_channels=channels,
            fixed_size=state.plan.backbone.spec.fixed_size or image_size is not None,
        )
        try:
            return Probe.of(network, spec, likely=(likely[0], likely[1]), asked=asked)
        except BackboneError as error:
            failed = failed or error
    assert failed is not None
    raise failed


@contextmanager
def misfits_noted(network: nn.Module, misfits: dict[str, str]) -> Iterator[None]:
    """Let patches that cannot run pass what they get, and note them, so that one pass finds all.

    Args:
        network: the hybrid.
        misfits: what is wrong with each, by where it lives; filled.
    """
    # After pruning, several blocks may have a width that their place no longer has, and the first
    # one to fail would end the pass: the user would learn of one misfit per try. So during the look
    # each patch that fails hands on what it got, and one pass finds them all. The stand-in is an
    # attribute of the instance, which nn.Module calls before the method of its class.
    patches = [(home, path, patch) for home, path, patch in placed_patches(network)]
    before = {home: patch.__dict__.get("forward") for home, _, patch in patches}
    try:
        for home, path, patch in patches:
            patch.__dict__["forward"] = _noting(patch, home, path, misfits)
        yield
    finally:
        for home, _, patch in patches:
            patch.__dict__.pop("forward", None)
            if before[home] is not None:
                patch.__dict__["forward"] = before[home]


def _noting(patch: Patch, home: str, path: str, misfits: dict[str, str]) -> Any:
    own = patch.forward

    def forward(x: Tensor, *output: Tensor) -> Tensor:
        kept, why = (*output, x)[0], ""
        try:
            found = own(x, *output)
        except Exception as error:  # foreign code may raise anything
            why = " ".join(str(error).split())[:200]
        else:
            if patch.alpha is None or found.shape == kept.shape:
                return found
            why = f"it gives {list(found.shape)}"
        misfits[home] = f"{home} at {path!r} gets {list(x.shape)}: {why}"
        return kept

    return forward
