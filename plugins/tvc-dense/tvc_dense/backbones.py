"""A hybrid as the backbone of torchvision's detectors and segmenters.

The hybrid is the child `body`, whole: its patches, its freezing and `train()` work as before, and
its keys are the same after the prefix. Only its classifier has nothing to do, and is frozen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from tvc_core import (
    BackboneError,
    HybridModel,
    LevelInfo,
    ParameterError,
    StageError,
    check_hybrid,
    freeze_head,
)

__all__ = [
    "DetectionBackbone",
    "SegmentationBackbone",
    "as_detection_backbone",
    "as_segmentation_backbone",
]

FINEST = {"pool": 4, "p6p7": 8, None: 4}
"""Stride of the finest level: C2 (Lin et al. 2017, arXiv:1612.03144, section 3), of RetinaNet C3
(arXiv:1708.02002).
"""


class DetectionBackbone(nn.Module):
    """A hybrid and a feature pyramid network on its maps; `as_detection_backbone` makes it.

    Maps images [N, C, H, W] to an OrderedDict of maps [N, out_channels, H_i, W_i], finest first:
    "0", "1", ..., then "pool" or "p6" and "p7". The names `body` and `fpn` are those of
    torchvision's detectors.

    Args:
        body: the hybrid.
        levels: levels of its pyramid that are used, finest first.
        fpn: made for their channels.
        out_channels: channels of every map that comes out [channels].
    """

    def __init__(
        self,
        body: HybridModel,
        levels: Sequence[LevelInfo],
        fpn: FeaturePyramidNetwork,
        out_channels: int,
    ) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn
        self.levels = tuple(levels)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Return the maps of the pyramid network."""
        maps = self.body.get_stage_outputs(x, [stage_of(level) for level in self.levels])
        found: OrderedDict[str, Tensor] = self.fpn(
            OrderedDict((str(index), each) for index, each in enumerate(maps))
        )
        return found


