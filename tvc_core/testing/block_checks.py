"""Checks of blocks. Each makes its own instance, so that none sees what another did."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor, nn

from ..advice.factories import parameters_of
from ..errors import ParameterError, TvcError, join_names
from ..surgery.blocks import create_block, create_for_target, create_in_place_of
from ..surgery.operations import Target
from ..surgery.patch import Patch
from ..surgery.sites import Call, Site
from .helpers import (
    SEED,
    build_patched,
    changed_names,
    check_copies,
    close,
    describe_error,
    leaves_seed,
    map_of,
    named_tensors,
    perturb,
    refuses_clearly,
    seeded_block,
    snapshot,
)
from .seeding import torch_seed
from .subjects import Fault, Subject

__all__ = ["BASIC", "CHECKS", "compiling"]

WIDTHS = (16, 32, 64, 48, 96, 24, 8)
"""The first that a block takes is the one that it is tried at [channels]."""
OTHER_WIDTHS = (8, 24, 3, 1)
SIZES = ((7, 5), (1, 1), (1, 9), (16, 16))
"""Heights and widths [pixels]."""
REFUSE = "raise ValueError with what it takes where a width or size is impossible"


def block_made(block: Subject) -> None:
    """The factory does not take the width as its one positional argument, needs parameters, or
    returns no new module.
    """
    module = _make(block)
    if lazy := [
        name for name, tensor in named_tensors(module).items() if nn.parameter.is_lazy(tensor)
    ]:
        do = "make them in __init__; in_channels is the width"
        raise Fault(
            "tensors that have a shape from the start",
            f"none yet at {join_names(lazy, most=4)}",
            do,
        )
    if _make(block) is module:
        raise Fault(
            "a new module from every call of the factory",
            "the same module twice",
            "make the module in the factory",
        )


def block_layouts(block: Subject) -> None:
    """The block fails on a layout that its spec declares, or returns something other than one
    tensor of that layout.
    """
    for layout in block.named.spec.layouts:
        module, width = _ready(block)
        x = map_of(layout, width)
        what = f"a map {list(x.shape)} ({layout}, which the spec declares)"
        try:
            with torch.no_grad():
                y = module(x)
        except Exception as error:  # foreign code may raise any exception
            raise Fault(
                f"that it takes {what}",
                describe_error(error),
                "correct forward, or the spec's layouts",
            ) from error
        if not isinstance(y, Tensor):
            raise Fault(
                f"one tensor for {what}", f"a {type(y).__name__}", "return the new map alone"
            )
        if y.ndim != x.ndim or y.shape[0] != x.shape[0]:
            raise Fault(
                f"a map of the same layout for {what}",
                f"the shape {list(y.shape)}",
                "keep batch and axes",
            )


def block_shapes(block: Subject) -> None:
    """The block fails on odd sizes or widths, or changes the shape though the spec says that it
    keeps it.
    """
    spec, (_, usual) = block.named.spec, _ready(block)
    keep = "keep the shape, or set preserves_shape=False"
    do = f"{keep if spec.preserves_shape else 'take any size'}; {REFUSE}"
    for width in (usual, *OTHER_WIDTHS):
        try:
            module = seeded_block(block, width).eval()
        except TvcError as error:
            if refuses_clearly(error):
                continue
            raise Fault(
                f"that it is made for {width} channels, or refuses them clearly",
                describe_error(error),
                REFUSE,
            ) from error
        for layout in spec.layouts:
            for height, side in SIZES if spec.preserves_shape else SIZES[:1] + SIZES[3:]:
                x = map_of(layout, width, height, side, num=3)
                try:
                    with torch.no_grad():
                        y = module(x)
                except (ValueError, TvcError):
                    continue
                except Exception as error:  # foreign code may raise any exception
                    raise Fault(
                        f"that it takes {list(x.shape)} ({layout})", describe_error(error), do
                    ) from error
                if spec.preserves_shape and y.shape != x.shape:
                    raise Fault(
                        f"the shape {list(x.shape)} ({layout}) back", f"{list(y.shape)}", do
                    )


def block_gradients(block: Subject) -> None:
    """A parameter gets no gradient, so that it never learns; or the input gets none, so that
    nothing before it does.
    """
    layout, width = block.named.spec.layouts[0], _ready(block)[1]
    names = [name for name, parameter in _make(block).named_parameters() if parameter.requires_grad]
    reached: set[str] = set()
    for seed in range(20):  # hidden units after a ReLU may be dead for one set of values
        module = _make(block).train()
        perturb(module.parameters(), seed)
        x = map_of(layout, width, seed=seed)
        # zero: after a ReLU a channel may be dead
        x = (torch.zeros_like(x) if seed == 0 else x).requires_grad_()
        with torch_seed(seed):
            y = module(x)
        if not y.requires_grad:
            continue
        (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))).sum().backward()
        gradients = {
            "the input": x.grad,
            **{name: parameter.grad for name, parameter in module.named_parameters()},
        }
        for name, gradient in gradients.items():
            if gradient is not None and not gradient.isfinite().all():
                what = f"infinite or nan ones at {name}{' for a map of zeros' if seed == 0 else ''}"
                raise Fault("finite gradients", what, "keep roots and divisions away from zero")
            if gradient is not None and gradient.any():
                reached.add(name)
        if reached.issuperset((*names, "the input")):
            return
    lost = [name for name in names if name not in reached]
    if lost:
        raise Fault(
            "a gradient at every parameter",
            f"none at {join_names(lost, most=6)}",
            "use them in forward without detach, or make constants buffers",
        )
    raise Fault(
        "a gradient at the input",
        "none",
        "do not detach the map, or nothing before the block can learn",
    )


def block_identity_start(block: Subject) -> None:
    """With the core's gate the block does not start as the identity: it puts out nan, or changes
    its input.
    """
    spec = block.named.spec
    module, width = _ready(block)
    for layout in spec.layouts:
        if module(map_of(layout, width)).shape != map_of(layout, width).shape:
            raise SkipTest("with these parameters it changes the shape")
        for dtype in (torch.float32, torch.float64, torch.bfloat16, None):
            patch = Patch(_ready(block)[0], gated=spec.gated and hasattr(module, "gate")).train()
            name = (
                "under autocast to bfloat16"
                if dtype is None
                else f"in {str(dtype).removeprefix('torch.')}"
            )
            usual = map_of(layout, width, dtype=dtype or torch.float32)
            for x, which in (
                (usual, name),
                (torch.zeros_like(usual), f"{name}, for a map of zeros"),
            ):
                before = x.clone()
                with torch.no_grad(), torch.random.fork_rng(devices=[]), _autocast(dtype is None):
                    y = patch.to(dtype or torch.float32)(x)
                if y.dtype != x.dtype or not torch.equal(y, before):
                    raise Fault(
                        f"exactly the input while the gate is 0, {which} ({layout})",
                        "not finite values" if not y.isfinite().all() else "other values",
                        "return finite values for finite maps, and do not write into the input",
                    )
    _build_with(block)


def block_gated(block: Subject) -> None:
    """The spec says gated=True, and block(x) is not x * gate(x), there is no method gate, or a
    method mix computes something else.
    """
    if not block.named.spec.gated:
        raise SkipTest("its spec does not say gated=True")
    do = "correct gate(x), or leave gated=True out of the spec"
    for layout in block.named.spec.layouts:
        module, width = _ready(block)
        perturb(module.parameters())
        x = map_of(layout, width)
        if not callable(getattr(module, "gate", None)):
            raise Fault("a method gate(x)", "none", do)
        with torch.no_grad():
            gate = module.gate(x)  # type: ignore[operator]
            y = module(x)
        try:
            product = x * gate
        except (RuntimeError, TypeError):
            product = torch.empty(0)
        if product.shape != x.shape:
            seen = (
                f"the shape {list(gate.shape)}" if isinstance(gate, Tensor) else type(gate).__name__
            )
            raise Fault(f"a gate that broadcasts over {list(x.shape)} ({layout})", seen, do)
        if not close(y, product):
            difference = float((y - product).abs().max())
            raise Fault("block(x) equal to x * gate(x)", f"a difference of {difference:.2g}", do)
        if (mix := getattr(module, "mix", None)) is not None:
            alpha = torch.tensor([0.25])
            mixed, expected = mix(x.clone().requires_grad_(), alpha), x * (1 + alpha * (gate - 1))
            if not close(mixed.detach(), expected):
                difference = float((mixed.detach() - expected).abs().max())
                what = "mix(x, alpha) equal to x * (1 + alpha * (gate(x) - 1))"
                raise Fault(what, f"a difference of {difference:.2g}", "correct mix, or drop it")


def block_in_place_of(block: Subject) -> None:
    """The spec's in_place_of takes other parameters than its factory, fails, changes the module
    whose place the block takes, or shares tensors with it.
    """
    named, layout = block.named, block.named.spec.layouts[0]
    if not named.spec.in_place_of:
        raise SkipTest("its spec does not say in_place_of")
    _check_parameters(block, "in_place_of", "original")
    width, kept = _ready(block)[1], 0
    for original in _replaceable(width):
        what = f"in the place of {type(original).__name__}"
        before = snapshot(original)
        try:
            module, keeps = create_in_place_of(named, original, width, block.params)
            if not keeps:
                continue
            with torch.no_grad():
                y = module.eval()(map_of(layout, width))
        except Exception as error:  # foreign code may raise any exception
            if isinstance(error, TvcError) and refuses_clearly(error):
                continue
            do = f"return None where it keeps nothing, or {REFUSE.replace('width', 'module')}"
            raise Fault(f"a block {what}", describe_error(error), do) from error
        kept += 1
        if not isinstance(y, Tensor):
            raise Fault(f"one tensor {what}", f"a {type(y).__name__}", "return the new map alone")
        if changed := changed_names(before, original):
            do = "copy what it takes over, and leave the module as it is: unpatch gives it back"
            raise Fault(f"an untouched module {what}", f"changes of {join_names(changed)}", do)
        pointers = {t.data_ptr() for t in named_tensors(original).values()}
        if shared := [n for n, t in named_tensors(module).items() if t.data_ptr() in pointers]:
            do = "copy the values; the other module stays beside the model, as it was"
            raise Fault(f"tensors of its own {what}", f"shared {join_names(shared)}", do)
    if not kept:
        raise SkipTest("it takes nothing over from any module that the kit has")


def _check_parameters(block: Subject, entry: str, first: str) -> None:
    """Compare the parameters of another entry of a spec with those of its factory."""
    takes = parameters_of(block.named.load(entry), skip=2)
    wanted = parameters_of(block.named.load(), skip=1)
    if takes is not None and wanted is not None and set(takes) != set(wanted):
        raise Fault(
            f"the parameters of its factory, {join_names(wanted)}",
            f"{join_names(takes)} after {first} and in_channels",
            "give both the same parameters, since a recipe's params go to either",
        )


def _replaceable(width: int) -> Iterator[nn.Module]:
    """Yield modules with values of their own, whose place a block might take."""
    for number, module in enumerate(
        (
            nn.BatchNorm2d(width, eps=1e-3),
            nn.BatchNorm2d(2 * width),  # whose width another replacement has changed
            nn.GroupNorm(1, width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.Conv2d(width, width, 7, stride=2, padding=3, groups=width),
            nn.Linear(width, width),
            nn.PReLU(width),
            nn.ReLU(),
        )
    ):
        perturb(module.parameters(), number)
        yield module.eval()


def block_for_target(block: Subject) -> None:
    """The spec's for_target takes other parameters than its factory, fails, changes the module that
    it is made for, or shares tensors with it.
    """
    named = block.named
    if not named.spec.for_target:
        raise SkipTest("its spec does not say for_target")
    _check_parameters(block, "for_target", "target")
    made = 0
    for layer, x in _layers(_ready(block)[1]):
        before, what = snapshot(layer), f"for a {type(layer).__name__}"
        try:
            patch = _patch_at(block, layer, x)
            with torch.no_grad():
                y = patch(x, layer(x)) if _beside(block) else patch(layer(x))
        except Exception as error:  # foreign code may raise any exception
            if isinstance(error, TvcError) and refuses_clearly(error):
                continue
            do = f"return None for what it does not know, or {REFUSE.replace('width', 'module')}"
            raise Fault(f"a block {what}", describe_error(error), do) from error
        made += 1
        if y.shape != layer(x).shape:
            raise Fault(
                f"a result {list(layer(x).shape)} {what}",
                f"the shape {list(y.shape)}",
                "give the block the shapes of its target",
            )
        if changed := changed_names(before, layer):
            do = "read the module, and leave it as it is"
            raise Fault(f"an untouched module {what}", f"changes of {join_names(changed)}", do)
        own = {t.data_ptr() for t in named_tensors(layer).values()}
        if shared := [n for n, t in named_tensors(patch.block).items() if t.data_ptr() in own]:
            do = "make tensors of the block's own: the target trains and is saved by itself"
            raise Fault(f"tensors of its own {what}", f"shared {join_names(shared)}", do)
    if not made:
        raise SkipTest("it is made for no module that the kit has")


def block_folds(block: Subject) -> None:
    """A layer into which the block was folded computes something other than the two together, or
    folding changes the block.
    """
    folded = 0
    for layer, x in _layers(_ready(block)[1]):
        try:
            patch = _patch_at(block, layer, x)
        except TvcError:
            continue
        if not callable(getattr(patch.block, "fold", None)):
            raise SkipTest("it has no method fold")
        perturb(patch.block.parameters())
        before = snapshot(patch.block)
        with torch.no_grad():
            together = patch(x, layer(x)) if _beside(block) else patch(layer(x))
            try:
                patch.block.fold(layer)  # type: ignore[operator]
            except ValueError:  # it does not fold into such a layer, and says so
                continue
            alone = layer(x)
        folded += 1
        what = f"folded into a {type(layer).__name__}"
        if alone.shape != together.shape or not torch.allclose(alone, together, rtol=1e-9):
            do = "change weight and bias of the target to what the two compute, in place"
            raise Fault(f"what layer and block compute, {what}", "something else", do)
        if changed := changed_names(before, patch.block):
            do = "change the target alone: a fold that is refused later leaves the block running"
            raise Fault(f"an untouched block, {what}", f"changes of {join_names(changed)}", do)
    if not folded:
        do = "fold into a Conv2d, a Linear or a normalization, or leave the method out"
        raise Fault("that it folds into some layer of the kit", "a ValueError for each", do)


def _layers(width: int) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield layers with values of their own, and a map that each takes, in float64."""
    maps = map_of("NCHW", width, num=1, dtype=torch.float64)
    last = map_of("NHWC", width, num=1, dtype=torch.float64)
    for number, (layer, x) in enumerate(
        (
            (nn.Conv2d(width, width, 3, padding=1), maps),
            (nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, groups=width, bias=False), maps),
            (nn.BatchNorm2d(width), maps),
            (nn.Linear(width, 2 * width), last),
            (nn.LayerNorm(width), last),
        )
    ):
        perturb(layer.parameters(), number)
        yield layer.double().eval(), x


