"""What both anti-aliased rasterizers share: the frame, how a drawing is placed, threads.

Everything here is per drawing or per point; the loops over pixels are in ``raster_fast.py`` and
``raster_exact.py``.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvae.kernels.jit import njit

CANVAS = 256.0
"""Side of the square that points 0..255 lie in, in their own units."""
MAX_SIDE = 4096
FAR = 32768.0
"""px. A segment with an end beyond this, or not finite, draws nothing: float32 resolves 1/256 px
up to here, and a conversion to integers is safe."""
DOT = 1e-3
"""px. A shorter segment is a dot: float32 does not know its direction."""


@dataclass(frozen=True)
class Frame:
    """How a drawing fills an image; lengths in units of the points (the canvas is 256 wide).

    The defaults are those of Quick, Draw!'s own 28x28 bitmaps.

    Attributes:
        side: height and width of the image in px.
        line_width: full width of a line.
        padding: white space beyond the outermost line.
    """

    side: int
    line_width: float = 16.0
    padding: float = 16.0

    def __post_init__(self) -> None:
        if not isinstance(self.side, int | np.integer) or not 1 <= self.side <= MAX_SIDE:
            raise ValueError(f"side must be an integer in 1..{MAX_SIDE}, got {self.side!r}")
        if not (math.isfinite(self.line_width) and self.line_width > 0):
            raise ValueError(f"line_width must be finite and above 0, got {self.line_width!r}")
        if not (math.isfinite(self.padding) and self.padding >= 0):
            raise ValueError(f"padding must be finite and at least 0, got {self.padding!r}")

    @property
    def margin(self) -> float:
        """From the canvas to the border of the image, in units."""
        return self.padding + self.line_width / 2

    @property
    def scale(self) -> float:
        """px per unit."""
        return self.side / (CANVAS + 2 * self.margin)

    @property
    def radius(self) -> float:
        """Half the width of a line in px."""
        return self.line_width * self.scale / 2


@njit(cache=True, nogil=True)
def largest(flat: NDArray[np.uint8], begin: int, end: int) -> Any:
    """The largest x and y of points begin..end-1; 0 if there are none. flat: (2 P,)."""
    # Unsigned positions, one dimension and no max(): so LLVM makes vectors of it.
    max_x = max_y = np.uint8(0)
    for i in range(end - begin):
        p = np.uint64(2) * np.uint64(begin + i)
        x, y = flat[p], flat[p + np.uint64(1)]
        max_x = x if x > max_x else max_x
        max_y = y if y > max_y else max_y
    return max_x, max_y


@njit(cache=True, nogil=True, error_model="numpy")
def place(
    max_x: int, max_y: int, affine: NDArray[np.float32], b: int, side: int, scale: float
) -> Any:
    """Coefficients (xx, xy, x0, yx, yy, y0) for the points of a drawing with those largest:

        column = xx x + xy y + x0        row = yx x + yy y + y0        in px

    with row ``b`` of ``affine`` (B, 2, 3), or none where that is empty. In float64, to be rounded
    to float32 by the caller.
    """
    centre_x, centre_y, half = 0.5 * np.float64(max_x), 0.5 * np.float64(max_y), 0.5 * side
    if len(affine) == 0:
        return scale, 0.0, half - scale * centre_x, 0.0, scale, half - scale * centre_y
    xx, xy, x0 = scale * affine[b, 0, 0], scale * affine[b, 0, 1], scale * affine[b, 0, 2]
    yx, yy, y0 = scale * affine[b, 1, 0], scale * affine[b, 1, 1], scale * affine[b, 1, 2]
    x0 += half - xx * centre_x - xy * centre_y
    y0 += half - yx * centre_x - yy * centre_y
    return xx, xy, x0, yx, yy, y0


def default_threads() -> int:
    """OMP_NUM_THREADS where it is set, as torchrun does; else the cores this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else len(os.sched_getaffinity(0))


def in_threads(run: Callable[[int, int], object], count: int, threads: int) -> None:
    """Call ``run(lo, hi)`` for chunks that cover 0..count-1, in ``threads`` threads.

    ``run`` must let go of the GIL. 0 threads: ``default_threads``. Threads of Python, not
    numba's: they may start in several callers at once and in forked processes, where GNU OpenMP
    ends the process.
    """
    threads = min(threads or default_threads(), count)
    if threads <= 1:
        run(0, count)
        return
    chunks = min(count, 8 * threads)  # drawings differ; whoever is done takes another chunk
    ticket = itertools.count()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while (i := next(ticket)) < chunks:
                run(i * count // chunks, (i + 1) * count // chunks)
        except BaseException as error:
            errors.append(error)

    helpers = [threading.Thread(target=work, daemon=True) for _ in range(threads - 1)]
    for helper in helpers:
        helper.start()
    work()
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]
