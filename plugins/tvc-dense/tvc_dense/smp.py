"""A hybrid as encoder of segmentation-models-pytorch (smp): its decoders and heads on any backbone.

smp is optional: only `smp_model` needs it, and imports it when it is called.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from tvc_core import BackboneError, HybridModel, ParameterError, check_hybrid, freeze_head

from .backbones import check_count, stage_of
from .u_net import fit, grid

__all__ = ["SmpEncoder", "as_smp_encoder", "smp_model"]

M = TypeVar("M", bound=nn.Module)
_MAPS = ("NCHW", "NHWC", "NLC")
_numbers = itertools.count()


class SmpEncoder(nn.Module):
    """A hybrid with the interface of smp's encoders; `as_smp_encoder` makes it.

    Maps images [N, C, H, W] to a list: the images, and a map for each of the strides 2, 4, 8, ...
    [N, out_channels[i], H_i, W_i], where H_i is H divided by the stride, rounded up. Where the
    hybrid has no map of a stride there is one with 0 channels, as smp's own encoders have it for
    Swin and ConvNeXt.

    Args:
        body: the hybrid.
        stages: what `get_stage_outputs` calls each map; None where there is none.
        out_channels: of each entry of the list [channels].
        output_stride: side of the image divided by that of the last map [pixels].
    """

    def __init__(
        self,
        body: HybridModel,
        stages: Sequence[int | str | None],
        out_channels: Sequence[int],
        output_stride: int,
    ) -> None:
        super().__init__()
        self.body = body
        self.stages = tuple(stages)
        self.out_channels = list(out_channels)
        self.output_stride = output_stride

    @property
    def used(self) -> list[int | str]:
        """The stages whose maps it reads."""
        return [stage for stage in self.stages if stage is not None]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the images and the maps."""
        maps = iter(self.body.get_stage_outputs(x, self.used))
        found = [x]
        for power, stage in enumerate(self.stages, start=1):
            size = grid(x, min(2**power, self.output_stride))
            empty = stage is None
            found.append(x.new_empty(x.shape[0], 0, *size) if empty else fit(next(maps), size))
        return found

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Check the number of channels of the images, which the build has decided; smp calls this.

        Raises:
            ParameterError: it is another one.
        """
        if in_channels != self.out_channels[0]:
            raise ParameterError(
                f"the hybrid takes images with {self.out_channels[0]} channels, not {in_channels}: "
                f"build it with in_channels={in_channels}"
            )

    def make_dilated(self, output_stride: int) -> None:
        """Check the stride of the last map, which the build has decided; smp calls this for strides
        other than 32.

        Raises:
            BackboneError: it is another one.
        """
        if min(output_stride, 2 ** len(self.stages)) != self.output_stride:
            raise BackboneError(
                f"smp asks for a last map of stride {output_stride}, and that of this encoder has "
                f"{self.output_stride}. encoder_depth=4 ends at stride 16, encoder_depth=3 at 8; a "
                "ResNet can be dilated where it is built (options="
                "{'replace_stride_with_dilation': [False, False, True]} for 16), a network of timm "
                "with options={'output_stride': 16}"
            )


def as_smp_encoder(model: HybridModel, depth: int = 5) -> SmpEncoder:
    """Return a hybrid as encoder for the decoders of segmentation-models-pytorch; `out_channels`
    says what they need.

    The hybrid is used itself, not a copy, and its classifier, which does not run here, is frozen;
    build it with `num_classes=0` to have none. Stages after the last map do not run either.

    Args:
        model: the hybrid.
        depth: number of maps: strides 2 to 2 ** depth. Of a dilated backbone the last ones share a
            stride, as smp has it: 2, 4, 8, 16, 16.

    Raises:
        BackboneError: the hybrid has no such map at the end.
        ParameterError: not a hybrid, or `depth` is no whole number of at least 1; nothing has
            changed.
        FreezeError: the model is wrapped in DistributedDataParallel already.
    """
    check_hybrid(model, "as_smp_encoder")
    encoder = _encoder(model, depth)
    freeze_head(model, encoder.used)
    return encoder


def smp_model(model: HybridModel, architecture: Callable[..., M], **arguments: Any) -> M:
    """Return a model of segmentation-models-pytorch whose `encoder` is a hybrid.

    Args:
        model: the hybrid, which is used as `as_smp_encoder` uses it.
        architecture: a class of smp's, such as `segmentation_models_pytorch.Unet`.
        arguments: of the class, such as `classes`; without those for smp's own encoders
            (`encoder_name`, `encoder_weights`).

    Raises:
        BackboneError: the hybrid has no maps for `encoder_depth` and `encoder_output_stride`.
        ParameterError: not a hybrid, or an argument that the class does not have.
        FreezeError: the model is wrapped in DistributedDataParallel already.
    """
    check_hybrid(model, "smp_model")
    if not callable(architecture):
        raise ParameterError(
            "architecture is a class of segmentation-models-pytorch, such as "
            f"segmentation_models_pytorch.Unet, not {architecture!r}"
        )
    from segmentation_models_pytorch.encoders import encoders

    # smp ignores arguments that it does not know
    made_by: Any = vars(architecture).get("__init__", architecture)
    known = [
        name
        for name, parameter in inspect.signature(made_by).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
        and name not in ("self", "encoder_name", "encoder_weights")
    ]
    if unknown := [name for name in arguments if name not in known]:
        raise ParameterError(
            f"{getattr(architecture, '__name__', architecture)} on a hybrid has no argument "
            f"{', '.join(unknown)}: there are {', '.join(known)}"
        )
    # smp makes its encoders from a table, by name. The entry lives while the model is made, under
    # a name of its own, so that several threads do not get each other's.
    name = f"tvc-{next(_numbers)}"
    encoders[name] = {
        "encoder": lambda depth, output_stride: _encoder(model, depth),
        "pretrained_settings": {},
        "params": {},
    }
    try:
        channels = {"in_channels": model.num_channels}
        found = architecture(name, encoder_weights=None, **{**channels, **arguments})
    finally:
        del encoders[name]
    encoder: Any = found.encoder
    freeze_head(model, encoder.used)
    return found


def _encoder(model: HybridModel, depth: int) -> SmpEncoder:
    check_count("depth", depth)
    levels = {level.stride: level for level in model.pyramid_info}
    last = min(2**depth, max(levels, default=0))
    halvings = last.bit_length() - 1
    ends = [(stage_of(levels[last]), levels[last].channels)] if last in levels else []
    if halvings < depth:  # dilated, so that earlier stages have this stride as well
        stages = [stage for stage in model.stage_info if stage.layout in _MAPS]
        ends = [(stage.stage, stage.channels) for stage in stages if stage.stride == last]
        ends = ends[halvings - depth - 1 :]
    if last != 2**halvings or len(ends) != max(1, depth - halvings + 1):
        depths = [power for power in range(1, 6) if 2**power in levels]
        raise BackboneError(
            f"{type(model).__name__} has maps of the strides {', '.join(map(str, levels))}, and an "
            f"encoder of depth {depth} ends with one of stride {2**depth}: "
            + (f"the depth can be {', '.join(map(str, depths))}; " if depths else "")
            + "tvc_dense.unet has a decoder for any strides"
        )
    finer: list[tuple[int | str | None, int]] = [
        (stage_of(levels[stride]), levels[stride].channels) if stride in levels else (None, 0)
        for stride in (2**power for power in range(1, halvings))
    ]
    wanted = [*finer, *ends]
    return SmpEncoder(
        model,
        [stage for stage, _ in wanted],
        [model.num_channels, *(channels for _, channels in wanted)],
        last,
    )
