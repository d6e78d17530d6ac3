"""The strides of maps: by how many pixels an image grows when its map grows by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..surgery.layouts import Shape, grid_of, layout_of

__all__ = ["strides_of"]

Size = tuple[int, int]

MORE = 6
"""The second image is this many times the largest guessed stride larger. 6 = 2 * 3, so a true
stride of twice or three times the guess also divides the difference.
"""


def strides_of(
    shapes: Sequence[Shape], image: Size, measure_at: Callable[[Size], Sequence[Shape]]
) -> list[int]:
    """Return the stride of each map [pixels].

    A small image leaves a doubt: 64x96 pixels are one row and two columns for a stride of 64, but
    also for one of 32 without padding. Where the maps are not exactly the image divided by the
    strides, a second, larger image decides.

    Args:
        shapes: of the maps of one image.
        image: height and width of that image [pixels].
        measure_at: returns the shapes of the maps of an image of another height and width; may
            raise, since a network may accept no other size.
    """
    # First guess: image divided by map, which is exact if every layer pads its borders. Where rows
    # and columns times the stride are the image again, there is nothing to doubt. Else the growth
    # of the map when the image grows by a known number of pixels gives the stride, whatever is cut
    # off at the borders: the cut is the same for both.
    layouts = [layout_of(shape, image) for shape in shapes]
    grids = [_grid(shape, layout, image) for shape, layout in zip(shapes, layouts, strict=True)]
    strides = [_guess(grid, image) for grid in grids]
    if all(
        (rows * stride, columns * stride) == image
        for (rows, columns), stride in zip(grids, strides, strict=True)
    ):
        return strides
    more = MORE * max(strides)
    larger = (image[0] + more, image[1] + more)
    try:
        seen = measure_at(larger)
    except Exception:  # a network may raise any exception for a size that it does not accept
        return strides
    for index, (shape, layout) in enumerate(zip(seen, layouts, strict=True)):
        grown = sum(_grid(shape, layout, larger)) - sum(grids[index])
        if layout is not None and grown > 0:
            strides[index] = round(2 * more / grown)
    return strides


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
