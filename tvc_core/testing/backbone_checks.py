"""Checks of backbones, without weights from anywhere: networks are built with random ones."""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import SkipTest, mock

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from ..builder import HybridBuilder
from ..errors import BackboneError, HeadError, TvcError, join_names
from ..model.hybrid import HybridModel
from ..specs import BackboneSpec, WeightsSpec
from ..surgery.anatomy import HEAD, Anatomy
from ..surgery.head import last_layer
from ..surgery.patches import installed_patches
from ..surgery.probing import ThreadMode, same_kernels
from ..surgery.sites import Probe, first_tensor, has_module
from .helpers import (
    SEED,
    changed_names,
    check_copies,
    close,
    describe_error,
    image,
    leaves_seed,
    named_tensors,
    perturb,
    snapshot,
)
from .seeding import torch_seed
from .subjects import Fault, Subject

__all__ = ["BASIC", "CHECKS"]


def backbone_built(backbone: Subject) -> None:
    """The factory fails without weights, returns no new nn.Module, or the network puts out no
    logits [N, classes].
    """
    try:
        network = _plain(backbone)
    except Exception as error:  # foreign code may raise any exception
        do = (
            "let the factory be build(spec, *, weights, **options), and weights=None give random "
            "weights"
        )
        raise Fault(
            "a network from the factory with weights=None", describe_error(error), do
        ) from error
    if not isinstance(network, nn.Module) or isinstance(network, HybridModel):
        raise Fault(
            "a plain nn.Module from the factory",
            type(network).__name__,
            "return the network itself",
        )
    network.eval()
    logits = _forward(network, _images(backbone, network))
    if logits.ndim != 2 or not logits.isfinite().all():
        seen = (
            f"the shape {list(logits.shape)}" if logits.ndim != 2 else "values that are not finite"
        )
        raise Fault("finite logits [N, classes]", seen, "let the head flatten and classify")


def backbone_partition(backbone: Subject) -> None:
    """Stem, stages and head of the spec are not there, overlap, or leave parameters out: freezing
    would miss them.
    """
    try:
        Anatomy.of(_plain(backbone), _spec(backbone))
    except BackboneError as error:
        seen = str(error).rpartition("its spec says: ")[2]
        raise Fault(
            "that stem, stages and head partition the parameters", seen, "correct the spec's paths"
        ) from error


def backbone_order(backbone: Subject) -> None:
    """Parts are listed in another order than the one in which they run, so that stage i is not what
    users count.
    """
    network, spec = _plain(backbone).eval(), _spec(backbone)
    ended: list[str] = []
    kinds: dict[str, type] = {}

    def note(path: str) -> Any:
        def end(module: nn.Module, args: Any, output: Any) -> None:
            ended.append(path)
            kinds[path] = type(output)

        return end

    handles = [
        module.register_forward_hook(note(path)) for path, module in network.named_modules() if path
    ]
    _forward(network, _images(backbone, network))
    for handle in handles:
        handle.remove()
    paths = [
        path
        for paths in (spec.stem, *spec.stage_paths, (spec.head,))
        for path in paths
        if has_module(network, path)
    ]
    do = (
        "list the paths in order of execution, and let each stage end with the module that "
        "returns its map"
    )
    latest, latest_path = -1, ""
    for path in paths:
        own = [
            index for index, name in enumerate(ended) if name == path or name.startswith(f"{path}.")
        ]
        if not own:
            if any(True for _ in network.get_submodule(path).parameters()):
                raise Fault(
                    "that every path of the spec runs in a forward pass",
                    f"that {path!r} never does",
                    do,
                )
            continue
        if own[0] < latest:
            raise Fault(
                f"that {path!r} runs after {latest_path!r}, as the spec lists them",
                "that it runs before",
                do,
            )
        latest, latest_path = own[0], path
    taps = [paths[-1] for paths in (spec.stem, *spec.stage_paths)]
    after = [*spec.stage_paths, (spec.head,)]
    for tap, following in zip(taps, after, strict=True):
        if tap not in ended:
            raise Fault(
                f"that {tap!r} is called, since its output is the map of its part",
                "that it never is",
                do,
            )
        if not issubclass(kinds[tap], Tensor):
            raise Fault(
                f"one tensor from {tap!r}, the map of its part", f"a {kinds[tap].__name__}", do
            )
        starts = [
            index
            for index, name in enumerate(ended)
            for path in following
            if f"{name}.".startswith(f"{path}.")
        ]
        if starts and starts[0] < ended.index(tap):
            raise Fault(
                f"that {tap!r} has ended before {following[0]!r} begins", "that it ends later", do
            )


