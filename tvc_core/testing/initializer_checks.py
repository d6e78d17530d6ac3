"""Checks of initializers, each on layers, on a network of several, and in a build."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import TvcError, join_names
from ..surgery.patch import Patch
from .helpers import (
    SEED,
    build_patched,
    changed_names,
    describe_error,
    leaves_seed,
    named_tensors,
    snapshot,
)
from .seeding import torch_seed
from .subjects import Fault, Subject
from .toy_networks import Gate, Mix, maps

__all__ = ["BASIC", "CHECKS"]

GIVEN = "fill what is in the given module, with torch.no_grad()"


def initializer_runs(init: Subject) -> None:
    """The initializer fails on a layer that blocks may have, or returns something, as if it made a
    new module.
    """
    for name, module in _samples().items():
        try:
            result = _run(init, module)
        except Exception as error:  # foreign code may raise any exception
            do = (
                "pass over layers that it does not know, and over parameters with fewer than two "
                "axes"
            )
            raise Fault(f"that it takes a {name}", describe_error(error), do) from error
        if result is not None:
            raise Fault(
                "that it returns None",
                type(result).__name__,
                "change the module in place and return nothing",
            )


def initializer_in_place(init: Subject) -> None:
    """Parameters are exchanged for new ones, frozen, or of another type: an optimizer or a tied
    weight keeps the old ones.
    """
    for dtype in (torch.float32, torch.float64):
        for what, module in _samples().items():
            module.to(dtype)
            before = _identity(module)
            _run(init, module)
            after = _identity(module)
            changed = sorted(
                name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
            )
            # the core's own way to start without the gate
            allowed = {"alpha"} if isinstance(module, Patch) else set()
            if lost := [name for name in changed if name not in allowed]:
                do = (
                    "write into the tensors: nn.init functions, copy_ and fill_; do not assign "
                    "parameters"
                )
                raise Fault(
                    f"the same parameters and buffers in a {what}",
                    f"others at {join_names(lost, most=4)}",
                    do,
                )


def initializer_only_given(init: Subject) -> None:
    """Something other than the given module changes: modules that it saw before, or torch's global
    settings.
    """
    earlier, module = Mix(8), Mix(8)
    _run(init, earlier)
    before, settings, found = snapshot(earlier), _settings(), []
    _run(init, module, SEED + 1, then=lambda: found.append(_settings()))
    if changed := changed_names(before, earlier):
        raise Fault(
            "that only the given module changes",
            f"changes of an earlier one: {join_names(changed)}",
            GIVEN,
        )
    if found != [settings]:
        raise Fault("that torch's settings stay", "another default type or gradient mode", GIVEN)
    if module.training is not True:
        raise Fault("that the module's mode stays", "eval mode", GIVEN)


def initializer_reproducible(init: Subject) -> None:
    """The values do not follow torch's seed, or the initializer sets the seed for all code."""
    do = "take random numbers from torch's default generator, and never call torch.manual_seed"
    for what, module in _samples().items():
        tensors = []
        for _ in range(2):
            twin = _samples()[what]
            _run(init, twin)
            tensors.append(snapshot(twin))
        if changed := [
            name for name in tensors[0] if not torch.equal(tensors[0][name], tensors[1][name])
        ]:
            raise Fault(
                f"the same values in a {what} under the same seed",
                f"differences at {join_names(changed)}",
                do,
            )
        if not leaves_seed(partial(_run, init, module, None)):
            raise Fault(
                "that it leaves the seed alone", "the same random state after different seeds", do
            )


def initializer_finite(init: Subject) -> None:
    """Values are nan or infinite, or running variances are not positive."""
    for what, module in _samples().items():
        _run(init, module)
        for name, tensor in named_tensors(module).items():
            do = (
                "divide by no fan of zero, and leave buffers alone or reset them as their layer "
                "does"
            )
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise Fault(f"finite values in a {what}", f"others in {name}", do)
            if name.endswith("running_var") and not (tensor > 0).all():
                raise Fault(f"positive running variances in a {what}", f"others in {name}", do)


def initializer_in_build(init: Subject) -> None:
    """In a build with `init` the network's own tensors change, or the patch does not work."""
    for block in ("tvc-kit:gate", "tvc-kit:mix"):
        patches = {"layer2": {"wrap": {"type": block, "init": init.named.qualified}}}
        try:
            with torch.enable_grad():  # restored afterwards, whatever the initializer sets
                model = build_patched(init.registry, "tvc-kit:maps", patches)
        except TvcError as error:
            raise Fault(
                "that a patch can be built with it", describe_error(error), GIVEN
            ) from error
        own = maps(model._hybrid.plan.backbone.spec, weights=None)
        state = model.state_dict()
        if changed := [
            name
            for name, tensor in own.state_dict().items()
            if not torch.equal(tensor, state[name])
        ]:
            raise Fault(
                "the network's own tensors unchanged",
                f"changes of {join_names(changed, most=4)}",
                GIVEN,
            )


BASIC = (initializer_runs, initializer_finite)
"""The checks that the others need: without them the others say nothing."""

CHECKS = (
    *BASIC,
    initializer_in_place,
    initializer_only_given,
    initializer_reproducible,
    initializer_in_build,
)


def _samples() -> dict[str, nn.Module]:
    """Return new modules of the kinds that blocks are made of, the same values at every call."""
    with torch_seed(SEED):
        return {
            "convolution": nn.Conv2d(8, 16, 3),
            "grouped convolution without bias": nn.Conv2d(8, 8, 3, groups=8, bias=False),
            "linear layer": nn.Linear(8, 4),
            "batch normalization": nn.BatchNorm2d(8),
            "layer normalization": nn.LayerNorm(8),
            "group normalization without scale": nn.GroupNorm(2, 8, affine=False),
            "attention": nn.MultiheadAttention(8, 2),
            "activation": nn.ReLU(),
            "block of several": Mix(8),
            "patch": Patch(Gate(8), gated=True),
        }


def _run(
    init: Subject,
    module: nn.Module,
    seed: int | None = SEED,
    then: Callable[[], Any] = lambda: None,
) -> Any:
    """Run the initializer under a seed (None: in torch's state as it is), and put torch's settings
    back.
    """
    dtype, _ = _settings()
    with torch_seed(seed), torch.enable_grad():
        try:
            result = init.named.load()(module)  # unguarded: what it leaves behind is examined
            then()
            return result
        finally:
            torch.set_default_dtype(dtype)


def _settings() -> tuple[torch.dtype, bool]:
    return torch.get_default_dtype(), torch.is_grad_enabled()


def _identity(module: nn.Module) -> dict[str, Any]:
    return {
        name: (id(tensor), tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
        for name, tensor in named_tensors(module).items()
    }
