"""Find out what flows where, by running the network once: channels, layouts and sizes are measured,
never guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import BackboneError, TargetError, TvcError, foreign, join_names, near_names
from ..specs import BackboneSpec
from .layouts import Shape, channels_of, layout_of
from .marks import LeftOut
from .noise import image_for
from .probing import probing

__all__ = [
    "Call",
    "Probe",
    "Site",
    "find_module",
    "first_tensor",
    "has_module",
    "image_of",
    "left_out_at",
    "locate",
    "odd_stride",
    "plain_name",
    "refuse_half_on_meta",
    "wrapped_module",
]

UNIT = 32
"""The image that is sent through a network to measure it is 2 units high and 3 wide, of at least so
many pixels each.
"""

WIDEST_ODD = 64
"""Largest common multiple of odd strides that the image respects."""


@dataclass(frozen=True)
class Call:
    """One call of a module: the shape of its first input and of its output, None where that is no
    single tensor; and the largest absolute values there.
    """

    input: Shape | None
    output: Shape | None
    input_kind: str = "Tensor"
    output_kind: str = "Tensor"
    input_peak: float = field(default=math.nan, compare=False)
    output_peak: float = field(default=math.nan, compare=False)


@dataclass(frozen=True, kw_only=True)
class Site:
    """A located module and what was seen there.

    Args:
        path: dotted path from the network's root.
        type_name: class of the module.
        calls: one entry for each time that it ran in one forward pass.
        image: height and width of the image [pixels].
    """

    path: str
    type_name: str
    calls: tuple[Call, ...]
    image: tuple[int, int]

    def shape(self, side: str) -> Shape:
        """Return the shape at "input" or "output".

        Raises:
            TargetError: the module never ran, what flows there is no single tensor, or the calls
                differ.
        """
        shapes = self.seen(side)
        layouts = {
            (layout_of(shape, self.image), channels_of(shape, layout_of(shape, self.image)))
            for shape in shapes
        }
        if len(layouts) > 1:
            raise TargetError(
                f"nothing can be inserted at {self.path!r} ({self.type_name}): it runs "
                f"{len(shapes)} times with different "
                f"{side} shapes {', '.join(str(list(shape)) for shape in shapes)}. Choose a module "
                "that sees one width; 'replace' also takes it, with a block that does not depend "
                "on the width, such as an activation."
            )
        return shapes[0]

    def seen(self, side: str) -> list[Shape]:
        """Return the shape at "input" or "output" of every call, of whatever width.

        Raises:
            TargetError: the module never ran, or what flows there is no single tensor.
        """
        if not self.calls:
            raise TargetError(
                f"nothing can be inserted at {self.path!r} ({self.type_name}): it is never called "
                "in a forward pass, "
                "so a block there would never run. Choose a module that is called."
            )
        shapes = [getattr(call, side) for call in self.calls]
        kinds = [getattr(call, f"{side}_kind") for call in self.calls]
        if None in shapes:
            kind = kinds[shapes.index(None)]
            raise TargetError(
                f"nothing can be inserted at {self.path!r} ({self.type_name}): its {side} is a "
                f"{kind}, not a single tensor."
            )
        return shapes

    def shapes(self, side: str) -> list[Shape]:
        """Return the different shapes at "input" or "output": one width, but maybe several sizes.

        Raises:
            TargetError: as for `shape`.
        """
        return list(dict.fromkeys(self.every(side)))

    def every(self, side: str) -> list[Shape]:
        """Return the shape at "input" or "output" of every call.

        Raises:
            TargetError: as for `shape`.
        """
        self.shape(side)
        return [getattr(call, side) for call in self.calls]

    def layout(self, side: str) -> str:
        """Return the layout at "input" or "output": NCHW, NHWC, NLC or NC.

        Raises:
            TargetError: as for `shape`, or the shape has another layout.
        """
        shape = self.shape(side)
        layout = layout_of(shape, self.image)
        if layout is None:
            raise TargetError(
                f"nothing can be inserted at {self.path!r} ({self.type_name}): its {side} has the "
                f"shape {list(shape)}, "
                "which for one image is no map [N, C, H, W] or [N, H, W, C], token list [N, L, C] "
                "or vector [N, C]."
            )
        return layout

    def layouts(self, side: str) -> list[str | None]:
        """Return the layout at "input" or "output" of every call, of whatever width; None where
        it is none. Raises as `seen` does.
        """
        return [layout_of(shape, self.image) for shape in self.seen(side)]

    def widths(self, side: str) -> list[int]:
        """Return the different numbers of channels at "input" or "output"; where the layout is not
        known, every axis but the first counts as one. Raises as `seen` does.
        """
        found: dict[int, None] = {}
        for shape, layout in zip(self.seen(side), self.layouts(side), strict=True):
            found |= dict.fromkeys(shape[1:] if layout is None else [channels_of(shape, layout)])
        return list(found)

    def channels(self, side: str) -> int:
        """Return the number of channels at "input" or "output" [channels]."""
        return channels_of(self.shape(side), self.layout(side))


_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""Where torch.compile, activation checkpointing and FSDP keep the module in whose place they stand.
"""


