"""The way from the last stage's map to the logits, found by trying: pooling, a norm, a mean, ..."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..surgery import calls
from ..surgery.gates import gates_open
from ..surgery.head import find_last_layer
from ..surgery.layouts import MOST_PREFIX
from ..surgery.noise import noise
from ..surgery.patch import Patch, PatchHook
from ..surgery.patches import CONTAINERS, installed_patches
from ..surgery.probing import probing
from ..surgery.sites import Probe

__all__ = ["Bridge", "find_bridge"]

Step = Callable[[nn.Module, str, Tensor], Tensor]
"""A picklable function of the network, the path of its head and what the step before it gave."""


@dataclass(frozen=True)
class Bridge:
    """Steps that were seen to make the logits out of the last stage's map, bit for bit."""

    steps: tuple[Step, ...]

    def __call__(self, network: nn.Module, head: str, x: Tensor) -> Tensor:
        """Return the logits for the last stage's map."""
        with calls.within(calls.running(), network):
            for step in self.steps:
                x = step(network, head, x)
        return x

    def as_data(self) -> list[list[Any]]:
        """Return the steps as plain data: the name of each and what it was given."""
        return [
            [step.func.__name__, *step.args] if isinstance(step, partial) else [step.__name__]  # type: ignore[attr-defined]
            for step in self.steps
        ]

    @staticmethod
    def of_data(data: list[list[Any]]) -> Bridge:
        """Return what `as_data` made data of.

        Raises:
            KeyError: a step that there is not.
        """
        return Bridge(tuple(partial(_STEPS[name], *given) for name, *given in data))


def _child(name: str, network: nn.Module, head: str, x: Tensor) -> Tensor:
    # By name at each call, and not a reference that was kept: the bridge lives as long as the
    # model, is pickled and copied with it, and another tool may exchange the child.
    child = network._modules[name]
    assert child is not None
    return child(x)


def _patches(path: str, network: nn.Module, head: str, x: Tensor) -> Tensor:
    """Run the blocks that are inserted after a module around the last stage."""
    module = network.get_submodule(path)
    for hook in module._forward_hooks.values():
        if isinstance(hook, PatchHook) and not hook.patch.position.keeps_input:
            found = hook(module, (), x)
            x = x if found is None else found
    return x


def _head(network: nn.Module, head: str, x: Tensor) -> Tensor:
    return network.get_submodule(head)(x)


def _pool(network: nn.Module, head: str, x: Tensor) -> Tensor:
    return nn.functional.adaptive_avg_pool2d(x, (1, 1))


def _mean(network: nn.Module, head: str, x: Tensor) -> Tensor:
    return x.mean([2, 3])


def _flatten(network: nn.Module, head: str, x: Tensor) -> Tensor:
    return torch.flatten(x, 1)


def _relu(network: nn.Module, head: str, x: Tensor) -> Tensor:
    return torch.relu(x)


def _first_token(network: nn.Module, head: str, x: Tensor) -> Tensor:
    return x[:, 0]


def _tokens(pool: str, prefix: int, network: nn.Module, head: str, x: Tensor) -> Tensor:
    """Make one vector of the tokens after those before the image's, as timm's ViTs do."""
    x = x[:, prefix:]
    if pool == "mean":
        return x.mean(1)
    return x.amax(1) if pool == "max" else 0.5 * (x.amax(1) + x.mean(1))


def _token_ways(between: tuple[Step, ...], tokens: int) -> Iterator[tuple[Step, ...]]:
    """Yield ways from a list of tokens: the children of the root that run after it, with pooling
    at each place among them.
    """
    # timm's ViTs pool in a handful of ways, under attributes whose names and meanings change
    # between releases: by the class token or over the tokens after some number of prefix tokens,
    # and before or after their final norm. There are fewer than two hundred combinations of cheap
    # functions, so all are tried instead of reading attributes.
    prefixes = range(min(tokens, MOST_PREFIX + 1))
    pools = [partial(_tokens, pool, n) for pool in ("mean", "max", "both") for n in prefixes]
    every: list[Step] = [_first_token, *pools]
    for pool in every:
        for index in range(len(between) + 1):
            yield (*between[:index], pool, *between[index:])