def _beside(block: Subject) -> bool:
    """Return whether a block is added to its target's result, as one that starts as zero is."""
    return bool(block.named.spec.starts_as == "zero")


def _patch_at(block: Subject, layer: nn.Module, x: Tensor) -> Patch:
    """Return the block as it stands at a layer, made for it, without a gate and in float64."""
    calls = (Call(tuple(x.shape), tuple(layer(x).shape)),)
    site = Site(path="layer", type_name=type(layer).__name__, calls=calls, image=(8, 12))
    target = Target(layer, site, block.named.spec)
    position = "parallel" if _beside(block) else "after"
    with torch_seed(SEED):
        made = create_for_target(block.named, target, target.channels(position), block.params)
    target.insert(made.double().eval(), position)
    patch = target.insertions[0].patch
    patch.ungate()
    return patch


def block_dtype(block: Subject) -> None:
    """The result has another type than the map: a constant or a conversion in forward turns
    bfloat16 into float32.
    """
    for dtype in (torch.float64, torch.bfloat16):
        module, x = _ready_and_map(block)
        name = str(dtype).removeprefix("torch.")
        try:
            with torch.no_grad():
                y = module.to(dtype)(x.to(dtype))
        except Exception as error:  # foreign code may raise any exception
            do = (
                "make constants with the type of the map, as x.new_zeros(...) does, and buffers "
                "of what it keeps"
            )
            raise Fault(f"that it works in {name}", describe_error(error), do) from error
        if y.dtype != dtype:
            do = "convert the result: .to(x.dtype), and make constants with the type of the map"
            raise Fault(f"{name} for a map in {name}", str(y.dtype).removeprefix("torch."), do)


