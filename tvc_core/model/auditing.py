"""What is really frozen, and what a piece of training really moved: read from the model, not from
what was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FreezeError, ParameterError, join_names
from ..recipe.rules import check_hybrid
from ..surgery.initializers import is_normalization
from ..surgery.patches import PatchTree
from .freezing import held_modules, part_of_parameter, wanted_grads
from .hybrid import HybridModel

__all__ = [
    "AuditReport",
    "FreezeReport",
    "NormalizationReport",
    "PartReport",
    "audit",
    "freeze_report",
]


@dataclass(frozen=True, kw_only=True)
class NormalizationReport:
    """One normalization layer as it is now.

    Args:
        path: where it is.
        training: it is in training mode now.
        training_after_train: it is in training mode after `model.train()`.
        trainable: its scale or shift requires gradients.
        has_statistics: it has running statistics, which move in a forward pass in training mode.
    """

    path: str
    training: bool
    training_after_train: bool
    trainable: bool
    has_statistics: bool


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """One part of a model as it is now, with the blocks inserted in it.

    Args:
        name: "stem", "stage 0", ... or "head".
        num_parameters: all [parameters].
        num_trainable: those that require gradients [parameters].
        num_modules: modules of the part.
        num_training: those in training mode now.
        num_training_after_train: those in training mode after `model.train()`.
        normalizations: its normalization layers.
        unexpected: parameters whose `requires_grad` is not what the freeze state says: changed by
            hand.
    """

    name: str
    num_parameters: int
    num_trainable: int
    num_modules: int
    num_training: int
    num_training_after_train: int
    normalizations: tuple[NormalizationReport, ...]
    unexpected: tuple[str, ...]

    @property
    def frozen_normalizations(self) -> tuple[NormalizationReport, ...]:
        """The normalization layers of which nothing moves in training: no scale, no shift, no
        statistics.
        """
        return tuple(
            norm
            for norm in self.normalizations
            if not norm.trainable and not (norm.training_after_train and norm.has_statistics)
        )


@dataclass(frozen=True, kw_only=True)
class FreezeReport:
    """What of a model is frozen, read from the model.

    Args:
        parts: stem, stages and head; together they are the model.
        training: the model is in training mode now.
    """

    parts: tuple[PartReport, ...]
    training: bool

    def __str__(self) -> str:
        lines = [
            f"{'part':<10} {'parameters':>12} {'trainable':>12}  normalization layers now / "
            "modules after train()"
        ]
        for part in self.parts:
            lines.append(
                f"{part.name:<10} {part.num_parameters:>12,} {part.num_trainable:>12,}  "
                f"{_norms(part.normalizations)} / "
                + _modes(part.num_training_after_train, part.num_modules)
            )
        lines += [
            f"{part.name}: changed by hand, not as the freeze state says: "
            f"{join_names(part.unexpected, most=4)}"
            for part in self.parts
            if part.unexpected
        ]
        for part in self.parts:
            moved = [
                norm.path
                for norm in part.normalizations
                if norm.training and not norm.training_after_train
            ]
            if moved:
                text = "in training mode now, set by hand; model.train() puts it back"
                lines.append(f"{part.name}: {text}: {join_names(moved, most=4)}")
        return "\n".join(lines)


def _norms(norms: tuple[NormalizationReport, ...]) -> str:
    if not norms:
        return "none"
    frozen = sum(not norm.trainable for norm in norms)
    return f"{len(norms)}, {frozen} frozen, {sum(not norm.training for norm in norms)} in eval mode"


def _modes(training: int, total: int) -> str:
    if training in (0, total):
        return "train" if training else "stay in eval mode"
    return f"{training} of {total} train"


def freeze_report(model: HybridModel) -> FreezeReport:
    """Return the report behind `HybridModel.freeze_report`."""
    facts = model._hybrid
    anatomy, new = facts.anatomy, facts.new_modules
    held = {id(module) for module in held_modules(model, anatomy, facts.freeze, new)}
    wanted = wanted_grads(model, anatomy, facts.freeze, new)
    parameters: dict[str, dict[str, nn.Parameter]] = {part: {} for part in anatomy.parts}
    for name, parameter in model.named_parameters():
        parameters[part_of_parameter(name, anatomy)[0] or anatomy.parts[-1]][name] = parameter
    modules: dict[str, dict[str, nn.Module]] = {part: {} for part in anatomy.parts}
    for path, module in model.named_modules():
        part, _ = part_of_parameter(path, anatomy)
        if part is not None and not isinstance(module, PatchTree):
            modules[part][path] = module
    return FreezeReport(
        parts=tuple(
            PartReport(
                name=part,
                num_parameters=sum(parameter.numel() for parameter in parameters[part].values()),
                num_trainable=sum(
                    parameter.numel()
                    for parameter in parameters[part].values()
                    if parameter.requires_grad
                ),
                num_modules=len(modules[part]),
                num_training=sum(module.training for module in modules[part].values()),
                num_training_after_train=sum(
                    id(module) not in held for module in modules[part].values()
                ),
                normalizations=tuple(
                    NormalizationReport(
                        path=path,
                        training=module.training,
                        training_after_train=id(module) not in held,
                        trainable=any(parameter.requires_grad for parameter in module.parameters()),
                        has_statistics=isinstance(getattr(module, "running_mean", None), Tensor),
                    )
                    for path, module in modules[part].items()
                    if is_normalization(module)
                ),
                unexpected=tuple(
                    name for name, p in parameters[part].items() if p.requires_grad != wanted[name]
                ),
            )
            for part in anatomy.parts
        ),
        training=model.training,
    )


@dataclass(kw_only=True)
class AuditReport:
    """What an audit found. Filled when its context ends.

    Args:
        moved: frozen parameters and buffers whose bits are not what they were, or that are gone.
        without_gradient: trainable parameters that no backward pass reached.
        not_in_optimizer: trainable parameters that the optimizer does not have.
        num_frozen: frozen parameters and buffers that were watched.
        num_trainable: trainable parameters that were watched.
        finished: the context has ended.
    """

    moved: tuple[str, ...] = ()
    without_gradient: tuple[str, ...] = ()
    not_in_optimizer: tuple[str, ...] = ()
    num_frozen: int = 0
    num_trainable: int = 0
    finished: bool = False

    @property
    def ok(self) -> bool:
        """The audit has ended and found nothing."""
        return self.finished and not (self.moved or self.without_gradient or self.not_in_optimizer)

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
            ]
        )


def _some(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({join_names(names, most=6)})" if names else "none"


@contextmanager
def audit(model: nn.Module, optimizer: Any, strict: bool = False) -> Iterator[AuditReport]:
    """Watch some steps of training, and afterwards tell what moved or was left out against the
    intent.

    Frozen are parameters that do not require gradients when the context begins, the buffers of the
    modules that `model.train()` leaves in eval mode, and those of normalizations that are frozen by
    hand. Keeps a copy of them meanwhile.

    Args:
        model: a hybrid, the one inside where it is wrapped or compiled.
        optimizer: what the loop steps with, a torch optimizer.
        strict: raise at the end if something was found.

    Yields:
        The report, filled when the context ends without an exception.

    Raises:
        ParameterError: `model` is no hybrid, or `optimizer` has no parameter groups.
        FreezeError: `strict`, and something was found.
    """
    check_hybrid(model, "audit")
    assert isinstance(model, HybridModel)
    if not isinstance(getattr(optimizer, "param_groups", None), list):
        raise ParameterError(
            f"audit takes a torch optimizer, which has param_groups, not {type(optimizer).__name__}"
        )
    report = AuditReport()
    frozen = {name: tensor.detach().clone() for name, tensor in _frozen_tensors(model)}
    trainable = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    reached: set[str] = set()
    hooks = [
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: reached.add(name))  # type: ignore[misc]
        for name, parameter in trainable.items()
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
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    learning = {**trainable, **{name: p for name, p in model.named_parameters() if p.requires_grad}}
    report.moved = tuple(
        name
        for name, before in frozen.items()
        if name not in now or not _same_bits(before, now[name])
    )
    report.without_gradient = tuple(name for name in trainable if name not in reached)
    report.not_in_optimizer = tuple(
        name for name, parameter in learning.items() if id(parameter) not in known
    )
    report.num_frozen, report.num_trainable = len(frozen), len(learning)
    report.finished = True
    if strict and not report.ok:
        raise FreezeError(f"the audit found what should not be:\n{report}")


def _frozen_tensors(model: HybridModel) -> Iterator[tuple[str, Tensor]]:
    facts = model._hybrid
    yield from (
        (name, parameter)
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    )
    held = {
        id(module) for module in held_modules(model, facts.anatomy, facts.freeze, facts.new_modules)
    }
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