def backbone_stages(backbone: Subject) -> None:
    """The maps of the stages are not what stages have: a layout that tvc knows, and strides that do
    not shrink.
    """
    model = _hybrid(backbone)
    do = (
        "let each stage end with a module that returns one map [N, C, H, W], [N, H, W, C] or [N, "
        "tokens, C]"
    )
    for info in model.stage_info:
        if info.layout not in ("NCHW", "NHWC", "NLC"):
            raise Fault(
                f"a map from stage {info.stage} ({info.module!r})", f"the layout {info.layout}", do
            )
    strides = [info.stride for info in model.stage_info]
    if strides != sorted(strides):
        raise Fault("strides that grow from stage to stage", f"{strides}", do)
    for x in _other_images(backbone, model):
        try:
            with torch.no_grad():
                maps = model.get_stage_outputs(x)[1:]
        except Exception as error:  # foreign code may raise any exception
            raise Fault(
                f"the stages' maps of images {list(x.shape)}", describe_error(error), do
            ) from error
        for info, found in zip(model.stage_info, maps, strict=True):
            # layers without padding cut off borders, up to four pixels of the map
            wrong = [
                side
                for side, given in zip(found.shape[2:], x.shape[2:], strict=True)
                if abs(side - given / info.stride) > 4
            ]
            if found.shape[1] != info.channels or wrong:
                wanted = (
                    f"{info.channels} channels and stride {info.stride} at stage "
                    f"{info.stage} "
                    f"for {list(x.shape)}"
                )
                raise Fault(wanted, f"a map {list(found.shape)}", do)


def backbone_last_stage(backbone: Subject) -> None:
    """The last stage has the pooling in it, so that its map has no height and width left for
    detection or attention.
    """
    model = _hybrid(backbone)
    sizes = []
    for x in _other_images(backbone, model):
        with torch.no_grad():
            sizes.append(tuple(model.get_stage_outputs(x)[-1].shape[2:]))
    if all(size == (1, 1) for size in sizes) or (len(sizes) > 1 and len(set(sizes)) == 1):
        do = "let the last stage end where pooling begins; pooling belongs to no part"
        raise Fault(
            "a map that grows with the image from the last stage",
            f"maps of {sizes[-1]} pixels for all",
            do,
        )


def backbone_pooling(backbone: Subject) -> None:
    """Between the last stage and pooling something else changes the map, such as an activation, so
    that features and attention do not see what is classified.
    """
    network, spec = _plain(backbone).eval(), _spec(backbone)
    watch = _PoolingWatch()
    last = network.get_submodule(spec.stage_paths[-1][-1])
    last.register_forward_hook(lambda _, args, output: watch.begin(output))
    for path in (*spec.neck, spec.head):
        if has_module(network, path):
            network.get_submodule(path).register_forward_pre_hook(lambda *_: watch.end())
    x = _images(backbone, network)
    with watch:
        _forward(network, x)
    if watch.changed:
        do = (
            "make it a module without parameters, and let the last stage end with it: its keys "
            "stay as they are"
        )
        raise Fault(
            "that pooling gets what the last stage returns",
            f"that {watch.changed} changes it before",
            do,
        )


