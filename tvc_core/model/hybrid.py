"""The hybrid: the backbone itself, with the same names, keys and type, and a few methods more.

Every method here is short: the work is done by functions of `(network, state)` below.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast, overload

from torch import Tensor, nn

from ..errors import BackboneError, FreezeError, ParameterError
from ..quarantine.process_state import run_preserved
from ..recipe import Recipe
from ..surgery.anatomy import HEAD, StageInfo, stage_name
from ..surgery.head import HeadReport, last_layer
from ..weights.looking import path_of
from ..weights.preparing import Preprocessing
from ..weights.preprocessing import check_preprocessing, transforms
from ..written.rules import FREEZE
from . import freezing
from .checkpointing import set_checkpointing
from .current import current_recipe
from .explain import explain
from .freeze_report import FreezeReport, freeze_report
from .heads import HeadInfo, head_info, named_outputs, reset_classifier, set_class_names
from .patch_report import PatchReport, patch_report
from .pyramid import LevelInfo, levels_of
from .reading import FeatureExtractor, forward_head, last_map, read_features
from .remeasuring import remeasure
from .saving import save
from .settling import place
from .state import FreezeState, HybridState, PatchRecord, num_classes
from .unpatching import unpatch, without

__all__ = ["HybridModel"]


class HybridModel(nn.Module):
    """A patched backbone. `HybridBuilder` makes it; it is also an instance of its
    backbone's class.

    `forward` is the backbone's own. Every inserted module lives under the child `patches`; all
    other names and state-dict keys are the backbone's. Stage i is what `get_stage_outputs(x)[i +
    1]` returns, since feature 0 is the stem's.
    """

    _hybrid: HybridState

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Refuse an empty hybrid: only a class made for a network has one to be."""
        if cls is HybridModel:
            raise TypeError(
                "HybridModel has no network by itself: HybridBuilder().from_torchvision(...), "
                "from_backbone(...) or from_module(...) makes hybrids, and tvc_core.load(path) "
                "reads one"
            )
        return super().__new__(cls)

    def _replicate_for_data_parallel(self) -> Any:
        raise BackboneError(
            "nn.DataParallel makes replicas that share patches and state with the model, and would "
            "run each other's: use torch.nn.parallel.DistributedDataParallel, one process a device"
        )

    # -- features ----------------------------------------------------------------------------------

    def get_stage_outputs(
        self, x: Tensor, stages: Sequence[int | str] | int | str | None = None
    ) -> list[Tensor]:
        """Return the maps of stem and stages from one forward pass, as lateral inputs of a feature
        pyramid.

        Computation stops after the last requested stage. It does not stop under torch.export, or
        if a foreign forward hook (FSDP's, for example) sits on a module that would be left early.

        Args:
            x: images [N, C, H, W].
            stages: only these: stages as `unfreeze_stages` names them (-1 is the last, "layer3"
                the one that has this path), and "stem".

        Returns:
            The stem's map, then stage 0, stage 1, ...: each [N, C_i, H_i, W_i] whatever the layout
            inside (of tokens, those of the image; ViT's class token is left out), patches included.
            Entry i + 1 is stage i; with `stages`, entry i is what its entry i names.

        Raises:
            StageError: a stage that is not there, or an empty list; nothing was computed.
        """
        state = self._hybrid
        every = range(len(state.features))
        wanted = every if stages is None else state.anatomy.feature_indices(stages)
        return read_features(self, state, x, wanted)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's map, before pooling, in the backbone's own layout.

        Args:
            x: images [N, C, H, W].
        """
        return last_map(self, self._hybrid, x)

    def pyramid(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Return one map for each stride, the last one of it, finest first; of a ViT this is one
        map.

        Keys are "0", "1", ..., as torchvision's FeaturePyramidNetwork and detectors have them;
        `pyramid_info` says which stage, how many channels and which stride each has.

        Args:
            x: images [N, C, H, W].
        """
        levels = self.pyramid_info
        maps = read_features(self, self._hybrid, x, [level.feature for level in levels])
        return OrderedDict(zip((level.name for level in levels), maps, strict=True))

    @property
    def pyramid_info(self) -> tuple[LevelInfo, ...]:
        """What was measured of the levels of `pyramid`, after patching."""
        return levels_of(feature.info for feature in self._hybrid.features)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Any:
        """Return the logits [N, num_classes] for what `forward_features` returned, of several heads
        by name; together they equal `forward`.

        Args:
            features: the last stage's map in the backbone's own layout.
            pre_logits: return what the head's last layer gets instead; of most backbones [N, C],
                pooled.

        Raises:
            BackboneError: this backbone does something between its last stage and its head that tvc
                does not know, or its last layer was exchanged by hand, so that nothing reads what
                it gets.
        """
        found = forward_head(self, self._hybrid, features, pre_logits)
        return found if pre_logits else named_outputs(self._hybrid, found)

    def feature_extractor(
        self, nodes: Sequence[int | str] | Mapping[int | str, str] | int | str
    ) -> FeatureExtractor:
        """Return a module that maps images to maps by name, and owns what it runs.

        What takes children out of a network (torchvision's IntermediateLayerGetter and
        create_feature_extractor, `nn.Sequential(*list(model.children())[:-2])`) leaves patches or
        their parameters out; this does not. The model itself is its child `body`.

        Args:
            nodes: paths of modules, stage numbers or "stem"; or a mapping of these to names.

        Raises:
            StageError: a stage or a module that is not there, or nothing at all.
        """
        return FeatureExtractor(self, nodes)

    @property
    def stage_info(self) -> tuple[StageInfo, ...]:
        """What was measured of each stage after patching: entry i describes stage i,
        feature i + 1.
        """
        return self._hybrid.stages

    def remeasure(self, image_size: int | Sequence[int] | None = None) -> None:
        """Measure the model again, after its network was changed by hand (stride, dilation,
        channels) or by a tool that prunes it: `stage_info`, `pyramid_info`, the maps of
        `get_stage_outputs` and `forward_head` follow.

        What was made with the widths before, such as a feature pyramid network, has to be made
        again. No other thread may run the model until it returns.

        Args:
            image_size: side of the images, or [height, width], that a network built for one size
                takes now; None for the one before [pixels].

        Raises:
            PatchError: patches do not fit any more, or never run; the message names all that do not
                fit. What was measured before stands.
            BackboneError: the network fails, or the end of a stage is gone; likewise.
            ParameterError: `image_size` is not a size.
        """
        remeasure(self, self._hybrid, image_size)

    # -- freezing ----------------------------------------------------------------------------------

    def freeze_backbone(
        self,
        unfreeze_stages: Sequence[int | str] | int | str | None = None,
        head: str = "all",
        freeze_patches: bool = False,
        normalization: str = "frozen",
    ) -> None:
        """Freeze stem and stages: no gradients, no moving statistics, no dropout or drop-path,
        until thawed.

        Each call sets the whole state, so stages that are not named are frozen.

        Args:
            unfreeze_stages: stages that stay trainable, one or several, by number (stage i is
                feature i + 1, negative ones count from the end) or path, such as "layer4".
            head: what of the head is trainable: "all", "last" (only its last layer, with the hidden
                layers and heads that were built in its place) or "none", auxiliary heads included.
            freeze_patches: also freeze the blocks inserted in frozen parts; otherwise they learn.
            normalization: what the backbone's normalization layers in frozen parts do: "frozen"
                (nothing moves), "eval" (scale and shift learn, running statistics are fixed) or
                "train" (scale and shift learn, statistics move).

        Raises:
            StageError: a stage that is not there.
            FreezeError: another value for `head` or `normalization`, or the model is wrapped in
                DistributedDataParallel.
        """
        state = self._hybrid
        given = {"head": head, "freeze_patches": freeze_patches, "normalization": normalization}
        for key, value in given.items():
            FREEZE[key].check(key, value, FreezeError)
        thawed = state.anatomy.stage_indices([] if unfreeze_stages is None else unfreeze_stages)
        frozen = tuple(i for i in range(len(state.anatomy.stages)) if i not in thawed)
        wanted = FreezeState(
            stem=True, stages=frozen, head=head, patches=freeze_patches, normalization=normalization
        )
        freezing.freeze(self, state, wanted)

    def unfreeze_all(self) -> None:
        """Make everything trainable.

        Raises:
            FreezeError: the model is wrapped in DistributedDataParallel.
        """
        freezing.freeze(self, self._hybrid, FreezeState())

    def freeze_state(self) -> dict[str, Any]:
        """Return what is frozen as plain data, for a training loop's own checkpoint. `save`
        includes it.
        """
        return freezing.as_data(self._hybrid)

    def load_freeze_state(self, state: Mapping[str, Any]) -> None:
        """Freeze and thaw as `freeze_state` said.

        Raises:
            FreezeError: not such a state; nothing has changed.
            StageError: a stage that is not there; nothing has changed.
        """
        freezing.freeze(self, self._hybrid, freezing.from_data(state, self._hybrid))

    def freeze_report(self) -> FreezeReport:
        """Return what is frozen, by part, read from the parameters and modules as they are now. It
        prints as a table.
        """
        return freeze_report(self, self._hybrid)

    def train(self, mode: bool = True) -> HybridModel:
        """Set the mode as the backbone's own `train` does; frozen parts stay in eval mode.

        Warns once where a part that is frozen was thawed by hand, and where other tools reset the
        statistics of frozen normalizations, which are put back.
        """
        super().train(mode)
        if "_hybrid" in self.__dict__:
            place(self, self._hybrid)
            freezing.hold(self, self._hybrid)
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load as torch does. Frozen normalizations keep the loaded statistics from then on."""
        found = super().load_state_dict(*args, **kwargs)
        self._hybrid.statistics = {}
        freezing.hold(self, self._hybrid)
        return found

    def get_submodule(self, target: str) -> nn.Module:
        """Return the module at a path, also where the path begins with a name of the hybrid's own:
        a network may have a child `save`.
        """
        view: nn.Module | None = getattr(self, "_hybrid_view", None)
        if view is None or not target:
            return super().get_submodule(target)
        return view.get_submodule(target)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:  # what to, cuda, half and the like call
        place(self, self._hybrid)
        return super()._apply(*args, **kwargs)

    def count_parameters(self, trainable_only: bool = False) -> int:
        """Return the number of parameters [parameters].

        Args:
            trainable_only: only those that require gradients.
        """
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trainable_only)

    def set_grad_checkpointing(
        self, enable: bool = True, stages: Sequence[int | str] | int | str | None = None
    ) -> None:
        """Compute the activations of stages again in the backward pass instead of keeping them.

        Gradients and running statistics are those of training without it. Costs about one more
        forward pass. A compiled model keeps the activations of a stage that has a patch in the
        position "parallel".

        Args:
            enable: on or off.
            stages: the stages to switch, as `unfreeze_stages` of `freeze_backbone` names them; the
                others stay as they are. None: stem and all stages.

        Raises:
            ParameterError: `enable` is neither true nor false.
            StageError: a stage that is not there; nothing has changed.
        """
        if not isinstance(enable, bool):
            raise ParameterError(f"enable is True or False, not {enable!r}")
        anatomy = self._hybrid.anatomy
        every = [part for part in anatomy.parts if part != HEAD]
        parts = every if stages is None else [*map(stage_name, anatomy.stage_indices(stages))]
        for part in parts:
            set_checkpointing(
                self, [path for found, path in anatomy.items() if found == part], enable
            )
        before = self._hybrid.checkpointed
        self._hybrid.checkpointed = before.union(parts) if enable else before.difference(parts)

    # -- head --------------------------------------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        """Return the head's last layer, which gives the logits."""
        return last_layer(self, self._hybrid.anatomy.head)[1]

    @overload
    def reset_classifier(
        self, num_classes: int | Sequence[str], dropout: float | None = None
    ) -> HeadReport: ...
    @overload
    def reset_classifier(
        self, num_classes: Mapping[str, int | Sequence[str]], dropout: float | None = None
    ) -> dict[str, HeadReport]: ...
    def reset_classifier(self, num_classes: Any, dropout: float | None = None) -> Any:
        """Give the head a new last layer; the layers before it stay.

        Args:
            num_classes: outputs of the new layer; 0 puts an identity there, so that the model
                returns pooled features. Or the names of the classes: those that `class_names` has
                keep their weights and biases, bit for bit, and the others are initialized. Of
                several heads, a mapping of those that change to either.
            dropout: probability of the head's dropout; None leaves it.

        Returns:
            What was kept, by the names of classes; with a mapping, for each head. A number keeps
            nothing, and the class names are forgotten.

        Raises:
            HeadError: `num_classes` or `dropout` is not right, the weights to keep cannot be read,
                or a patch at the last layer has learned for these classes; nothing has changed.
            FreezeError: the model is wrapped in DistributedDataParallel; nothing has changed.
        """
        return reset_classifier(self, self._hybrid, num_classes, dropout)

    @property
    def num_classes(self) -> int:
        """Outputs of the head, of several heads all together."""
        return num_classes(self, self._hybrid)

    @property
    def num_channels(self) -> int:
        """Channels of the images that the model takes [channels]."""
        return self._hybrid.probe_shape[1]

    @property
    def head_info(self) -> tuple[HeadInfo, ...]:
        """Name, classes and last layer of each head, in order; a model's only head has the name
        "".
        """
        return head_info(self, self._hybrid)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One name for each output; ImageNet's for a pretrained head, None where none were given.
        `save` keeps them.

        Of several heads `head_info` has them; a mapping of heads to names sets them.
        """
        return self._hybrid.class_names.get("")

    @class_names.setter
    def class_names(self, names: Any) -> None:
        set_class_names(self, self._hybrid, names)

    # -- patches -----------------------------------------------------------------------------------

    def unpatch(self, target: str | None = None) -> None:
        """Take patches out: inserted blocks go, replaced modules come back, and all else is as it
        is now.

        A replaced module returns with the weights it had when it was replaced. Create a new
        optimizer afterwards. Compiled models follow; exported programs do not change.

        Args:
            target: what was patched, as the recipe has it or as a pattern; None takes all patches
                out.

        Raises:
            TargetError: nothing is patched there.
            PatchError: a replaced module is not known, since the model was read from a file.
            HeadError: a replaced last layer had another number of outputs than the head has now.
            FreezeError: the model is wrapped in DistributedDataParallel.
        """
        run_preserved(unpatch, self, self._hybrid, target)

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
        return cast(AbstractContextManager[HybridModel], without(self, self._hybrid, target))

    def patch_report(self, batch: Any, loss: Callable[..., Tensor] | None = None) -> PatchReport:
        """Return what each patch does on some data: its gate, and what changes without it.

        Runs in eval mode without gradients; the model is as before afterwards. It prints as a
        table.

        Args:
            batch: images [N, C, H, W]; a pair of images and class numbers [N], or with `loss` any
                targets; or an iterable of such pairs or batches, as a DataLoader is.
            loss: of the model's output and the targets; by default cross-entropy, where there are
                targets. Several heads need one.

        Raises:
            ParameterError: there is no batch, or it is of another kind.
            PatchError: a patch is switched off, inside of `without`.
        """
        return patch_report(self, self._hybrid, batch, loss)

    # -- what it is --------------------------------------------------------------------------------

    @property
    def recipe(self) -> Recipe:
        """The recipe that builds this model, with qualified names: as it is now, after `unpatch`,
        `reset_classifier` and `set_grad_checkpointing`. What is frozen is as in the build.
        """
        return current_recipe(self, self._hybrid)

    @property
    def patch_records(self) -> tuple[PatchRecord, ...]:
        """What was done at each target, in order."""
        return self._hybrid.records

    @property
    def step0_difference(self) -> float:
        """Largest absolute difference of a logit from the unpatched backbone's, measured when the
        model was built.
        """
        return self._hybrid.step0_difference

    def explain(self) -> str:
        """Return what was done to the backbone, read from what is really in the model."""
        return explain(self, self._hybrid)

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How images are prepared for this model, where that was set; None where it is the
        preprocessing of its weights. `save` keeps it.

        Whoever trains a model on images of another size or range than its weights were sets it:
        `model.preprocessing = Preprocessing(size=(96, 96), resize=110)`. What is no Preprocessing,
        or of another number of channels than the model takes, is a ParameterError.
        """
        return self._hybrid.preprocessing

    @preprocessing.setter
    def preprocessing(self, said: Preprocessing | None) -> None:
        if said is not None:
            check_preprocessing(said, self.num_channels)
        self._hybrid.preprocessing = said

    def transforms(self, *, train: bool = False, use_test_size: bool = False) -> nn.Module:
        """Return the preprocessing that was set for the model, or that of its weights, as
        torchvision's module: PIL image or tensor to [C, H, W].

        A model without pretrained weights gets that of the backbone's default weights, with a
        warning that says so. Pictures in grey, with a palette or in CMYK are converted, RGBA where
        every pixel is opaque; what cannot be converted without a guess is a ParameterError. Where
        `preprocessing` was set, all pictures are read as `as_rgb` reads them.

        Args:
            train: a random crop and mirroring instead of the resized center crop, as in
                torchvision's reference scripts.
            use_test_size: crop at the larger size at which the weights' publisher evaluates (many
                of timm's), where there is one; `image_size` of the build goes before it.

        Raises:
            BackboneError: the backbone has no pretrained weights, so nothing says how its images
                were prepared.
            ParameterError: both `train` and `use_test_size`.
        """
        state = self._hybrid
        return transforms(state.plan, state.preprocessing, train=train, use_test_size=use_test_size)

    # -- files -------------------------------------------------------------------------------------

    @property
    def metadata(self) -> dict[str, Any]:
        """The user's own facts about the model, which `save` writes and `load` reads."""
        return self._hybrid.metadata

    def save(
        self,
        path: str | Path,
        metadata: Mapping[str, Any] | None = None,
        *,
        base: str | Path | HybridModel | None = None,
    ) -> None:
        """Write tensors, recipe, what is frozen and class names to one .safetensors file, whole or
        not at all. Saving a model twice gives equal bytes.

        Args:
            path: the file. A link is followed, and the permissions of a file that is replaced are
                kept.
            metadata: facts of your own to write with it, such as accuracy and data; plain data.
            base: a file that `save` wrote, whole, or a model as `from_backbone(name)` makes it from
                pretrained weights. The new file has only the parameters and buffers whose bits
                differ from it; reading it takes the base from its folder, or builds it again.

        Raises:
            WeightsError: the name does not end in .safetensors; the file cannot be written (what
                was there before is still there); modules were changed after the build, so that
                reading the file would build another model; the model has a value that no file can
                hold; or `base` cannot be read.
            PatchError: a patch has lost its place.
        """
        save(self, self._hybrid, path_of(path, "save"), metadata, base)
