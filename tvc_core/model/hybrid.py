"""The hybrid: the backbone itself, with the same names, keys and type, and a few methods more."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import BackboneError, FreezeError, HeadError
from ..recipe import PatchPlan, Plan, Recipe
from ..recipe.rules import DROPOUT, FREEZE, check_class_names
from ..surgery.anatomy import HEAD, Anatomy, StageInfo, stage_name
from ..surgery.head import last_layer, num_classes_of, set_dropout, set_num_classes
from ..surgery.input import InputRecord
from . import freezing
from .checkpointing import set_checkpointing
from .features import PRE_LOGITS, Bridge, MapReader, Taps
from .freezing import FreezeState
from .pyramid import LevelInfo

if TYPE_CHECKING:
    from .auditing import FreezeReport

__all__ = ["HybridState", "HybridModel", "PatchRecord", "become_hybrid"]


@dataclass(frozen=True, kw_only=True)
class PatchRecord:
    """What was done at one target.

    Args:
        target: dotted path.
        op: qualified name of the operation.
        block: qualified name of the block, None for an operation without one.
        params: the block's parameters as written.
        init: qualified name of the initializer, None for the operation's own start.
        starts_as_identity: every inserted block has a gate at 0.
        paths: where the inserted modules live.
        replaced: class of the module that is gone, None if nothing was replaced.
        new: paths of the modules that took its place.
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


@dataclass(kw_only=True)
class HybridState:
    """What a hybrid knows about itself; the only attribute that it adds to its backbone's."""

    plan: Plan
    anatomy: Anatomy
    taps: Taps
    bridge: Bridge | None
    readers: tuple[MapReader, ...]
    stages: tuple[StageInfo, ...]
    levels: tuple[LevelInfo, ...]
    records: tuple[PatchRecord, ...]
    patches: tuple[PatchPlan, ...]
    originals: dict[str, nn.Module]
    """Modules that were replaced, by their paths: for `unpatch`."""
    step0_difference: float
    probe_shape: tuple[int, ...]
    verified: bool
    freeze: FreezeState = field(default_factory=FreezeState)
    class_names: tuple[str, ...] | None = None
    new_layers: tuple[str, ...] = ()
    input: InputRecord | None = None

    @property
    def new_modules(self) -> frozenset[str]:
        """Paths of the modules that patches put in the place of others, and of the auxiliary heads'
        new last layers.
        """
        return frozenset(
            (*self.new_layers, *(path for record in self.records for path in record.new))
        )


