"""Stem, stages and head of a network of timm's, found by running it once without memory and
watching what is used when.

timm says in `feature_info` which modules' outputs are features, and in its pretrained configuration
which layer classifies. What runs up to a feature belongs to its stage; so every tensor has one
part, whatever the architecture looks like.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Parts", "Refused", "find_parts", "runs"]

QUARTERS = 4
"""Stages of a network whose features all have one stride, such as a ViT's, where every block is a
feature.
"""


class Refused(Exception):  # noqa: N818  the reason, which the caller puts into an error
    """The network cannot be described as stem, stages and head."""


@dataclass(frozen=True)
class Parts:
    """The paths of a network's parts, as a `BackboneSpec` has them; `tokens`: the last map is a
    list [N, L, C].
    """

    stem: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]
    neck: tuple[str, ...]
    head: str
    auxiliary: dict[str, int]
    tokens: bool


def find_parts(
    network: nn.Module,
    classifiers: Sequence[str],
    features: Sequence[str],
    strides: Sequence[int],
    image: Tensor,
) -> Parts:
    """Return the parts of a network.

    Args:
        network: it runs once.
        classifiers: paths of the layers that give logits: the main one, then those of auxiliary
            heads.
        features: paths of the modules whose outputs are timm's features, in order of execution.
        strides: side of the image divided by the side of the map, of each feature [pixels].
        image: [1, C, H, W] of a size that the network accepts.

    Raises:
        Refused: it has no such parts, with the reason.
    """
    modules = dict(network.named_modules())
    for path in features:
        if path not in modules:
            raise Refused(f"timm's feature_info names {path!r}, which is no module of it")
    if len(set(features)) != len(features):
        raise Refused(
            "it computes several features in one module, so it has no stages one after the other"
        )
    watch = _Watch(network)
    with watch:
        network(image)
    for path in features:
        if path not in watch.ends:
            raise Refused(f"its feature {path!r} comes from a module that is never called")
    ends = [watch.ends[path] for path in features]
    if ends != sorted(ends) or list(strides) != sorted(strides):
        raise Refused(
            "its features do not follow one another, so it has no stages one after the other"
        )
    head, *others = _heads(classifiers, modules, watch, ends[-1])
    begins, kept = _stem_end(network, features, watch)
    features = features[kept:]
    if not features:
        raise Refused("it has one feature only, so there are no stages after the stem")
    if len(features) > QUARTERS and len(set(strides[kept:])) == 1:
        features = [
            features[len(features) * (quarter + 1) // QUARTERS - 1] for quarter in range(QUARTERS)
        ]
    ends = [watch.ends[path] for path in features]
    parts = _partition(network, [begins, *ends], [head, *others], watch)
    *front, rest = parts
    front[-1] += _maps_of(rest, watch)
    neck = rest[len(_maps_of(rest, watch)) :]
    for index, paths in enumerate(front):
        maps = [path for path in paths if watch.is_map(path)]
        paths.sort(key=lambda path: path in maps[-1:])  # tensors that are added to it are no map
        what = "its stem" if index == 0 else f"its stage {index - 1}"
        if not paths or not watch.is_map(paths[-1]):
            last = (
                f"ends with {paths[-1]!r}, which returns no single map"
                if paths
                else "has no module of its own"
            )
            raise Refused(f"{what} {last}")
    stages = tuple(map(tuple, front[1:]))
    tokens = len(watch.outputs[stages[-1][-1]]) == 3
    return Parts(
        tuple(front[0]), stages, tuple(neck), head, dict.fromkeys(others, len(stages) - 1), tokens
    )


def runs(network: nn.Module, image: Tensor) -> bool:
    """Tell whether a network accepts an image."""
    try:
        with torch.no_grad():
            network(image)
    except Exception:  # a network may raise any exception for a size that it does not accept
        return False
    return True


class _Watch(TorchFunctionMode):
    """Notes when each module of a network begins and ends, and when each tensor is first used, as
    ticks of one clock.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.clock = 0
        self.starts: dict[str, int] = {}
        self.ends: dict[str, int] = {}
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.used: dict[str, int] = {}
        self._names: dict[int, str] = {}
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            self._names.setdefault(id(tensor), name)
        self._network = network
        self._hooks: list[Any] = []

    def __enter__(self) -> _Watch:
        for path, module in self._network.named_modules():
            if path:
                self._hooks += [
                    module.register_forward_pre_hook(self._before(path)),
                    module.register_forward_hook(self._after(path)),
                ]
        self._no_grad = torch.no_grad()
        self._no_grad.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._no_grad.__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__name__", "") != "__get__":  # reading a shape uses no value
            self.clock += 1
            for tensor in _tensors((args, kwargs)):
                name = self._names.get(id(tensor))
                if name is not None:
                    self.used.setdefault(name, self.clock)
        return function(*args, **(kwargs or {}))

    def _before(self, path: str) -> Any:
        def note(_: nn.Module, args: Any) -> None:
            self.clock += 1
            self.starts.setdefault(path, self.clock)
            self.inputs[path] = _shape(args[0] if args else None)

        return note

    def _after(self, path: str) -> Any:
        def note(_: nn.Module, args: Any, output: Any) -> None:
            self.clock += 1
            self.ends[path] = self.clock
            self.outputs[path] = _shape(output)

        return note

    def is_map(self, path: str, side: str = "outputs") -> bool:
        """Tell whether a module gives (or takes) a map of more than one place: [N, C, H, W], [N, H,
        W, C] or [N, L, C].
        """
        shape = getattr(self, side).get(path)
        if shape is None or len(shape) not in (3, 4):
            return False
        return shape[1] > 1 if len(shape) == 3 else shape[2] > 1


