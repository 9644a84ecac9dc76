"""The fast anti-aliased rasterizer on a CPU; definitions in ``raster.py``.

A drawing goes through four loops, each over vectors:

1. points to px, and from there to segments (direction, reach, bounding box), 16 at a time;
2. per segment, the coverage of the pixels in its box, in blocks of 2 rows of LANES px, joined by
   max into the ``ink`` of the stroke;
3. per stroke, in its box, the ink goes to the ``canvas``;
4. per image, the canvas becomes bytes.

Between strokes the ink is 0, between drawings the canvas too. Both are uint16, 0 to 65534, in rows
of whole blocks, ``pitch`` elements apart; below the last row is one more that takes what is cut
off.

Loops 2 to 4 are written in LLVM's portable vectors (what it makes of the same loops in Python is
2 to 7 times slower); it splits those that a processor does not have. Lengths go into a block
multiplied by sqrt(k), k = 32767 / (a b), so that the corner's term is just a square:

    g(t) = 65534 (F(t) - 1/2) = sign(t) (slope m - q^2),   m = min(|t|, reach), q = max(m - flat, 0)

with reach = sqrt(k) (a + b) / 2, flat = sqrt(k) (a - b) / 2, slope = 65534 / (sqrt(k) a).
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np
from numba import extending, types
from numba.core import cgutils
from numpy.typing import NDArray

from fastvae.kernels.jit import njit
from fastvae.kernels.raster_frame import (
    DOT,
    FAR,
    Frame,
    default_threads,
    in_threads,
    largest,
    place,
)
from fastvae.kernels.strokes import Offsets, Points, Strokes, first_bad, read_only

ir: Any = import_module("llvmlite.ir")  # has no types
intrinsic: Any = extending.intrinsic  # what it makes has not the signature that Numba tells mypy

Words = NDArray[np.uint16]
Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Images = NDArray[np.uint8]

f4, i4, i8, u8 = np.float32, np.int32, np.int64, np.uint64

LANES = 8
"""px of a block of coverage."""
WIDE = 32
"""px of a block of ink, canvas or image."""
ROOM = 256
"""Segments set up at a time; a drawing has 40 on average."""
STEP = ROOM + 16
"""From one property of the segments to the next. The last 16 places are for a dot."""
THIN = 0.7072
"""px. Up to this radius both edges of a line can be in one pixel: sqrt(1/2)."""
FLAT = f4(1e-6)
"""The smaller component of a normal is at least this."""
GRAIN = 200_000
"""ns of work that are worth another thread."""

# Properties of segments in ``seg``, (9 STEP,) float32: see ``_cover_thick`` ...
UX, UY, ALONG, PERP, HALF, RADIUS, REACH, EDGE, SLOPE = (u8(i * STEP) for i in range(9))
# ... and in ``box``, (4 STEP,) int32: columns LEFT..RIGHT-1, which are whole blocks, and rows
# TOP..BOTTOM-1, which are none where nothing is to be drawn.
LEFT, RIGHT, TOP, BOTTOM = (u8(i * STEP) for i in range(4))

FLOAT, INT, WORD, BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.IntType(8)
FLAGS = ("nnan", "ninf", "nsz", "contract", "reassoc")


# --- blocks of pixels; none of them looks at bounds ----------------------------------------------


class _Vector:
    """A vector of LLVM's with arithmetic: floats, or unsigned integers."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value
        self.real = value.type.element == FLOAT

    def _binary(self, other: _Vector | float, name: str) -> _Vector:
        if not isinstance(other, _Vector):
            other = _Vector(self.builder, _constant(self.value.type, other))
        if self.real:
            value = getattr(self.builder, f"f{name}")(self.value, other.value, flags=FLAGS)
        else:
            value = getattr(self.builder, name)(self.value, other.value)
        return _Vector(self.builder, value)

    def __add__(self, other: _Vector | float) -> _Vector:
        return self._binary(other, "add")

    def __sub__(self, other: _Vector | float) -> _Vector:
        return self._binary(other, "sub")

    def __mul__(self, other: _Vector | float) -> _Vector:
        return self._binary(other, "mul")

    def __rshift__(self, count: int) -> _Vector:
        return self._binary(count, "lshr")

    def __invert__(self) -> _Vector:
        return _Vector(self.builder, self.builder.not_(self.value))

    def call(self, name: str, *others: _Vector | float) -> _Vector:
        """LLVM's intrinsic of that name."""
        kind = self.value.type
        values = [self.value] + [
            other.value if isinstance(other, _Vector) else _constant(kind, other)
            for other in others
        ]
        suffix = f"v{kind.count}{'f32' if self.real else f'i{kind.element.width}'}"
        signature = ir.FunctionType(kind, [kind] * len(values))
        function = cgutils.get_or_insert_function(
            self.builder.module, signature, f"llvm.{name}.{suffix}"
        )
        flags = FLAGS if self.real else ()
        return _Vector(self.builder, self.builder.call(function, values, fastmath=flags))

    def widened(self, element: Any) -> _Vector:
        """Unsigned integers with more bits."""
        kind = ir.VectorType(element, self.value.type.count)
        return _Vector(self.builder, self.builder.zext(self.value, kind))

    def narrowed(self, element: Any) -> _Vector:
        """The lower bits."""
        kind = ir.VectorType(element, self.value.type.count)
        return _Vector(self.builder, self.builder.trunc(self.value, kind))

    def whole(self) -> _Vector:
        """Floats 0..65535, rounded to uint16."""
        kind = ir.VectorType(INT, self.value.type.count)
        shifted = self.builder.fadd(
            self.value, _constant(self.value.type, 2.0**23)
        )  # no FLAGS here
        return _Vector(self.builder, self.builder.bitcast(shifted, kind)).narrowed(WORD)


