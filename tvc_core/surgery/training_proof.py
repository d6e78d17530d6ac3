"""The proof that what builds also trains: one training step of the patched network, for a look.

Every other check of a patch runs in eval mode without gradients. Only a training step shows a block
that draws random numbers for maps it does not accept, a module that overwrites in place what a
backward pass needs, a gradient that is infinite, and parameters that none can reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PatchError, describe_error, join_names
from .gates import gates_open
from .layouts import Shape
from .noise import first_float, noise, noise_source
from .operations import Insertion
from .patch import Patch
from .patches import set_module
from .prepare import Prepared
from .probing import probing
from .sites import Probe

__all__ = ["prove_trains"]

Gradients = dict[int, Tensor | None]
"""Gradients of parameters by the parameters' ids; None where nothing leads from the loss to it."""


def prove_trains(
    network: nn.Module,
    prepared: Sequence[Prepared],
    originals: Mapping[str, nn.Module],
    probe: Probe,
) -> None:
    """Run one training step of a patched network, of which nothing stays: no gradient, statistic,
    mode or random number.

    A network that cannot be trained with so small an image, without its patches as well, is no
    reason to refuse anything: then the blocks are run alone.

    Args:
        network: the network with its patches in, and with its head.
        prepared: the patches.
        originals: replaced modules by their paths.
        probe: an image that the network accepts.

    Raises:
        PatchError: a patch makes the step fail, nothing in a new block can learn, or weights of it
            that are all zero keep the gradient from each other for ever.
    """
    if not prepared or probe.image.is_meta:
        return
    # The step as a user would do it comes first, since mostly it works. If it fails, the same step
    # without the patches tells whose fault that is: if it fails as well, the network cannot be
    # trained on so small an image (a batch normalization of one pixel), and the blocks are tried
    # alone on what was measured at their places. Otherwise the module that was running when it
    # failed is the culprit; where the error comes from the backward pass, in which no module runs,
    # each patch is tried by itself.
    new = {id(patch): _new_parameters(patch, originals) for patch in prepared}
    running: list[Prepared] = []
    gradients: Gradients = {}
    try:
        with _watched(prepared, running):
            gradients = _step(network, prepared, probe, [p for each in new.values() for p in each])
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a forward pass may raise SystemExit or worse
        with _without(network, prepared, originals):
            alone_too = _fails(lambda: _step(network, (), probe, ()))
        if not alone_too:
            culprits = running[-1:] or _culprits(network, prepared, originals, probe, new)
            raise _failure(network, culprits, probe, error) from error
        for patch in prepared:
            for insertion, shapes in _places(patch):
                _run_alone(patch, insertion, shapes)
    for patch in prepared:
        parameters = new[id(patch)]
        if parameters and not _learns(patch, parameters, gradients):
            _prove_learns(patch, parameters)
        if any(_is_stuck(parameter, gradients) for parameter in parameters):
            _prove_zeros_learn(patch, parameters)


def _new_parameters(
    patch: Prepared, originals: Mapping[str, nn.Module]
) -> tuple[nn.Parameter, ...]:
    modules = [insertion.patch for insertion in patch.insertions]
    found = [parameter for module in modules for parameter in module.parameters()]
    if patch.replacement is not None:
        kept = {id(parameter) for parameter in originals[patch.site.path].parameters()}
        found += [p for p in patch.replacement.parameters() if id(p) not in kept]
    return tuple(parameter for parameter in found if parameter.requires_grad)


@contextmanager
def _training(patches: Iterable[Patch], *modules: nn.Module) -> Iterator[None]:
    """Put modules in training mode with gradients and open gates; afterwards all is as before."""
    with probing(*modules), gates_open(patches), torch.enable_grad():
        for module in modules:
            for each in module.modules():
                each.training = True
        yield


def _step(
    network: nn.Module,
    prepared: Sequence[Prepared],
    probe: Probe,
    parameters: Sequence[nn.Parameter],
) -> Gradients:
    """Run the network in training mode, forward and backward, on one image; if that fails, on two:
    a batch normalization of maps of one pixel needs them.
    """
    patches = [insertion.patch for patch in prepared for insertion in patch.insertions]

    def run(image: Tensor) -> Gradients:
        with _training(patches, network):
            leaf = image.clone().requires_grad_()
            found = _gradients(_tensors(network(leaf.clone())), [leaf, *parameters])
        # half precision overflows in networks that train well once their loss is scaled
        if leaf.dtype != torch.float16 and not all(map(_is_finite, found.values())):
            raise ArithmeticError("a gradient is no finite number")
        return found

    try:
        return run(probe.image)
    except Exception:  # the second run tells what it is
        return run(torch.cat([probe.image, probe.image.flip(-1)]))