def locate(network: nn.Module, path: str, *, name: str) -> nn.Module:
    """Return the module at a dotted path.

    Raises:
        TargetError: there is no such module. The message has near paths.
    """
    # A stage that was left out (`stages=`) is still a module of the tree, one that computes
    # nothing: a path into it exists or not by chance, so it is asked for first, and the error says
    # what happened to it.
    module = find_module(network, path)
    if (gone := left_out_at(network, path)) is not None:
        raise TargetError(
            f"Target not found: {gone!r} was left out of {name}, which ends before it (stages)"
        )
    if module is None:
        paths = [found for found, _ in network.named_modules() if found]
        children = [child for child, _ in network.named_children()]
        close = near_names(path, paths)
        hint = f" Near paths: {', '.join(close)}." if close else ""
        raise TargetError(
            f"Target not found: {path!r} is not a module of {name}.{hint} Its children are "
            f"{join_names(children)}; "
            f"model.named_children() and 'tvc show {name}' list them."
        )
    return module


def find_module(network: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a dotted path; None if there is none."""
    module: nn.Module | None = network
    for part in path.split("."):
        if module is None:
            break
        children = module._modules
        # of a traced module, this has no `get`
        child = children[part] if part in children else None  # noqa: SIM401
        if child is None and (inside := wrapped_module(module)) is not None:
            child = find_module(inside, part)
        module = child
    return module


def wrapped_module(module: nn.Module) -> nn.Module | None:
    """Return what one of torch's wrappers holds that compute what is inside of them; None for any
    other module.
    """
    children = module._modules
    found = (children[name] for name in _WRAPPERS if name in children)
    return next((child for child in found if child is not None), None)


def plain_name(name: str) -> str:
    """Return the path of a module or tensor without the segments of torch's wrappers."""
    if not any(wrapper in name for wrapper in _WRAPPERS):
        return name
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def left_out_at(network: nn.Module, path: str) -> str | None:
    """Return the path of the module that an early end has left out, at a path or above it."""
    parts = path.split(".")
    paths = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return next((each for each in paths if isinstance(find_module(network, each), LeftOut)), None)


def has_module(network: nn.Module, path: str) -> bool:
    """Return whether there is a module at a dotted path."""
    return find_module(network, path) is not None


def refuse_half_on_meta(network: nn.Module) -> None:
    """Refuse a network that no pass can run, such as accelerate's `init_empty_weights` makes it."""
    places: dict[bool, str] = {}
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        places.setdefault(tensor.is_meta, name)
    if len(places) > 1:
        raise BackboneError(
            f"the network has {places[True]!r} on the meta device and {places[False]!r} not, so it "
            "cannot run and be measured. torch.device('meta') takes all of it there "
            "(and so does init_empty_weights(include_buffers=True))"
        )


def odd_stride(network: nn.Module) -> int:
    """Return the least common multiple of the odd factors of all strides: 1 where every layer
    halves, 7 where one has patches of 14 pixels.
    """
    given = (getattr(module, "stride", 1) for module in network.modules())
    sides = (each for each in given for each in (each if isinstance(each, tuple) else (each,)))
    found = math.lcm(
        *(each // (each & -each) for each in sides if isinstance(each, int) and each > 0)
    )
    return found if found <= WIDEST_ODD else 1


@dataclass
class Probe:
    """An image that the network accepts, made without touching the random state.

    Args:
        image: [1, num_channels, H, W].
    """

    image: torch.Tensor
    tries: list[str] = field(default_factory=list)

    @staticmethod
    def of(
        network: nn.Module,
        spec: BackboneSpec,
        size: int | None = None,
        *,
        likely: int | tuple[int, int] | None = None,
        first: int | None = None,
        asked: tuple[int, int] | None = None,
    ) -> Probe:
        """Return a probe that the network accepts: small and not square if it can be, else of a
        size it was trained with.

        Args:
            network: the network to run.
            spec: its description: channels, smallest size, preprocessing.
            size: side of a square image to use instead [pixels].
            likely: side of a square image, or height and width, to try before the sizes of the
                spec's weights [pixels].
            first: side of a square image to try before all others [pixels].
            asked: height and width that the user asks for, which the network must accept, even if
                the probe has another size then [pixels].

        Raises:
            BackboneError: the network's forward pass fails for `asked`, or for every size that was
                tried.
        """
        # Small, since a build runs several passes. Not square, so that the shapes of maps tell rows
        # from columns and both from channels (see `layout_of`). If the network takes no such image:
        # a small square, then the sizes that its weights were trained with, then 224. What each try
        # said is kept, for the error if none of them works.
        # Sides are whole multiples of a unit that strides up to 32 divide: 32 itself, or 56 for
        # patches of 14 pixels. 64x96 would do as well for those, but is 4x6 patches of 14, 15 and
        # 16 pixels alike, and 9 rows of 14 pixels that some networks refuse.
        unit = odd = odd_stride(network)
        while unit < UNIT:
            unit *= 2
        small = max(2, -(-spec.min_size // unit)) * unit
        sides = [*(weights.crop_size for weights in reversed(spec.weights)), 224, spec.min_size]
        crops = [(side, side) for side in sides]
        if likely:
            crops.insert(0, (likely, likely) if isinstance(likely, int) else likely)
        wide = small + unit * -(-small // (2 * unit))  # about half as wide again
        sizes = [(size, size)] if size else [(small, wide), (small, small), *crops]
        if spec.fixed_size and not size:
            # an option may have made it take others, and pad those that are no whole patches
            sizes = sorted([*crops, *sizes], key=lambda each: any(side % odd for side in each))
        if first and not size:
            sizes.insert(0, (first, first))
        if asked:
            image = image_of(network, spec, asked)
            trained = join_names(
                f"{side}x{side}" for side in sorted({w.crop_size for w in spec.weights})
            )
            hint = f", which was trained with images of {trained}," if trained else ""
            what = f"{spec.name}{hint} does not accept images of {asked[0]}x{asked[1]} pixels"
            with foreign(BackboneError, what), probing(network):
                network(image)
            if spec.fixed_size:
                return Probe(image)
            sizes.append(asked)
        tries: list[str] = []
        for height, width in dict.fromkeys(sizes):
            image = image_of(network, spec, (height, width))
            try:
                with foreign(BackboneError, f"{height}x{width}"), probing(network):
                    network(image)
            except TvcError as error:
                tries.append(str(error))
                continue
            return Probe(image, tries)
        said: dict[str, list[str]] = {}  # one error at several sizes, which stand in it, once
        for text in tries:
            said.setdefault(re.sub(r"\d+", "", text), []).append(text)
        causes = [
            ", ".join([*(each.partition(":")[0] for each in same[:-1]), same[-1]])
            for same in said.values()
        ]
        taken = (m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d))
        channels, hint = next(taken, spec.num_channels), ""
        if channels != spec.num_channels:
            hint = f". Its first convolution takes {channels}: if that is the image, give "
            hint += f"num_channels={channels}"
        raise BackboneError(
            f"{spec.name}: no forward pass with {spec.num_channels} channels succeeds: "
            f"{'; '.join(causes)}{hint}"
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width [pixels]."""
        return (self.image.shape[2], self.image.shape[3])

    def run(self, network: nn.Module, hooks: Iterable[Callable[[], Any]] = ()) -> torch.Tensor:
        """Return the network's output in eval mode.

        Args:
            network: the network to run.
            hooks: each registers a forward hook for this pass and returns its handle.
        """
        with probing(network), ExitStack() as stack:
            for register in hooks:
                stack.callback(register().remove)
            return first_tensor(network(self.image))

    def sites(
        self, network: nn.Module, paths: Iterable[str]
    ) -> tuple[dict[str, Site], torch.Tensor]:
        """Measure modules in one forward pass, and return their sites and the network's output."""
        found, output = self.look(network, paths)
        if isinstance(output, Exception):
            raise output
        return found, output

    def look(
        self, network: nn.Module, paths: Iterable[str]
    ) -> tuple[dict[str, Site], torch.Tensor | Exception]:
        """Do what `sites` does with a network whose pass may fail: then return what was seen until
        then, and the error. A call that did not come to its end has no output.
        """
        modules = {path: network.get_submodule(path) for path in paths}
        calls: dict[str, list[Call]] = {path: [] for path in modules}
        # read before an in-place module overwrites them
        inputs: dict[str, list[Any]] = {path: [] for path in modules}

        def watch(path: str, module: nn.Module) -> list[Callable[[], Any]]:
            def before(_: nn.Module, args: Any) -> None:
                inputs[path].append(_look_at(args[0]) if args else _BY_KEYWORD)

            def after(_: nn.Module, args: Any, output: Any) -> None:
                shape, kind, peak = _look_at(output)
                seen, seen_kind, seen_peak = inputs[path].pop()
                calls[path].append(Call(seen, shape, seen_kind, kind, seen_peak, peak))

            return [
                lambda: module.register_forward_pre_hook(before),
                lambda: module.register_forward_hook(after),
            ]

        # A module may run several times, and inside of itself: inputs are a stack, from which each
        # end of a call takes the last. What is left on it when the pass fails are the calls that
        # have not come to their end.
        hooks = [hook for path, module in modules.items() for hook in watch(path, module)]
        output: torch.Tensor | Exception
        try:
            output = self.run(network, hooks)
        except Exception as error:  # a forward pass may raise anything
            output = error
        found = {
            path: Site(
                path=path,
                type_name=type(module).__name__,
                calls=(*calls[path], *(Call(shape, None, kind) for shape, kind, _ in inputs[path])),
                image=self.size,
            )
            for path, module in modules.items()
        }
        return found, output


def image_of(network: nn.Module, spec: BackboneSpec, size: tuple[int, int]) -> torch.Tensor:
    """Return an image [1, num_channels, H, W] for a network, the same for the same size."""
    return image_for(network, (1, spec.num_channels, *size))


def first_tensor(output: Any) -> torch.Tensor:
    """Return the logits of a network's output, which may be a tuple or mapping with auxiliary
    outputs.
    """
    if isinstance(output, torch.Tensor):
        return output
    items = list(output.values()) if isinstance(output, Mapping) else list(output)
    return first_tensor(items[0])


_BY_KEYWORD = (None, "keyword argument (a patch reads the first positional one)", math.nan)


def _look_at(value: Any) -> tuple[Shape | None, str, float]:
    """Return shape, kind and largest absolute value."""
    if not isinstance(value, torch.Tensor):
        return None, type(value).__name__, math.nan
    known = value.numel() and value.is_floating_point() and not value.is_meta
    return tuple(value.shape), "Tensor", float(value.abs().max()) if known else math.nan