def block_device(block: Subject) -> None:
    """The block makes or keeps a tensor on the CPU whatever the map's device; seen on torch's
    device "meta".
    """
    module, x = _ready_and_map(block)
    with torch.no_grad():
        expected = module(x).shape
        do = (
            "make tensors with device=x.device, and keep others as parameters or buffers, which "
            "move with the block"
        )
        try:
            y = module.to("meta")(x.to("meta"))
        except Exception as error:  # foreign code may raise any exception
            raise Fault(
                "that it works on another device (meta)", describe_error(error), do
            ) from error
    if not y.is_meta or y.shape != expected:
        raise Fault("a result on the map's device (meta)", f"{list(y.shape)} on {y.device}", do)


def block_deterministic(block: Subject) -> None:
    """In eval mode two passes differ, or a pass changes buffers: dropout without `self.training`,
    moving statistics.
    """
    module, x = _ready_and_map(block)
    before = snapshot(module)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        first, second = module(x), module(x)
    if not torch.equal(first, second):
        do = "let dropout and noise depend on self.training"
        raise Fault("the same result twice in eval mode", "two different ones", do)
    changed = changed_names(before, module)
    if changed:
        do = "update statistics in training mode only, and make tensors in __init__"
        raise Fault(
            "that a pass in eval mode changes nothing", f"changes of {join_names(changed)}", do
        )


