"""Anti-aliased images of drawings, whole and cut off, in plain PyTorch.

With side S, line width w and padding in units of the strokes (0..256)::

    margin = padding + w / 2     scale = S / (256 + 2 margin)     r = w scale / 2 pixels
    u = p - max / 2              per axis, max over all points of the drawing, cut off or not
    v = A u + t                  where there is an affine map (A, t), else u
    pixel coordinate = v scale + S / 2; pixel (row, col) has its centre at (col + .5, row + .5)

A segment with unit normal n covers a pixel at distance d (to the segment, whose caps are round) by

    F(r - d) - F(-r - d),   F the distribution function of <n, u>, u uniform on the unit square

that is, exactly as much as a straight band does. <n, u> is the sum of two uniform numbers of widths
a >= b (|nx| and |ny|), so with h = (a + b) / 2, l = (a - b) / 2 and s = |t|::

    F(t) = 1/2 + sign(t) (min(s, h) - max(min(s, h) - l, 0)^2 / (2 b)) / a

A segment shorter than DOT, and a stroke of one point, is a dot; its n is (1, 0). A segment with an
end beyond FAR, or not a number, draws nothing. Within a stroke the largest coverage counts. Strokes
lie over one another, 1 - (1 - c)(1 - c'), or the larger one counts ("max"). What is kept along the
way is ``clear``, the share of a pixel that is still free: a product or a minimum of 1 - c. Pixels
are floor(255 c + 1/2).

The partial image shows the first ``cut`` points of a drawing, in the frame of the whole one. A
stroke may be cut inside; of one whose first point alone is left, a dot remains.

There are two forms: this one, a loop over the positions of points for all drawings at once, and
``raster_triton.py``. Both compute in float32, their coordinates agree to the bit; float64 is for
tests. ``raster.py`` says the same for a CPU, where Numba is the fast way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COMPOSITES = ("over", "max")
MAX_SIDE = 4096
DOT = 1e-3
"""px. A shorter segment is a dot: float32 does not know its direction."""
FAR = 32768.0
"""px. What goes further draws nothing. This, DOT and MAX_SIDE are those of ``raster_frame.py``,
which is not imported because it brings Numba along."""
NO_SLANT = 1e-12
"""Keeps 1 / (2 b) finite where a segment runs along an axis; it is multiplied by 0 there."""


def frame(side: int, line_width: float, padding: float) -> tuple[float, float]:
    """Pixels per unit of strokes, and half the line's width in pixels."""
    scale = side / (256 + 2 * (padding + line_width / 2))
    return scale, line_width * scale / 2


def allocate(points: Tensor, rows: int, side: int, cut: Tensor | None) -> Tensor:
    """Uninitialized images: (1 or 2, rows, 1, side, side) uint8; whole, then partial ones."""
    return points.new_empty((1 if cut is None else 2, rows, 1, side, side))


def rasterize(
    points: Tensor,
    last: Tensor,
    first: Tensor,
    indices: Tensor,
    cut: Tensor | None,
    affine: Tensor | None,
    side: int,
    line_width: float,
    padding: float,
    over: bool,
) -> Tensor:
    """Images of the drawings ``indices``; the module's docstring has the formulas.

    A drawing outside 0..D-1 is an empty one. ``cut`` counts points from a drawing's first and is
    clamped to 0..n.

    Shapes: points, last, first as in ``DeviceStrokes``; indices, cut (B,) int64; affine (B, 2, 3)
        float32. Returns (1 or 2, B, 1, side, side) uint8: whole, and partial where there is a cut.
    """
    images = coverage(
        points, last, first, indices, cut, affine, side, line_width, padding, over, torch.float32
    )
    return (255 * images + 0.5).to(torch.uint8)[:, :, None]  # cut off: it is not negative


@dataclass(frozen=True)
class _Ragged:
    """The chosen drawings one after another, those with most points first.

    Attributes:
        order: (B,) where each came from in the batch.
        counts: (B,) points of each.
        begin: (B,) where its points begin below.
        place: (T, 2) pixel coordinates.
        ends: (T,) bool, the last point of a stroke.
    """

    order: Tensor
    counts: Tensor
    begin: Tensor
    place: Tensor
    ends: Tensor


