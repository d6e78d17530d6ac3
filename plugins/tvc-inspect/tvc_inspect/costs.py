"""What each module of a model costs: FLOPs, bytes kept for backward, time.

All of it is measured on a copy, by one way of counting: a meter that runs all the time (FLOPs so
far, bytes so far, the clock) is read whenever a module begins or ends, and what it has gained
belongs to the innermost module that was running. What a row of the page shows is the sum of these
over the modules below its path. So a patch's cost stands at the patch, whichever module's hook runs
it, and the rows of the backbone are those of the plain backbone.

Blocks may compute in another way where their layers have hooks (those of tvc-attention leave the
calls of layers out). So bytes and time are those of a pass in which no hook is inside of a block; a
second one, with hooks there, is only for the rows inside.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from tvc_core import HybridModel, Patch, ThreadMode

from .randomness import random_state_kept

__all__ = ["Cost", "UncountedOp", "measure_costs"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a module costs, with all that is below its path.

    Args:
        calls: how often it ran in one pass, by `gate` or `mix` where it is a gated block.
        shape: of what it returned last, of the first tensor if these are several; None where it
            never ran or returned no tensor.
        flops: of a forward pass in eval mode, two for each multiply-add [FLOPs].
        kept: bytes that a forward pass in training mode keeps for backward, parameters and buffers
            aside; None where that pass failed [bytes].
        milliseconds: of a forward pass in eval mode, median [ms].
    """

    calls: int
    shape: tuple[int, ...] | None
    flops: int
    kept: int | None
    milliseconds: float


@dataclass(frozen=True, kw_only=True)
class UncountedOp:
    """An operation of which torch's FLOP counter does not know the FLOPs, so that they count as 0.

    Args:
        name: such as "aten.add.Tensor".
        calls: in one pass.
        where: paths of the modules that ran it, in order.
    """

    name: str
    calls: int
    where: tuple[str, ...]


def measure_costs(
    model: HybridModel, image: Tensor, *, repeats: int = 5
) -> tuple[dict[str, Cost], tuple[UncountedOp, ...], int]:
    """Return the cost of each path ("" is the whole model), the operations that are not counted,
    and how many images the pass had of which bytes are counted.

    The model, its mode and hooks and the random state are as before: a copy runs. That pass has one
    image, or two where a network cannot train on one (a normalization of single pixels); 0 images
    where neither can be.

    Args:
        model: the hybrid.
        image: images [1, C, H, W].
        repeats: passes whose time is taken.
    """
    network = copy.deepcopy(model)
    paths = dict.fromkeys(path for path, _ in network.named_modules())
    blocks = blocks_of(network)
    with random_state_kept():
        flops, seen, ops, draws = _flops(network, image)
    with random_state_kept(timed=not draws):
        times = _milliseconds(network, image, repeats)
        if blocks:
            times = _with_insides(network, times, _milliseconds(network, image, 1, inside=True))
    with random_state_kept():
        # last, since passes in training mode change running statistics
        kept, batch = _kept(network, image)
        if blocks and batch:
            inside = _kept_of(network, torch.cat([image] * batch), inside=True)
            kept = _with_insides(network, kept, inside)
    costs = {
        path: Cost(
            calls=seen.calls[path],
            shape=seen.shapes.get(path),
            flops=int(flops[path]),
            kept=int(kept[path]) if batch else None,
            milliseconds=times[path],
        )
        for path in paths
    }
    return costs, ops, batch


def blocks_of(network: nn.Module) -> list[str]:
    """Return the paths of the blocks of patches."""
    return [f"{path}.block" for path, each in network.named_modules() if isinstance(each, Patch)]


