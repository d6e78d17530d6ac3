"""Tools for a training loop: parameter groups for its optimizer, and an audit of what it moved."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .errors import FreezeError, ParameterError, did_you_mean, join_names, short_repr
from .model import freezing
from .model.freezing import held_modules, part_of_parameter
from .model.reading import read_features
from .model.state import HybridState, state_of
from .surgery.anatomy import HEAD, STEM, Anatomy
from .surgery.initializers import is_normalization
from .surgery.marks import check_hybrid
from .surgery.noise import image_for
from .surgery.patches import placed_patches
from .surgery.probing import probing

__all__ = ["AuditReport", "audit", "freeze_head", "param_groups"]

BY_CHOICES = ("stage", "block")
_POSITIONS = re.compile(r"(token|pos_embed|position)[^.]*$|(^|\.)cpb_mlp\.")
"""Class tokens, position embeddings and Swin's tables of them, the network that makes Swin v2's
included.
"""


def param_groups(
    model: nn.Module,
    lr: float,
    layer_decay: float | None = None,
    weight_decay: float = 0.01,
    by: str = "stage",
) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups for an optimizer: each once, from the stem to the
    head.

    A layer has the rate lr * layer_decay ** (its distance from the head). The head, auxiliary
    heads, inserted blocks and modules that patches put in the place of others are new, so they have
    the full rate wherever they are. Weight decay is for the weights of convolutions, linear layers
    and their like, not for normalizations, biases, gates, factors for each channel, class tokens
    and position embeddings.

    Args:
        model: a hybrid. Frozen parameters are left out, so call it again after thawing.
        lr: rate of the head.
        layer_decay: factor above 0, at most 1, from one layer to the one before it; None for one
            rate.
        weight_decay: of the groups that have it; 0.01 is that of torch.optim.AdamW.
        by: what a layer is: "stage" (stem, each stage, head) or "block" (stem, each block of a
            stage, head), for factors such as 0.75 that are given for each block of a network (Clark
            et al. 2020, arXiv:2003.10555; Bao et al. 2021, arXiv:2106.08254).

    Returns:
        Groups with the keys `params`, `lr`, `weight_decay` and `name`, such as "stage 2", "stage 2,
        no decay" or "new".

    Raises:
        ParameterError: `model` is not a hybrid, or a value is out of range.
        FreezeError: nothing is trainable.
    """
    _check(model, lr, layer_decay, weight_decay, by)
    state = state_of(model)
    anatomy, new = state.anatomy, state.new_modules
    modules = dict(model.named_modules())
    # A layer is what gets one rate: a stage, or one block of it. The last one gets `lr`, and each
    # one before it `layer_decay` times as much, as in BEiT and timm. What is new (blocks of
    # patches, replaced layers) starts from nothing and gets the full rate wherever it stands; so
    # does the head.
    layers = list(_layers(anatomy, modules, by))
    names = list(dict.fromkeys(layer for layer, _ in layers))
    factor = 1.0 if layer_decay is None else layer_decay
    rates = {layer: lr * factor**distance for distance, layer in enumerate(reversed(names))}
    groups: dict[str, dict[str, Any]] = {}
    for layer in (*names, "new"):
        for name, decay in ((layer, weight_decay), (f"{layer}, no decay", 0.0)):
            groups[name] = {
                "params": [],
                "lr": rates.get(layer, lr),
                "weight_decay": decay,
                "name": name,
            }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owner = name.rpartition(".")[0]
        part, inserted = part_of_parameter(name, anatomy)
        if any(f"{name}.".startswith(f"{head}.") for head in anatomy.heads):
            layer = HEAD
        elif inserted or part is None or owner in new:
            layer = "new"
        else:
            layer = next(
                layer for layer, path in layers if name == path or name.startswith(f"{path}.")
            )
        decays = _decays(name, parameter, modules[owner])
        groups[layer if decays else f"{layer}, no decay"]["params"].append(parameter)
    found = [group for group in groups.values() if group["params"]]
    if not found:
        raise FreezeError(
            "nothing of the model is trainable, so an optimizer has nothing to do; thaw some of it "
            "first"
        )
    return found


def _layers(anatomy: Anatomy, modules: dict[str, nn.Module], by: str) -> Iterator[tuple[str, str]]:
    """Yield (layer, path) in order of execution. A layer has one or several paths; auxiliary heads
    are not layers.
    """
    auxiliary = {path for path, _ in anatomy.auxiliary}
    for part in anatomy.parts:
        paths = [path for found, path in anatomy.items() if found == part and path not in auxiliary]
        if by == "stage" or part in (STEM, HEAD):
            yield from ((part, path) for path in paths)
            continue
        # Small layers between blocks (a normalization, pooling) have no matrix and make no layer of
        # their own: they belong to the block before them, or to the first one if they come first.
        # So a stage has as many layers as it has blocks.
        index, begun = 0, False
        for block in (block for path in paths for block in _blocks(modules, path)):
            begins = _has_matrix(modules.get(block))
            index += begins and begun
            begun = begun or begins
            yield f"{part}, block {index}", block