def block_batch_independent(block: Subject) -> None:
    """In eval mode the result for an image depends on the others of its batch."""
    module, x = _ready_and_map(block)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        together, alone = module(x), torch.cat([module(x[:1]), module(x[1:])])
    if not close(together, alone):
        difference = (
            float((together - alone).abs().max()) if together.shape == alone.shape else float("inf")
        )
        do = "take means over one image's axes, and running statistics in eval mode"
        raise Fault(
            "the same for an image alone and in a batch, in eval mode",
            f"a difference of {difference:.2g}",
            do,
        )


def block_input_unchanged(block: Subject) -> None:
    """The block writes into the map that it got, which others still read, such as the residual
    connection around it.
    """
    for training in (False, True):
        module, x = _ready_and_map(block, training=training)
        before = x.clone()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            module(x)
        if not torch.equal(x, before):
            do = (
                "use no in-place operation on the input: x * g instead of x.mul_(g), "
                "inplace=False in the first layer"
            )
            raise Fault("the input unchanged", "other values in it", do)


def block_state_dict(block: Subject) -> None:
    """Something that decides the result is not in the state dict, so that a checkpoint does not
    restore the block.
    """
    module, x = _ready_and_map(block, training=True)
    perturb(module.parameters())
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        module(x)
    module.eval()
    other = seeded_block(block, _ready(block)[1], seed=SEED + 1).eval()
    try:
        other.load_state_dict(module.state_dict())
    except Exception as error:  # foreign code may raise any exception
        do = "make the same parameters and buffers for the same arguments"
        raise Fault(
            "that another instance loads its state dict", describe_error(error), do
        ) from error
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        same = torch.equal(other(x), module(x))
    if not same:
        do = "register tensors as parameters or buffers (persistent ones)"
        raise Fault("the same result from an instance with the same state dict", "another one", do)