class HybridModel(nn.Module):
    """A patched backbone. `HybridBuilder` makes them; they are instances of their backbone's class,
    too.

    `forward` is the backbone's own. Every inserted module lives under the child `patches`; all
    other names and state-dict keys are the backbone's. Stage i is what `get_stage_outputs(x)[i +
    1]` returns, since feature 0 is the stem's.
    """

    _hybrid: HybridState

    # -- features ----------------------------------------------------------------------------------

    def get_stage_outputs(
        self, x: Tensor, stages: Sequence[int | str] | int | str | None = None
    ) -> list[Tensor]:
        """Return the maps of stem and stages from one forward pass, as lateral inputs of a feature
        pyramid.

        What comes after the last of them is not computed, except under torch.export, and where a
        forward hook of somebody else's waits for the end of a module that would be left, or of all
        modules.

        Args:
            x: images [N, C, H, W].
            stages: only these: stage numbers as `unfreeze_stages` takes them (-1 is the last), and
                "stem".

        Returns:
            The stem's map, then stage 0, stage 1, ...: each [N, C_i, H_i, W_i] whatever the layout
            inside (of tokens, those of the image; ViT's class token is left out), patches included.
            Entry i + 1 is stage i; with `stages`, entry i is what its entry i names.

        Raises:
            StageError: a stage that is not there, or an empty list; nothing was computed.
        """
        facts = self._hybrid
        wanted = (
            range(len(facts.readers)) if stages is None else facts.anatomy.feature_indices(stages)
        )
        maps = facts.taps.collect(self, x, sorted(set(wanted)), within=self)
        return [facts.readers[index](maps[index], x) for index in wanted]

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's map, before pooling, in the backbone's own layout.

        Args:
            x: images [N, C, H, W].
        """
        last = len(self._hybrid.anatomy.taps) - 1
        return self._hybrid.taps.collect(self, x, [last], within=self)[last]

    def pyramid(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Return one map for each stride, the last one of it, finest first; of a ViT this is one
        map.

        Keys are "0", "1", ..., as torchvision's FeaturePyramidNetwork and detectors have them;
        `pyramid_info` says which stage, how many channels and which stride each has.

        Args:
            x: images [N, C, H, W].
        """
        facts = self._hybrid
        maps = facts.taps.collect(self, x, [level.feature for level in facts.levels], within=self)
        return OrderedDict(
            (level.name, facts.readers[level.feature](maps[level.feature], x))
            for level in facts.levels
        )

    @property
    def pyramid_info(self) -> tuple[LevelInfo, ...]:
        """What was measured of the levels of `pyramid`, after patching."""
        return self._hybrid.levels

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits [N, num_classes] for what `forward_features` returned; together they
        equal `forward`.

        Args:
            features: the last stage's map in the backbone's own layout.
            pre_logits: return what the head's last layer gets instead; of most backbones [N, C],
                pooled.

        Raises:
            BackboneError: this backbone does something between its last stage and its head that tvc
                does not know, or its last layer was exchanged by hand, so that nothing reads what
                it gets.
        """
        facts = self._hybrid
        if facts.bridge is None:
            raise BackboneError(
                f"{facts.plan.backbone.qualified}: the way from {facts.anatomy.taps[-1]!r} to "
                f"{facts.anatomy.head!r} is "
                "unknown, so forward_head cannot reproduce it; use forward"
            )
        bridge, head = facts.bridge, facts.anatomy.head
        if not pre_logits:
            return bridge(self, head, features)
        maps = facts.taps.collect(lambda x: bridge(self, head, x), features, [PRE_LOGITS])
        if PRE_LOGITS not in maps:
            raise BackboneError(
                f"the last layer of {head!r} is not the one that tvc knows: it was exchanged by "
                "hand. "
                "Exchange it by reset_classifier(num_classes), which keeps what reads its input"
            )
        return maps[PRE_LOGITS]

    @property
    def stage_info(self) -> tuple[StageInfo, ...]:
        """What was measured of each stage after patching: entry i describes stage i,
        feature i + 1.
        """
        return self._hybrid.stages

    # -- freezing ----------------------------------------------------------------------------------

    def freeze_backbone(
        self,
        unfreeze_stages: Sequence[int] | int | None = None,
        head: str = "all",
        freeze_patches: bool = False,
        normalization: str = "frozen",
    ) -> None:
        """Freeze stem and stages: no gradients, no moving statistics, no dropout or drop-path,
        until thawed.

        Calling it again sets the state anew, so stages that are not named are frozen.

        Args:
            unfreeze_stages: stages that stay trainable; stage i is feature i + 1, negative numbers
                count from the end.
            head: what of the head is trainable: "all", "last" (only its last layer) or "none".
            freeze_patches: also freeze the blocks inserted in frozen parts; otherwise they learn.
            normalization: what the backbone's normalization layers in frozen parts do: "frozen"
                (nothing moves), "eval" (scale and shift learn, running statistics are fixed) or
                "train" (scale and shift learn, statistics move).

        Raises:
            StageError: a stage that is not there.
            FreezeError: another value for `head`, `freeze_patches` or `normalization`, or the model
                is wrapped in DistributedDataParallel.
        """
        anatomy = self._hybrid.anatomy
        given = {"head": head, "freeze_patches": freeze_patches, "normalization": normalization}
        for key, value in given.items():
            FREEZE[key].check(key, value, FreezeError)
        thawed = anatomy.stage_indices([] if unfreeze_stages is None else unfreeze_stages)
        frozen = tuple(index for index in range(len(anatomy.stages)) if index not in thawed)
        self._set_freeze(
            FreezeState(
                stem=True,
                stages=frozen,
                head=head,
                patches=freeze_patches,
                normalization=normalization,
            )
        )

    def unfreeze_all(self) -> None:
        """Make everything trainable.

        Raises:
            FreezeError: the model is wrapped in DistributedDataParallel.
        """
        self._set_freeze(FreezeState())

    def freeze_state(self) -> dict[str, Any]:
        """Return what is frozen as plain data, for a training loop's own checkpoint. `save`
        includes it.
        """
        return self._hybrid.freeze.as_data()

    def load_freeze_state(self, state: Mapping[str, Any]) -> None:
        """Freeze and thaw as `freeze_state` said.

        Raises:
            FreezeError: not such a state; nothing has changed.
            StageError: a stage that is not there; nothing has changed.
        """
        self._set_freeze(FreezeState.from_data(state, self._hybrid.anatomy))

    def freeze_report(self) -> FreezeReport:
        """Return what is frozen, by part, read from the parameters and modules as they are now. It
        prints as a table.
        """
        from .auditing import freeze_report

        return freeze_report(self)

    def train(self, mode: bool = True) -> HybridModel:
        """Set training mode, except in frozen parts, which stay in eval mode."""
        super().train(mode)
        if "_hybrid" in self.__dict__:
            freezing.hold_modes(
                self, self._hybrid.anatomy, self._hybrid.freeze, self._hybrid.new_modules
            )
        return self

    def _set_freeze(self, state: FreezeState) -> None:
        freezing.apply_freeze(self, self._hybrid.anatomy, state, self._hybrid.new_modules)
        self._hybrid.freeze = state

    def count_parameters(self, trainable_only: bool = False) -> int:
        """Return the number of parameters [parameters].

        Args:
            trainable_only: only those that require gradients.
        """
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trainable_only)

    def set_grad_checkpointing(
        self, enable: bool = True, stages: Sequence[int] | int | None = None
    ) -> None:
        """Compute the activations of stages again in the backward pass instead of keeping them.

        Gradients and running statistics are those of training without it. Costs about one more
        forward pass. A compiled model keeps the activations of a stage that has a patch in the
        position "parallel".

        Args:
            enable: on or off.
            stages: the stages to switch, negative numbers count from the end; the others stay as
                they are. None: stem and all stages.

        Raises:
            StageError: a stage that is not there; nothing has changed.
        """
        anatomy = self._hybrid.anatomy
        every = [part for part in anatomy.parts if part != HEAD]
        for part in every if stages is None else map(stage_name, anatomy.stage_indices(stages)):
            set_checkpointing(
                self, [path for found, path in anatomy.items() if found == part], enable
            )

    # -- head --------------------------------------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        """Return the head's last layer, which gives the logits."""
        return last_layer(self, self._hybrid.anatomy.head)[1]

    def reset_classifier(self, num_classes: int, dropout: float | None = None) -> None:
        """Give the head a new last layer; the pretrained layers before it stay. Class names are
        forgotten.

        Args:
            num_classes: outputs of the new layer; 0 puts an identity there, so that the model
                returns pooled features.
            dropout: probability of the head's dropout; None leaves it.

        Raises:
            HeadError: `num_classes` or `dropout` is out of range; nothing has changed.
            FreezeError: the model is wrapped in DistributedDataParallel; nothing has changed.
        """
        head = self._hybrid.anatomy.head
        if dropout is not None:
            DROPOUT.check("dropout", dropout, HeadError)
        freezing.refuse_under_ddp(self, [last_layer(self, head)[0]])
        self._hybrid.new_layers = exchange_heads(self, self._hybrid.anatomy, num_classes)
        if dropout is not None:
            set_dropout(self, head, dropout)
        self._hybrid.class_names = None
        self._set_freeze(self._hybrid.freeze)

    @property
    def num_classes(self) -> int:
        """Outputs of the head."""
        return num_classes_of(last_layer(self, self._hybrid.anatomy.head)[1])

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One name for each output; ImageNet's for a pretrained head, None where nobody gave any.
        `save` keeps them.
        """
        return self._hybrid.class_names

    @class_names.setter
    def class_names(self, names: Sequence[str] | None) -> None:
        self._hybrid.class_names = (
            None if names is None else check_class_names(names, self.num_classes, HeadError)
        )

    # -- patches -----------------------------------------------------------------------------------

    def unpatch(self, target: str | None = None) -> None:
        """Take patches out: inserted blocks go, replaced modules come back, and all else is as it
        is now.

        Of a replaced module the weights come back as they were when it was replaced. An optimizer
        has to be made anew. Compiled models follow; exported programs are what they were.

        Args:
            target: what was patched, as the recipe has it or as a pattern; None takes all patches
                out.

        Raises:
            TargetError: nothing is patched there.
            PatchError: a replaced module is not known, since the model was read from a file.
            HeadError: a replaced last layer had another number of outputs than the head has now.
            FreezeError: the model is wrapped in DistributedDataParallel.
        """
        from .unpatching import unpatch

        unpatch(self, target)

    def without(self, target: str | None = None) -> AbstractContextManager[HybridModel]:
        """Return a context in which inserted blocks are switched off: `with
        model.without("layer3"): ...`.

        Contexts may be nested. Compiled models follow; a copy or pickle made inside has its patches
        on.

        Args:
            target: what was patched, as the recipe has it or as a pattern; None switches all
                patches off.

        Raises:
            TargetError: nothing is patched there.
            PatchError: a module was replaced there, which cannot be switched off.
        """
        from .unpatching import without

        return without(self, target)

    # -- what it is --------------------------------------------------------------------------------

    @property
    def recipe(self) -> Recipe:
        """The recipe that this model was built from, with qualified names; without the patches that
        were taken out.
        """
        return self._hybrid.plan.recipe

    @property
    def patch_records(self) -> tuple[PatchRecord, ...]:
        """What was done at each target, in order."""
        return self._hybrid.records

    @property
    def step0_difference(self) -> float:
        """Largest absolute difference of a logit to the unpatched backbone, measured when the model
        was built.
        """
        return self._hybrid.step0_difference

    def explain(self) -> str:
        """Return what was done to the backbone, read from what is really in the model."""
        from .explain import explain

        return explain(self)

    def transforms(self) -> nn.Module:
        """Return the preprocessing of the model's weights, torchvision's module: PIL image or
        tensor to [C, H, W].

        A model without pretrained weights gets that of the backbone's default weights, with a
        warning that says so.

        Raises:
            BackboneError: the backbone has no pretrained weights, so nothing says how its images
                were prepared.
        """
        from .explain import transforms

        return transforms(self._hybrid.plan)

    def get_submodule(self, target: str) -> nn.Module:
        """Return the module at a path, also where the path begins with a name of the hybrid's own:
        a network may have a child `save`.
        """
        view: nn.Module | None = self.__dict__.get(_VIEW)
        if view is None or not target:
            return super().get_submodule(target)
        return view.get_submodule(target)

    # -- files -------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write tensors, recipe, freeze state and class names to one .safetensors file, whole or
        not at all.

        Raises:
            WeightsError: the file cannot be written; what was there before is still there.
        """
        from .saving import save

        save(self, Path(path))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # the class of a hybrid is made at run time, so a pickle names the backbone's class and
        # makes it again
        reduced: Any = super().__reduce_ex__(max(int(protocol), 2))
        _, _, state, *rest = reduced
        base, delegates = type(self)._tvc_base, type(self)._tvc_delegates  # type: ignore[attr-defined]
        state = {key: value for key, value in state.items() if key != _VIEW}
        return (_new_hybrid, (base, delegates), state, *rest)


