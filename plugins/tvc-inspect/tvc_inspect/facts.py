"""All that a page says of a model, as one frozen structure: read from the live model, and measured
where it cannot be read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tvc_core import HybridModel, Patch, PathInfo, describe_model

from .costs import Cost, UncountedOp, measure_costs

__all__ = ["ModelFacts", "PartFacts", "PatchFacts", "PathFacts", "inspect_model", "probe_image"]


@dataclass(frozen=True, kw_only=True)
class PathFacts:
    """One module of a model: a row of the page. Numbers are those of everything below its path;
    patches stand below `patches`, not below the module that runs them. Bytes and time of what is
    inside of a block are those of another pass, since a block may compute otherwise where hooks
    look inside.

    Args:
        path: dotted path; "" is the whole model.
        type: class of the module.
        part: "stem", "stage 0", ..., "head", of a patch that of its target; None for a module that
            holds several parts.
        shape: of what it returns for one image; None where it returns no tensor.
        layout: of that: NCHW, NHWC, NLC or NC; None where it is none of these.
        stride: side of the image divided by that of the map, rounded; of a map of a stage's size
            the stage's, which maps that lose a border do not round to. None where it is no map
            [pixels].
        parameters: of it and what is below [parameters].
        trainable: those that require gradients [parameters].
        flops: of a forward pass of one image, two for each multiply-add [FLOPs].
        kept: bytes that a forward pass in training mode keeps for backward, as the model is frozen
            now; parameters and buffers aside, the images included. None where no such pass
            succeeds [bytes].
        milliseconds: of a forward pass of one image here, median [ms].
        calls: how often it runs in one forward pass; a gated block runs by its `gate`.
        note: what is to be known of it: why no patch can go there, or that it is never called.
    """

    path: str
    type: str
    part: str | None
    shape: tuple[int, ...] | None
    layout: str | None
    stride: int | None
    parameters: int
    trainable: int
    flops: int
    kept: int | None
    milliseconds: float
    calls: int
    note: str


@dataclass(frozen=True, kw_only=True)
class PatchFacts:
    """One thing that was done to the backbone.

    Args:
        target: dotted path of what was patched.
        path: where the inserted block lives; the target's where it was replaced.
        op: qualified name of the operation.
        block: qualified name of the block; None for an operation without one.
        params: the block's parameters, as written.
        init: qualified name of the initializer; None for the operation's own start.
        position: what the block reads, and what becomes of its result; None for a replacement.
        parameters: of the block and its gate, or of the new module [parameters].
        gate: the number that mixes the block in, now; None where it has none.
        starts_as_identity: the block is the identity at its start.
        replaced: class of the module that is gone; None if nothing was replaced.
    """

    target: str
    path: str
    op: str
    block: str | None
    params: dict[str, Any]
    init: str | None
    position: str | None
    parameters: int
    gate: float | None
    starts_as_identity: bool
    replaced: str | None


@dataclass(frozen=True, kw_only=True)
class PartFacts:
    """One part of the model, with the blocks inserted in it.

    Args:
        name: "stem", "stage 0", ... or "head".
        parameters: all [parameters].
        trainable: those that require gradients [parameters].
    """

    name: str
    parameters: int
    trainable: int


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """All that a page says of a model.

    Args:
        name: the recipe's name, or the class of the model.
        backbone: qualified name.
        weights: what its pretrained weights are; None where it has none.
        class_names: one for each output; None where none were given, or for several heads.
        num_classes: outputs of the head.
        image: shape of the image that was sent through, [1, C, H, W] [pixels].
        kept_images: so many images had the pass whose bytes are counted; 0 where none succeeded.
        training: the model is in training mode.
        step0_difference: largest absolute difference of a logit from the unpatched backbone's, when
            the model was built; None where it is infinite.
        paths: the whole model first, then every module in the order of `named_modules`.
        patches: in order.
        parts: stem, stages and head.
        uncounted: operations of which no FLOPs are counted.
        recipe: the recipe that builds the model, as YAML.
        explanation: what `explain` says.
    """

    name: str
    backbone: str
    weights: str | None
    class_names: tuple[str, ...] | None
    num_classes: int
    image: tuple[int, ...]
    kept_images: int
    training: bool
    step0_difference: float | None
    paths: tuple[PathFacts, ...]
    patches: tuple[PatchFacts, ...]
    parts: tuple[PartFacts, ...]
    uncounted: tuple[UncountedOp, ...]
    recipe: str
    explanation: str

    def as_data(self) -> dict[str, Any]:
        """Return the facts as plain data, which JSON has a form for."""
        return _plain(asdict(self))

    @property
    def total(self) -> PathFacts:
        """The row of the whole model."""
        return self.paths[0]


def inspect_model(
    model: HybridModel, *, size: int | Sequence[int] | None = None, repeats: int = 5
) -> ModelFacts:
    """Return all that a page says of a model.

    A copy of it runs: the model, its mode and hooks and the random state are as before.

    Args:
        model: the hybrid.
        size: side of the image, or [height, width]; by default those at which `describe_model`
            looks at the model [pixels].
        repeats: passes whose time is taken, at least 1.

    Raises:
        ParameterError: `size` is no size.
        BackboneError: the model does not accept the image.
        PatchError: a patch has lost its place.
    """
    seen = {info.path: info for info in describe_model(model, size=size)}
    image = probe_image(model, next(iter(seen.values())).image)
    costs, uncounted, kept_images = measure_costs(model, image, repeats=repeats)
    stages = {
        info.stage: (info.stride, _grid(seen[info.module]))
        for info in model.stage_info
        if info.module in seen
    }
    recipe = model.recipe
    return ModelFacts(
        name=recipe.name or type(model).__name__,
        backbone=recipe.backbone,
        weights=None if recipe.weights is None else str(recipe.weights),
        class_names=model.class_names,
        num_classes=model.num_classes,
        image=tuple(image.shape),
        kept_images=kept_images,
        training=model.training,
        step0_difference=_finite(model.step0_difference),
        paths=tuple(
            _path(path, module, seen.get(path), costs[path], stages)
            for path, module in model.named_modules()
        ),
        patches=tuple(_patches(model)),
        parts=tuple(
            PartFacts(name=each.name, parameters=each.num_parameters, trainable=each.num_trainable)
            for each in model.freeze_report().parts
        ),
        uncounted=uncounted,
        recipe=recipe.to_yaml(),
        explanation=model.explain(),
    )


def probe_image(model: HybridModel, size: Sequence[int]) -> Tensor:
    """Return an image [1, C, H, W] of noise, the same for the same size, on the model's device."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((1, model.num_channels, *size), generator=generator, dtype=torch.float32)
    return image.to(dtype=like.dtype, device=like.device)


