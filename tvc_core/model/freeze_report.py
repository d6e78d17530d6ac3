"""What is really frozen: read from the model, not from what was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import join_names
from ..surgery.initializers import is_normalization
from .freezing import held_modules, part_of_parameter, wanted_grads
from .state import HybridState

__all__ = ["FreezeReport", "NormalizationReport", "PartReport", "freeze_report"]


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


def freeze_report(network: nn.Module, state: HybridState) -> FreezeReport:
    """Return the report of `HybridModel.freeze_report`."""
    anatomy = state.anatomy
    held = {id(module) for _, module in held_modules(network, state)}
    wanted = wanted_grads(network, state)
    parameters: dict[str, dict[str, nn.Parameter]] = {part: {} for part in anatomy.parts}
    for name, parameter in network.named_parameters():
        part = part_of_parameter(name, anatomy)[0] or anatomy.parts[-1]
        parameters[part][name] = parameter
    modules: dict[str, dict[str, nn.Module]] = {part: {} for part in anatomy.parts}
    for path, module in network.named_modules():
        found, _ = part_of_parameter(path, anatomy)
        if found is not None:
            modules[found][path] = module
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
        training=network.training,
    )