def _constant(kind: Any, value: float) -> Any:
    """A constant vector of equal elements."""
    return ir.Constant(kind, [value] * kind.count)


def _spread(builder: Any, scalar: Any, lanes: int) -> _Vector:
    none = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(none, scalar, ir.Constant(INT, 0))
    mask = _constant(ir.VectorType(INT, lanes), 0)
    return _Vector(builder, builder.shuffle_vector(first, none, mask))


class _Place:
    """Elements ``at`` and on of a numba array of type ``array``, as a vector."""

    def __init__(
        self, context: Any, builder: Any, array: Any, value: Any, at: Any, lanes: int
    ) -> None:
        struct = cgutils.create_struct_proxy(array)(context, builder, value=value)
        element = struct.data.type.pointee
        self.builder, self.bytes = builder, element.width // 8
        self.kind = ir.VectorType(element, lanes)
        self.pointer = builder.bitcast(builder.gep(struct.data, [at]), self.kind.as_pointer())

    def load(self) -> _Vector:
        """Read."""
        return _Vector(self.builder, self.builder.load(self.pointer, align=self.bytes))

    def store(self, vector: _Vector | None) -> None:
        """Write; None: zeros."""
        value = _constant(self.kind, 0) if vector is None else vector.value
        self.builder.store(value, self.pointer, align=self.bytes)


def _half_plane(t: _Vector, reach: _Vector, flat: _Vector, slope: _Vector) -> _Vector:
    """g(t)."""
    m = t.call("fabs").call("minnum", reach)
    q = (m - flat).call("maxnum", 0.0)
    return (m * slope - q * q).call("copysign", t)