class _PoolingWatch(ThreadMode):
    """Follows a map through every operation until one makes it smaller, as pooling does, and notes
    the first that changes values instead of moving them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.changed = ""
        self._values: Tensor | None = None
        self._seen: list[Tensor] = []  # kept, so that no other tensor gets the memory of one

    def begin(self, output: Tensor) -> None:
        """Follow this map from here; what was followed before was not the last one."""
        self.changed, self._values = "", None
        self._seen, self._values = [output], output.flatten().sort().values

    def end(self) -> None:
        """Stop: what comes now is the head."""
        self._values = None

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        values = self._values
        if values is None or not any(map(self._is_seen, tree_leaves((args, kwargs)))):
            return output
        found = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
        if found is None:
            return output
        name = str(function).removeprefix("aten.").partition(".")[0]
        if found.numel() < values.numel() or "pool" in name:  # AlexNet's may make small maps larger
            self.end()
        elif found.numel() == values.numel() and torch.equal(found.flatten().sort().values, values):
            self._seen.append(found)
        else:
            self.changed = name
            self.end()
        return output

    def _is_seen(self, given: Any) -> bool:
        return isinstance(given, Tensor) and any(
            given.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
            for tensor in self._seen
        )


def backbone_sizes(backbone: Subject) -> None:
    """The network fails on an image that its spec allows, or takes sizes that the spec rules out by
    fixed_size.
    """
    network, spec = _plain(backbone).eval(), _spec(backbone)
    if spec.fixed_size:
        side = Probe.of(network, spec, likely=_size_option(backbone)).size[0]
        for other in (2 * side, side + 32):
            try:
                _forward(network, image(1, _channels(backbone), other, other))
            except Exception:  # it is to fail, with whatever error
                continue
            do = "leave fixed_size out of the spec"
            raise Fault(
                f"that no other size than {side} is taken (fixed_size=True)", f"that {other} is", do
            )
        return
    side = spec.min_size
    do = "state the smallest side in min_size, or fixed_size=True where only one is possible"
    for height, width in ((side, side), (side + 1, side + 7), (2 * side + 3, side)):
        x = image(2, _channels(backbone), height, width)
        try:
            logits = _forward(network, x)
        except Exception as error:  # foreign code may raise any exception
            raise Fault(
                f"that images {list(x.shape)} are taken (min_size={side})",
                describe_error(error),
                do,
            ) from error
        if not logits.isfinite().all():
            raise Fault(f"finite logits for images {list(x.shape)}", "others", do)


def backbone_weights(backbone: Subject) -> None:
    """The declared weights have impossible preprocessing, no default, or options that the backbone
    does not have.
    """
    spec = _spec(backbone)
    if not spec.weights:
        raise SkipTest("its spec declares no weights")
    if spec.default_weights is None:
        raise Fault(
            "a default among the weights",
            "none",
            'set default_weights, which weights="DEFAULT" stands for',
        )
    for weights in spec.weights:
        what, do = f"of the weights {weights.name!r}", "write what the weights were trained with"
        if not len(weights.mean) == len(weights.std) == spec.num_channels:
            seen = f"{len(weights.mean)} and {len(weights.std)}"
            raise Fault(f"mean and std for {spec.num_channels} channels {what}", seen, do)
        if not all(-1 <= mean <= 1 for mean in weights.mean) or not all(
            0 < std <= 1 for std in weights.std
        ):
            seen = f"mean {weights.mean} and std {weights.std}"
            raise Fault(
                f"mean and std {what} for images scaled to [0, 1]",
                seen,
                "divide values for 0 to 255 by 255",
            )
        if not 0 < weights.crop_size <= weights.resize_size:
            raise Fault(
                f"a crop that fits into the resized image {what}",
                f"{weights.crop_size} of {weights.resize_size}",
                do,
            )
        test_crop = weights.test_crop_size or weights.crop_size
        if test_crop > (weights.test_resize_size or test_crop):
            raise Fault(
                f"a test crop that fits into the resized image {what}",
                f"{test_crop} of {weights.test_resize_size}",
                do,
            )
        if weights.acc1 is not None and not 1 < weights.acc1 <= 100:
            raise Fault(f"an accuracy in percent {what}", f"acc1={weights.acc1}", "write 76.1")
        if weights.crop_size < spec.min_size and not spec.fixed_size:
            raise Fault(
                f"a crop of at least min_size={spec.min_size} {what}", str(weights.crop_size), do
            )
        if unknown := sorted(set(weights.options) - set(spec.options)):
            raise Fault(
                f"options {what} that the backbone has",
                join_names(unknown),
                "declare them in the spec's options",
            )
        if weights.options:
            try:
                _plain(backbone, **weights.options)
            except Exception as error:  # foreign code may raise any exception
                seen = describe_error(error)
                raise Fault(
                    f"that the backbone can be built with the options {what}", seen, "correct them"
                ) from error


def backbone_loads_weights(backbone: Subject) -> None:
    """The factory is asked for pretrained weights and silently returns random ones."""
    spec = _spec(backbone)
    if not spec.weights:
        raise SkipTest("its spec declares no weights")
    default = spec.find_weights(spec.default_weights or "") or spec.weights[-1]
    for weights in dict.fromkeys((default.name, *(w.name for w in spec.weights if w.url))):
        _check_loads(backbone, spec.find_weights(weights))


def _check_loads(backbone: Subject, weights: Any) -> None:
    with _no_network():
        try:
            network = _plain(backbone, weights)
        except Exception:
            # nothing can be downloaded here, so an error of any kind shows that it tried
            return
    with torch.random.fork_rng(devices=[]):
        fresh = _plain(backbone, **weights.options)
    before, after = snapshot(fresh), named_tensors(network)
    # a head for other classes has other shapes, which says nothing of what was loaded
    same = [
        torch.equal(tensor, after[name])
        for name, tensor in before.items()
        if name in after and tensor.shape == after[name].shape
    ]
    if all(same) and before.keys() <= after.keys():
        do = "load them, with tvc_core.read_state_dict, or raise WeightsError"
        raise Fault(
            f"the tensors of {weights.name!r}, or an error where they are not available",
            "the random start",
            do,
        )
    classes = _forward(network.eval(), _images(backbone, network)).shape[1]
    if weights.num_classes not in (None, classes):
        do = "correct num_classes, or None for weights without a classifier"
        raise Fault(
            f"num_classes={weights.num_classes} logits with {weights.name!r}", str(classes), do
        )


def backbone_migrates(backbone: Subject) -> None:
    """Its `migrate` spoils a checkpoint that has the network's own names, or changes the network or
    the tensors that it is handed.
    """
    if not _spec(backbone).migrate:
        raise SkipTest("its spec has no migrate")
    network = _plain(backbone)
    migrate, own = backbone.named.load("migrate"), network.state_dict()
    given = {name: tensor.clone() for name, tensor in own.items()}
    before = snapshot(network)
    do = "return None for a layout that it does not know, and for one that needs nothing"
    with torch.no_grad():
        try:
            found = migrate(_spec(backbone), network, dict(given))
        except Exception:
            return  # tvc takes an error for a layout that it does not know
    if changed := changed_names(before, network):
        raise Fault("the network as it was", f"{changed[0]} changed", "leave the network alone")
    if spoiled := [name for name in own if not torch.equal(own[name], given[name])]:
        do = "make new tensors instead"
        raise Fault("the checkpoint's tensors as they were", f"{spoiled[0]} changed", do)
    if found is None:
        return
    if not isinstance(found, Mapping):
        raise Fault("a mapping of names to tensors, or None", type(found).__name__, do)
    if unknown := [name for name in found if name not in own]:
        raise Fault("the network's own names, given those", repr(unknown[0]), do)
    other = [name for name in found if not torch.equal(torch.as_tensor(found[name]), own[name])]
    if other:
        raise Fault("the tensors of the network's own names as given", f"another {other[0]}", do)


def backbone_head(backbone: Subject) -> None:
    """The head cannot get another number of classes, or what else is in the network changes with
    it.
    """
    network = _plain(backbone)
    try:
        last_layer(network, _spec(backbone).head)
    except HeadError as error:
        do = "let the spec's head be a module whose last layer is a Linear or a Conv2d"
        raise Fault("that the head takes 5 classes", describe_error(error), do) from error
    model = _hybrid(backbone, num_classes=5)
    logits = _forward(model, _images(backbone, model))
    do = "let the head's last layer give the logits, and nothing after it depend on their number"
    if list(logits.shape) != [2, 5]:
        raise Fault("logits [2, 5] with 5 classes", f"{list(logits.shape)}", do)
    if lost := sorted(network.state_dict().keys() ^ model.state_dict().keys()):
        raise Fault(
            "the same keys with another head", f"differences at {join_names(lost, most=4)}", do
        )


def backbone_options(backbone: Subject) -> None:
    """A declared option is not taken by the factory, or its default is another one."""
    options = dict(_spec(backbone).options)
    if not options:
        raise SkipTest("its spec declares no options")
    plain = _plain(backbone)
    do = (
        "let the spec's options and the factory's keyword arguments have the same names and "
        "defaults"
    )
    try:
        given = _plain(backbone, **options)
    except Exception as error:  # foreign code may raise any exception
        raise Fault(
            f"that the options {join_names(map(repr, options))} are taken",
            describe_error(error),
            do,
        ) from error
    if _shapes(plain) != _shapes(given):
        names = sorted(name for name, _ in _shapes(plain) ^ _shapes(given))
        raise Fault(
            "the same network with all options at their declared defaults",
            f"others at {join_names(names, most=4)}",
            do,
        )
    x = _images(backbone, plain.eval())
    if not torch.equal(_forward(plain, x), _forward(given.eval(), x)):
        raise Fault(
            "the same network with all options at their declared defaults", "other logits", do
        )


def backbone_state_dict(backbone: Subject) -> None:
    """Names of tensors differ from build to build, or what decides the output is not in the state
    dict.
    """
    one, two = _plain(backbone).eval(), _plain(backbone, seed=SEED + 1).eval()
    do = "make the same modules for the same options, and register tensors as parameters or buffers"
    if list(one.state_dict()) != list(two.state_dict()):
        names = sorted(one.state_dict().keys() ^ two.state_dict().keys())
        raise Fault(
            "the same keys from two builds", f"differences at {join_names(names, most=4)}", do
        )
    two.load_state_dict(one.state_dict())
    x = _images(backbone, one)
    if not torch.equal(_forward(one, x), _forward(two, x)):
        raise Fault("the same logits from a network with the same state dict", "others", do)


def backbone_independent(backbone: Subject) -> None:
    """Two networks share modules or tensors: training one changes the other."""
    one, two = _plain(backbone), _plain(backbone)
    modules = {id(module) for module in one.modules()}
    shared = [
        path or "the network itself"
        for path, module in two.named_modules()
        if id(module) in modules
    ]
    pointers = {tensor.data_ptr() for tensor in named_tensors(one).values() if tensor.numel()}
    shared += [
        name
        for name, tensor in named_tensors(two).items()
        if tensor.numel() and tensor.data_ptr() in pointers
    ]
    if shared:
        do = (
            "make a new network at every call of the factory, without caches and module-level "
            "layers"
        )
        raise Fault(
            "two networks without anything in common", f"shared: {join_names(shared, most=4)}", do
        )


def backbone_seeded(backbone: Subject) -> None:
    """The start does not follow torch's seed, or the factory or a forward pass sets the seed for
    all code.
    """
    one, two = _plain(backbone), _plain(backbone)
    if changed := changed_names(snapshot(one), two):
        do = "take random numbers from torch's default generator"
        raise Fault(
            "the same start under the same seed",
            f"differences at {join_names(changed, most=4)}",
            do,
        )
    x = _images(backbone, one.eval())
    made, run = (
        leaves_seed(lambda: _plain(backbone, seed=None)),
        leaves_seed(lambda: _forward(one, x)),
    )
    if not (made and run):
        what = "a forward pass" if made else "the factory"
        do = (
            "never call torch.manual_seed in it; torch.random.fork_rng makes random numbers of "
            "your own"
        )
        raise Fault(
            f"that {what} leaves the seed alone", "the same random state after different seeds", do
        )


@same_kernels()
def backbone_features(backbone: Subject) -> None:
    """What lies between the last stage and the head cannot be determined, so that forward_head does
    not reproduce forward.
    """
    model = _hybrid(backbone)
    x = _images(backbone, model)
    with torch.no_grad():
        features = model.forward_features(x)
        try:
            logits = model.forward_head(features)
        except BackboneError as error:
            raise SkipTest(f"forward_head is not known for it: {describe_error(error)}") from error
    if not torch.equal(logits, _forward(model, x)):
        do = "do nothing else than pool, flatten and normalize between the last stage and the head"
        raise Fault("forward_head(forward_features(x)) equal to forward(x)", "other logits", do)


@same_kernels()
def backbone_patches(backbone: Subject) -> None:
    """At some stage a block cannot be inserted, does not start as the identity, or has no
    effect.
    """
    plain = _hybrid(backbone)
    x = _images(backbone, plain)
    expected = _forward(plain, x)
    do = (
        "let each stage end with a module that is called once and whose output alone goes on to "
        "the next"
    )
    for info in plain.stage_info:
        try:
            model = _hybrid(backbone, {info.module: {"wrap": "tvc-kit:gate"}})
        except TvcError as error:
            raise Fault(
                f"that a block can be inserted at stage {info.stage} ({info.module!r})",
                describe_error(error),
                do,
            ) from error
        if not torch.equal(_forward(model, x), expected):
            raise Fault(
                f"that the patch at stage {info.stage} ({info.module!r}) starts as the identity",
                "other logits",
                do,
            )
        for _, patch in installed_patches(model):
            with torch.no_grad():
                assert patch.alpha is not None
                patch.alpha.fill_(1.0)
        if torch.equal(_forward(model, x), expected):
            raise Fault(
                f"other logits with the patch at stage {info.stage} ({info.module!r}) open",
                "the same",
                do,
            )


def backbone_freeze(backbone: Subject) -> None:
    """Something outside of the head moves in training while it is frozen: a buffer that forward
    writes whatever the mode.
    """
    model = _hybrid(backbone)
    model.freeze_backbone()
    model.train()
    anatomy = model._hybrid.anatomy
    size = _training_side(backbone, model)
    before = {
        name: tensor for name, tensor in snapshot(model).items() if anatomy.part_of(name) != HEAD
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    with torch.random.fork_rng(devices=[]):
        for step in range(2):
            optimizer.zero_grad()
            x = image(2, _channels(backbone), *size, seed=step)
            first_tensor(model(x)).square().sum().backward()
            optimizer.step()
    after = named_tensors(model)
    if moved := [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]:
        do = "write into buffers only while their module trains, as BatchNorm does"
        raise Fault(
            "that nothing frozen moves in training", f"changes of {join_names(moved, most=4)}", do
        )


def backbone_deterministic(backbone: Subject) -> None:
    """In eval mode two passes differ, the images of a batch are not independent, or the input is
    written to.
    """
    network = _plain(backbone).eval()
    x = _images(backbone, network)
    before, tensors = x.clone(), snapshot(network)
    with torch.random.fork_rng(devices=[]):
        first, second = _forward(network, x), _forward(network, x)
        alone = torch.cat([_forward(network, x[:1]), _forward(network, x[1:])])
    do = "let dropout and noise depend on self.training, and take statistics over one image's axes"
    if not torch.equal(first, second):
        raise Fault("the same logits twice in eval mode", "different ones", do)
    if not close(first, alone, 1e-4):
        raise Fault("the same logits for an image alone and in a batch", "different ones", do)
    after = named_tensors(network)
    if not torch.equal(x, before) or any(
        not torch.equal(tensor, after[name]) for name, tensor in tensors.items()
    ):
        do = "use no in-place operation on the input, and update buffers in training mode only"
        raise Fault(
            "that a pass in eval mode changes nothing", "another input or other buffers", do
        )


def backbone_pickle(backbone: Subject) -> None:
    """The hybrid cannot be pickled or copied, or the copy does something else."""
    model = _hybrid(backbone)
    perturb(model.parameters(), size=0.01)
    check_copies(model, _images(backbone, model), "the hybrid")


def backbone_exports(backbone: Subject) -> None:
    """Exported to ONNX, the network with patches computes something else for a size or number of
    images that its spec allows; an exporter that refuses is no failure.
    """
    runtime = _onnxruntime()
    spec = _spec(backbone)
    model = _hybrid(backbone, {"stage:*": {"wrap": "tvc-kit:gate"}})
    with torch.no_grad():
        for _, patch in installed_patches(model):
            assert patch.alpha is not None
            patch.alpha.fill_(0.5)
    height, width = _side(backbone, model)
    x = image(2, _channels(backbone), height, width)
    _fill_statistics(model, x)
    axes = ["batch"] if spec.fixed_size else ["batch", "", "height", "width"]
    dynamic = {index: name for index, name in enumerate(axes) if name}
    others = [(1, height, width), (3, height, width)]
    if not spec.fixed_size:
        others += [(1, height + 33, width + 17), (2, height + 1, 4 * width + 3)]
        others += [(1, spec.min_size, 3 * height + 2)]
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "network.onnx")
        _export(model, x, file, dynamic)
        session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
        for seed, (num, *size) in enumerate(others):
            given = image(num, x.shape[1], *size, seed=seed)
            found = torch.from_numpy(session.run(None, {"image": given.numpy()})[0])
            expected = _forward(model, given)
            difference = float((found - expected).abs().max() / expected.abs().max())
            if not difference <= 1e-4:
                do = (
                    "compute sizes by operations that exporters know (ONNX divides toward zero), "
                    "without deciding by a size in Python"
                )
                raise Fault(
                    f"the same logits from ONNX Runtime for images {list(given.shape)}",
                    f"a difference of {difference:.2g} of the largest",
                    do,
                )


def _onnxruntime() -> Any:
    # since 1.29 it reports each session to its makers, unless this is said before its first import
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    for name in ("onnx", "onnxruntime"):
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise SkipTest(f"{name} is not installed") from error
    return module


def _export(model: nn.Module, x: Tensor, file: str, dynamic: dict[int, str]) -> None:
    """Write an ONNX file by torch's quick exporter, or where that refuses by its new one."""
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    dims = dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC)  # type: ignore[attr-defined]
    ways: tuple[dict[str, Any], ...] = (
        {"dynamo": False, "dynamic_axes": {"image": dynamic, "logits": {0: "batch"}}},
        {"dynamo": True, "dynamic_shapes": (dims,), "verbose": False},
    )
    reasons = []
    for way in ways:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(model, (x,), file, **names, **way)
            return
        except Exception as error:  # exporters raise nearly anything for what they cannot write
            reasons.append(describe_error(error))
    raise SkipTest(f"torch's exporters refuse it: {'; '.join(reasons)}")


