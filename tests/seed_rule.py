"""The binary rasterizer's rule as a person would write it in Python: the oracle of the tests, and
what the benchmark measures against.

A drawing is a list of strokes, each a pair ([x ...], [y ...]) of ints 0..255, as in Quick, Draw!'s
JSON. An image is (side, side) uint8 with ink 0 and paper 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Drawing = Sequence[Sequence[Sequence[int]]]
Pixel = tuple[int, int]

EXAMPLE: Drawing = [
    [[10, 200, 60], [20, 40, 230]],
    [[128, 128], [5, 250]],
    [[255, 0], [255, 128]],
]
"""The drawing of the recorded checksums."""


def line(x: int, y: int, to_x: int, to_y: int) -> list[Pixel]:
    """Bresenham's line with strict inequalities, first end first."""
    wide, high = abs(to_x - x), abs(to_y - y)
    right, down = (1 if x < to_x else -1), (1 if y < to_y else -1)
    error = wide - high
    pixels = [(x, y)]
    while (x, y) != (to_x, to_y):
        twice = 2 * error
        if twice > -high:
            error -= high
            x += right
        if twice < wide:
            error += wide
            y += down
        pixels.append((x, y))
    return pixels


def draw(drawing: Drawing, side: int, pad: int, *, dots: bool = False) -> Image:
    """All strokes, in lines of one pixel."""
    scale, offset = (side - pad) / 256, pad // 2
    canvas = np.ones((side, side))
    for xs, ys in drawing:
        columns: list[int] = []
        rows: list[int] = []
        before = None
        for x, y in zip(xs, ys, strict=True):
            here = int(x * scale) + offset, int(y * scale) + offset
            if before is not None:
                for column, row in line(*before, *here):
                    columns.append(column)
                    rows.append(row)
            before = here
        if dots and len(xs) == 1 and before is not None:
            columns, rows = [before[0]], [before[1]]
        canvas[rows, columns] = 0
    return canvas.astype(np.uint8)


def widen(image: Image, times: int) -> Image:
    """The minimum over 3x3 pixels, ``times`` times; what is outside does not count."""
    for _ in range(times):
        framed = np.pad(image, 1, constant_values=255)
        height, width = image.shape
        shifted = [framed[i : i + height, j : j + width] for i in range(3) for j in range(3)]
        image = np.minimum.reduce(shifted)
    return image


def first_points(drawing: Drawing, cut: int) -> Drawing:
    """The drawing's first ``cut`` points, in their strokes."""
    shown = []
    for xs, ys in drawing:
        if cut > 0:
            shown.append((xs[:cut], ys[:cut]))
        cut -= len(xs)
    return shown


def pair(
    drawing: Drawing,
    side: int,
    pad: int,
    cut: int,
    *,
    times: int = 1,
    dots: bool = False,
    widen: Callable[[Image, int], Image] = widen,
) -> tuple[Image, Image]:
    """(full, partial), widened; each drawn from the start."""
    parts = drawing, first_points(drawing, cut)
    full, partial = (widen(draw(part, side, pad, dots=dots), times) for part in parts)
    return full, partial