_VIEW = "_hybrid_view"
_PUBLIC = frozenset(name for name in vars(HybridModel) if name[0] != "_") - set(dir(nn.Module))


def exchange_heads(network: nn.Module, anatomy: Anatomy, num_classes: int) -> tuple[str, ...]:
    """Give the head and every auxiliary head a new last layer, and return the paths of the
    auxiliary ones' layers.
    """
    for head in anatomy.heads:
        set_num_classes(network, head, num_classes)
    return tuple(last_layer(network, head)[0] for head, _ in anatomy.auxiliary)


def become_hybrid(network: nn.Module, facts: HybridState) -> HybridModel:
    """Turn a network into a hybrid, in place.

    The network's own forward must never reach a method of the hybrid: timm's models call
    `self.forward_features`. Where a name of the hybrid's is also one of the network's, forward runs
    on a view: an object of the network's class that has the same `__dict__`.
    """
    base = type(network)
    names = {*network.__dict__, *network._modules, *network._parameters, *network._buffers}
    names |= {name for cls in base.__mro__ if cls not in nn.Module.__mro__ for name in vars(cls)}
    network.__dict__["_hybrid"] = facts
    if not names & _PUBLIC:
        network.__class__ = _hybrid_class(base, False)
        assert isinstance(network, HybridModel)
        return network
    model = _new_hybrid(base, True, network.__dict__)
    return model


