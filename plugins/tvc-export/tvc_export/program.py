"""A model becomes a program of torch.export: a copy of it, without what does nothing, and without
what tells where it was made.
"""

from __future__ import annotations

import copy
import signal
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from tvc_core import (
    BackboneError,
    HybridModel,
    describe_model,
    drop_closed_patches,
    fold_patches,
    foreign,
)

from .claims import AXES, Claims
from .quieting import quiet

__all__ = ["ExportOptions", "ProgramFacts", "image_size", "make_program"]

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What an exporter is told besides the program.

    Args:
        keep_names: parameters keep the names that they have in torch; nothing is folded or left
            out.
        calibration: prepared photos [N, C, H, W] for int8; None for numbers as in the model.
        outputs: a name for each output.
    """

    keep_names: bool = False
    calibration: Any = None
    outputs: tuple[str, ...] = ("logits",)


@dataclass(frozen=True, kw_only=True)
class ProgramFacts:
    """How a program was made, which stays when the program itself, as large as the model, is
    written and gone.

    Args:
        claims: for which images it holds.
        dropped: patches that were left out, since their gate is 0.
        folded: patches that are in the weights beside them.
        outputs: a name for each output.
    """

    claims: Claims
    dropped: tuple[str, ...]
    folded: tuple[str, ...]
    outputs: tuple[str, ...]


def image_size(model: HybridModel) -> tuple[int, int]:
    """Return height and width of the images that a model's preprocessing makes; where that does not
    know its channels, those at which `describe_model` looks at it [pixels].
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of random weights, whose preprocessing is not the point
        try:
            prepare: Any = model.transforms()
        except BackboneError:
            # height and width alone: the preprocessing may know other channels than the model takes
            return describe_model(model)[0].image
    crop = prepare.crop_size
    sides = list(crop) if isinstance(crop, (list, tuple)) else [crop]
    return int(sides[0]), int(sides[-1])


def make_program(
    model: HybridModel,
    *,
    dynamic: Sequence[str] = ("batch",),
    size: tuple[int, int] | None = None,
    keep_names: bool = False,
    fold: bool = True,
    limit: float = 120,
) -> tuple[Any, ProgramFacts]:
    """Return a model as an ExportedProgram, and how it was made.

    Args:
        model: stays unchanged.
        dynamic: what of the images may vary: "batch", "hw".
        size: height and width of the example [pixels]; by default those of the preprocessing.
        keep_names: fold no patches, and leave none out.
        fold: fold patches that can be.
        limit: for how long torch.export may compute what the network asks of sizes [s].

    Raises:
        BackboneError: torch.export does not take the network, or not with these dimensions.
    """
    network = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    dropped = () if keep_names else drop_closed_patches(network)
    folded: tuple[str, ...] = ()
    if fold and not keep_names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what does not fold is written as it is
            folded = fold_patches(network).folded
    height, width = size or image_size(model)
    free = {axis: torch.export.Dim.DYNAMIC for name in dynamic for axis in AXES[name]}  # type: ignore[attr-defined]
    # 2 images, since torch.export takes a 1 for a constant
    shape = (2 if 0 in free else 1, model.num_channels, height, width)
    image = torch.zeros(shape)
    what = f"torch.export does not take {type(network).__name__} with images {list(shape)}"
    advice = (
        f"--dynamic {','.join(dynamic)} lets sizes vary; "
        + ("leave out hw" if "hw" in dynamic else "export for one size, by --dynamic none")
        if free
        else "The network has to be changed for it"
    )

    def compute() -> tuple[Any, tuple[str, ...]]:
        with torch.no_grad(), quiet():
            exported = torch.export.export(
                network, (image,), dynamic_shapes=(free,) if free else None, strict=False
            )
            return exported, _outputs(network(image))

    with foreign(BackboneError, what, advice=advice):
        exported, outputs = _within(limit, what, dynamic, compute)
    claims = Claims.of(exported, shape)
    _strip(exported)
    facts = ProgramFacts(claims=claims, dropped=dropped, folded=folded, outputs=outputs)
    return exported, facts


def _outputs(found: Any) -> tuple[str, ...]:
    if isinstance(found, Mapping):
        return tuple(map(str, found))
    if isinstance(found, (tuple, list)):
        return tuple(f"logits_{number}" for number in range(len(found)))
    return ("logits",)


def _strip(exported: Any) -> None:
    """Take out stack traces, which name the builder's folders, and the example."""
    for module in exported.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in ("stack_trace", "source_fn_stack", "from_node"):
                    node.meta.pop(key, None)
    exported._example_inputs = None


class _TimeIsUp(BaseException):
    """Ends a search; no Exception, since torch and sympy go on after those in many places."""


def _within(
    seconds: float, what: str, dynamic: Sequence[str], compute: Callable[[], _Result]
) -> _Result:
    """Compute, and end that after a while. Some networks ask so much of sizes (windows that are
    padded and shifted) that torch.export computes with symbols for hours. What counts is the
    process's own time, since a machine that has much else to do decides nothing about a network.
    Where there are no such signals (Windows, threads), it runs to its end.
    """
    wanted = threading.current_thread() is threading.main_thread() and "hw" in dynamic
    if not wanted or not hasattr(signal, "SIGPROF"):
        return compute()
    is_over = False

    def stop(_: int, frame: Any) -> None:
        # Only where sympy computes: elsewhere torch may be about to exchange its modes, or Python
        # to import a module, which would be left half done.
        if not is_over and frame.f_globals.get("__name__", "").startswith("sympy."):
            raise _TimeIsUp

    # A function, since a context manager has a moment in which it is left and does not know it yet.
    left, interval = _set_timer(0)  # of another timer, such as a profiler's
    handler = signal.signal(signal.SIGPROF, stop)
    start = time.process_time()
    try:
        try:
            try:
                # again and again: what is raised while Python deletes something is lost
                _set_timer(seconds, 0.05)
                return compute()
            finally:
                is_over = True
        finally:  # the time may be up just at the end
            is_over = True
            _set_timer(0)
            # A signal may still wait for another thread, which the old handler would meet: by
            # default the end of the process. To ignore it drops it.
            signal.signal(signal.SIGPROF, signal.SIG_IGN)
            signal.signal(signal.SIGPROF, handler)
            if left:
                _set_timer(max(left - (time.process_time() - start), 0.001), interval)
    except _TimeIsUp:
        raise BackboneError(
            f"{what} and dynamic {' and '.join(dynamic)} within {seconds:g} s of computing: it "
            "asks too much of their sizes. Leave out hw, or give more time by --limit"
        ) from None


def _set_timer(seconds: float, interval: float = 0) -> tuple[float, float]:
    """Set the timer of the process's own time, and return what was left of it, and its interval."""
    if hasattr(signal, "setitimer"):
        return signal.setitimer(signal.ITIMER_PROF, seconds, interval)
    return 0.0, 0.0