def block_pickle(block: Subject) -> None:
    """pickle or deepcopy fails, loses something or shares tensors; torch.save of the model and data
    loaders need them.
    """
    module, x = _ready_and_map(block)
    check_copies(module, x, "the block")


def block_independent(block: Subject) -> None:
    """Two instances share parameters, buffers or modules: a default argument or class attribute is
    the same for all.
    """
    width = _ready(block)[1]
    one, two = seeded_block(block, width), seeded_block(block, width)
    modules = {id(module) for module in one.modules()}
    shared = [type(module).__name__ for module in two.modules() if id(module) in modules]
    pointers = {tensor.data_ptr() for tensor in named_tensors(one).values() if tensor.numel()}
    shared += [
        name
        for name, tensor in named_tensors(two).items()
        if tensor.numel() and tensor.data_ptr() in pointers
    ]
    if shared:
        do = (
            "make modules and tensors in __init__, not in the class, the module or a default "
            "argument"
        )
        raise Fault(
            "two blocks without anything in common", f"shared {join_names(shared, most=4)}", do
        )


def block_no_hidden_state(block: Subject) -> None:
    """One instance changes what another computes, through something that the class or the module
    keeps.
    """
    width = _ready(block)[1]
    one, two = seeded_block(block, width), seeded_block(block, width)
    x = map_of(block.named.spec.layouts[0], width)
    two.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        before = two(x)
        perturb(one.parameters())
        one.train()(x * 2 + 1)
        after = two(x)
    if not torch.equal(before, after):
        do = "keep state in the instance, not in the class or in a global"
        raise Fault("that one block does not change another's result", "a change", do)


