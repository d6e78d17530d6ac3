"""Tensor layouts: which axis of a measured shape is which, and how a block sees a map in the layout
that it takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PatchError
from . import calls

__all__ = ["LayoutView", "Shape", "channels_of", "find_view", "grid_of", "layout_of"]

Shape = tuple[int, ...]

MOST_CUT = 2.5
"""How far borders that are cut off may change the ratio of a small map's sides: Inception makes 3x1
of 144x96.
"""

MOST_PREFIX = 8
"""Most tokens that may precede those of the image: ViT has one, the class token; others also have
registers.
"""


def layout_of(shape: Shape, image: tuple[int, int]) -> str | None:
    """Return the layout of what one image became: NCHW, NHWC, NLC, NC, or None for anything
    else.

    In a map the two axes are spatial that shrank alike from the image's height and width: by one
    stride, up to rounding; where layers without padding cut borders off, the pair whose ratio is
    nearer to the image's. What does not keep the image as its only entry of the first axis (windows
    of attention, tokens before the image's) has no layout.
    """
    # The image is 64x96 or of another shape that is not square. [1, 24, 8, 12] is NCHW, since 8 and
    # 12 are both an eighth of the image; [1, 8, 12, 24] is NHWC for the same reason. With a square
    # image [1, 8, 8, 8] could be either. Only where both pairs miss (layers without padding cut
    # borders off) does the nearer ratio decide.
    if not shape or shape[0] != 1 or len(shape) not in (2, 3, 4):
        return None
    if len(shape) == 2:
        return "NC"
    if len(shape) == 3:
        return "NLC"
    if _spatial(shape[2], shape[3], image) or _cut(shape[2], shape[3], image):
        return "NCHW"
    if _spatial(shape[1], shape[2], image) or _cut(shape[1], shape[2], image):
        return "NHWC"
    if image[0] == image[1]:
        return None
    errors = [
        abs(math.log(height * image[1] / (width * image[0])))
        for height, width in (shape[2:], shape[1:3])
    ]
    if min(errors) > math.log(MOST_CUT):
        return None
    return "NCHW" if errors[0] <= errors[1] else "NHWC"


def _spatial(height: int, width: int, image: tuple[int, int]) -> bool:
    if image[0] == image[1] or height == width == 1:
        return height == width
    stride = max(image[0] / height, image[1] / width)
    # A stride of 1.6 is none: 40 channels beside 60 rows are 64x96 pixels by chance.
    return any(
        abs(height * each - image[0]) <= each and abs(width * each - image[1]) <= each
        for each in ((math.floor(stride), math.ceil(stride)) if stride > 1 else (stride,))
    )


def _cut(height: int, width: int, image: tuple[int, int]) -> bool:
    """Tell whether some whole stride gives these rows and columns, and as much is cut off either
    side.
    """
    if width <= height:
        return False
    stride = max(1, round((image[1] - image[0]) / (width - height)))
    cuts = image[0] - height * stride, image[1] - width * stride
    return abs(cuts[1] - cuts[0]) < stride and 0 <= min(cuts) <= image[0] // 4


def channels_of(shape: Shape, layout: str | None) -> int:
    """Return the size of a map's channel axis."""
    return shape[-1] if layout in ("NHWC", "NLC", "NC") else shape[1]


def grid_of(tokens: int, image: tuple[int, int]) -> tuple[int, int, int] | None:
    """Return (prefix, height, width): so many tokens first, then those of a grid over the image;
    None if nothing fits.
    """
    # The fewest tokens first, and among those the finest grid: 197 tokens of a 224x224 image are
    # one and 14x14 (stride 16). A stride has to divide both sides, so that a number of tokens that
    # fits by chance (a grid of 1xN) is hardly ever taken.
    for prefix in range(MOST_PREFIX + 1):
        for stride in range(1, min(image) + 1):
            height, width = image[0] // stride, image[1] // stride
            if image[0] % stride == image[1] % stride == 0 and height * width == tokens - prefix:
                return prefix, height, width
    return None


