"""What people use instead of the stroke kernels: for benchmarks, and for tests where it is there.

A drawing is here a list of strokes, each a pair ([x ...], [y ...]) of Python ints, the form in
which these libraries take points fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fastvae.kernels.raster_frame import Frame
from fastvae.kernels.strokes import Strokes

Image = NDArray[np.uint8]
Drawing = Sequence[tuple[Sequence[int], Sequence[int]]]
Peer = Callable[[Drawing], Image]
"""Draws one drawing; the image is the peer's own and overwritten by the next call."""


def drawings_of(strokes: Strokes) -> list[Drawing]:
    """All drawings as Python lists."""
    return [
        [(s[:, 0].tolist(), s[:, 1].tolist()) for s in strokes.strokes_of(d)]
        for d in range(strokes.drawings)
    ]


def cairo(frame: Frame, form: str = "ARGB32") -> Peer:
    """Google's recipe for the 28x28 bitmaps of Quick, Draw! (googlecreativelab/quickdraw-dataset,
    issue 19) in pycairo, with one surface for all drawings. form: ARGB32 or A8."""
    import cairo as c

    side = frame.side
    stride = c.ImageSurface.format_stride_for_width(getattr(c, f"FORMAT_{form}"), side)
    memory = np.zeros((side, stride), dtype=np.uint8)
    surface = c.ImageSurface.create_for_data(
        memory, getattr(c, f"FORMAT_{form}"), side, side, stride
    )
    context = c.Context(surface)
    context.set_antialias(c.ANTIALIAS_BEST)
    context.set_line_cap(c.LINE_CAP_ROUND)
    context.set_line_join(c.LINE_JOIN_ROUND)
    context.scale(frame.scale, frame.scale)
    context.translate(frame.margin, frame.margin)
    context.set_line_width(frame.line_width)
    context.set_source_rgba(1, 1, 1, 1)
    image = memory[:, : 4 * side : 4] if form == "ARGB32" else memory[:, :side]

    def draw(drawing: Drawing) -> Image:
        memory[:] = 0
        surface.mark_dirty()
        left = (256 - max((max(x) for x, _ in drawing if x), default=0)) / 2
        top = (256 - max((max(y) for _, y in drawing if y), default=0)) / 2
        for x, y in drawing:
            if not x:
                continue
            context.move_to(x[0] + left, y[0] + top)
            for px, py in zip(x, y, strict=True):
                context.line_to(px + left, py + top)
            context.stroke()
        surface.flush()
        return image

    return draw


def opencv(frame: Frame) -> Peer:
    """cv2.polylines with LINE_AA. Thickness is a whole number of px: 1.47 px become 1."""
    import cv2

    bits = 5
    factor = frame.scale * (1 << bits)
    thickness = max(1, round(2 * frame.radius))
    image = np.zeros((frame.side, frame.side), dtype=np.uint8)

    def draw(drawing: Drawing) -> Image:
        image[:] = 0
        middle = frame.side / 2 * (1 << bits) - (1 << bits) / 2  # OpenCV's px have whole centres
        left = middle - max((max(x) for x, _ in drawing if x), default=0) / 2 * factor
        top = middle - max((max(y) for _, y in drawing if y), default=0) / 2 * factor
        lines = []
        for stroke in drawing:
            points = np.array(stroke, dtype=np.float64).T * factor + (left, top)
            lines.append(np.round(points).astype(np.int32))
        cv2.polylines(image, lines, False, 255, thickness, cv2.LINE_AA, bits)
        return image

    return draw