def _fill_statistics(model: nn.Module, x: Tensor) -> None:
    """Bring the statistics of batch normalizations half of the way to those of images.

    With those of the start, a deep network's logits are its biases; with the images' own, rounding
    grows.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum, norm.training = 0.5, True
    _forward(model, x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum, norm.training = momentum, False


BASIC = (
    backbone_built,
    backbone_independent,
    backbone_deterministic,
    backbone_partition,
    backbone_order,
    backbone_head,
    backbone_seeded,
    backbone_stages,
)
"""The checks that the others need: without them the others say nothing."""

CHECKS = (
    *BASIC,
    backbone_last_stage,
    backbone_pooling,
    backbone_sizes,
    backbone_weights,
    backbone_loads_weights,
    backbone_migrates,
    backbone_options,
    backbone_state_dict,
    backbone_features,
    backbone_patches,
    backbone_freeze,
    backbone_pickle,
    backbone_exports,
)


def _spec(backbone: Subject) -> BackboneSpec:
    spec: BackboneSpec = backbone.named.spec
    return spec


def _plain(
    backbone: Subject,
    weights: WeightsSpec | None = None,
    *,
    seed: int | None = SEED,
    **options: Any,
) -> nn.Module:
    """Return a new network of the factory, made under a seed; None takes torch's state as it is and
    moves it on.
    """
    factory = backbone.named.load()
    with torch_seed(seed):
        network: nn.Module = factory(
            _spec(backbone), weights=weights, **{**options, **backbone.params}
        )
    _enliven(network)
    return network


def _hybrid(
    backbone: Subject, patches: dict[str, Any] | None = None, num_classes: int | None = None
) -> HybridModel:
    """Return a hybrid in eval mode, with random weights made under a seed."""
    builder = HybridBuilder(registry=backbone.registry)
    with torch_seed(SEED):
        model = builder.from_backbone(
            backbone.named.qualified,
            weights=None,
            patches=patches,
            num_classes=num_classes,
            options=dict(backbone.params),
        )
    _enliven(model)
    return model.eval()  # type: ignore[return-value]


def _enliven(network: Any) -> None:
    """Fill linear layers that start at zero, as ViT's head does: after them everything looks the
    same.
    """
    if isinstance(network, nn.Module):
        perturb(
            m.weight for m in network.modules() if isinstance(m, nn.Linear) and not m.weight.any()
        )


def _forward(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return first_tensor(network(x))


def _size_option(backbone: Subject) -> int | None:
    spec = _spec(backbone)
    size = {**spec.options, **backbone.params}.get(spec.size_option)
    return size if isinstance(size, int) else None


def _channels(backbone: Subject) -> int:
    spec = _spec(backbone)
    given = backbone.params.get(spec.channels_option) if spec.channels_option else None
    return given if isinstance(given, int) else spec.num_channels


def _side(backbone: Subject, network: nn.Module) -> tuple[int, int]:
    """Return height and width of an image that the network accepts, found out once [pixels]."""
    if "size" not in backbone.memo:
        backbone.memo["size"] = Probe.of(
            network, _spec(backbone), likely=_size_option(backbone)
        ).size
    size: tuple[int, int] = backbone.memo["size"]
    return size


def _training_side(backbone: Subject, network: nn.Module) -> tuple[int, int]:
    """Return height and width of an image that the network accepts in training: auxiliary heads may
    need larger ones.
    """
    sizes = [
        _side(backbone, network),
        *((weights.crop_size, weights.crop_size) for weights in _spec(backbone).weights),
    ]
    for size in sizes[:-1]:
        # what fails for the last one is reported
        with contextlib.suppress(Exception), torch.random.fork_rng(devices=[]):
            _forward(network, image(2, _channels(backbone), *size))
            return size
    return sizes[-1]


def _images(backbone: Subject, network: nn.Module) -> Tensor:
    return image(2, _channels(backbone), *_side(backbone, network))


def _other_images(backbone: Subject, network: nn.Module) -> list[Tensor]:
    """Return images of the sizes at which stages are looked at: one where only one is accepted."""
    height, width = _side(backbone, network)
    sizes = [(height, width)]
    if not _spec(backbone).fixed_size:
        sizes += [(2 * height, 2 * width), (height + 33, width + 17)]
    return [image(2, _channels(backbone), *size) for size in sizes]


def _shapes(network: nn.Module) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()}


@contextlib.contextmanager
def _no_network() -> Iterator[None]:
    """Let nothing be downloaded or found in a cache."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("the conformance kit downloads nothing")

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        offline = {
            "TORCH_HOME": folder,
            "HF_HOME": folder,
            "HF_HUB_CACHE": folder,
            "HF_HUB_OFFLINE": "1",
        }
        stack.enter_context(mock.patch.dict(os.environ, offline))
        stack.enter_context(mock.patch.object(socket, "getaddrinfo", refuse))
        stack.enter_context(mock.patch.object(socket.socket, "connect", refuse))
        yield
