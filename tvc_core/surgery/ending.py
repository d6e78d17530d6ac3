"""End a network early: the stages after one of its own are left out, and their parameters with
them.

The network's own forward still calls what it knows by name, so each module that is left out
leaves a `LeftOut` at its path, which returns what it gets. No path moves, no key of what is kept
changes, and printing the network shows what is gone. What then arrives at the head has another
width, and what the head had learned was about the last stage. So of the head (and of the neck
before it) only what has nothing to learn and changes the shape stays, which is pooling and
flattening, with its dropout; the last layer becomes a `NoClassifier` of the new width, which
`reset_classifier` and `num_classes` give outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..errors import BackboneError, StageError, TargetError, count_of, foreign, join_names
from .anatomy import Anatomy
from .head import NoClassifier, last_layer
from .marks import LeftOut
from .patches import set_module
from .sites import Call, Probe, Site, find_module

__all__ = ["LeftOutRecord", "end_early", "stages_kept"]


@dataclass(frozen=True, kw_only=True)
class LeftOutRecord:
    """What a network that ends early has not.

    Args:
        paths: of the modules that are left out: stages, then those of neck and head.
        tensors: names of their parameters and buffers, each in the pretrained weights.
        parameters: their number [parameters].
    """

    paths: tuple[str, ...]
    tensors: tuple[str, ...]
    parameters: int

    def __str__(self) -> str:
        return (
            f"{join_names(self.paths, most=6)} ({self.parameters:,} parameters in "
            f"{count_of(len(self.tensors), 'tensor')})"
        )


_INSTEAD = "Build it whole: get_stage_outputs computes no more than the stages that it is asked for"


def stages_kept(given: Any, anatomy: Anatomy) -> int:
    """Return how many stages a network is to keep.

    Args:
        given: that number; the path of the last stage that stays; or a list of stages, by number or
            path, which are the first ones.
        anatomy: the whole network's.

    Raises:
        StageError: there are fewer stages, or the list leaves one out.
    """
    count = len(anatomy.stages)
    names = ", ".join(f"{index}: {'+'.join(paths)}" for index, paths in enumerate(anatomy.stages))
    if isinstance(given, str):
        return anatomy.stage_indices(given)[0] + 1
    if isinstance(given, int):
        if 1 <= given <= count:
            return given
        raise StageError(
            f"stages={given}: it says how many of the {count} stages are kept, from 1 to {count}, "
            f"and they are {names}"
        )
    indices = anatomy.stage_indices(given)
    if indices != list(range(len(indices))):
        raise StageError(
            f"stages={list(given)}: a network runs its stages one after another, so the first ones "
            f"are kept without a gap: give their number, such as stages={indices[-1] + 1}. "
            "get_stage_outputs(x, stages=[...]) picks some of their maps. The stages are "
            f"{names}"
        )
    return len(indices)


def end_early(
    network: nn.Module, anatomy: Anatomy, count: int, probe: Probe, name: str
) -> tuple[Anatomy, LeftOutRecord]:
    """Leave out all stages but the first ones, in place, and return the anatomy that is left and
    what is gone.

    Args:
        network: new from its factory.
        anatomy: the whole network's.
        count: stages that stay, fewer than there are.
        probe: an image that the network accepts.
        name: what errors call the network.

    Raises:
        BackboneError: the network cannot do without what comes after these stages.
    """
    what = f"{name} cannot end after its stage {count - 1} ({anatomy.taps[count]!r})"
    kept = replace(anatomy, stages=anatomy.stages[:count])
    gone = [path for stage in anatomy.stages[count:] for path in stage]
    # A path without a module is a parameter of the root, such as a class token: the root's own
    # forward reads it, and no stand-in at a module's path can keep it from doing so.
    loose = [path for path in (*gone, *anatomy.neck) if find_module(network, path) is None]
    if loose:
        raise BackboneError(
            f"{what}: its own forward uses {join_names(loose)} after that stage. {_INSTEAD}"
        )
    whole = dict(network.named_modules())
    sites, _ = probe.sites(network, [path for path in whole if path])
    sizes = {key: each.numel() for key, each in network.named_parameters()}
    tensors = set(network.state_dict())
    # Auxiliary heads that branch from a stage that is left out. One that ran in this pass, in eval
    # mode, makes a part of the output, as the second head of a distilled transformer does; it
    # stays, as a head of the last stage that is kept. One that did not run is for training only and
    # would get a map that no longer exists, so it is taken away.
    late = [path for path, stage in anatomy.auxiliary if stage >= count]
    idle = [path for path in late if not sites[path].calls]
    for path in idle:
        _switch_off(network, path)
    heads = [anatomy.head, *(path for path in late if path not in idle)]
    # What is left out returns what it gets. But where the last stage kept gives [N, H, W, C] and
    # the whole network's last stage gives [N, C, H, W], or the other way round, the head reads the
    # latter: so the last stand-in turns the axes.
    for path in gone:
        set_module(network, path, LeftOut())
    turn = f"{_layout(sites[kept.taps[-1]])} to {_layout(sites[anatomy.taps[-1]])}"
    set_module(network, anatomy.taps[-1], LeftOut(turn))
    for path in (*anatomy.neck, *heads):
        for each, turn in _learned(network, path, sites, path in heads):
            set_module(network, each, LeftOut(turn))
            gone.append(each)
    # How wide the new last layers have to be is not computed from the widths of the stages: pooling
    # and flattening may lie between. They are taken out for one pass, which shows what arrives at
    # each of their paths now.
    layers = {last_layer(network, head)[0]: last_layer(network, head)[1] for head in heads}
    for path in layers:
        set_module(network, path, LeftOut())
    with foreign(BackboneError, what):
        found, _ = probe.sites(network, layers)
    for path, layer in layers.items():
        set_module(network, path, NoClassifier(_template(layer, sites[path], found[path], what)))
    # A forward that takes its result from elsewhere runs without an error and returns nonsense:
    # CaiT's class token passes only through modules that are left out now. In such a network the
    # logits are the same with zeros in the place of the last map.
    with foreign(BackboneError, what):
        if torch.equal(probe.run(network), probe.run(network, [_without(network, kept.taps[-1])])):
            raise BackboneError(f"what its forward gives does not depend on that stage. {_INSTEAD}")
    lost = sorted(tensors - set(network.state_dict()))
    record = LeftOutRecord(
        paths=(*gone, *idle, *layers),
        tensors=tuple(lost),
        parameters=sum(sizes.get(key, 0) for key in lost),
    )
    auxiliary = [(path, stage) for path, stage in anatomy.auxiliary if stage < count]
    auxiliary += [(path, count - 1) for path in heads[1:]]
    neck = tuple(path for path in anatomy.neck if path not in gone)
    return replace(kept, neck=neck, auxiliary=tuple(auxiliary)), record


def _without(network: nn.Module, path: str) -> Callable[[], Any]:
    module = network.get_submodule(path)
    return lambda: module.register_forward_hook(lambda _, args, output: torch.zeros_like(output))


def _switch_off(network: nn.Module, path: str) -> None:
    """Take away an auxiliary head that runs in training only, as torchvision's builders do it."""
    set_module(network, path, None)
    if hasattr(network, "aux_logits"):
        left = any(network._modules.get(each) is not None for each in _AUXILIARY)
        network.aux_logits = left  # type: ignore[assignment]


