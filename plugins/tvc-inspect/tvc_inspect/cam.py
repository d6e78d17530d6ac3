"""Class activation maps and gate maps: where a model looks on one photo.

The map is Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2), without the
rectifier: positive where the layer speaks for the class, negative where it speaks against it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tvc_core import (
    BackboneError,
    HybridModel,
    ParameterError,
    Patch,
    describe_model,
    did_you_mean,
    join_names,
)

from .randomness import random_state_kept

__all__ = ["ClassMap", "GateMap", "class_map", "gate_maps"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassMap:
    """Where the layer of a model speaks for a class.

    Args:
        layer: path of the module whose map was weighed.
        index: number of the class.
        name: of the class; its number where the model has no names. Of several heads, that of the
            head is before it: "breed:pug".
        score: the class's logit.
        values: [h, w], positive where the map speaks for the class.
    """

    layer: str
    index: int
    name: str
    score: float
    values: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class GateMap:
    """What the gate of one patch is on one photo.

    Args:
        path: where the patch lives.
        values: [h, w], the mean over channels, of a gate that differs from pixel to pixel; else
            [C], one for each channel.
    """

    path: str
    values: Tensor

    @property
    def is_spatial(self) -> bool:
        """The gate differs from pixel to pixel."""
        return self.values.ndim == 2


def class_map(
    model: HybridModel, image: Tensor, target: int | str | None = None, *, layer: str | None = None
) -> ClassMap:
    """Return where a model looks for a class.

    The layer is the last stage's; where no gradient reaches its pixels (a ViT classifies from the
    class token, so after its last attention the image's tokens have none), the last module with as
    many channels whose pixels have one: `ln_1` of ViT's last block. Where an image is so small that
    a stage has one pixel, the layer is that of the stage before. A copy runs in eval mode: the
    model is as before.

    Args:
        model: the hybrid.
        image: [1, C, H, W], as `transforms` makes it.
        target: number or name of the class; None for the one with the largest logit. Of several
            heads "breed:pug", or "breed" for the largest logit of one.
        layer: path of the module to look at instead.

    Raises:
        ParameterError: no such class or head; the image is of another shape; or nothing that is a
            map is at `layer`.
        BackboneError: the model has no classes, does not return a row of logits of each head, no
            module has a map with a gradient, or logits or map are not finite.
    """
    if image.ndim != 4 or len(image) != 1:
        raise ParameterError(f"class_map takes one image [1, C, H, W], not {list(image.shape)}")
    views = _views(model, (int(image.shape[2]), int(image.shape[3])))
    if layer is not None and layer not in views:
        raise ParameterError(
            f"layer: {layer!r} returns no map.{did_you_mean(layer, views)} 'tvc inspect' lists "
            "the modules with their layouts"
        )
    with _copy_of(model) as network, torch.enable_grad():
        maps: dict[str, Tensor] = {}
        for path in views if layer is None else [layer]:
            network.get_submodule(path).register_forward_hook(partial(_keep, maps, path))
        logits, index, name = _target(model, network(image.detach().requires_grad_()), target)
        paths = list(maps)
        wanted = [maps[path] for path in paths]
        grads = torch.autograd.grad(logits[index], wanted, allow_unused=True) if wanted else ()
        found = dict(zip(paths, grads, strict=True))
        for path in _layers(model, paths, views) if layer is None else [layer]:
            gradient = found.get(path)
            if gradient is None:
                continue
            values, pixels = _weighed(maps[path].detach(), gradient, views[path])
            if not (logits[index].isfinite() and values.isfinite().all()):
                raise BackboneError(
                    f"class {name!r} has no map: its logit is {logits[index].item()}, and what it "
                    f"has at {path!r} is not finite. The model's weights, or the image, may hold "
                    "NaN or infinity"
                )
            if layer is not None or (bool(pixels.any()) and bool(values.any())):
                return ClassMap(
                    layer=path,
                    index=index,
                    name=name,
                    score=float(logits[index].detach()),
                    values=values,
                )
    raise BackboneError(
        f"class {name!r} has no map: its logit depends on no pixel of any of several. The weights "
        "of a head that was never trained may all be 0, as torchvision's ViT starts; or images of "
        f"{image.shape[2]} x {image.shape[3]} pixels are too small"
    )


def _layers(model: HybridModel, paths: list[str], views: dict[str, _View]) -> list[str]:
    """Return the modules whose map may be the one, the best first."""
    *earlier, last = model.stage_info
    found = []
    if last.module in views:
        found = [path for path in reversed(paths) if views[path].channels == last.channels]
        found = [last.module, *(path for path in found if path != last.module)]
    return [*found, *(info.module for info in reversed(earlier) if info.module in views)]


def gate_maps(model: HybridModel, image: Tensor) -> tuple[GateMap, ...]:
    """Return what the gates of the model's patches are on one image, in order. Patches whose blocks
    have no gate have no map.

    A copy runs in eval mode: the model is as before.

    Args:
        model: the hybrid.
        image: [1, C, H, W], as `transforms` makes it.
    """
    gates: dict[str, list[Tensor]] = {}

    def record(path: str, patch: Any, args: tuple[Any, ...]) -> None:
        def look(x: Tensor) -> Tensor:
            gate = patch.block.gate(x)
            gate = gate[(None,) * (x.ndim - gate.ndim)]  # factors for each channel have no batch
            channels_last = patch.view is not None and patch.view.block == "NHWC"
            gates[path].append(gate.movedim(-1, 1) if channels_last else gate)
            return x

        look(args[0]) if patch.view is None else patch.view.run(look, args[0])

    with _copy_of(model) as network, torch.no_grad():
        for path, module in network.named_modules():
            if isinstance(module, Patch) and module.gated:
                gates[path] = []
                module.register_forward_pre_hook(partial(record, path))
        network(image)
    # of tokens, the first call is for those of the image; the class token is a map of one pixel
    return tuple(
        GateMap(path=path, values=_gate_values(seen[0])) for path, seen in gates.items() if seen
    )


def _gate_values(gate: Tensor) -> Tensor:
    gate = gate[0].float()
    if gate.ndim == 3 and gate.shape[1] * gate.shape[2] > 1:
        return gate.mean(0)
    return gate.flatten()


@dataclass(frozen=True)
class _View:
    """How a module's output is a map."""

    layout: str
    channels: int | None
    height: int
    width: int

    def of(self, x: Tensor) -> Tensor:
        """Return a map [C, h, w]; of tokens those of the image, which are the last."""
        if self.layout == "NCHW":
            return x[0]
        if self.layout == "NHWC":
            return x[0].permute(2, 0, 1)
        tokens = x[0, -self.height * self.width :]
        return tokens.T.reshape(-1, self.height, self.width)


