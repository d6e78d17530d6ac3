"""Read the maps of stem and stages from the live network.

Taps are placed once, when the hybrid is built: a hook that is registered inside a call fails under
torch.compile and torch.export, and one that is added after torch.compile is silently ignored.
What a call collects belongs to the call, so a tap looks for it in its thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks

from ..errors import BackboneError
from ..surgery import calls
from ..surgery.hooks import TvcHook
from ..surgery.patch import PatchHook
from ..surgery.patches import moving_hooks
from ..surgery.sites import find_module

__all__ = ["PRE_LOGITS", "MapReader", "Taps"]

PRE_LOGITS = -1
"""Index of what the head's last layer gets, beside those of the features."""


class _Stop(Exception):  # noqa: N818  no error: it ends a pass that has nothing more to give
    """Raised where the last wanted map was picked up, caught by whoever wanted it."""


class _Collection:
    """What one call picks up.

    Args:
        taps: whose maps.
        wanted: indices of the features.
        stop: end the pass as soon as all of them are there.
    """

    def __init__(self, taps: Taps, wanted: tuple[int, ...], stop: bool) -> None:
        self.taps, self.wanted, self.stop = taps, wanted, stop
        self.claimed = False
        """A forward pass has begun that fills it; another one inside that does not."""
        self.maps: dict[int, Tensor] = {}