class _Meter:
    """Shares out what a number gains among the modules that run."""

    def __init__(
        self, network: nn.Module, read: Callable[[], float], *, inside: bool = True
    ) -> None:
        """Watch a network's modules, those inside of blocks or not."""
        blocks = () if inside else tuple(f"{path}." for path in blocks_of(network))
        self.watched = {
            path: module
            for path, module in network.named_modules()
            if path and not path.startswith(blocks)
        }
        # A patch runs `gate` or `mix` of a gated block, and the block itself only where it has
        # hooks: so these methods are watched in the place of the block.
        self.by_method = {
            f"{path}.block"
            for path, each in network.named_modules()
            if isinstance(each, Patch)
            and each.gated
            and each.alpha is not None
            and each.position.combine is None
        }
        self.read = read
        self.stack = [""]
        self.own: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.last = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch the passes that run inside."""
        with ExitStack() as stack:
            for path, module in self.watched.items():
                self._watch(path, module, stack)
            self.last = self.read()
            yield
            self._share_out()
        self.calls[""] = 1

    def totals(self) -> defaultdict[str, float]:
        """Return the gain of each path, with all that is below it."""
        found: defaultdict[str, float] = defaultdict(float)
        for path, gain in self.own.items():
            parts = path.split(".") if path else []
            for depth in range(len(parts) + 1):
                found[".".join(parts[:depth])] += gain
        return found

    def _watch(self, path: str, module: nn.Module, stack: ExitStack) -> None:
        if path in self.by_method:
            for name in ("gate", "mix"):
                if hasattr(module, name):
                    stack.callback(self._wrap(path, module, name))
            return
        begin = module.register_forward_pre_hook(lambda *_: self._begin(path))
        end = module.register_forward_hook(lambda *seen: self._end(path, seen[-1]))
        stack.callback(begin.remove)
        stack.callback(end.remove)

    def _wrap(self, path: str, block: Any, name: str) -> Callable[[], Any]:
        method = getattr(block, name)

        def call(*args: Any) -> Any:
            # a block's own `forward` and `mix` may call its `gate`: that is one call of the block
            if path in self.stack:
                return method(*args)
            self._begin(path)
            output = method(*args)
            self._end(path, output)
            return output

        block.__dict__[name] = call
        return lambda: block.__dict__.pop(name)

    def _begin(self, path: str) -> None:
        self._share_out()
        self.stack.append(path)
        self.calls[path] += 1

    def _end(self, path: str, output: Any) -> None:
        self._share_out()
        self.stack.pop()
        first = _first_tensor(output)
        if first is not None:
            self.shapes[path] = tuple(first.shape)

    def _share_out(self) -> None:
        self.own[self.stack[-1]] += self.read() - self.last
        self.last = self.read()


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    each = output.values() if isinstance(output, dict) else output
    found = (_first_tensor(one) for one in each) if isinstance(output, (dict, list, tuple)) else ()
    return next((one for one in found if one is not None), None)


class _Plain(TorchFunctionMode):
    """Keeps torch's attention off its fused path, of which the FLOPs are not counted: torch takes
    it only where no function mode is active.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Counter(ThreadMode):
    """Counts FLOPs by the formulas of torch's counter, and writes down the operations that it has
    none for.

    That counter itself is a mode that sets flags of the process, and hooks on the modules of all
    threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.formulas = FlopCounterMode(display=False).flop_registry
        self.total = 0
        self.draws = False
        self.where = [""]
        self.unknown: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # some operations are made of others, which have formulas
            output = func.decompose(*args, **kwargs)
        if output is not NotImplemented:
            return output
        output = func(*args, **kwargs)
        self.draws = self.draws or torch.Tag.nondeterministic_seeded in func.tags
        formula: Any = self.formulas.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=output)
        elif not func.is_view:
            self.unknown[str(func)][self.where[-1]] += 1
        return output


def _flops(
    network: nn.Module, image: Tensor
) -> tuple[defaultdict[str, float], _Meter, tuple[UncountedOp, ...], bool]:
    network.eval()
    counter = _Counter()
    meter = _Meter(network, lambda: counter.total)
    counter.where = meter.stack
    with torch.no_grad(), _Plain(), counter, meter.running():
        output = network(image)
    if (first := _first_tensor(output)) is not None:
        meter.shapes[""] = tuple(first.shape)
    ops = tuple(
        UncountedOp(name=name, calls=sum(where.values()), where=tuple(where))
        for name, where in sorted(counter.unknown.items())
    )
    return meter.totals(), meter, ops, counter.draws


def _with_insides(
    network: nn.Module, outside: defaultdict[str, float], inside: defaultdict[str, float]
) -> defaultdict[str, float]:
    """Return totals, of which those inside of blocks come from a pass with hooks there."""
    blocks = tuple(f"{path}." for path in blocks_of(network))
    found = defaultdict(float, outside)
    found.update((path, value) for path, value in inside.items() if path.startswith(blocks))
    return found


def _milliseconds(
    network: nn.Module, image: Tensor, repeats: int, *, inside: bool = False
) -> defaultdict[str, float]:
    on_gpu = image.device.type == "cuda"

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() * 1000

    network.eval()
    meters = []
    with torch.no_grad(), _Plain():
        network(image)  # the first pass is slower
        for _ in range(repeats):
            meters.append(_Meter(network, now, inside=inside))
            with meters[-1].running():
                network(image)
    middle = _Meter(network, now)
    for path in {path for each in meters for path in each.own}:
        middle.own[path] = statistics.median(each.own[path] for each in meters)
    return middle.totals()


def _kept(network: nn.Module, image: Tensor) -> tuple[defaultdict[str, float], int]:
    for batch in (1, 2):
        try:
            return _kept_of(network, torch.cat([image] * batch)), batch
        except Exception:  # a network may refuse to train on so few images in any way
            continue
    return defaultdict(float), 0


def _kept_of(
    network: nn.Module, images: Tensor, *, inside: bool = False
) -> defaultdict[str, float]:
    own = {
        each.untyped_storage().data_ptr() for each in (*network.parameters(), *network.buffers())
    }
    kept: dict[int, Tensor] = {}  # held, so that no other tensor comes to stand there
    count = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal count
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and storage.data_ptr() not in kept:
            kept[storage.data_ptr()] = tensor.detach()
            count += storage.nbytes()
        return tensor.detach()  # an output that its own graph held would never be freed

    network.train()
    meter = _Meter(network, lambda: count, inside=inside)
    with (
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        meter.running(),
    ):
        output = network(images)
    del output
    return meter.totals()