def _heads(
    classifiers: Sequence[str], modules: dict[str, nn.Module], watch: _Watch, after: int
) -> list[str]:
    """Return for each classifier the outermost module around it that begins after the last feature
    and has no other in it.
    """
    found = []
    for path in classifiers:
        if path not in modules:
            raise Refused(
                f"timm's configuration names the classifier {path!r}, which is no module of it"
            )
        parents = [path.rsplit(".", count)[0] for count in range(path.count("."), -1, -1)]
        alone = [
            parent
            for parent in parents
            if watch.starts.get(parent, 0) > after
            and sum(other == parent or other.startswith(f"{parent}.") for other in classifiers) == 1
        ]
        if not alone:
            raise Refused(f"its classifier {path!r} is not called after its last feature")
        found.append(alone[0])
    return found


def _stem_end(network: nn.Module, features: Sequence[str], watch: _Watch) -> tuple[int, int]:
    """Return when the stem ends, and how many of the features are the stem's.

    A first feature of at most one layer with a matrix (`act1` of a ResNet) is the stem's, and so is
    one before which nothing with parameters runs. The stem then goes on to the first module of the
    next stage that is more than one layer.
    """
    first = features[0]
    parents = [first.rsplit(".", count)[0] for count in range(first.count("."), -1, -1)]
    for parent in parents:
        start = watch.starts.get(parent)
        if start is None or _is_simple(network.get_submodule(first)):
            continue
        if any(tick < start for tick in watch.used.values()):
            return start - 1, 0
    end = watch.ends[first]
    if len(features) == 1:
        return end, 1
    until = watch.ends[features[1]]
    begun = sorted((tick, path) for path, tick in watch.starts.items() if end < tick < until)
    blocks = [tick for tick, path in begun if not _is_simple(network.get_submodule(path))]
    layers = [
        tick
        for tick, path in begun
        if next(network.get_submodule(path).parameters(), None) is not None
    ]
    return min(blocks or layers or [end + 1]) - 1, 1


def _is_simple(module: nn.Module) -> bool:
    return sum(parameter.ndim > 1 for parameter in module.parameters()) < 2


def _partition(
    network: nn.Module, ends: Sequence[int], heads: Sequence[str], watch: _Watch
) -> list[list[str]]:
    """Return the paths of stem, stages and of what comes after them, each in order of execution;
    without the heads.
    """
    parts: list[list[tuple[int, str]]] = [[] for _ in (*ends, None)]

    def put(path: str, module: nn.Module) -> None:
        if path in heads:
            return
        holds_head = any(head.startswith(f"{path}.") for head in heads)
        start = watch.starts.get(path)
        if path and start is not None and not holds_head:
            part = bisect_left(ends, start)
            if part == bisect_left(ends, watch.ends[path]):
                parts[part].append((start, path))
                return
        if path and start is None and not holds_head and not any(_ticks(path, watch)):
            if next(chain(module.parameters(), module.buffers()), None) is not None:
                # it never runs, and is part of the last stage
                parts[len(ends) - 1].append((0, path))
            return
        prefix = f"{path}." if path else ""
        for name in (*module._parameters, *module._buffers):
            if module._parameters.get(name) is not None or module._buffers.get(name) is not None:
                # one that is never used is part of the stem
                tick = watch.used.get(f"{prefix}{name}", 0)
                parts[bisect_left(ends, tick)].append((tick, f"{prefix}{name}"))
        for name, child in module._modules.items():
            if child is not None:
                put(f"{prefix}{name}", child)

    put("", network)
    return [[path for _, path in sorted(part)] for part in parts]


def _ticks(path: str, watch: _Watch) -> Iterator[int]:
    for ticks in (watch.used, watch.starts):
        yield from (tick for name, tick in ticks.items() if name.startswith(f"{path}."))


def _maps_of(paths: Iterable[str], watch: _Watch) -> list[str]:
    """Return the leading modules that turn maps into maps: final norms and convolutions, before
    pooling begins.
    """
    found: list[str] = []
    for path in paths:
        if not (watch.is_map(path) and watch.is_map(path, "inputs")):
            break
        found.append(path)
    return found


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