class Taps:
    """Picks up the maps of stem and stages, and what the head's last layer gets.

    Args:
        network: the root.
        paths: modules whose outputs are the features, in order.
        layer: path of the head's last layer; None where the head has none.
    """

    def __init__(
        self, network: nn.Module, paths: Sequence[str], layer: str | None, repeated: bool = False
    ) -> None:
        self.paths = tuple(paths)
        self.repeated = repeated
        """A tap was seen to run more than once in one pass: its last map counts, so no pass may end
        early.
        """
        self.place(network, layer)

    def place(self, network: nn.Module, layer: str | None) -> None:
        """Put the taps where they belong now, once, and take them from where they were before."""
        # `settle` comes here before each pass, since another tool may have exchanged the module
        # that a tap hangs on. Mostly nothing has changed, so that is asked first and costs some
        # microseconds. If something has, taps are taken from all modules: one that was moved to
        # another path would hand over its map under the old index.
        places = [(find_module(network, path), index) for index, path in enumerate(self.paths)]
        places.append((None if layer is None else find_module(network, layer), PRE_LOGITS))
        if self._all_read(places):
            return
        with moving_hooks():
            if self._all_read(places):
                return
            for module in network.modules():
                for number, hook in list(module._forward_hooks.items()):
                    if isinstance(hook, _Tap) and hook.taps is self:
                        del module._forward_hooks[number]
            for place, index in places:
                if place is not None:
                    place.register_forward_hook(_Tap(self, index))

    def _all_read(self, places: list[tuple[nn.Module | None, int]]) -> bool:
        return all(module is None or self._reads(module, index) for module, index in places)

    def _reads(self, module: nn.Module, index: int) -> bool:
        hooks = (hook for hook in module._forward_hooks.values() if isinstance(hook, _Tap))
        return [hook.index for hook in hooks if hook.taps is self].count(index) == 1

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
                exceptions, and where a foreign forward hook (FSDP's is one) waits for the end of a
                module that would be left.

        Raises:
            BackboneError: a wanted feature did not come, since the module that gave it was
                exchanged by hand for something that is not called or returns no tensor.
        """
        indices = tuple(range(len(self.paths))) if wanted is None else tuple(wanted)
        # asked in this order, since torch 2.11's Dynamo says of every compilation that it is an
        # export
        exceptions = torch.compiler.is_dynamo_compiling() or not torch.compiler.is_exporting()
        stop = within is not None and exceptions and self._may_leave(within, indices)
        found = _Collection(self, indices, stop)
        # The collection stands on a stack of this thread while the pass runs. A tap looks at the
        # top only, and a hook that calls the model again inside of the pass puts its own on top, so
        # that each call picks up what is its own, and any number of threads may read features of
        # one model.
        stack, images = calls.collections(), calls.images()
        length, sizes = len(stack), len(images)  # a pass that is left early leaves its image behind
        try:
            try:
                stack.append(found)
                run(x)
            except _Stop:
                pass
            finally:
                del stack[length:], images[sizes:]
        finally:  # an interrupt may come on the line above
            del stack[length:], images[sizes:]
        for index in indices:
            if index not in found.maps and index != PRE_LOGITS:
                raise BackboneError(
                    f"{self.paths[index]!r} returned no tensor in a forward pass: it ends the stem "
                    "or a stage, and what stands there (exchanged by hand, perhaps) is not called, "
                    "or returns something else"
                )
        return found.maps

    def _may_leave(self, network: nn.Module, wanted: tuple[int, ...]) -> bool:
        """Return whether the pass may be cut short.

        The stop is an exception, which passes through every module around the last wanted one. So
        no foreign hook may expect one of these modules to finish, and no patch may have something
        to do at its end except after it. Each wanted module must run the tap at all, and nothing
        but patches and taps: a wrapped one waits for its own end.
        """
        # Walked from the root to each wanted module: these are the modules that the exception would
        # pass through. The last one of each path is looked at by itself, since there the tap must
        # hang and nothing may run that is neither a tap nor a patch.
        if self.repeated or _global_forward_hooks:
            return False
        for index in wanted:
            module: nn.Module | None = network
            for name in self.paths[index].split("."):
                if module is None or not all(_is_after(h) for h in module._forward_hooks.values()):
                    return False
                module = module._modules.get(name)
            hooks = [] if module is None else list(module._forward_hooks.values())
            if not any(isinstance(hook, _Tap) for hook in hooks):
                return False
            if not all(isinstance(hook, (_Tap, PatchHook)) for hook in hooks):
                return False
        return True


class _Tap(TvcHook):
    """A picklable forward hook that hands one module's output, or the input of the head's last
    layer, to whoever collects in this thread.
    """

    def __init__(self, taps: Taps, index: int) -> None:
        self.taps = taps
        self.index = index

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        stack = calls.collections()
        collection = stack[-1] if stack else None
        if collection is None or collection.taps is not self.taps:
            return
        if self.index not in collection.wanted:
            return
        found = args[0] if self.index == PRE_LOGITS else output
        if isinstance(found, Tensor):
            if self.index in collection.maps:
                self.taps.repeated = True
            # a later in-place layer would overwrite it
            collection.maps[self.index] = found.clone()
            if collection.stop and len(collection.maps) == len(collection.wanted):
                raise _Stop


def _is_after(hook: Any) -> bool:
    """Return whether a hook is ours, and has nothing to do at the end of a module that is left."""
    ours = isinstance(hook, PatchHook) and not hook.patch.position.keeps_input
    return ours or isinstance(hook, _Tap)


class MapReader:
    """Brings a feature into the layout [N, C, H, W].

    Args:
        layout: of the feature: "NCHW", "NHWC" or "NLC"; None where it is not a map.
        prefix: tokens before the image's, for NLC.
        stride: side of the image divided by the side of the map, for NLC [pixels].
    """

    def __init__(self, layout: str | None, prefix: int = 0, stride: int = 1) -> None:
        self.layout, self.prefix, self.stride = layout, prefix, stride

    def __call__(self, x: Tensor, image: Tensor) -> Tensor:
        """Return the map of a feature; tokens before the image's are left out."""
        if self.layout == "NHWC":
            return x.permute(0, 3, 1, 2).contiguous()
        # Tokens do not say how wide the image was, so the image of the call does. A network that
        # pads to whole patches has a row or a column more than fit into the image: then both sides
        # are rounded up.
        if self.layout == "NLC":
            tokens = x[:, self.prefix :].transpose(1, 2)
            height, width = image.shape[2] // self.stride, image.shape[3] // self.stride
            if height * width != tokens.shape[2]:  # padded to whole patches
                height, width = (-(-side // self.stride) for side in image.shape[2:])
            return tokens.reshape(x.shape[0], x.shape[2], height, width)
        return x