class SegmentationBackbone(nn.Module):
    """A hybrid whose last map is "out" and one from a scale before "aux";
    `as_segmentation_backbone` makes it.

    Args:
        body: the hybrid.
        out_channels: channels of "out" [channels].
        aux: stage of "aux", or "stem"; None for no such map.
        aux_channels: channels of "aux" [channels]; None where there is none.
    """

    def __init__(
        self, body: HybridModel, out_channels: int, aux: int | str | None, aux_channels: int | None
    ) -> None:
        super().__init__()
        self.body = body
        self.out_channels = out_channels
        self.aux = aux
        self.aux_channels = aux_channels

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Return the maps "out" and, where there is one, "aux"."""
        stages = [-1] if self.aux is None else [-1, self.aux]
        return OrderedDict(
            zip(("out", "aux"), self.body.get_stage_outputs(x, stages), strict=False)
        )


def as_detection_backbone(
    model: HybridModel,
    out_channels: int = 256,
    *,
    extra: str | None = "pool",
    strides: Sequence[int] | None = None,
    norm_layer: Callable[..., nn.Module] | None = None,
) -> DetectionBackbone:
    """Return a hybrid as backbone for torchvision's FasterRCNN, MaskRCNN, RetinaNet, FCOS and their
    like.

    Four scales and "pool" (FasterRCNN, MaskRCNN) or three and "p6p7" (RetinaNet, FCOS) are the five
    maps that the detectors' own anchors are made for; another number needs an anchor generator for
    it. The hybrid is used itself, not a copy, and its classifier, which does not run here, is
    frozen.

    Args:
        model: the hybrid.
        out_channels: channels of every map that comes out [channels].
        extra: what comes after the coarsest map: "pool", a map of half its size; "p6p7", two maps
            by convolutions with stride 2; None, nothing.
        strides: which scales of `model.pyramid_info` are used, at least two; by default those from
            4 on, with "p6p7" from 8.
        norm_layer: makes a normalization for a number of channels, after every convolution of the
            pyramid network.

    Raises:
        BackboneError: the hybrid has a single scale.
        ParameterError: not a hybrid, or `out_channels`, `extra` or `strides` is not what it can be;
            nothing has changed.
        FreezeError: the model is wrapped in DistributedDataParallel already.
    """
    check_hybrid(model, "as_detection_backbone")
    check_count("out_channels", out_channels)
    if extra is not None and extra not in ("pool", "p6p7"):
        raise ParameterError(f"extra is 'pool', 'p6p7' or None, not {extra!r}")
    check_norm_layer(norm_layer)
    levels = _levels(model, extra, strides)
    blocks: dict[str | None, Callable[[], ExtraFPNBlock | None]] = {
        "pool": LastLevelMaxPool,
        "p6p7": lambda: LastLevelP6P7(out_channels, out_channels),
        None: lambda: None,
    }
    channels = [level.channels for level in levels]
    fpn = FeaturePyramidNetwork(
        channels, out_channels, extra_blocks=blocks[extra](), norm_layer=norm_layer
    )
    freeze_head(model, [stage_of(level) for level in levels])
    return DetectionBackbone(model, levels, fpn, out_channels)


def as_segmentation_backbone(model: HybridModel, aux: int | None = None) -> SegmentationBackbone:
    """Return a hybrid as backbone for torchvision's DeepLabV3 and FCN; `out_channels` and
    `aux_channels` say what heads need.

    The hybrid is used itself, not a copy, and its classifier, which does not run here, is frozen.

    Args:
        model: the hybrid.
        aux: stage whose map is "aux", for an auxiliary head; negative numbers count from the end.
            By default the last map of the scale before; a backbone with one scale has none then.
            The last stages of a dilated ResNet share their scale, and torchvision takes stage 2 of
            it.

    Raises:
        BackboneError: the last stage returns no map.
        ParameterError: not a hybrid.
        StageError: a stage that is not there; nothing has changed.
        FreezeError: the model is wrapped in DistributedDataParallel already.
    """
    check_hybrid(model, "as_segmentation_backbone")
    stages = model.stage_info
    last = stages[-1]
    if last.stage + 1 not in [level.feature for level in model.pyramid_info]:
        raise BackboneError(
            f"the last stage {last.module!r} returns no map, so there is nothing to segment"
        )
    finer = [level for level in model.pyramid_info if level.stride < last.stride]
    chosen: int | str | None = None
    channels: int | None = None
    if aux is not None:
        if (
            isinstance(aux, bool)
            or not isinstance(aux, int)
            or not -len(stages) <= aux < len(stages)
        ):
            paths = ", ".join(f"{stage.stage}: {'+'.join(stage.paths)}" for stage in stages)
            raise StageError(
                f"there is no stage {aux!r} for aux: the {len(stages)} stages are {paths}; -1 is "
                "the last"
            )
        chosen, channels = stages[aux].stage, stages[aux].channels
    elif finer:
        chosen, channels = stage_of(finer[-1]), finer[-1].channels
    freeze_head(model, -1)
    return SegmentationBackbone(model, last.channels, chosen, channels)


def stage_of(level: LevelInfo) -> int | str:
    """Return what `get_stage_outputs` calls a level of the pyramid."""
    return level.feature - 1 if level.feature else "stem"


def check_count(name: str, value: object) -> None:
    """Check that an argument is a whole number of at least 1.

    Raises:
        ParameterError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ParameterError(f"{name} is a whole number of at least 1, not {value!r}")


def check_norm_layer(norm_layer: object) -> None:
    """Check that an argument makes normalizations.

    Raises:
        ParameterError: it does not.
    """
    if norm_layer is None or (callable(norm_layer) and not isinstance(norm_layer, nn.Module)):
        return
    raise ParameterError(
        "norm_layer is a class or a function that makes a normalization for a number of channels, "
        f"such as torch.nn.BatchNorm2d, or None; not {norm_layer!r}"
    )


def _levels(
    model: HybridModel, extra: str | None, strides: Sequence[int] | None
) -> list[LevelInfo]:
    known = {level.stride: level for level in model.pyramid_info}
    if len(known) < 2:
        raise BackboneError(
            f"{type(model).__name__} has a single scale (stride {', '.join(map(str, known))}), and "
            "a feature pyramid network "
            "needs at least two: take a backbone with several, such as swin_t or resnet50, or "
            "as_segmentation_backbone, "
            "which needs one"
        )
    given = (
        [stride for stride in known if stride >= FINEST[extra]]
        if strides is None
        else list(strides)
        if isinstance(strides, Iterable)
        else [strides]
    )
    if strides is None and len(given) < 2:
        raise ParameterError(
            f"a feature pyramid network needs at least two scales, and of the hybrid's strides "
            f"{', '.join(map(str, known))} only {given} are at least {FINEST[extra]}, where this "
            f"one starts: say which to use, as in strides={list(known)[-2:]}"
        )
    is_wrong = any(type(stride) is not int or stride not in known for stride in given)
    if is_wrong or len(set(given)) < max(2, len(given)):
        raise ParameterError(
            f"strides are at least two different ones of {', '.join(map(str, known))}, not {given}"
        )
    return [known[stride] for stride in sorted(given)]
