"""Read the maps of stem and stages from the live network, and run the head on the last one.

Taps are placed once, when the hybrid is built, and read a flag: a hook that is registered inside a call fails under
torch.compile and torch.export, and one that is added after torch.compile is ignored without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..surgery.patches import CONTAINERS, PatchHook, installed_patches
from ..surgery.sites import Probe, probing

__all__ = ["Bridge", "MapReader", "Taps", "find_bridge"]


class Taps:
    """Picks up the maps of stem and stages while a forward pass runs.

    Args:
        network: the root.
        paths: modules whose outputs are the features, in order.
    """

    def __init__(self, network: nn.Module, paths: Sequence[str]) -> None:
        self.wanted = -1
        """Index of the only feature to pick up; -1 for none, -2 for all."""
        self.maps: dict[int, Tensor] = {}
        for index, path in enumerate(paths):
            network.get_submodule(path).register_forward_hook(_Tap(self, index))

    def collect(self, network: Callable[[Tensor], Any], x: Tensor, only: int | None = None) -> dict[int, Tensor]:
        """Run the network and return the features by index, all or one."""
        self.maps = {}
        self.wanted = -2 if only is None else only
        try:
            network(x)
            return self.maps
        finally:
            self.wanted = -1
            self.maps = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"wanted": -1, "maps": {}}


class _Tap:
    """A picklable forward hook that hands one module's output to the taps."""

    def __init__(self, taps: Taps, index: int) -> None:
        self.taps = taps
        self.index = index

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.taps.wanted in (-2, self.index) and isinstance(output, Tensor):
            self.taps.maps[self.index] = output.clone()  # a later in-place layer would overwrite it


@dataclass(frozen=True)
class Bridge:
    """The way from the last stage's map to the logits, as steps that were seen to reproduce them bit for bit.

    Args:
        steps: "patches:PATH" runs the blocks inserted after a module around the last stage, "child:NAME" calls a child of the
            root; "pool", "mean", "flatten", "relu" and "first_token" are functions. Between them, "head" runs the head.
    """

    steps: tuple[str, ...]

    def __call__(self, network: nn.Module, head: str, x: Tensor) -> Tensor:
        """Return the logits for the last stage's map."""
        for step in self.steps:
            if step.startswith("child:"):
                child = network._modules[step[6:]]
                assert child is not None
                x = child(x)
            elif step.startswith("patches:"):
                for hook in network.get_submodule(step[8:])._forward_hooks.values():
                    if isinstance(hook, PatchHook):
                        x = hook.patch(x)
            elif step == "head":
                x = network.get_submodule(head)(x)
            elif step == "first_token":
                x = x[:, 0]
            elif step == "pool":
                x = nn.functional.adaptive_avg_pool2d(x, (1, 1))
            elif step == "mean":
                x = x.mean([2, 3])
            elif step == "relu":
                x = torch.relu(x)
            else:
                x = torch.flatten(x, 1)
        return x


def find_bridge(network: nn.Module, last: str, head: str, probe: Probe) -> Bridge | None:
    """Return the way from a network's last stage to its head, found by running it once; None if no known way fits.

    Args:
        network: the root.
        last: path of the module whose output is the last stage's map.
        head: path of the head.
        probe: an image that the network accepts.
    """
    with _gates_open(network):
        return _find_bridge(network, last, head, probe)


@contextmanager
def _gates_open(network: nn.Module) -> Iterator[None]:
    """Open the gates of all patches for a look: closed, a way that leaves a patch out would look right."""
    gates = [patch.alpha for _, _, patch in installed_patches(network) if patch.alpha is not None]
    kept = [gate.detach().clone() for gate in gates]
    with torch.no_grad():
        try:
            for gate in gates:
                gate.fill_(0.5)
            yield
        finally:
            for gate, before in zip(gates, kept, strict=True):
                gate.copy_(before)


def _find_bridge(network: nn.Module, last: str, head: str, probe: Probe) -> Bridge | None:
    seen: dict[str, Any] = {"map": None, "between": []}

    def at_last(_: nn.Module, args: Any, output: Tensor) -> None:
        seen["map"], seen["between"] = output.clone(), []

    def at_child(name: str) -> Any:
        return lambda *_: seen["between"].append(f"child:{name}")

    outside = (head.partition(".")[0], last.partition(".")[0], *CONTAINERS)
    children = {name: child for name, child in network._modules.items() if child is not None and name not in outside}
    hooks: list[Callable[[], Any]] = [lambda: network.get_submodule(last).register_forward_hook(at_last)]
    hooks += [partial(child.register_forward_hook, at_child(name)) for name, child in children.items()]
    logits = probe.run(network, hooks)
    if not isinstance(seen["map"], Tensor):
        return None
    between = tuple(seen["between"])
    around = [".".join(last.split(".")[:n]) for n in range(last.count("."), 0, -1)]
    patched = {target for target, position, _ in installed_patches(network) if position == "after"}
    first = tuple(f"patches:{path}" for path in around if path in patched)
    ways = [
        between,
        (*between, "flatten"),
        ("pool", "flatten"),
        ("mean",),
        ("relu", "pool", "flatten"),
        ("pool",),
        ("first_token",),
    ]
    for way in ways:
        for behind in ((), ("flatten",)):
            bridge = Bridge((*first, *way, "head", *behind))
            try:
                with probing(network):
                    found = bridge(network, head, seen["map"].clone())
            except (RuntimeError, ValueError, IndexError, TypeError):
                continue
            if found.shape == logits.shape and (found.is_meta or _equal(found, logits)):
                return bridge
    return None


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


class MapReader:
    """Brings a feature into the layout [N, C, H, W].

    Args:
        layout: of the feature: "NCHW", "NHWC" or "NLC"; None where it is no map.
        prefix: tokens in front of the image's, for NLC.
        stride: side of the image divided by the side of the map, for NLC [pixels].
    """

    def __init__(self, layout: str | None, prefix: int = 0, stride: int = 1) -> None:
        self.layout, self.prefix, self.stride = layout, prefix, stride

    def __call__(self, x: Tensor, image: Tensor) -> Tensor:
        """Return the map of a feature; tokens in front of the image's are left out."""
        if self.layout == "NHWC":
            return x.permute(0, 3, 1, 2).contiguous()
        if self.layout == "NLC":
            height, width = image.shape[2] // self.stride, image.shape[3] // self.stride
            tokens = x[:, self.prefix :].transpose(1, 2)
            return tokens.reshape(x.shape[0], x.shape[2], height, width)
        return x
