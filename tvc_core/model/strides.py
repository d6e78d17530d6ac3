"""The strides of maps: by how many pixels an image grows when its map grows by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..surgery.layouts import Shape, grid_of, layout_of

__all__ = ["strides_of"]

Size = tuple[int, int]

MORE = 6
"""The second image is this many times the largest guessed stride larger. 6 = 2 * 3, so a true
stride of twice or three times the guess also divides the difference.
"""

WIDEST = 4096
"""Most columns of the image that decides between strides [pixels]; the nearest one is taken where
that is too few.
"""


def strides_of(
    shapes: Sequence[Shape],
    image: Size,
    measure_at: Callable[[Size], Sequence[Shape]],
    *,
    whole: bool = True,
) -> list[int]:
    """Return the stride of each map [pixels].

    A small image leaves a doubt: 64x96 pixels are one row and two columns for a stride of 64, but
    also for one of 32 without padding. Where the maps are not exactly the image divided by the
    strides, larger images decide.

    Args:
        shapes: of the maps of one image.
        image: height and width of that image [pixels].
        measure_at: returns the shapes of the maps of an image of another height and width; may
            raise, since a network may accept no other size.
        whole: the image's sides are multiples of the odd factors of all strides. Where they are
            not, larger images decide in any case: 64x96 pixels are 4x6 cells of 16 pixels, and of
            14 as well.
    """
    # First guess: image divided by map, which is exact if every layer pads its borders. Where rows
    # and columns times the stride are the image again, there is nothing to doubt. Else the growth
    # of the map when the image grows by a known number of pixels gives the stride, whatever is cut
    # off at the borders: the cut is the same for both.
    layouts = [layout_of(shape, image) for shape in shapes]
    grids = [_grid(shape, layout, image) for shape, layout in zip(shapes, layouts, strict=True)]
    strides = [_guess(grid, image) for grid in grids]
    # What was rounded up may look exact: 224 pixels are 4 cells of 56, and of 64 with padding.
    pairs = zip([1, *strides[:-1]], strides, strict=True)
    multiples = [_multiple(stride, before, image) for before, stride in pairs]
    exact = multiples == strides and all(
        (rows * stride, columns * stride) == image
        for (rows, columns), stride in zip(grids, strides, strict=True)
    )
    if exact and whole:
        return strides
    seen = {image: grids}

    def look(size: Size) -> bool:
        try:
            found = zip(measure_at(size), layouts, strict=True)
        except Exception:  # a network may raise any exception for a size that it does not accept
            return False
        seen[size] = [_grid(shape, layout, size) for shape, layout in found]
        return True

    more = MORE * max(strides)
    if not look(larger := (image[0] + more, image[1] + more)):
        return multiples
    for index, layout in enumerate(layouts):
        grown = sum(seen[larger][index]) - sum(grids[index])
        if layout is not None and grown > 0:
            strides[index] = round(2 * more / grown)
    # By how many cells a map grows is a whole number, so more than one stride may fit what was
    # seen. Of these the one is meant that is a multiple of the stride before it. If that does not
    # tell, a wide image does: another stride s cannot fit once a map has grown by 2 * s cells.
    fitting = _fitting(seen, strides)
    if any(len(each) > 1 for each in fitting):
        widest = max(each[-1] for each in fitting if len(each) > 1)
        if look((image[0], min(image[1] + 2 * widest * (widest + 1), WIDEST))):
            fitting = _fitting(seen, strides)
    return [
        min(fit, key=lambda s: abs(s - near)) for fit, near in zip(fitting, strides, strict=True)
    ]


def _fitting(seen: Mapping[Size, Sequence[Size]], near: Sequence[int]) -> list[list[int]]:
    """Return the strides that fit the rows and columns of each map at several image sizes; the
    near ones where none does.
    """
    # A map has floor((side + a) / stride) cells, with an a that is the same for every image: so two
    # images that differ by d pixels give maps that differ by less than one cell from d / stride.
    # This holds for any chain of strided layers, whatever they pad or cut off.
    found: list[list[int]] = []
    for index, guess in enumerate(near):
        points = {(axis, n[axis], maps[index][axis]) for n, maps in seen.items() for axis in (0, 1)}
        pairs = [
            (side - other, cells - count)
            for axis, side, cells in points
            for along, other, count in points
            if axis == along and side > other
        ]
        fit = [
            stride
            for stride in range(1, 2 * guess + 1)
            if all(abs(pixels - stride * cells) < stride for pixels, cells in pairs)
        ]
        before = found[-1] if found else []
        multiples = [each for each in fit if len(before) == 1 and each % before[0] == 0]
        found.append(multiples if len(multiples) == 1 else fit or [guess])
    return found


def _multiple(stride: int, before: int, image: Size) -> int:
    """Return the multiple of the stride before that gives an image as many cells as a guess does;
    the guess itself where none does.
    """
    near = before and round(stride / before) * before
    same = near and all(-(-side // near) == -(-side // stride) for side in image)
    return near if same else stride


def _grid(shape: Shape, layout: str | None, image: Size) -> Size:
    """Return rows and columns of a map; those of the image for what is not a map."""
    if layout == "NLC":
        grid = grid_of(shape[1], image)
        return grid[1:] if grid else image
    if layout in ("NCHW", "NHWC"):
        rows, columns = shape[2:] if layout == "NCHW" else shape[1:3]
        return rows, columns
    return image


def _guess(grid: Size, image: Size) -> int:
    (rows, columns), (height, width) = grid, image
    # Layers without padding cut the same number of rows and columns off, which falls out of the
    # difference between the two sides: 64x96 pixels with stride 4 and 3 cut off give 13x21, and
    # (96 - 64) / (21 - 13) is 4. Where the sides do not tell (one column as well as one row), what
    # is left is the plain ratio.
    return round((width - height) / (columns - rows) if columns > rows else height / rows)