def _new_hybrid(
    base: type[nn.Module], delegates: bool, attributes: dict[str, Any] | None = None
) -> HybridModel:
    cls = _hybrid_class(base, delegates)
    model: HybridModel = cls.__new__(cls)
    if attributes is not None:
        object.__setattr__(model, "__dict__", attributes)
    if delegates:
        view = base.__new__(base)
        object.__setattr__(view, "__dict__", model.__dict__)
        model.__dict__[_VIEW] = view
    return model


_classes: dict[tuple[type[nn.Module], bool], type[HybridModel]] = {}


def _hybrid_class(base: type[nn.Module], delegates: bool) -> type[HybridModel]:
    if (base, delegates) not in _classes:
        _classes[base, delegates] = _make_hybrid_class(base, delegates)
    return _classes[base, delegates]


def _make_hybrid_class(base: type[nn.Module], delegates: bool) -> type[HybridModel]:
    body: dict[str, Any] = {
        "__module__": __name__,
        "__doc__": HybridModel.__doc__,
        "_tvc_base": base,
        "_tvc_delegates": delegates,
    }
    if delegates:
        body["forward"] = _forward_on_view(base)
    return type(f"Hybrid{base.__name__}", (HybridModel, base), body)


def _forward_on_view(base: type[nn.Module]) -> Callable[..., Any]:
    def forward(self: HybridModel, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__[_VIEW].forward(*args, **kwargs)

    forward.__signature__ = inspect.signature(base.forward)  # type: ignore[attr-defined]  # torch.export reads it
    # Dynamo counts compilations by code object, and these of unlike networks should not count
    # together
    forward.__code__ = forward.__code__.replace(co_name=f"forward_of_{base.__name__}")
    forward.__qualname__, forward.__doc__ = f"{base.__name__}.forward", base.forward.__doc__
    return forward
