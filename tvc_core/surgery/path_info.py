"""What a measured module is as a patch target: where patches can go, and why not elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import TargetError
from .layouts import Shape
from .sites import Site

__all__ = ["PathInfo", "path_info"]


@dataclass(frozen=True, kw_only=True)
class PathInfo:
    """One module of a backbone as a patch target.

    Args:
        path: dotted path from the network's root, the target of a patch.
        type: class of the module.
        part: "stem", "stage 0", ..., "head"; None for a module that holds several parts.
        in_channels: channels of the map that goes in; None where that is no single map [channels].
        out_channels: channels of the map that comes out; None where that is no single map
            [channels].
        height: of the map that comes out; None where it has none, or where the calls differ
            [pixels].
        width: of the map that comes out, as `height` [pixels].
        layout: of the map that comes out: NCHW, NHWC, NLC or NC.
        calls: how often the module runs in one forward pass.
        image: height and width of the image that was sent through [pixels].
        problem: why nothing can be inserted after the module, in a few words; None where a patch
            can go.
    """

    path: str
    type: str
    part: str | None
    in_channels: int | None
    out_channels: int | None
    height: int | None
    width: int | None
    layout: str | None
    calls: int
    image: tuple[int, int]
    problem: str | None


def path_info(site: Site, part: str | None) -> PathInfo:
    """Return what was measured at a site, which is in this part of the backbone."""
    layout = _layout(site, "output")
    height, width = _size({call.output for call in site.calls}, layout)
    return PathInfo(
        path=site.path,
        type=site.type_name,
        part=part,
        in_channels=site.channels("input") if _layout(site, "input") else None,
        out_channels=site.channels("output") if layout else None,
        height=height,
        width=width,
        layout=layout,
        calls=len(site.calls),
        image=site.image,
        problem=None if layout else _problem(site),
    )


def _layout(site: Site, side: str) -> str | None:
    try:
        return site.layout(side)
    except TargetError:
        return None


def _size(shapes: set[Shape | None], layout: str | None) -> tuple[int, int] | tuple[None, None]:
    shape = next(iter(shapes)) if len(shapes) == 1 else None
    if shape is None or layout not in ("NCHW", "NHWC"):
        return (None, None)
    return (shape[2], shape[3]) if layout == "NCHW" else (shape[1], shape[2])


def _problem(site: Site) -> str:
    """Say in a few words what the error of `Site.layout` says in a sentence."""
    if not site.calls:
        return "never called"
    kinds = [call.output_kind for call in site.calls if call.output is None]
    if kinds:
        return f"returns a {kinds[0]}, not a tensor"
    maps = list(
        dict.fromkeys(
            "x".join(str(size) for size in (call.output or ())[1:]) for call in site.calls
        )
    )
    if len(maps) > 1:
        return f"runs {len(site.calls)} times with different outputs: {', '.join(maps)}"
    return f"returns a tensor of unknown layout: {maps[0] or 'one number a batch'}"
