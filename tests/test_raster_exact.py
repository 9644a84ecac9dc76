"""The anti-aliased rasterizer's exact mode: against Google's bitmaps and cairo, byte for byte;
against a supersampled union; and where it might read or write what it should not.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastvae.kernels.raster import FAR, Frame, rasterize
from fastvae.kernels.raster_exact_outline import order, pen_of
from fastvae.kernels.strokes import Strokes, from_lists

REPO = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FASTVAE_SHARED_DATA") or REPO.parent / "shared" / "data")
QUICKDRAW = SHARED / "quickdraw"
needs_data = pytest.mark.skipif(
    not QUICKDRAW.is_dir(), reason="no shared data here (FASTVAE_SHARED_DATA)"
)
CATEGORIES = ("train", "cat", "airplane")
Images = NDArray[np.uint8]
Floats = NDArray[np.float64]
Drawing = list[list[list[int]]]


def category(name: str) -> Strokes:
    lines = (QUICKDRAW / "simplified" / f"{name}.ndjson").read_text().splitlines()
    return from_lists([json.loads(line)["drawing"] for line in lines])


def everything(strokes: Strokes) -> NDArray[np.int64]:
    return np.arange(strokes.drawings, dtype=np.int64)


def draw(strokes: Strokes, frame: Frame, **kwargs: Any) -> Images:
    images = rasterize(strokes, frame, everything(strokes), mode="exact", **kwargs)
    assert isinstance(images, np.ndarray)
    return images


def draw_both(strokes: Strokes, frame: Frame, cut: NDArray[np.int64], **kwargs: Any) -> Any:
    return rasterize(strokes, frame, everything(strokes), cut=cut, mode="exact", **kwargs)


def awkward(rng: np.random.Generator, strokes: int = 5, points: int = 12) -> Drawing:
    """Dots, repeated points, steps of one unit, ways back, closed and rectangular strokes."""
    drawing: Drawing = []
    for _ in range(strokes):
        n = int(rng.integers(1, points + 1))
        kind = rng.integers(0, 6)
        xy = rng.integers(0, 256, (2, n))
        if kind == 0:
            xy = np.clip(rng.integers(0, 256, (2, 1)) + rng.integers(-2, 3, (2, n)), 0, 255)
        elif kind == 1:
            xy = np.repeat(xy, rng.integers(1, 4, n), axis=1)
        elif kind == 2:
            xy = np.concatenate([xy, xy[:, ::-1]], axis=1)
        elif kind == 3:
            xy = np.concatenate([xy, xy[:, :1]], axis=1)
        elif kind == 4:
            xy = np.repeat(xy, 2, axis=1)
            xy[1, :-1] = xy[1, 1:]
        drawing.append(xy.tolist())
    return drawing


def awkward_set(seed: int, count: int, **how: int) -> Strokes:
    rng = np.random.default_rng(seed)
    return from_lists([awkward(rng, **how) for _ in range(count)])


def by_cairo(frame: Frame, strokes: list[Floats]) -> Images:
    """Strokes (N, 2) in px, by cairo."""
    cairo = pytest.importorskip("cairo", reason="pycairo is not installed")
    surface = cairo.ImageSurface(cairo.FORMAT_ARGB32, frame.side, frame.side)
    context = cairo.Context(surface)
    context.set_antialias(cairo.ANTIALIAS_BEST)
    context.set_line_cap(cairo.LINE_CAP_ROUND)
    context.set_line_join(cairo.LINE_JOIN_ROUND)
    context.set_source_rgb(0, 0, 0)
    context.paint()
    context.set_source_rgb(1, 1, 1)
    context.set_line_width(2 * frame.radius)
    for stroke in strokes:
        context.move_to(*stroke[0])
        for point in stroke:
            context.line_to(*point)
        context.stroke()
    surface.flush()
    pixels = np.frombuffer(surface.get_data(), np.uint8)
    return pixels.reshape(frame.side, frame.side, 4)[:, :, 0].copy()


def in_px(strokes: Strokes, d: int, frame: Frame, affine: Any = None) -> list[Floats]:
    """Strokes (N, 2) of drawing d."""
    points = [s.astype(np.float64) for s in strokes.strokes_of(d)]
    top = np.max([s.max(axis=0) for s in points], axis=0)
    if affine is None:
        return [(s + (256 - top) / 2) * frame.scale + frame.margin * frame.scale for s in points]
    matrix = frame.scale * affine.astype(np.float64)
    shift = matrix[:, 2] + frame.side / 2 - matrix[:, :2] @ (top / 2)
    return [
        np.stack([m[0] * s[:, 0] + m[1] * s[:, 1] + t for m, t in zip(matrix, shift, strict=True)])
        .T for s in points
    ]  # fmt: skip


def equal_to_cairo(strokes: Strokes, frame: Frame, affine: Any = None) -> None:
    """Where two edges of a stroke begin within 1/256 px of one another, cairo's choice between two
    ways of rounding hangs on how it sorts. We know that order only for edges that part later."""
    ours = draw(strokes, frame, affine=affine)
    drawings = range(strokes.drawings)
    placed = [in_px(strokes, d, frame, None if affine is None else affine[d]) for d in drawings]
    theirs = np.stack([by_cairo(frame, each) for each in placed])
    error = np.abs(ours - theirs.astype(np.int64))
    assert error.max() <= 4
    assert np.count_nonzero(error) <= 2 + 5e-4 * error.size


@needs_data
def test_googles_own_bitmaps() -> None:
    theirs = np.fromfile(QUICKDRAW / "bitmap28" / "trains1000.bin", np.uint8)
    ours = draw(category("train"), Frame(28))
    np.testing.assert_array_equal(ours, theirs.reshape(-1, 28, 28)[:25])


@needs_data
@pytest.mark.parametrize("side", [28, 64, 256])
def test_recorded_cairo(side: int) -> None:
    for name in CATEGORIES:
        with np.load(SHARED / "oracles" / f"cairo_{name}.npz") as oracle:
            np.testing.assert_array_equal(draw(category(name), Frame(side)), oracle[f"side{side}"])


@pytest.mark.parametrize("side", [1, 3, 28, 95, 96, 130])
@pytest.mark.parametrize("width", [0.3, 2.0, 16.0, 90.0, 1000.0])
def test_cairo(side: int, width: float) -> None:
    equal_to_cairo(awkward_set(side, 12), Frame(side, width))


@pytest.mark.parametrize("side", [28, 120])
def test_cairo_without_padding(side: int) -> None:
    """Ink up to the border, where rounding may make it go beyond."""
    for width in (0.5, 11.0, 40.0):
        equal_to_cairo(awkward_set(7, 8), Frame(side, width, 0.0))


@pytest.mark.parametrize("side", [20, 110])
@pytest.mark.parametrize("zoom", [0.3, 1.0, 3.0, 40.0])
def test_cairo_where_ink_leaves_the_image(side: int, zoom: float) -> None:
    strokes = awkward_set(3, 20)
    rng = np.random.default_rng(int(zoom * 10))
    affine = rng.normal(0, 1, (20, 2, 3)) * [zoom, zoom, 100.0 * min(zoom, 2.0)]
    equal_to_cairo(strokes, Frame(side), affine.astype(np.float32))


def test_cairo_with_many_crossings() -> None:
    """Rows with more chains than are sorted one by one, and scratch that does not do at once."""
    rng = np.random.default_rng(0)
    scribbles = from_lists([[rng.integers(0, 256, (2, n)).tolist()] for n in (30, 200, 700)])
    zigzag = from_lists([[[list(range(0, 250)), [0, 255] * 125]]])
    for side in (28, 150):
        equal_to_cairo(scribbles, Frame(side, 3.0))
        equal_to_cairo(zigzag, Frame(side, 0.5))
    equal_to_cairo(zigzag, Frame(600, 1.0))


def supersampled(frame: Frame, strokes: list[Floats], samples: int = 16) -> Floats:
    """Coverage 0..255 by discs along the strokes: union in a stroke, "over" across strokes."""
    at = (np.arange(frame.side * samples) + 0.5) / samples
    x, y = at[None, :], at[:, None]
    total = np.zeros((frame.side, frame.side))
    for stroke in strokes:
        ink = np.zeros((len(at), len(at)), dtype=bool)
        for a, b in zip(stroke, stroke[1:] if len(stroke) > 1 else stroke, strict=False):
            way = b - a
            along = ((x - a[0]) * way[0] + (y - a[1]) * way[1]) / max(way @ way, 1e-9)
            along = np.clip(along, 0, 1)
            far = np.hypot(x - a[0] - along * way[0], y - a[1] - along * way[1])
            ink |= far <= frame.radius
        cover = ink.reshape(frame.side, samples, frame.side, samples).mean(axis=(1, 3))
        total += cover - total * cover
    return 255 * total


@pytest.mark.parametrize(("side", "width"), [(12, 30.0), (28, 16.0), (40, 8.0)])
def test_union_of_discs(side: int, width: float) -> None:
    """Without cairo: it is a tenth of a px from the truth at most."""
    strokes, frame = awkward_set(side, 6), Frame(side, width)
    error = []
    for d, image in enumerate(draw(strokes, frame)):
        error.append(np.abs(image - supersampled(frame, in_px(strokes, d, frame))))
    assert np.mean(error) < 1.1
    assert np.max(error) < 35


def test_max_of_two_strokes() -> None:
    a, b = [[[0, 255], [0, 255]]], [[[0, 255], [255, 0]]]
    frame = Frame(28)
    one, two = draw(from_lists([a, b]), frame)
    (ours,) = draw(from_lists([a + b]), frame, composite="max")
    np.testing.assert_array_equal(ours, np.maximum(one, two))


def test_partial_images() -> None:
    """Every cut is the drawing that ends there; here its place does not depend on the cut."""
    rng = np.random.default_rng(5)
    whole = [[[255, 0, 9], [255, 0, 3]], *awkward(rng, strokes=4, points=5)]
    lengths = [len(stroke[0]) for stroke in whole]
    total = sum(lengths)
    for side in (28, 100):
        strokes, expected = from_lists([whole] * (total - 1)), []
        for cut in range(2, total + 1):
            left, part = cut, []
            for (x, y), n in zip(whole, lengths, strict=True):
                part.append([x[:left], y[:left]])
                left = max(0, left - n)
            expected.append([stroke for stroke in part if stroke[0]])
        cuts = np.arange(2, total + 1)
        full, partial = draw_both(strokes, Frame(side), cuts)
        np.testing.assert_array_equal(full, draw(strokes, Frame(side)))
        np.testing.assert_array_equal(partial, draw(from_lists(expected), Frame(side)))


def test_cuts_are_clamped() -> None:
    strokes = awkward_set(1, 4)
    cut = np.array([-(2**60), 0, 2**60, 10**6])
    full, partial = draw_both(strokes, Frame(28), cut)
    assert not partial[:2].any()
    np.testing.assert_array_equal(partial[2:], full[2:])


@pytest.mark.parametrize("side", [28, 120])
def test_threads(side: int) -> None:
    strokes = awkward_set(2, 40)
    cut = np.arange(40)
    one = draw_both(strokes, Frame(side), cut, threads=1)
    three = draw_both(strokes, Frame(side), cut, threads=3)
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a, b)
    alone = rasterize(strokes, Frame(side), np.array([17]), mode="exact")
    np.testing.assert_array_equal(alone, one[0][17:18])


def steps_before(pen: Any, table: Any, out: int, x: int, y: int) -> int:
    """How far from its tangent vertex the search for direction (x, y) begins. out: 0 for the side
    that ends in a vertex, compared with (x, y); 1 for the other one, (x, y) compared with it."""
    slopes = pen.slopes.reshape(-1, 2, 2)[:, out]
    way = y / (abs(x) + abs(y))
    i = int(table[int(((way if x >= 0 else 2 - way) + 1) * 0.25 * len(table)) % len(table)])
    for steps in range(pen.size):
        other = (int(slopes[i, 0]), int(slopes[i, 1]))
        if (order(x, y, *other) if out else order(*other, x, y)) >= 0:
            before = (int(slopes[i - 1, 0]), int(slopes[i - 1, 1]))
            assert (order(x, y, *before) if out else order(*before, x, y)) < 0
            return steps
        i = (i + 1) % pen.size
    raise AssertionError("no vertex")


def test_pens() -> None:
    """Where cairo's bisection finds a tangent vertex, there is it; the table is at most 2 off."""
    rng = np.random.default_rng(0)
    for side in (1, 28, 300, 4096):
        pen = pen_of(Frame(side, 100.0))
        for x, y in rng.integers(-9, 10, (100, 2)).tolist():
            if x or y:
                assert steps_before(pen, pen.right, 0, x, y) <= 2
                assert steps_before(pen, pen.left, 1, x, y) <= 2


