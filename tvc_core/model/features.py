"""Read the maps of stem and stages from the live network, and run the head on the last one.

Taps are placed once, when the hybrid is built, and read a flag: a hook that is registered inside a
call fails under torch.compile and torch.export, and one that is added after torch.compile is
ignored without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks

from ..surgery.head import last_layer
from ..surgery.hooks import TvcHook
from ..surgery.patches import CONTAINERS, PatchHook, installed_patches
from ..surgery.sites import Probe, probing

__all__ = ["PRE_LOGITS", "Bridge", "MapReader", "Taps", "find_bridge"]

PRE_LOGITS = -1


class _Stop(Exception):  # noqa: N818  no error: it ends a pass that has nothing more to give
    """Raised where the last wanted map was picked up, caught by whoever wanted it."""


class Taps:
    """Picks up the maps of stem and stages, and what the head's last layer gets, while a forward
    pass runs.

    Args:
        network: the root.
        paths: modules whose outputs are the features, in order.
        layer: path of the head's last layer.
    """

    def __init__(self, network: nn.Module, paths: Sequence[str], layer: str) -> None:
        self.paths = tuple(paths)
        self.wanted: tuple[int, ...] = ()
        """Indices of the features to pick up; `PRE_LOGITS` is what the head's last layer gets."""
        self.stop = False
        """End the pass as soon as all of them are there."""
        self.repeated = False
        """A tap was seen to run more than once in one pass: its last map counts, so no pass may end
        early.
        """
        self.maps: dict[int, Tensor] = {}
        self.place(network, layer)

    def place(self, network: nn.Module, layer: str) -> None:
        """Put the taps where they belong, and take them from where they were before."""
        for module in network.modules():
            for number, hook in list(module._forward_hooks.items()):
                if isinstance(hook, _Tap):
                    del module._forward_hooks[number]
        for index, path in enumerate(self.paths):
            network.get_submodule(path).register_forward_hook(_Tap(self, index))
        network.get_submodule(layer).register_forward_hook(_Tap(self, PRE_LOGITS))

    def collect(
        self,
        run: Callable[[Tensor], Any],
        x: Tensor,
        wanted: Sequence[int] | None = None,
        *,
        within: nn.Module | None = None,
    ) -> dict[int, Tensor]:
        """Run a network and return features by index.

        Args:
            run: the network, or a function that runs it.
            x: its input.
            wanted: indices of the features; None for those of stem and all stages.
            within: the root, if the pass may end where the last wanted feature is there. It runs
                whole all the same under torch.export without Dynamo (strict=False), which knows no
                exceptions, and where somebody's forward hook (FSDP's is one) waits for the end of a
                module that would be left.
        """
        self.maps = {}
        self.wanted = tuple(range(len(self.paths))) if wanted is None else tuple(wanted)
        # asked in this order, since torch 2.11's Dynamo says of every compilation that it is an
        # export
        knows_exceptions = torch.compiler.is_dynamo_compiling() or not torch.compiler.is_exporting()
        self.stop = within is not None and knows_exceptions and self._may_leave(within)
        try:
            run(x)
            return self.maps
        except _Stop:
            return self.maps
        finally:
            self.wanted, self.stop = (), False
            self.maps = {}

    def _may_leave(self, network: nn.Module) -> bool:
        """Tell whether nobody waits for the end of the modules around the wanted taps; a wrapped
        one waits itself.
        """
        if self.repeated or _global_forward_hooks:
            return False
        for index in self.wanted:
            module: nn.Module | None = network
            for name in self.paths[index].split("."):
                if module is None or not all(
                    _is_after(hook) for hook in module._forward_hooks.values()
                ):
                    return False
                module = module._modules.get(name)
            hooks = [] if module is None else list(module._forward_hooks.values())
            if not any(isinstance(hook, _Tap) for hook in hooks):
                return False
            if not all(isinstance(hook, (_Tap, PatchHook)) for hook in hooks):
                return False
        return True

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "wanted": (), "stop": False, "maps": {}}


class _Tap(TvcHook):
    """A picklable forward hook that hands one module's output, or the input of the head's last
    layer, to the taps.
    """

    def __init__(self, taps: Taps, index: int) -> None:
        self.taps = taps
        self.index = index

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        taps = self.taps
        if self.index not in taps.wanted:
            return
        found = args[0] if self.index == PRE_LOGITS else output
        if isinstance(found, Tensor):
            taps.repeated = taps.repeated or self.index in taps.maps
            taps.maps[self.index] = found.clone()  # a later in-place layer would overwrite it
            if taps.stop and len(taps.maps) == len(taps.wanted):
                raise _Stop