def block_channels_last(block: Subject) -> None:
    """The block fails or computes something else for maps in torch's channels_last memory
    format.
    """
    if "NCHW" not in block.named.spec.layouts:
        raise SkipTest("it takes no [N, C, H, W]")
    module, width = _ready(block)
    x = map_of("NCHW", width)
    do = "use reshape or flatten instead of view, and no strides"
    with torch.no_grad():
        expected = module(x)
        try:
            y = module.to(memory_format=torch.channels_last)(
                x.to(memory_format=torch.channels_last)
            )
        except Exception as error:  # foreign code may raise any exception
            raise Fault(
                "that it takes maps in channels_last format", describe_error(error), do
            ) from error
    if not close(y, expected, 1e-4):
        raise Fault("the same result in channels_last format", "another one", do)


def block_compiles(block: Subject) -> None:
    """torch.compile cannot make one graph of the block, or the graph computes something else."""
    module, x = _ready_and_map(block)
    do = "avoid .item(), prints and Python branches on values in forward"
    with torch.no_grad():
        expected = module(x)
        try:
            with compiling():
                y = torch.compile(module, fullgraph=True, backend="eager")(x)
        except Exception as error:  # the compiler raises its own errors
            raise Fault(
                "that torch.compile(fullgraph=True) takes it", describe_error(error), do
            ) from error
    if not close(y, expected):
        raise Fault("the same result when compiled", "another one", do)


def block_exports(block: Subject) -> None:
    """torch.export cannot make a program of the block for any batch and image size; exporters to
    ONNX rely on it.
    """
    layout = block.named.spec.layouts[0]
    module, width = _ready(block)
    dim = torch.export.Dim
    axes: dict[str, dict[int, Any]] = {
        "NCHW": {0: dim.AUTO, 2: dim.AUTO, 3: dim.AUTO},
        "NHWC": {0: dim.AUTO, 1: dim.AUTO, 2: dim.AUTO},
        "NLC": {0: dim.AUTO, 1: dim.AUTO},
        "NC": {0: dim.AUTO},
    }
    x, other = map_of(layout, width), map_of(layout, width, 10, 14, num=3)
    do = "compute sizes from x.shape without int(), .item() or branches on them"
    with torch.no_grad():
        try:
            expected = module(other)
        except (ValueError, TvcError) as error:
            raise SkipTest(f"it refuses maps of another size: {describe_error(error)}") from error
        try:
            with compiling():
                y = torch.export.export(module, (x,), dynamic_shapes=(axes[layout],)).module()(
                    other
                )
        except Exception as error:  # the exporter raises its own errors
            raise Fault(
                "that torch.export takes it with dynamic shapes", describe_error(error), do
            ) from error
    if not close(y, expected):
        raise Fault("the same result when exported, at another size", "another one", do)


