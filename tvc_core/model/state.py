"""What a hybrid knows about itself, in one place. Functions of `(network, state)` stand above it.

Everything that can be read from the live network is read there: which patches there are and what
runs them, the widths of layers, what is trainable. Here stands what the network cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..recipe import PatchPlan, Plan
from ..surgery.anatomy import Anatomy, StageInfo
from ..surgery.ending import LeftOutRecord
from ..surgery.head import find_last_layer, num_classes_of
from ..surgery.input import InputRecord
from ..weights.preparing import Preprocessing
from .bridge import Bridge
from .features import MapReader, Taps

__all__ = [
    "Feature",
    "FreezeState",
    "HybridState",
    "Installed",
    "PatchRecord",
    "num_classes",
    "state_of",
]


@dataclass(frozen=True, kw_only=True)
class PatchRecord:
    """What was done at one target.

    Args:
        target: dotted path.
        op: qualified name of the operation.
        block: qualified name of the block, None for an operation without one.
        params: the block's parameters as written.
        init: qualified name of the initializer, None for the operation's own start.
        starts_as_identity: every inserted block is the identity at its start.
        paths: where the inserted modules live.
        replaced: class of the module that is gone, None if nothing was replaced.
        new: paths of the modules that took its place.
        kept: names of the replaced module's tensors that the new one has with the same values.
        changed: those that it has under the same name with other values, such as a kernel of
            another size.
        lost: those that it has not.
        options: the operation's options as written.
        thawed: names of parameters that learn though their part is frozen.
    """

    target: str
    op: str
    block: str | None
    params: Mapping[str, Any]
    init: str | None
    starts_as_identity: bool
    paths: tuple[str, ...]
    replaced: str | None
    new: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    thawed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A patch that is in the network: what was asked for, and what was done."""

    plan: PatchPlan
    record: PatchRecord

    @property
    def homes(self) -> list[str]:
        """Where its inserted blocks live."""
        return [path for path in self.record.paths if path != self.record.target]


@dataclass(frozen=True, kw_only=True)
class Feature:
    """The map of the stem or of a stage, as it was measured in the patched network.

    Args:
        info: what was measured; its `stage` is -1 for the stem.
        reader: brings the map into the layout [N, C, H, W].
    """

    info: StageInfo
    reader: MapReader


@dataclass(frozen=True, kw_only=True)
class FreezeState:
    """What is frozen.

    Args:
        stem: the stem is frozen.
        stages: indices of the frozen stages.
        head: what of the head is trainable: "all", "last" (its last layer) or "none".
        patches: inserted blocks in frozen parts are frozen with them.
        normalization: what the normalization layers of a frozen stem and frozen stages do: "frozen"
            (scale and shift fixed, running statistics fixed), "eval" (scale and shift learn,
            statistics fixed) or "train" (both move).
    """

    stem: bool = False
    stages: tuple[int, ...] = ()
    head: str = "all"
    patches: bool = False
    normalization: str = "frozen"


# All that tvc adds to a network's attributes is one object of this class. It is a plain object and
# not a module, so that nothing in it appears among the network's children, in its state dict or in
# `named_modules`, and it is copied and pickled with the network. That is why replaced modules can
# be kept here.
@dataclass(kw_only=True)
class HybridState:
    """What a hybrid knows about itself; the only attribute that it adds to its backbone's.

    Args:
        plan: what it was built from.
        anatomy: which path belongs to which part.
        taps: what reads maps.
        bridge: the way from the last stage's map to the head; None where none is known.
        features: of the stem and of each stage, in order.
        patches: what is inserted or replaced, in order.
        originals: modules that were replaced, by their paths, for `unpatch`.
        step0_difference: largest difference of a logit from the unpatched backbone's.
        probe_shape: shape of the image that was measured with.
        verified: the hash of the pretrained weights was compared.
        freeze: what is to be frozen.
        statistics: of normalizations that are frozen: their buffers, by the modules' paths. Weight
            averaging resets them to estimate them again, and they are put back.
        class_names: one for each output, by the name of the head; "" is a model's only one.
        kept_classes: those whose weights were taken over when the head was exchanged, likewise.
        head_widths: outputs of each of several heads, by name; empty where there is one.
        head_dim: the dimension of the network's output along which they stand.
        new_layers: paths of the new last layers of auxiliary heads.
        preprocessing: how images are prepared, where that was set; None for the weights' own.
        input: what was done at the input.
        left_out: what a network that ends early has not; None for a whole one.
        modules: class and settings of every module when the model was built, by path: what `save`
            compares, since a file builds these again.
        hooks: forward hooks of other code on modules when the model was built, by path: how many.
        metadata: the user's own facts, which `save` writes.
        head_as_built: the head's keys of a recipe, in the build.
        checkpointed: the parts whose activations are computed again, as they were switched last.
        half_thawed_told: a warning has said that the user thawed a part of what is frozen.
    """

    plan: Plan
    anatomy: Anatomy
    taps: Taps
    bridge: Bridge | None
    features: tuple[Feature, ...]
    patches: tuple[Installed, ...]
    originals: dict[str, nn.Module]
    step0_difference: float
    probe_shape: tuple[int, ...]
    verified: bool
    freeze: FreezeState = field(default_factory=FreezeState)
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kept_classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    head_widths: dict[str, int] = field(default_factory=dict)
    head_dim: int = -1
    new_layers: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    input: InputRecord | None = None
    left_out: LeftOutRecord | None = None
    modules: dict[str, str] = field(default_factory=dict)
    hooks: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    head_as_built: dict[str, Any] = field(default_factory=dict)
    checkpointed: frozenset[str] = frozenset()
    half_thawed_told: bool = False

    @property
    def records(self) -> tuple[PatchRecord, ...]:
        """What was done at each target, in order."""
        return tuple(patch.record for patch in self.patches)

    @property
    def stages(self) -> tuple[StageInfo, ...]:
        """What was measured of each stage."""
        return tuple(feature.info for feature in self.features[1:])

    @property
    def new_modules(self) -> frozenset[str]:
        """Paths of the modules that patches put in the place of others, and of the auxiliary heads'
        new last layers.
        """
        return frozenset((*self.new_layers, *(p for record in self.records for p in record.new)))

    @property
    def thawed(self) -> frozenset[str]:
        """Names of the parameters that patches let learn though their part is frozen."""
        return frozenset(name for record in self.records for name in record.thawed)


def state_of(network: nn.Module) -> HybridState:
    """Return what a hybrid knows about itself."""
    state: HybridState = network.__dict__["_hybrid"]
    return state


def num_classes(network: nn.Module, state: HybridState) -> int:
    """Return the outputs of the head; 0 where it has no last layer."""
    found = find_last_layer(network, state.anatomy.head)
    return num_classes_of(found[1]) if found else 0