def _views(model: HybridModel, size: tuple[int, int]) -> dict[str, _View]:
    """Return how each module's output is a map, of those where it is one of several pixels."""
    strides = [info.stride for info in model.stage_info]
    found = {}
    for info in describe_model(model, size=size):
        if info.calls != 1 or info.path.partition(".")[0] in ("patches", "tvc_patches"):
            continue
        if info.layout in ("NCHW", "NHWC") and info.height and info.width:
            if info.height * info.width > 1:
                found[info.path] = _View(info.layout, info.out_channels, info.height, info.width)
        elif info.layout == "NLC":
            stride = strides[-1]
            grid = (size[0] // stride, size[1] // stride)
            if grid[0] * grid[1] > 1:
                found[info.path] = _View("NLC", info.out_channels, *grid)
    return found


def _keep(maps: dict[str, Tensor], path: str, module: nn.Module, args: Any, output: Any) -> Any:
    """Keep a map, and hand on a copy: what follows may overwrite it in place (DenseNet's last
    rectifier does), and would change the map under its own gradient.
    """
    if not isinstance(output, Tensor) or not output.requires_grad:
        return None
    maps[path] = output
    return output.clone()


def _weighed(x: Tensor, gradient: Tensor, view: _View) -> tuple[Tensor, Tensor]:
    """Return the map and the gradients at its pixels: each channel counts as much as the mean of
    its gradient over pixels.
    """
    maps, gradients = view.of(x), view.of(gradient)
    return (maps * gradients.mean((1, 2), keepdim=True)).sum(0), gradients


def _target(model: HybridModel, output: Any, target: int | str | None) -> tuple[Tensor, int, str]:
    """Return the logits [classes] of a head, and number and name of the class in it."""
    output = output[0] if isinstance(output, tuple) else output
    heads = {info.name: info.class_names or () for info in model.head_info}
    rows = output if isinstance(output, dict) else {next(iter(heads), ""): output}
    if not model.num_classes or not all(
        isinstance(row, Tensor) and row.ndim == 2 and name in heads for name, row in rows.items()
    ):
        raise BackboneError(
            "class_map needs a model that returns logits [N, classes] of each head; this one has "
            f"{model.num_classes} classes and returns {type(output).__name__}"
        )
    head, wanted = next(iter(rows)), target
    if isinstance(output, dict):
        head, colon, wanted = str(target).partition(":")
        wanted = wanted if colon else None
        if head not in rows:
            what = "which class?" if target is None else f"class {target!r}:"
            raise ParameterError(
                f"{what} The model has several heads, so a class is HEAD:CLASS, or HEAD for its "
                f"largest logit. The heads are {join_names(rows)}"
            )
    logits, names = rows[head][0], heads[head]
    index = _class(wanted, names, logits)
    name = names[index] if names else str(index)
    return logits, index, f"{head}:{name}" if isinstance(output, dict) else name


def _class(target: int | str | None, names: tuple[str, ...], logits: Tensor) -> int:
    if target is None:
        return int(logits.argmax())
    if isinstance(target, str) and target in names:
        return names.index(target)
    number, count = int(target) if str(target).isdecimal() else -1, len(logits)
    if not 0 <= number < count:
        near = did_you_mean(str(target), names) if names else ""
        raise ParameterError(
            f"there is no class {target!r}: the model has the classes 0 to {count - 1}"
            f"{', or by name' if names else ''}.{near}"
        )
    return number


@contextmanager
def _copy_of(model: HybridModel) -> Iterator[HybridModel]:
    """Yield a copy in eval mode, of which the parameters need no gradient; random numbers that are
    drawn inside are no one else's.
    """
    with random_state_kept():
        network = copy.deepcopy(model)
        for module in network.modules():
            module.training = False
        for parameter in network.parameters():
            parameter.requires_grad = False
        yield network