_STEPS: dict[str, Callable[..., Tensor]] = {
    step.__name__: step
    for step in (_child, _patches, _head, _pool, _mean, _flatten, _relu, _first_token, _tokens)
}


def find_bridge(network: nn.Module, last: str, head: str, probe: Probe) -> Bridge | None:
    """Return the way from a network's last stage to its head; None if no known way fits.

    Args:
        network: the root.
        last: path of the module whose output is the last stage's map.
        head: path of the head.
        probe: an image that the network accepts.
    """
    # A way is the right one if it gives the logits of a whole pass. So during the look nothing on
    # the way may be invisible in the logits: closed, a gate lets a way that leaves its patch out
    # look right, and with a last layer of zeros every way looks right.
    with gates_open(patch for _, patch in installed_patches(network)), _head_open(network, head):
        return _find_bridge(network, last, head, probe)


@contextmanager
def _head_open(network: nn.Module, head: str) -> Iterator[None]:
    """Give a last layer of zeros (a fresh ViT's) other weights for a look: with zeros, every way
    gives the same logits.
    """
    found = find_last_layer(network, head)
    weight = getattr(found[1], "weight", None) if found else None
    if not isinstance(weight, Tensor) or weight.is_meta or bool(weight.any()):
        yield
        return
    with torch.no_grad():
        try:
            weight.copy_(noise(weight.shape))
            yield
        finally:
            weight.zero_()


def _find_bridge(network: nn.Module, last: str, head: str, probe: Probe) -> Bridge | None:
    # One pass keeps the last stage's map, and notes which children of the root run after it: most
    # networks are a chain of children, so these are the way, up to what the root's forward does
    # between them by functions. That is guessed: each of `ways` is tried on the map, and the one
    # whose logits have equal bits is the way. Blocks after a module that only ends with the last
    # stage (features of features.denseblock4) run when that module ends, so they come first.
    seen: dict[str, Any] = {"map": None, "between": []}

    def at_last(_: nn.Module, args: Any, output: Tensor) -> None:
        seen["map"], seen["between"] = output.clone(), []

    def at_child(name: str) -> Any:
        return lambda *_: seen["between"].append(name)

    outside = (head.partition(".")[0], last.partition(".")[0], *CONTAINERS)
    children = {name: child for name, child in network._modules.items() if child is not None}
    hooks: list[Callable[[], Any]] = [
        lambda: network.get_submodule(last).register_forward_hook(at_last)
    ]
    hooks += [
        partial(child.register_forward_hook, at_child(name))
        for name, child in children.items()
        if name not in outside
    ]
    logits = probe.run(network, hooks)
    if not isinstance(seen["map"], Tensor):
        return None
    between = tuple(partial(_child, name) for name in seen["between"])
    around = [".".join(last.split(".")[:n]) for n in range(last.count("."), 0, -1)]
    patched = {path for path, patch in installed_patches(network) if _acts_after(patch)}
    first = tuple(partial(_patches, path) for path in around if path in patched)
    ways: list[tuple[Step, ...]] = [
        between,
        (*between, _flatten),
        (_pool, _flatten),
        (_mean,),
        (_relu, _pool, _flatten),
        (_pool,),
    ]
    if seen["map"].dim() == 3:
        ways += _token_ways(between, seen["map"].shape[1])
    # a head without a classifier gives back what it gets, and what it is to give is a vector
    for after in ((), (_flatten,)):
        for way in ways:
            bridge = Bridge((*first, *way, _head, *after))
            try:
                with probing(network):
                    found = bridge(network, head, seen["map"].clone())
            except Exception:  # a foreign head may raise any exception for what it never gets
                continue
            # On meta tensors there are no values, and the first way with the right shape is taken:
            # more cannot be known there.
            alike = isinstance(found, Tensor) and found.shape == logits.shape
            if alike and (found.is_meta or _equal(found, logits)):
                return bridge
    return None


def _acts_after(patch: Patch) -> bool:
    return patch.position.runs_after and not patch.position.keeps_input


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