def _cover(rows: int, thin: bool) -> Any:
    """Make the operation on ``rows`` blocks of coverage, one below the other.

    thin: with both edges of the line; they can only be in one pixel if it is narrow.
    """

    def cover(
        _: Any, ink: Any, at: Any, stride: Any, along: Any, perp: Any, ux: Any, uy: Any,
        half: Any, radius: Any, reach: Any, flat: Any, slope: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            at, stride = args[1], args[2]
            along, perp, ux, uy, half, radius, reach, flat, slope = (
                _spread(builder, scalar, LANES) for scalar in args[3:]
            )
            numbers = [float(i) for i in range(LANES)]
            lane = _Vector(builder, ir.Constant(ir.VectorType(FLOAT, LANES), numbers))
            along, perp = along + lane * ux, perp - lane * uy
            for row in range(rows):
                if row:
                    at = builder.add(at, stride)
                    along, perp = along + uy, perp + ux
                beyond = (along.call("fabs") - half).call("maxnum", 0.0)
                distance = (perp * perp + beyond * beyond).call("sqrt")
                g = _half_plane(radius - distance, reach, flat, slope)
                # g is odd: the other edge's -g(-radius - distance)
                g = g + (_half_plane(radius + distance, reach, flat, slope) if thin else 32767.0)
                place = _Place(context, builder, signature.args[0], args[0], at, LANES)
                place.store(place.load().call("umax", g.whole()))
            return context.get_dummy_value()

        return types.void(ink, at, stride, *[types.float32] * 9), generate

    return intrinsic(cover)


_cover_thick, _cover_thin = _cover(2, thin=False), _cover(2, thin=True)
"""Coverage of 2 rows of LANES px by a segment, joined to the ink by max.

(ink, at, stride, along, perp, ux, uy, half, radius, reach, flat, slope): ``along`` and ``perp``,
the first px's coordinates from the middle of the segment, along it and across; (ux, uy) its
direction, ``half`` its half length; all scaled as above.
"""


def _composed(canvas: _Vector, ink: _Vector, highest: bool) -> _Vector:
    """Ink on the canvas; no ink leaves the canvas exactly as it is."""
    if highest:
        return canvas.call("umax", ink)
    product = (~canvas).widened(INT) * ink.widened(INT)
    return canvas + (product >> 16).narrowed(WORD)


def _compose(highest: bool) -> Any:
    def compose(_: Any, canvas: Any, ink: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            canvas, ink = (
                _Place(context, builder, signature.args[i], args[i], args[2], WIDE) for i in (0, 1)
            )
            canvas.store(_composed(canvas.load(), ink.load(), highest))
            ink.store(None)
            return context.get_dummy_value()

        return types.void(canvas, ink, at), generate

    return intrinsic(compose)


_compose_over, _compose_max = _compose(highest=False), _compose(highest=True)
"""(canvas, ink, at): move WIDE px of ink to the canvas; the ink becomes 0."""


def _image(peek: str) -> Any:
    def image(_: Any, canvas: Any, ink: Any, at: Any, image: Any, to: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            place = _Place(context, builder, kinds[0], args[0], args[2], WIDE)
            c = place.load()
            if peek:
                ink = _Place(context, builder, kinds[1], args[1], args[2], WIDE).load()
                c = _composed(c, ink, peek == "max")
            else:
                place.store(None)
            # c - c / 256 is 65536 / 65535 * 255 / 256 c; no step overflows
            level = ((c - (c >> 8)) + 128) >> 8
            target = _Place(context, builder, kinds[3], args[3], args[4], WIDE)
            target.store(level.narrowed(BYTE))
            return context.get_dummy_value()

        return types.void(canvas, ink, at, image, to), generate

    return intrinsic(image)


_to_bytes, _peek_over, _peek_max = _image(""), _image("over"), _image("max")
"""(canvas, ink, at, image, to): write WIDE px of an image, floor(255 c + 1/2).

``_to_bytes`` writes the canvas, which becomes 0, and leaves the ink alone; ``_peek_*`` write the
canvas with the ink on it, and change neither.
"""


# --- drawings ------------------------------------------------------------------------------------


def render(
    strokes: Strokes,
    frame: Frame,
    index: Offsets,
    cut: Offsets | None,
    affine: Floats | None,
    composite: str,
    full: Images,
    partial: Images | None,
    threads: int,
) -> int:
    """See "Low-level calls" in ``raster.py``."""
    points, stroke_offset, drawing_offset = strokes.arrays()
    index = read_only(index)
    bad = int(first_bad(points, stroke_offset, drawing_offset, index))
    if bad >= 0 or len(index) == 0:
        return bad
    cut = read_only(np.empty(0, np.int64) if cut is None else cut)
    affine = read_only(np.empty((0, 2, 3), np.float32) if affine is None else affine)
    full = full.reshape(-1)
    partial = np.empty(0, np.uint8) if partial is None else partial.reshape(-1)

    def run(lo: int, hi: int) -> None:
        _render(
            points, stroke_offset, drawing_offset, index, cut, affine, frame.side,
            float(frame.scale), float(frame.radius), composite == "max", full, partial, lo, hi,
        )  # fmt: skip

    work = len(index) * (1000 + frame.side * frame.side // 3)  # ns, about
    in_threads(run, len(index), min(threads or default_threads(), 1 + work // GRAIN))
    return -1


@njit(cache=True, nogil=True, error_model="numpy")
def _render(
    points: Points,
    stroke_offset: Offsets,
    drawing_offset: Offsets,
    index: Offsets,
    cut: Offsets,
    affine: Floats,
    side: Any,
    scale: Any,
    radius: Any,
    highest: Any,
    full: Images,
    partial: Images,
    lo: Any,
    hi: Any,
) -> None:
    """Drawings index[lo:hi]."""
    pitch = (side + WIDE - 1) // WIDE * WIDE
    ink, canvas = _zeros(pitch * (side + 1)), _zeros(pitch * (side + 1))
    px, seg = np.zeros(2 * STEP + 16, np.float32), np.empty(9 * STEP, np.float32)
    box = np.empty(4 * STEP, np.int32)
    flat = points.reshape(-1)
    for b in range(lo, hi):
        first, last = drawing_offset[index[b]], drawing_offset[index[b] + 1]
        begin, end = stroke_offset[first], stroke_offset[last]
        max_x, max_y = largest(flat, begin, end)
        xx, xy, x0, yx, yy, y0 = place(max_x, max_y, affine, b, side, scale)
        to_px = (f4(xx), f4(xy), f4(x0), f4(yx), f4(yy), f4(y0))
        image, room = b * side * side, (hi - b) * side * side
        stop = begin + min(max(cut[b], 0), end - begin) if len(cut) > 0 else -1
        _strokes(
            flat, stroke_offset, first, last, to_px, side, pitch, f4(radius), highest, stop,
            partial, image, room, px, seg, box, ink, canvas,
        )  # fmt: skip
        _finish(canvas, ink, full, image, room, side, pitch)


@njit(cache=True, nogil=True)
def _zeros(count: Any) -> Words:
    """At the start of a cache line: a block that lies across two takes twice the time."""
    words = np.zeros(count + 32, np.uint16)
    skip = (64 - words.ctypes.data % 64) // 2
    return words[skip : skip + count]


@njit(cache=True, nogil=True, error_model="numpy")
def _strokes(
    flat: Images,
    stroke_offset: Offsets,
    first: Any,
    last: Any,
    to_px: Any,
    side: Any,
    pitch: Any,
    r: Any,
    highest: Any,
    stop: Any,
    partial: Images,
    image: Any,
    room: Any,
    px: Floats,
    seg: Floats,
    box: Ints,
    ink: Words,
    canvas: Words,
) -> None:
    """Strokes first..last-1, which are those of one drawing, to the canvas.

    stop: from which point on is not in the partial image; -1: there is none.
    """
    thin = r < f4(THIN)
    end = stroke_offset[last]
    ready = ready_end = i8(-1)  # the segments that are set up
    for s in range(first, last):
        f, e = stroke_offset[s], stroke_offset[s + 1]
        while f < e:
            until = e
            if -1 < stop < e:
                if stop <= f:
                    _peek(canvas, ink, partial, image, room, side, pitch, highest)
                    stop = i8(-1)
                else:
                    until = stop
            # points f..until-1 to the ink
            x0, x1, y0, y1 = i4(side), i4(0), i4(side), i4(0)
            at = f
            while True:
                if until - f == 1:
                    _put(flat, f, 1, to_px, px, ROOM)
                    _put(flat, f, 1, to_px, px, ROOM + 1)
                    _set_up(ROOM, 1, side, pitch, r, px, seg, box)
                    upto, j, k = until, u8(ROOM), u8(ROOM + 1)
                else:
                    if not ready <= at < ready_end:
                        ready, ready_end = at, min(at + ROOM, end)
                        _put(flat, at, min(ROOM + 1, end - at), to_px, px, 0)
                        _set_up(0, ready_end - at, side, pitch, r, px, seg, box)
                    upto = min(until - 1, ready_end)
                    j, k = u8(at - ready), u8(upto - ready)
                while j < k:
                    if box[j + TOP] < box[j + BOTTOM]:
                        x0 = box[j + LEFT] if box[j + LEFT] < x0 else x0
                        x1 = box[j + RIGHT] if box[j + RIGHT] > x1 else x1
                        y0 = box[j + TOP] if box[j + TOP] < y0 else y0
                        y1 = box[j + BOTTOM] if box[j + BOTTOM] > y1 else y1
                        _segment(j, thin, pitch, seg, box, ink)
                    j += u8(1)
                at = upto
                if at >= until - 1:
                    break
            y1 = y1 + i4(1) if y1 < i4(side) else y1
            if until == stop:
                _peek(canvas, ink, partial, image, room, side, pitch, highest)
                stop = i8(-1)
                _erase(ink, x0, x1, y0, y1, pitch)
                continue
            _move(canvas, ink, x0, x1, y0, y1, pitch, highest)
            break
    if stop >= 0:
        _peek(canvas, ink, partial, image, room, side, pitch, highest)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def _put(flat: Images, first: Any, count: Any, to_px: Any, px: Floats, at: Any) -> None:
    """Points to px."""
    xx, xy, x0, yx, yy, y0 = to_px
    for i in range(count):
        x, y = f4(flat[u8(2) * u8(first + i)]), f4(flat[u8(2) * u8(first + i) + u8(1)])
        px[u8(at + i)] = xx * x + xy * y + x0
        px[u8(at + i) + u8(STEP)] = yx * x + yy * y + y0


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def _set_up(
    at: Any, count: Any, side: Any, pitch: Any, r: Any, px: Floats, seg: Floats, box: Ints
) -> None:
    """Segments at..at+count-1 from the points at..at+count; NaN and infinities welcome."""
    zero, half, one, limit = f4(0), f4(0.5), f4(1), f4(side)
    for block in range((count + 15) // 16):
        for i in range(16):
            j = u8(at + 16 * block) + u8(i)
            ax, ay = px[j], px[j + u8(STEP)]
            bx, by = px[j + u8(1)], px[j + u8(STEP + 1)]
            far_x = abs(ax) if abs(ax) > abs(bx) else abs(bx)
            far_y = abs(ay) if abs(ay) > abs(by) else abs(by)
            dx, dy = bx - ax, by - ay
            length: Any = math.sqrt(dx * dx + dy * dy)
            dot = length < f4(DOT)
            ux = zero if dot else dx / length
            uy = one if dot else dy / length
            length = zero if dot else length
            a = abs(ux) if abs(ux) > abs(uy) else abs(uy)
            c = abs(uy) if abs(ux) > abs(uy) else abs(ux)
            c = c if c > FLAT else FLAT
            # the middle, and how far coverage goes; in px that have whole centres
            mx = ax - half if dot else half * (ax + bx) - half
            my = ay - half if dot else half * (ay + by) - half
            reach = half * (a + c)
            wide, high = half * abs(dx) + (r + reach), half * abs(dy) + (r + reach)
            x0, x1 = np.ceil(mx - wide), np.floor(mx + wide) + one
            y0, y1 = np.ceil(my - high), np.floor(my + high) + one
            # comparisons in this order turn NaN into a number before it becomes an integer
            x0 = x0 if x0 > zero else zero
            x1 = x1 if x1 > zero else zero
            y0 = y0 if y0 > zero else zero
            y1 = y1 if y1 > zero else zero
            left, right = i4(x0 if x0 < limit else limit), i4(x1 if x1 < limit else limit)
            top, bottom = i4(y0 if y0 < limit else limit), i4(y1 if y1 < limit else limit)
            there = (far_x <= f4(FAR)) & (far_y <= f4(FAR)) & (left < right)
            blocks = (right - left + i4(LANES - 1)) & i4(-LANES)
            left = left if left < i4(pitch) - blocks else i4(pitch) - blocks
            box[j + LEFT] = left
            box[j + RIGHT] = left + blocks
            box[j + TOP] = top
            box[j + BOTTOM] = bottom if there else top
            unit = math.sqrt(f4(32767) / (a * c))
            from_x, from_y = f4(left) - mx, f4(top) - my
            seg[j + UX] = unit * ux
            seg[j + UY] = unit * uy
            seg[j + ALONG] = unit * (from_x * ux + from_y * uy)
            seg[j + PERP] = unit * (from_y * ux - from_x * uy)
            seg[j + HALF] = unit * half * length
            seg[j + RADIUS] = unit * r
            seg[j + REACH] = unit * reach
            seg[j + EDGE] = unit * half * (a - c)
            seg[j + SLOPE] = f4(65534) / (a * unit)


@njit(cache=True, nogil=True, forceinline=True, error_model="numpy")
def _segment(j: Any, thin: Any, pitch: Any, seg: Floats, box: Ints, ink: Words) -> None:
    """Segment j to the ink."""
    left, right, top, bottom = box[j + LEFT], box[j + RIGHT], box[j + TOP], box[j + BOTTOM]
    ux, uy, along, perp = seg[j + UX], seg[j + UY], seg[j + ALONG], seg[j + PERP]
    half, radius, reach = seg[j + HALF], seg[j + RADIUS], seg[j + REACH]
    edge, slope = seg[j + EDGE], seg[j + SLOPE]
    start = u8(top) * u8(pitch) + u8(left)
    # By products, not by sums: over thousands of px the rounding of sums would add up.
    of_x = f4(0)
    while True:
        at, row, of_y = start, top, f4(0)
        while row < bottom:
            a, p = along + of_y * uy, perp + of_y * ux
            if thin:
                _cover_thin(ink, at, u8(pitch), a, p, ux, uy, half, radius, reach, edge, slope)
            else:
                _cover_thick(ink, at, u8(pitch), a, p, ux, uy, half, radius, reach, edge, slope)
            at += u8(2 * pitch)
            of_y += f4(2)
            row += i4(2)
        left += i4(LANES)
        if left >= right:
            break
        start += u8(LANES)
        of_x += f4(LANES)
        along, perp = seg[j + ALONG] + of_x * ux, seg[j + PERP] - of_x * uy


@njit(cache=True, nogil=True, forceinline=True)
def _move(
    canvas: Words, ink: Words, x0: Any, x1: Any, y0: Any, y1: Any, pitch: Any, highest: Any
) -> None:
    """The ink in columns x0..x1-1 of rows y0..y1-1 to the canvas."""
    left = x0 // i4(WIDE) * i4(WIDE)
    for row in range(y0, y1):
        for x in range(left, x1, WIDE):
            if highest:
                _compose_max(canvas, ink, u8(row * pitch + x))
            else:
                _compose_over(canvas, ink, u8(row * pitch + x))


@njit(cache=True, nogil=True)
def _erase(ink: Words, x0: Any, x1: Any, y0: Any, y1: Any, pitch: Any) -> None:
    for row in range(y0, y1):
        for x in range(x0, x1):
            ink[u8(row * pitch + x)] = np.uint16(0)


@njit(cache=True, nogil=True, forceinline=True)
def _finish(
    canvas: Words, ink: Words, out: Images, image: Any, room: Any, side: Any, pitch: Any
) -> None:
    """The canvas to an image; the canvas becomes 0."""
    for row in range(side):
        for x in range(0, side, WIDE):
            to = image + row * side + x
            # A block may go on into the next rows and images, which come later.
            if to + WIDE <= image + room:
                _to_bytes(canvas, ink, u8(row * pitch + x), out, u8(to))
            else:
                for i in range(min(WIDE, side - x)):
                    c = np.int64(canvas[u8(row * pitch + x + i)])
                    out[u8(to + i)] = np.uint8((c - (c >> 8) + 128) >> 8)
                    canvas[u8(row * pitch + x + i)] = np.uint16(0)


@njit(cache=True, nogil=True)
def _peek(
    canvas: Words,
    ink: Words,
    out: Images,
    image: Any,
    room: Any,
    side: Any,
    pitch: Any,
    highest: Any,
) -> None:
    """The canvas with the ink on it to an image; neither changes."""
    for row in range(side):
        for x in range(0, side, WIDE):
            at, to = u8(row * pitch + x), image + row * side + x
            if to + WIDE <= image + room:
                if highest:
                    _peek_max(canvas, ink, at, out, u8(to))
                else:
                    _peek_over(canvas, ink, at, out, u8(to))
            else:
                for i in range(min(WIDE, side - x)):
                    c, more = np.int64(canvas[at + u8(i)]), np.int64(ink[at + u8(i)])
                    c = max(c, more) if highest else c + ((65535 - c) * more >> 16)
                    out[u8(to + i)] = np.uint8((c - (c >> 8) + 128) >> 8)