@dataclass(frozen=True)
class LayoutView:
    """Shows a block a map in the layout that the block takes, and gives the result back in the
    map's own.

    The tokens of the image are one map; each token before them (ViT's class token) is a map of
    one pixel of its own. If they skipped the block, a block after the last attention layer would
    have no effect: ViT classifies from the class token alone.

    Args:
        site: layout of the map, "NCHW", "NHWC" or "NLC".
        block: layout that the block takes, "NCHW" or "NHWC".
        prefix: tokens before the image's, for NLC.
        height: of the grid of tokens, for NLC.
        width: of the grid of tokens, for NLC.
        stride: side of the image divided by the side of the grid, for NLC [pixels].
    """

    site: str
    block: str
    prefix: int = 0
    height: int = 0
    width: int = 0
    stride: int = 0

    def run(self, block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return what a block makes of a map, in the map's own layout."""
        if self.site == "NCHW":
            return block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.site == "NHWC":
            return block(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        rest = self._run_tokens(block, x[:, self.prefix :], *self._grid(x.shape[1]))
        if not self.prefix:
            # not copied: another order in memory would change the rounding of what comes next
            return rest
        front = x[:, : self.prefix].reshape(-1, 1, x.shape[2])
        return torch.cat(
            [self._run_tokens(block, front, 1, 1).reshape(x.shape[0], self.prefix, -1), rest], dim=1
        )

    def _grid(self, tokens: int) -> tuple[int, int]:
        """Return height and width of the grid that a number of tokens is.

        The number alone does not tell: 196 tokens are 14x14 of a square image and 7x28 of a wide
        one. So the image of the call decides. A network that pads images to whole patches has a row
        or column more than fit into it.
        """
        image = calls.images()[-1] if calls.images() else None
        grids, why = [(self.height, self.width)], "the model was built for"
        if image is not None and self.stride:
            down = (image[0] // self.stride, image[1] // self.stride)
            up = (-(-image[0] // self.stride), -(-image[1] // self.stride))
            grids, why = [down, up], f"patches of {self.stride} pixels of this image would be"
        for height, width in grids:
            if tokens == self.prefix + height * width:
                return height, width
        raise PatchError(
            f"a block got {tokens} tokens, and {why} {grids[0][0]}x{grids[0][1]} of an image's and "
            f"{self.prefix} before them. A network that drops or merges tokens leaves no map "
            "for a block to see: switch that off, or patch another place. Run the model itself, "
            "not its children, on images of another size than it was built for"
        )

    def _run_tokens(
        self, block: Callable[[Tensor], Tensor], tokens: Tensor, height: int, width: int
    ) -> Tensor:
        x = tokens.reshape(tokens.shape[0], height, width, tokens.shape[2])
        y = block(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if self.block == "NCHW" else block(x)
        return y.flatten(1, 2)

    def shape(self, shape: Shape) -> Shape:
        """Return the shape that the block sees for a map's shape."""
        seen: list[Shape] = []

        def look(x: Tensor) -> Tensor:
            seen.append(tuple(x.shape))
            return x

        self.run(look, torch.empty(shape, device="meta"))
        return seen[0]


def find_view(
    shape: Shape, layout: str, takes: tuple[str, ...], image: tuple[int, int]
) -> LayoutView | str | None:
    """Return how a block that takes some layouts sees a map: a view, None if it takes the map
    as it is, or why not.
    """
    if layout in takes:
        return None
    # A block that takes maps can be shown any map: of [N, H, W, C] by a permutation, of a list of
    # tokens by the grid that they are over the image. A vector is no map, and a block that takes
    # vectors or tokens only is shown nothing else: what a grid of its own would mean is not known.
    wanted = next((name for name in ("NCHW", "NHWC") if name in takes), None)
    if wanted is None or layout == "NC":
        return f"takes {' or '.join(takes)}"
    if layout != "NLC":
        return LayoutView(layout, wanted)
    grid = grid_of(shape[1], image)
    if grid is None:
        return (
            f"takes {' or '.join(takes)}, and {shape[1]} tokens are no grid over an image of "
            f"{image[0]}x{image[1]}"
        )
    return LayoutView(layout, wanted, *grid, stride=image[0] // grid[1])
