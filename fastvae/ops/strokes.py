"""From strokes on a device to images."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.kernels import raster_op
from fastvae.kernels.raster_torch import COMPOSITES, MAX_SIDE
from fastvae.kernels.strokes_device import DeviceStrokes
from fastvae.ops import checks


def rasterize_strokes(
    strokes: DeviceStrokes,
    indices: Tensor,
    side: int,
    *,
    cut: Tensor | None = None,
    affine: Tensor | None = None,
    line_width: float = 16.0,
    padding: float = 16.0,
    composite: str = "over",
) -> Tensor | tuple[Tensor, Tensor]:
    """Draw the chosen drawings, white on black and anti-aliased; whole, and cut off where asked.

    The frame is that of Quick, Draw!'s own bitmaps: a drawing is centred, and a line of the default
    width at its edge still has ``padding`` around it. Pixels are those of ``raster.rasterize`` in
    mode ``fast``, up to 1 of 255.

    Args:
        strokes: the drawings, on the device where the images are made.
        indices: (B,) int64, which drawings. One outside 0..D-1 gives a ValueError on a CPU, and an
            image of zeros on a GPU (to look would mean to wait).
        side: pixels along each edge of an image.
        cut: (B,) int64, points of each drawing in the partial image, counted from its first and
            over its strokes; clamped to 0..n. A stroke may be cut inside.
        affine: (B, 2, 3) float32, applied to the strokes about (128, 128), the centre of the frame:
            q = A[:, :2] (p - 128) + 128 + A[:, 2], in units of strokes (256 across). Segments that
            it sends to where no float32 can follow, or to what is not a number, are not drawn.
        line_width, padding: in units of strokes, whatever the side and the map.
        composite: how strokes of one drawing meet: over, 1 - (1 - a)(1 - b), or max.

    Returns:
        (B, 1, side, side) uint8; with a ``cut`` a pair of them, (whole, partial).
    """
    op = "rasterize_strokes"
    if not isinstance(strokes, DeviceStrokes):
        raise ValueError(f"{op}: strokes must be DeviceStrokes, got {type(strokes).__name__}")
    checks.tensor(op, "indices", indices)
    rows = tuple(indices.shape) if indices.dim() == 1 else ("B",)
    for name, value, dtype, tail in (
        ("indices", indices, torch.int64, ()),
        ("cut", cut, torch.int64, ()),
        ("affine", affine, torch.float32, (2, 3)),
    ):
        if value is None:
            continue
        checks.tensor(op, name, value)
        if value.dtype != dtype or tuple(value.shape) != (*rows, *tail):
            expected = ", ".join(map(str, (*rows, *tail))) + ("" if tail else ",")
            raise ValueError(
                f"{op}: {name} must be ({expected}) {dtype}, got {tuple(value.shape)} {value.dtype}"
            )
        checks.no_gradient(op, name, value)
    checks.same_place(op, strokes=strokes.points, indices=indices, cut=cut, affine=affine)
    checks.count(op, "side", side, least=1)
    if side > MAX_SIDE:
        raise ValueError(f"{op}: side = {side}: expected at most {MAX_SIDE}")
    checks.number(op, "line_width", line_width)
    if line_width <= 0.0:
        raise ValueError(f"{op}: line_width = {line_width!r}: expected more than 0")
    checks.number(op, "padding", padding, least=0.0)
    if composite not in COMPOSITES:
        raise ValueError(f"{op}: composite = {composite!r}: expected over or max")
    checks.indices(op, indices, strokes.drawings)
    images = raster_op.rasterize(
        strokes.points,
        strokes.last,
        strokes.first,
        indices,
        cut,
        affine,
        side,
        float(line_width),
        float(padding),
        composite == "over",
    )
    return images[0] if cut is None else (images[0], images[1])