def _gradients(outputs: Iterable[Tensor], of: Sequence[Tensor]) -> Gradients:
    """Return the gradients of a random linear function of the outputs."""
    # A random direction, not the sum: the sum of a softmax or of a normalized map is constant, and
    # its gradient would be zero where a real loss has one.
    outputs = [output for output in outputs if output.requires_grad]
    of = [tensor for tensor in of if tensor.requires_grad]
    if not outputs or not of:
        return {}
    source = noise_source()
    directions = [noise(y.shape, source).to(y) for y in outputs]
    found = torch.autograd.grad(outputs, of, directions, allow_unused=True)
    return {id(tensor): gradient for tensor, gradient in zip(of, found, strict=True)}


def _is_finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(gradient.isfinite().all())


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (Mapping, list, tuple)):
        for each in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(each)


# -- which patch it is -----------------------------------------------------------------------------


@contextmanager
def _watched(prepared: Iterable[Prepared], running: list[Prepared]) -> Iterator[None]:
    """Keep a list of the patches whose new modules are running; one that raises stays in it."""
    with ExitStack() as stack:
        for patch in prepared:
            modules = [insertion.patch for insertion in patch.insertions]
            for module in [*modules, *([patch.replacement] if patch.replacement else [])]:
                start = module.register_forward_pre_hook(lambda *_, p=patch: running.append(p))
                end = module.register_forward_hook(lambda *_: _drop_last(running))
                stack.callback(start.remove)
                stack.callback(end.remove)
        yield


def _drop_last(running: list[Prepared]) -> None:
    running.pop()


@contextmanager
def _without(
    network: nn.Module, patches: Iterable[Prepared], originals: Mapping[str, nn.Module]
) -> Iterator[None]:
    """Take patches out for a while, the last one first."""
    off = list(patches)
    inserted = [insertion.patch for patch in off for insertion in patch.insertions]
    replaced = [patch for patch in reversed(off) if patch.replacement is not None]
    for patch in inserted:
        patch.switch("proof", False)
    for each in replaced:
        set_module(network, each.site.path, originals[each.site.path])
    try:
        yield
    finally:
        for each in reversed(replaced):
            assert each.replacement is not None
            set_module(network, each.site.path, each.replacement)
        for patch in inserted:
            patch.switch("proof", True)


def _fails(step: Callable[[], Any]) -> bool:
    try:
        step()
    except KeyboardInterrupt:
        raise
    except BaseException:  # a forward pass may raise SystemExit or worse
        return True
    return False


def _culprits(
    network: nn.Module,
    prepared: Sequence[Prepared],
    originals: Mapping[str, nn.Module],
    probe: Probe,
    new: Mapping[int, Sequence[nn.Parameter]],
) -> list[Prepared]:
    """Return the patches with each of which alone the step fails; all, if it needs several."""
    found = []
    for patch in prepared:
        with _without(network, [other for other in prepared if other is not patch], originals):
            if _fails(partial(_step, network, [patch], probe, new[id(patch)])):
                found.append(patch)
    return found or list(prepared)


def _failure(
    network: nn.Module, culprits: Sequence[Prepared], probe: Probe, error: BaseException
) -> PatchError:
    what = ", ".join(f"{_place(patch)} ({_block_name(patch)})" for patch in culprits)
    reason = describe_error(error)[:300]
    if _fails(lambda: probe.run(network)):  # it ran until the head changed
        return PatchError(
            f"{what}: the block was made for the width there, which num_classes changes: {reason}. "
            "Insert it before the head's last layer, or leave num_classes out"
        )
    advice = "Try other parameters, another block or another place"
    if "inplace" in reason:
        advice = (
            "Something changes in place what the backward pass needs, the block itself or the "
            "module after it: take a block that does not end with an activation, or another place"
        )
    return PatchError(f"{what}: builds, but a training step fails: {reason}. {advice}")


def _place(patch: Prepared) -> str:
    return str(patch.plan.entry.where or patch.site.path)


def _block_name(patch: Prepared) -> str:
    plan = patch.plan
    return (plan.block or plan.op).qualified


# -- whether it learns -----------------------------------------------------------------------------


def _learns(
    patch: Prepared, parameters: Iterable[nn.Parameter], gradients: Mapping[int, Tensor | None]
) -> bool:
    """Return whether a block leaves its start: its gate opens, and then something in it moves. One
    without parameters has nothing to learn.
    """

    # The gate is opened for the step, so gradients go through to the block, and both must come: one
    # for the gate, without which the block stays closed for ever, and one for something inside. Not
    # for each parameter: a unit after a ReLU may be dead on one image, and learn on the next.
    def moves(parameter: nn.Parameter) -> bool:
        return _moves(parameter, gradients)

    gates = _gates(patch)
    others = [p for p in parameters if all(p is not gate for gate in gates)]
    return not others or (all(moves(gate) for gate in gates) and any(moves(p) for p in others))