def _blocks(modules: dict[str, nn.Module], path: str) -> list[str]:
    """Return the paths of the blocks in a module: the children of a sequence of modules that have
    children themselves.
    """
    module = modules.get(path)
    if isinstance(module, nn.Sequential) and any(child._modules for child in module.children()):
        return [f"{path}.{name}" for name in module._modules]
    return [path]


def _has_matrix(module: nn.Module | None) -> bool:
    """Tell whether a module makes a block; a normalization, activation or pooling layer belongs to
    its neighbor.
    """
    return module is not None and any(p.ndim >= 2 for p in module.parameters())


def _decays(name: str, parameter: nn.Parameter, owner: nn.Module) -> bool:
    if parameter.ndim < 2 or is_normalization(owner) or _POSITIONS.search(name):
        return False
    leaf = name.rpartition(".")[2]
    # of what is no layer's weight, a factor for each channel (ConvNeXt's layer_scale [C, 1, 1]) is
    # like a 1-D parameter
    return "bias" not in leaf and (
        "weight" in leaf or sum(size > 1 for size in parameter.shape) > 1
    )


def _check(
    model: object, lr: object, layer_decay: object, weight_decay: object, by: object
) -> None:
    check_hybrid(model, "param_groups")
    if not _is_number(lr) or not 0 < lr < float("inf"):  # type: ignore[operator]
        raise ParameterError(f"lr is a number above 0, not {short_repr(lr)}")
    if layer_decay is not None and (not _is_number(layer_decay) or not 0 < layer_decay <= 1):  # type: ignore[operator]
        raise ParameterError(
            "layer_decay is a number above 0 and at most 1, or None for one rate, not "
            f"{short_repr(layer_decay)}"
        )
    if not _is_number(weight_decay) or not 0 <= weight_decay < float("inf"):  # type: ignore[operator]
        raise ParameterError(
            f"weight_decay is a number of at least 0, not {short_repr(weight_decay)}"
        )
    if by not in BY_CHOICES:
        hint = did_you_mean(str(by), BY_CHOICES)
        raise ParameterError(
            f"by says what a layer is: {join_names(BY_CHOICES)}, not {short_repr(by)}.{hint}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(kw_only=True)
class AuditReport:
    """What an audit found. Filled when its context ends.

    Args:
        moved: frozen parameters and buffers whose bits have changed, or that are gone.
        without_gradient: trainable parameters that no backward pass reached.
        not_in_optimizer: trainable parameters that the optimizer does not have.
        zero_gradient: trainable parameters that backward passes reached with zeros only, so that
            they cannot learn. The first pass tells that of a block whose gate is open or that has
            none; for all else it takes a second one, since a closed gate or a head of zeros lets
            gradients through after its own first step.
        num_frozen: frozen parameters and buffers that were watched.
        num_trainable: trainable parameters that were watched.
        finished: the context has ended.
    """

    moved: tuple[str, ...] = ()
    without_gradient: tuple[str, ...] = ()
    not_in_optimizer: tuple[str, ...] = ()
    zero_gradient: tuple[str, ...] = ()
    num_frozen: int = 0
    num_trainable: int = 0
    finished: bool = False

    @property
    def ok(self) -> bool:
        """The audit has ended and found nothing."""
        found = (self.moved, self.without_gradient, self.not_in_optimizer, self.zero_gradient)
        return self.finished and not any(found)

    def __str__(self) -> str:
        if not self.finished:
            return "audit: not finished; the report is complete when its context ends"
        return "\n".join(
            [
                f"frozen and moved: {_some(self.moved)} of {self.num_frozen}",
                f"trainable without gradient: {_some(self.without_gradient)} of "
                f"{self.num_trainable}",
                f"trainable and not in the optimizer: {_some(self.not_in_optimizer)} of "
                f"{self.num_trainable}",
                f"trainable, but only zeros as gradient: {_some(self.zero_gradient)} of "
                f"{self.num_trainable}",
            ]
        )


def _some(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({join_names(names, most=6)})" if names else "none"


def freeze_head(model: nn.Module, stages: Sequence[int | str] | int | str | None = None) -> None:
    """Freeze the classifier of a hybrid, whose output is not used, and change nothing else.

    Without gradients, its parameters would stop DistributedDataParallel.

    Args:
        model: a hybrid.
        stages: whose maps are read, as `get_stage_outputs` names them: patches that do not run for
            these are named in a warning.

    Raises:
        ParameterError: `model` is not a hybrid.
        StageError: a stage that is not there.
        FreezeError: the model is wrapped in DistributedDataParallel already.
    """
    check_hybrid(model, "freeze_head")
    state = state_of(model)
    idle = [] if stages is None else _idle_patches(model, state, stages)
    freezing.freeze_head(model, state)
    if idle:
        warnings.warn(
            f"patches that will have no effect: {join_names(idle)}. What is used ends before they "
            "run, so they learn nothing. Choose targets in stages whose maps are used",
            UserWarning,
            stacklevel=3,
        )


def _idle_patches(
    network: nn.Module, state: HybridState, stages: Sequence[int | str] | int | str
) -> list[str]:
    """Return the targets of patches that do not run where only the maps of some stages are read."""
    homes = [(home, each.record.target) for each in state.patches for home in each.record.paths]
    ran: set[str] = set()

    def watch(path: str) -> Any:
        return network.get_submodule(path).register_forward_pre_hook(lambda *_: ran.add(path))

    if not homes:
        return []
    hooks = [watch(home) for home, _ in homes]
    try:
        with probing(network):
            image = image_for(network, state.probe_shape)
            read_features(network, state, image, state.anatomy.feature_indices(stages))
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(target for home, target in homes if home not in ran))


@contextmanager
def audit(model: nn.Module, optimizer: Any, strict: bool = False) -> Iterator[AuditReport]:
    """Watch some steps of training, and afterwards tell what moved or was left out against the
    intent.

    Frozen are parameters that do not require gradients when the context begins, the buffers of the
    modules that `model.train()` leaves in eval mode, and those of normalizations that are frozen by
    hand. Keeps a copy of them until the end.

    Args:
        model: a hybrid, the one inside where it is wrapped or compiled.
        optimizer: what the loop steps with, a torch optimizer.
        strict: raise at the end if something was found.

    Yields:
        The report, filled when the context ends without an exception.

    Raises:
        ParameterError: `model` is not a hybrid, or `optimizer` has no parameter groups.
        FreezeError: `strict`, and something was found.
    """
    check_hybrid(model, "audit")
    if not isinstance(getattr(optimizer, "param_groups", None), list):
        raise ParameterError(
            f"audit takes a torch optimizer, which has param_groups, not {type(optimizer).__name__}"
        )
    report = AuditReport()
    # By value, not by flag: weight decay, an optimizer that has seen the parameter, a loop that
    # calls train() on a part, each moves what requires no gradient, and no flag shows it. Gradients
    # are counted when they arrive, so a loop may set them to None between its steps. One pass with
    # zeros proves nothing for a block whose gate is closed, since only the gate has a gradient
    # then.
    frozen = {name: tensor.detach().clone() for name, tensor in _frozen_tensors(model)}
    trainable = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    passes: dict[str, int] = {}
    """Backward passes that reached a parameter, negative once a gradient was not zero."""

    def count(parameter: Tensor, name: str) -> None:
        seen = passes.get(name, 0)
        moves = seen < 0 or (parameter.grad is not None and bool(parameter.grad.any()))
        passes[name] = -1 if moves else seen + 1

    hooks = [
        parameter.register_post_accumulate_grad_hook(partial(count, name=name))
        for name, parameter in trainable.items()
    ]
    open_homes = [
        f"{home}."
        for home, _, patch in placed_patches(model)
        if patch.alpha is None or bool(patch.alpha.detach().any())
    ]
    try:
        yield report
    finally:
        for hook in hooks:
            hook.remove()
    now = {
        name: tensor.detach()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    # By identity, not by name or value: an optimizer that was made before the head was exchanged
    # holds the old head's parameters, which look the same and are not in the model any more.
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    learning = {**trainable, **{name: p for name, p in model.named_parameters() if p.requires_grad}}
    report.moved = tuple(
        name
        for name, before in frozen.items()
        if name not in now or not _same_bits(before, now[name])
    )
    report.without_gradient = tuple(name for name in trainable if name not in passes)
    report.zero_gradient = tuple(
        name
        for name, seen in passes.items()
        if seen > 1 or (seen == 1 and name.startswith(tuple(open_homes)))
    )
    report.not_in_optimizer = tuple(
        name for name, parameter in learning.items() if id(parameter) not in known
    )
    report.num_frozen, report.num_trainable = len(frozen), len(learning)
    report.finished = True
    if strict and not report.ok:
        raise FreezeError(f"the audit found what should not be:\n{report}")


def _frozen_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    state = state_of(model)
    yield from (
        (name, parameter)
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    )
    held = {id(module) for _, module in held_modules(model, state)}
    for path, module in model.named_modules():
        by_hand = is_normalization(module) and _none_trainable(module.parameters())
        if id(module) in held or by_hand:
            yield from module.named_buffers(prefix=path, recurse=False)


def _none_trainable(parameters: Iterable[nn.Parameter]) -> bool:
    found = list(parameters)
    return bool(found) and not any(parameter.requires_grad for parameter in found)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(t.to(a.device).contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))