def test_nothing_to_draw() -> None:
    for drawing in ([], [[[], []]], [[[], []], [[], []]]):
        assert not draw(from_lists([drawing]), Frame(9)).any()
    assert draw(from_lists([]), Frame(9)).shape == (0, 9, 9)
    assert not draw(from_lists([[[[5, 200], [5, 200]]]]), Frame(28, 0.01)).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, FAR, 300.0, -40.0])
@pytest.mark.parametrize("side", [16, 100])
def test_maps_without_sense(value: float, side: int) -> None:
    strokes = awkward_set(4, 60)
    affine = np.zeros((60, 2, 3), dtype=np.float32)
    affine[:, 0, 0] = affine[:, 1, 1] = 1
    for d in range(60):
        affine[d].flat[d % 6] = value
    out = np.full((62, side, side), 7, dtype=np.uint8)
    draw(strokes, Frame(side), affine=affine, out=out[1:61])
    assert (out[[0, 61]] == 7).all()


def test_points_far_away_part_a_stroke() -> None:
    """The rest is one stroke still; a point left alone is nothing."""
    x = [0, 0, 0, 255, 0, 0, 255, 0, 255]
    y = [10, 200, 100, 128, 60, 90, 128, 40, 128]
    affine = np.array([[[1e6, 0, 127.5e6], [0, 1, 0]]], dtype=np.float32)  # 0 to 0, 255 far away
    (ours,) = draw(from_lists([[[x, y]]]), Frame(28), affine=affine)
    affine[0, 0] = 0
    parts = [[[0, 0, 0], [10, 200, 100]], [[0, 0], [60, 90]]]
    (theirs,) = draw(from_lists([parts]), Frame(28), affine=affine, composite="max")
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("side", [1, 2, 15, 17, 4096])
def test_sides(side: int) -> None:
    strokes = awkward_set(6, 2)
    out = np.full((4, side, side), 7, dtype=np.uint8)
    draw(strokes, Frame(side), out=out[1:3])
    assert (out[[0, 3]] == 7).all()
    assert out[1:3].any()


def test_very_long_strokes() -> None:
    rng = np.random.default_rng(1)
    strokes = from_lists([[rng.integers(0, 256, (2, 40_000)).tolist()]])
    image = draw(strokes, Frame(12))
    assert image[0, 3:-3, 3:-3].min() == 255


def test_read_only() -> None:
    strokes = awkward_set(8, 5)
    for array in (strokes.points, strokes.stroke_offset, strokes.drawing_offset):
        array.flags.writeable = False
    assert draw(strokes, Frame(28)).any()


def test_offsets_out_of_order() -> None:
    strokes = awkward_set(9, 6)
    for name in ("stroke_offset", "drawing_offset"):
        for value in (-1, -(2**62), 2**62):
            offset = getattr(strokes, name).copy()
            offset[len(offset) // 2] = value
            broken = Strokes(**{**vars(strokes), name: offset})
            with pytest.raises(ValueError, match=r"index\[\d+\] = \d+ must be in 0\.\.5"):
                draw(broken, Frame(28))
    with pytest.raises(ValueError, match=r"index\[1\] = 6"):
        rasterize(strokes, Frame(28), np.array([0, 6]), mode="exact")