def _path(
    path: str, module: nn.Module, info: PathInfo | None, cost: Cost, stages: _Stages
) -> PathFacts:
    parameters = list(module.parameters())
    return PathFacts(
        path=path,
        type=type(module).__name__,
        part=info.part if info else None,
        shape=cost.shape,
        layout=info.layout if info else None,
        stride=_stride(info, cost, stages) if info else None,
        parameters=sum(each.numel() for each in parameters),
        trainable=sum(each.numel() for each in parameters if each.requires_grad),
        flops=cost.flops,
        kept=cost.kept,
        milliseconds=cost.milliseconds,
        calls=cost.calls,
        note=_note(info, cost),
    )


def _note(info: PathInfo | None, cost: Cost) -> str:
    if info is None:
        return ""
    if cost.calls and not info.calls:
        return "runs by its gate"
    if not cost.calls and (cost.flops or cost.kept):
        return "never called itself; what is below it runs"
    if not cost.calls:
        return "never called"
    return info.problem or ""


_Stages = dict[int, tuple[int, tuple[int | None, int | None]]]
"""Stride and size of the map of each stage."""


def _grid(info: PathInfo) -> tuple[int | None, int | None]:
    return info.height, info.width


def _stride(info: PathInfo, cost: Cost, stages: _Stages) -> int | None:
    """Return the stride of a map; of tokens that of the stage, if its grid has so many of them."""
    height, width = info.image
    number = (info.part or "").removeprefix("stage ")
    stage = int(number) if number.isdigit() else -1
    if info.height and info.width:
        near = [each for each in (stage, stage - 1) if each in stages]
        if stage < 0:  # the stem, or what comes after the stages or holds them
            near = sorted(stages, reverse=info.part != "stem")
        for stride, grid in (stages[each] for each in near):
            if grid == _grid(info):
                return stride
        return round(height / info.height)
    if info.layout == "NLC" and cost.shape is not None and stage in stages:
        stride, _ = stages[stage]
        extra = cost.shape[1] - (height // stride) * (width // stride)
        return stride if 0 <= extra <= 8 else None  # the class token and registers
    return None


def _patches(model: HybridModel) -> list[PatchFacts]:
    found = []
    for record in model.patch_records:
        for path in record.paths or (record.target,):
            module = model.get_submodule(path)
            patch = module if isinstance(module, Patch) else None
            alpha = None if patch is None else patch.alpha
            found.append(
                PatchFacts(
                    target=record.target,
                    path=path,
                    op=record.op,
                    block=record.block,
                    params={**record.params, **record.options},
                    init=record.init,
                    position=None if patch is None else patch.position.name,
                    parameters=sum(each.numel() for each in module.parameters()),
                    gate=None if alpha is None else float(alpha.detach()),
                    starts_as_identity=record.starts_as_identity,
                    replaced=record.replaced,
                )
            )
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Return plain data for JSON, which has no form for infinity, NaN and objects."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if isinstance(value, (str, int, bool)) or value is None else str(value)