def _prove_learns(patch: Prepared, parameters: Sequence[nn.Parameter]) -> None:
    """Refuse a patch in which nothing can learn. Where the network hands it no gradient, because
    a scale after it is zero, it may still learn later: so it is asked alone, and on other images
    where all its units after a ReLU are dead on the first.
    """
    for shift in (0.0, 4.0, -4.0):
        gradients: Gradients = {}
        for insertion, shapes in _places(patch):
            gradients |= _run_alone(patch, insertion, shapes, parameters, shift=shift)
        if _learns(patch, parameters, gradients):
            return
    raise _never_learns(patch, "parameters")


def _prove_zeros_learn(patch: Prepared, parameters: Sequence[nn.Parameter]) -> None:
    """Refuse a patch of which some weights can never learn: they are zero, and so is each other's
    gradient, whatever the rest of the block learns.
    """
    # A weight that is zero may have no gradient in the first step and get one in the second, when
    # what it is multiplied with has moved (the two factors of an adapter, of which one is random).
    # So everything that has a gradient is moved as a step of training would, and the block is asked
    # again, until nothing new has one. Vectors are not asked: the gradient of a bias before a batch
    # normalization is zero by design.
    gates, before = _gates(patch), [parameter.detach().clone() for parameter in parameters]
    moved, stuck, gradients = -1, list(parameters), Gradients()
    try:
        while moved < sum(_moves(parameter, gradients) for parameter in parameters):
            moved = sum(_moves(parameter, gradients) for parameter in parameters)
            for parameter in parameters:
                if _moves(parameter, gradients) and all(parameter is not gate for gate in gates):
                    step = gradients[id(parameter)]
                    assert step is not None
                    parameter.data.sub_(0.1 * step / step.abs().max())
            for insertion, shapes in _places(patch):
                gradients |= _run_alone(patch, insertion, shapes, parameters)
            stuck = [each for each in parameters if _is_stuck(each, gradients)]
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.data.copy_(value)
    if stuck:
        raise _never_learns(patch, join_names(_names(patch, stuck), most=4))


def _is_stuck(parameter: nn.Parameter, gradients: Mapping[int, Tensor | None]) -> bool:
    return parameter.ndim > 1 and not _moves(parameter, gradients) and not bool(parameter.any())


def _moves(parameter: nn.Parameter, gradients: Mapping[int, Tensor | None]) -> bool:
    gradient = gradients.get(id(parameter))
    return gradient is not None and bool((gradient != 0).any())


def _gates(patch: Prepared) -> list[nn.Parameter]:
    return [i.patch.alpha for i in patch.insertions if i.patch.alpha is not None]


def _names(patch: Prepared, parameters: Iterable[nn.Parameter]) -> Iterator[str]:
    """Yield the names of parameters inside a patch's blocks."""
    wanted = {id(parameter) for parameter in parameters}
    modules = [insertion.patch.block for insertion in patch.insertions]
    for module in [*modules, *([patch.replacement] if patch.replacement is not None else [])]:
        yield from (name for name, each in module.named_parameters() if id(each) in wanted)


def _never_learns(patch: Prepared, what: str) -> PatchError:
    init = patch.plan.init
    start = f"the start that init: {init.spec.name} gives it" if init else "its start"
    return PatchError(
        f"{_place(patch)}: {_block_name(patch)} would never learn. At {start} no gradient reaches "
        f"its {what}, since factors that are all zero keep it from each other. Leave init out: "
        "by its gate a patch starts as the identity without it, or take one that fills the "
        "parameters, such as kaiming"
    )


def _places(patch: Prepared) -> Iterator[tuple[Insertion | None, tuple[Shape, Shape]]]:
    """Yield what was measured where a patch's blocks run: the maps that are read and written; None
    stands for the replacement.
    """
    if patch.replacement is not None:
        shape = patch.site.seen("input")[0]
        yield None, (shape, shape)
    for insertion in patch.insertions:
        site, position = insertion.site, insertion.position
        yield insertion, (site.shape(position.reads), site.shape(position.writes))


def _run_alone(
    patch: Prepared,
    insertion: Insertion | None,
    shapes: tuple[Shape, Shape],
    parameters: Sequence[nn.Parameter] = (),
    *,
    shift: float = 0.0,
) -> Gradients:
    """Run one new module in training mode, forward and backward, on two random images, normal
    around `shift`.
    """
    module = patch.replacement if insertion is None else insertion.patch
    assert module is not None
    like = first_float(module)
    source = noise_source()
    x, written = (
        (noise((2, *shape[1:]), source) + shift).to(like).requires_grad_() for shape in shapes
    )
    maps = (x,) if insertion is None or not insertion.position.keeps_input else (x, written)
    try:
        with _training([] if insertion is None else [insertion.patch], module):
            y = module(*(each.clone() for each in maps))
            return _gradients(_tensors(y), [x, *parameters])
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a forward pass may raise SystemExit or worse
        raise PatchError(
            f"{_place(patch)} ({_block_name(patch)}): builds, but fails in training mode on "
            f"{list(x.shape)}: {describe_error(error)[:300]}"
        ) from error