def block_parameters(block: Subject) -> None:
    """A misspelt parameter is accepted without an error, as by **kwargs that nothing reads."""
    width = _ready(block)[1]
    try:
        create_block(block.named, width, {**block.params, "misspelt_parameter": 1})
    except ParameterError:
        return
    do = "name the parameters in the signature, without **kwargs"
    raise Fault("that an unknown parameter is refused", "that misspelt_parameter=1 is accepted", do)


def block_seeded(block: Subject) -> None:
    """The start does not follow torch's seed, or making or running the block sets the seed for
    all code.
    """
    module, x = _ready_and_map(block, training=True)
    width = _ready(block)[1]
    one, two = seeded_block(block, width), seeded_block(block, width)
    changed = changed_names(snapshot(one), two)
    if changed:
        do = "take random numbers from torch's default generator"
        raise Fault(
            "the same start under the same seed",
            f"differences at {join_names(changed, most=4)}",
            do,
        )
    for what, run in (
        ("making it", lambda: create_block(block.named, width, block.params)),
        ("a forward pass", lambda: module(x)),
    ):
        if not leaves_seed(run):
            do = "never call torch.manual_seed in a block"
            raise Fault(
                f"that {what} leaves the seed alone",
                "the same random state after different seeds",
                do,
            )


BASIC = (
    block_made,
    block_independent,
    block_layouts,
    block_input_unchanged,
    block_shapes,
    block_deterministic,
)
"""The checks that the others need: without them the others say nothing."""

CHECKS = (
    *BASIC,
    block_gradients,
    block_identity_start,
    block_gated,
    block_in_place_of,
    block_for_target,
    block_folds,
    block_dtype,
    block_device,
    block_batch_independent,
    block_state_dict,
    block_pickle,
    block_no_hidden_state,
    block_channels_last,
    block_compiles,
    block_exports,
    block_parameters,
    block_seeded,
)


def _make(block: Subject) -> nn.Module:
    return _ready(block)[0]


def _ready(block: Subject) -> tuple[nn.Module, int]:
    """Return a new block in eval mode, and the width that it was made for: the first of WIDTHS that
    it takes.
    """
    refused: Exception | None = None
    for width in WIDTHS:
        try:
            return seeded_block(block, width).eval(), width
        except TvcError as error:
            refused = refused or error
            if not refuses_clearly(error):
                break
    assert refused is not None
    do = (
        "let the factory take in_channels as its first argument and give the others defaults, or "
        "say params=... for it"
    )
    raise Fault(
        f"a module from the factory for {WIDTHS[0]} channels", describe_error(refused), do
    ) from refused


def _ready_and_map(block: Subject, *, training: bool = False) -> tuple[nn.Module, Tensor]:
    module, width = _ready(block)
    return module.train(training), map_of(block.named.spec.layouts[0], width)


def _build_with(block: Subject) -> None:
    """Build hybrids with the block at the widths of the kit's networks that it takes; the core
    proves the start.
    """
    tokens_only = not {"NCHW", "NHWC"} & set(block.named.spec.layouts)
    host, paths = (
        ("tvc-kit:tokens", ("layers.0",))
        if tokens_only
        else ("tvc-kit:maps", ("layer3", "layer2", "layer1"))
    )
    if tokens_only and "NLC" not in block.named.spec.layouts:
        return
    op = "inject" if block.named.spec.positions else "wrap"
    for path in paths:
        patches = {path: {op: {"type": block.named.qualified, "params": dict(block.params)}}}
        try:
            build_patched(block.registry, host, patches)
        except ParameterError as error:
            if not refuses_clearly(
                error.__cause__ if isinstance(error.__cause__, TvcError) else error
            ):
                raise
        except TvcError as error:
            do = "let it take maps of one image, in eval mode"
            raise Fault(
                f"a hybrid with the block at {path!r} of {host}", describe_error(error), do
            ) from error


def _autocast(enabled: bool) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16) if enabled else contextlib.nullcontext()


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Compile afresh and quietly, and forget it afterwards."""
    torch._dynamo.reset()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch._dynamo.reset()