def _is_after(hook: Any) -> bool:
    """Tell whether a hook is ours, and keeps nothing from the beginning of its module for the end:
    a parallel patch does.
    """
    return isinstance(hook, _Tap) or (isinstance(hook, PatchHook) and not hook.position.keeps_input)


@dataclass(frozen=True)
class Bridge:
    """The way from the last stage's map to the logits, as steps that were seen to reproduce them
    bit for bit.

    Args:
        steps: "patches:PATH" runs the blocks inserted after a module around the last stage,
            "child:NAME" calls a child of the root; "pool", "mean", "flatten", "relu", "first_token"
            and "token_mean" are functions. Between them, "head" runs the head.
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
                    if (
                        isinstance(hook, PatchHook)
                        and not hook.position.keeps_input
                        and hook.patch.enabled
                    ):
                        x = hook.patch(x)
            elif step == "head":
                x = network.get_submodule(head)(x)
            elif step == "first_token":
                x = x[:, 0]
            elif step == "token_mean":
                x = x.mean(1)
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
    """Return the way from a network's last stage to its head, found by running it once; None if no
    known way fits.

    Args:
        network: the root.
        last: path of the module whose output is the last stage's map.
        head: path of the head.
        probe: an image that the network accepts.
    """
    with _gates_open(network), _head_open(network, head):
        return _find_bridge(network, last, head, probe)


@contextmanager
def _gates_open(network: nn.Module) -> Iterator[None]:
    """Open the gates of all patches for a look: closed, a way that leaves a patch out would look
    right.
    """
    gates = [patch.alpha for _, patch in installed_patches(network) if patch.alpha is not None]
    kept = [gate.detach().clone() for gate in gates]
    with torch.no_grad():
        try:
            for gate in gates:
                gate.fill_(0.5)
            yield
        finally:
            for gate, before in zip(gates, kept, strict=True):
                gate.copy_(before)


@contextmanager
def _head_open(network: nn.Module, head: str) -> Iterator[None]:
    """Give a last layer of zeros (a fresh ViT's) other weights for a look: with zeros, every way
    gives the same logits.
    """
    weight = getattr(last_layer(network, head)[1], "weight", None)
    if not isinstance(weight, Tensor) or weight.is_meta or bool(weight.any()):
        yield
        return
    with torch.no_grad():
        try:
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
            yield
        finally:
            weight.zero_()


def _find_bridge(network: nn.Module, last: str, head: str, probe: Probe) -> Bridge | None:
    seen: dict[str, Any] = {"map": None, "between": []}

    def at_last(_: nn.Module, args: Any, output: Tensor) -> None:
        seen["map"], seen["between"] = output.clone(), []

    def at_child(name: str) -> Any:
        return lambda *_: seen["between"].append(f"child:{name}")

    outside = (head.partition(".")[0], last.partition(".")[0], *CONTAINERS)
    children = {
        name: child
        for name, child in network._modules.items()
        if child is not None and name not in outside
    }
    hooks: list[Callable[[], Any]] = [
        lambda: network.get_submodule(last).register_forward_hook(at_last)
    ]
    hooks += [
        partial(child.register_forward_hook, at_child(name)) for name, child in children.items()
    ]
    logits = probe.run(network, hooks)
    if not isinstance(seen["map"], Tensor):
        return None
    between = tuple(seen["between"])
    around = [".".join(last.split(".")[:n]) for n in range(last.count("."), 0, -1)]
    patched = {
        target
        for target, patch in installed_patches(network)
        if patch.position.runs_after and not patch.position.keeps_input
    }
    first = tuple(f"patches:{path}" for path in around if path in patched)
    ways = [
        between,
        (*between, "flatten"),
        ("pool", "flatten"),
        ("mean",),
        ("relu", "pool", "flatten"),
        ("pool",),
        ("first_token",),
        ("token_mean",),
    ]
    # a head without a classifier gives back what it gets: it is to get the vector
    for behind in ((), ("flatten",)):
        for way in ways:
            bridge = Bridge((*first, *way, "head", *behind))
            try:
                with probing(network):
                    found = bridge(network, head, seen["map"].clone())
            except Exception:  # somebody's head may raise whatever it likes for what it never gets
                continue
            if (
                isinstance(found, Tensor)
                and found.shape == logits.shape
                and (found.is_meta or _equal(found, logits))
            ):
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