def coverage(
    points: Tensor,
    last: Tensor,
    first: Tensor,
    indices: Tensor,
    cut: Tensor | None,
    affine: Tensor | None,
    side: int,
    line_width: float,
    padding: float,
    over: bool,
    dtype: torch.dtype,
) -> Tensor:
    """As ``rasterize``, before rounding: (1 or 2, B, side, side) in ``dtype``, within [0, 1]."""
    scale, radius = frame(side, line_width, padding)
    drawn = _chosen(points, last, first, indices, affine, side, scale, dtype)
    batch, count = len(indices), drawn.counts
    longest = int(count.max()) if batch else 0
    centre = torch.arange(side, dtype=dtype, device=points.device) + 0.5
    clear = torch.ones((batch, side, side), dtype=dtype, device=points.device)
    stroke = torch.zeros_like(clear)  # coverage by the stroke that has not ended
    shown = clear.clone()
    stop = None if cut is None else torch.minimum(cut[drawn.order].clamp(min=0), count)
    before = drawn.place.new_zeros((batch, 2))
    starts = torch.ones(batch, dtype=torch.bool, device=points.device)
    steps = torch.arange(longest, device=points.device)
    alive = (count > steps[:, None]).sum(dim=1).tolist()
    for step, rows in enumerate(alive):  # the first ``rows`` drawings have a point here
        at = drawn.begin[:rows] + step
        here, ends, begins = drawn.place[at], drawn.ends[at], starts[:rows]
        origin = torch.where(begins[:, None], here, before[:rows])
        more = torch.maximum(stroke[:rows], _segment(origin, here, centre, radius))
        if stop is not None:
            now = (stop[:rows] == step + 1)[:, None, None]
            shown[:rows] = torch.where(now, _add(clear[:rows], more, over), shown[:rows])
        # The first of several points is drawn by the segment that begins there, unless cut off.
        lone = (begins & ~ends)[:, None, None]
        more = torch.where(lone, stroke[:rows], more)
        done = ends[:, None, None]
        clear[:rows] = torch.where(done, _add(clear[:rows], more, over), clear[:rows])
        stroke[:rows] = torch.where(done, 0.0, more)
        before[:rows], starts[:rows] = here, ends
    free = clear[None] if stop is None else torch.stack((clear, shown))
    images = torch.empty_like(free)
    images[:, drawn.order] = (1 - free).clamp(0, 1)
    return images


def _chosen(
    points: Tensor,
    last: Tensor,
    first: Tensor,
    indices: Tensor,
    affine: Tensor | None,
    side: int,
    scale: float,
    dtype: torch.dtype,
) -> _Ragged:
    drawings = len(first) - 1
    inside = (indices >= 0) & (indices < drawings)
    index = torch.where(inside, indices, 0)
    begin, end = first[index], first[(index + 1).clamp(max=drawings)]
    count, order = torch.where(inside, end - begin, 0).sort(descending=True, stable=True)
    from_begin = count.cumsum(0) - count
    row = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)  # (T,)
    at = (begin[order] - from_begin)[row] + torch.arange(len(row), device=row.device)

    place = points[at].to(dtype)  # (T, 2)
    highest = place.new_zeros((len(count), 2))
    highest = highest.scatter_reduce(0, row[:, None].expand(-1, 2), place, "amax")
    place = place - 0.5 * highest[row]
    if affine is not None:
        chosen = affine.to(dtype)[order][row]  # (T, 2, 3)
        x, y = place.split(1, dim=1)
        place = chosen[:, :, 0] * x + chosen[:, :, 1] * y + chosen[:, :, 2]
    place = place * scale + 0.5 * side
    ends = (last[at >> 3] >> (at & 7).to(torch.uint8) & 1).bool()
    return _Ragged(order, count, from_begin, place, ends)


def _segment(a: Tensor, b: Tensor, centre: Tensor, radius: float) -> Tensor:
    """Coverage (B, S, S) by the segments from ``a`` to ``b`` (B, 2)."""
    seen = ((a.abs() <= FAR) & (b.abs() <= FAR)).all(dim=1)  # false for what is not a number
    a, b = (torch.where(seen[:, None], end, 0.0) for end in (a, b))
    x, y = (b - a).unbind(1)
    squared = x * x + y * y
    dot = squared < DOT**2
    inverse = torch.where(dot, 0.0, squared.rsqrt())
    x, y = x * inverse, torch.where(dot, 1.0, y * inverse)  # unit vector along the segment
    half = (0.5 * squared * inverse)[:, None, None]
    middle_x, middle_y = (0.5 * (a + b)).unbind(1)
    from_x = centre - middle_x[:, None]  # (B, S), columns
    from_y = centre - middle_y[:, None]  # rows
    along = (from_y * y[:, None])[:, :, None] + (from_x * x[:, None])[:, None, :]
    across = (from_y * x[:, None])[:, :, None] - (from_x * y[:, None])[:, None, :]
    beyond = (along.abs() - half).clamp(min=0)
    distance = (across * across + beyond * beyond).sqrt()
    wide = torch.maximum(x.abs(), y.abs())[:, None, None]
    narrow = torch.minimum(x.abs(), y.abs())[:, None, None]
    covered = _share(radius - distance, wide, narrow) + _share(radius + distance, wide, narrow)
    return torch.where(seen[:, None, None], covered, 0.0)


def _share(t: Tensor, wide: Tensor, narrow: Tensor) -> Tensor:
    """F(t) - 1/2: an odd function."""
    inner = torch.minimum(t.abs(), 0.5 * (wide + narrow))
    ramp = (inner - 0.5 * (wide - narrow)).clamp(min=0)
    share = (inner - ramp * ramp * (0.5 / narrow.clamp(min=NO_SLANT))) / wide
    return torch.where(t < 0, -share, share)


def _add(clear: Tensor, stroke: Tensor, over: bool) -> Tensor:
    """What is left free by one more stroke."""
    return clear * (1 - stroke) if over else torch.minimum(clear, 1 - stroke)