_AUXILIARY = ("aux1", "aux2", "AuxLogits")
"""The auxiliary heads of torchvision's classifiers with a flag `aux_logits`."""


def _learned(
    network: nn.Module, root: str, sites: Mapping[str, Site], has_last: bool
) -> Iterator[tuple[str, str]]:
    """Yield what is left out of a head or neck, each with the turn that it made: modules with
    tensors, and activations, up to the last layer.
    """
    # Modules are visited from the outside in. One with tensors of its own is yielded, and what is
    # inside it is passed over (`taken`), since a stand-in takes the place of all of it. One that
    # holds the last layer is entered, not yielded. An activation has no tensors and keeps the
    # shape: after layers that are gone it would only distort pooled features, so it goes as well.
    # What changes the shape, such as pooling, is needed.
    last = last_layer(network, root)[0] if has_last else None
    taken = "-"
    for path, module in list(network.get_submodule(root).named_modules(prefix=root)):
        if path == last:
            return
        if path.startswith(f"{taken}.") or (last is not None and last.startswith(f"{path}.")):
            continue
        leaf, calls = next(module.children(), None) is None, sites[path].calls
        tensors = [*module._parameters.values(), *module._buffers.values()]
        if any(each is not None for each in tensors):
            taken = path
            yield path, f"{_layout(sites[path], 'input')} to {_layout(sites[path])}"
        elif leaf and not isinstance(module, _KEPT) and any(map(_keeps_shape, calls)):
            yield path, ""


def _keeps_shape(call: Call) -> bool:
    return call.input is not None and call.input == call.output


_KEPT = (nn.Identity, nn.modules.dropout._DropoutNd)


def _layout(site: Site, side: str = "output") -> str:
    try:
        return site.layout(side)
    except TargetError:  # it is not called, or gives no map
        return "?"


def _template(layer: nn.Module, before: Site, now: Site, what: str) -> nn.Module:
    """Return a layer of the kind of the last one, for what arrives at it now."""
    of: Any = layer.make(1, device="meta") if isinstance(layer, NoClassifier) else layer
    shape = now.shape("input")
    if len(shape) != len(before.shape("input")):
        raise BackboneError(
            f"{what}: its head would get {list(shape)}, and it takes "
            f"{list(before.shape('input'))}. {_INSTEAD}"
        )
    bias = getattr(of, "bias", None) is not None
    if hasattr(of, "in_features"):
        return nn.Linear(shape[-1], 1, bias=bias, device="meta")
    settings = {"kernel_size": of.kernel_size, "stride": of.stride, "padding": of.padding}
    return nn.Conv2d(shape[1], 1, bias=bias, device="meta", **settings)
