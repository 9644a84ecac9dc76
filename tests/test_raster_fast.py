"""The anti-aliased rasterizer in its fast mode: against its float64 definition, against Google's
own bitmaps and cairo, and where it might read or write what it should not.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastvae.kernels.raster import Frame, rasterize, reference
from fastvae.kernels.raster_fast import ROOM
from fastvae.kernels.strokes import Strokes, from_lists

REPO = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FASTVAE_SHARED_DATA") or REPO.parent / "shared" / "data")
QUICKDRAW = SHARED / "quickdraw"
needs_data = pytest.mark.skipif(
    not QUICKDRAW.is_dir(), reason="no shared data here (FASTVAE_SHARED_DATA)"
)
CATEGORIES = ("train", "cat", "airplane")
Images = NDArray[np.uint8]
Drawing = list[list[list[int]]]


def random_drawing(rng: np.random.Generator, strokes: int = 5, points: int = 8) -> Drawing:
    """Strokes of 0 to ``points`` points, some of them repeated."""
    drawing = []
    for _ in range(strokes):
        n = int(rng.integers(0, points + 1))
        xy = rng.integers(0, 256, (2, n))
        if n > 2 and rng.random() < 0.5:
            xy[:, 1] = xy[:, 0]
        drawing.append(xy.tolist())
    return drawing


def random_set(seed: int, count: int = 8, **how: int) -> Strokes:
    rng = np.random.default_rng(seed)
    return from_lists([random_drawing(rng, **how) for _ in range(count)])


def everything(strokes: Strokes) -> NDArray[np.int64]:
    return np.arange(strokes.drawings, dtype=np.int64)


def full(*args: Any, **kwargs: Any) -> Images:
    images = rasterize(*args, **kwargs)
    assert isinstance(images, np.ndarray)
    return images


def both(*args: Any, **kwargs: Any) -> tuple[Images, Images]:
    images = rasterize(*args, **kwargs)
    assert isinstance(images, tuple)
    return images


def difference(a: Images, b: Images) -> int:
    return int(np.abs(a.astype(int) - b).max(initial=0))


def real(category: str) -> Strokes:
    lines = (QUICKDRAW / "simplified" / f"{category}.ndjson").read_text().splitlines()
    return from_lists([json.loads(line)["drawing"] for line in lines])


# --- against what others drew --------------------------------------------------------------------


@needs_data
def test_googles_own_bitmaps() -> None:
    """Mean absolute difference of the 25 there are: 1.26 of 255."""
    theirs = np.fromfile(QUICKDRAW / "bitmap28" / "trains1000.bin", np.uint8).reshape(-1, 28, 28)
    strokes = real("train")
    ours = full(strokes, Frame(28), everything(strokes))
    assert len(ours) == 25
    assert np.abs(ours.astype(int) - theirs[:25]).mean() <= 1.3


@needs_data
@pytest.mark.parametrize(("side", "limit"), [(28, 1.3), (64, 0.4), (256, 0.1)])
def test_cairo(side: int, limit: float) -> None:
    """The 75 drawings that cairo drew by Google's recipe."""
    away = []
    for category in CATEGORIES:
        strokes = real(category)
        ours = full(strokes, Frame(side), everything(strokes))
        with np.load(SHARED / "oracles" / f"cairo_{category}.npz") as oracle:
            away.append(np.abs(ours.astype(int) - oracle[f"side{side}"]))
    assert sum(map(len, away)) == 75
    assert np.mean(away) <= limit


@needs_data
def test_pycairo_draws_the_oracle() -> None:
    """The benchmark's peer is the recipe."""
    pytest.importorskip("cairo")
    from benchmarks.stroke_peers import cairo, drawings_of

    with np.load(SHARED / "oracles" / "cairo_cat.npz") as oracle:
        for form in ("ARGB32", "A8"):
            draw = cairo(Frame(28), form)
            images = [draw(drawing).copy() for drawing in drawings_of(real("cat"))]
            assert difference(np.stack(images), oracle["side28"]) <= 16  # other versions of cairo


# --- against the definition ----------------------------------------------------------------------


@pytest.mark.parametrize("composite", ["over", "max"])
@pytest.mark.parametrize("line_width", [0.1, 3.0, 16.0, 70.0, 500.0])
@pytest.mark.parametrize("side", [1, 5, 28, 33, 64, 130])
def test_definition(side: int, line_width: float, composite: str) -> None:
    strokes, frame = random_set(side, strokes=3), Frame(side, line_width)
    index = everything(strokes)
    rng = np.random.default_rng(7)
    cut = rng.integers(-1, 30, len(index))
    affine = np.eye(2, 3, dtype=np.float32) + 0.3 * rng.standard_normal((len(index), 2, 3))
    affine[:, :, 2] *= 60
    affine = affine.astype(np.float32)
    how = {"composite": composite}
    plain = full(strokes, frame, index, **how)
    moved, partial = both(strokes, frame, index, cut=cut, affine=affine, **how)
    for d in index:
        lists = strokes.strokes_of(int(d))
        assert difference(plain[d], reference(lists, frame, **how)) <= 1
        assert difference(moved[d], reference(lists, frame, affine=affine[d], **how)) <= 1
        expected = reference(lists, frame, cut=int(cut[d]), affine=affine[d], **how)
        assert difference(partial[d], expected) <= 1


@pytest.mark.parametrize(("side", "line_width"), [(512, 1.0), (512, 16.0), (2048, 1.0)])
def test_a_large_image(side: int, line_width: float) -> None:
    """Rounding does not add up along thousands of px."""
    strokes, frame = (
        from_lists([[[[0, 255], [3, 250]], [[10, 11], [255, 0]]]]),
        Frame(side, line_width),
    )
    image = full(strokes, frame, everything(strokes))[0]
    assert difference(image, reference(strokes.strokes_of(0), frame)) <= 1


@pytest.mark.parametrize("side", [28, 256])
def test_directions(side: int) -> None:
    """Level, upright, diagonal and nearly so; a turn back; both ways along each."""
    ends = [(255, 0), (0, 255), (255, 255), (255, 1), (1, 255), (254, 255)]
    drawings: list[Drawing] = [[[[0, x], [0, y]]] for x, y in ends]
    drawings += [[[[x, 0], [y, 0]]] for x, y in ends]
    drawings += [[[[0, x, 0], [9, y, 9]], [[x, x], [y, y]]] for x, y in ends]
    strokes, frame = from_lists(drawings), Frame(side)
    for d, image in enumerate(full(strokes, frame, everything(strokes))):
        assert difference(image, reference(strokes.strokes_of(d), frame)) <= 1


def test_a_dot_is_a_disc() -> None:
    """One point and two equal points; cairo draws them too."""
    one, two = (from_lists([[[[9] * n, [9] * n]]]) for n in (1, 2))
    images = [full(s, Frame(64), everything(s)) for s in (one, two)]
    assert np.array_equal(*images)
    area = np.pi * Frame(64).radius ** 2
    assert images[0].sum() / 255 == pytest.approx(area, rel=0.02)
    assert np.array_equal(images[0][0], images[0][0].T)


@pytest.mark.parametrize("angle", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("width", [0.5, 3.0, 16.0])
def test_a_column_crosses_the_width_of_a_line(angle: float, width: float) -> None:
    """A line through the whole image covers its width / cos(angle) of each column, on average."""
    strokes, frame = from_lists([[[[0, 255], [0, 0]]]]), Frame(256, width, padding=0.0)
    sine, cosine = np.sin(angle), np.cos(angle)
    turn = 4 * np.array([[[cosine, -sine, 0], [sine, cosine, 0]]], dtype=np.float32)
    image = full(strokes, frame, everything(strokes), affine=turn)[0]
    columns = image[:, 60:196].sum(axis=0) / 255
    assert columns.mean() == pytest.approx(2 * frame.radius / cosine, rel=0.02)


# --- full and partial ----------------------------------------------------------------------------


def test_cut_everywhere() -> None:
    """At each point of a drawing; making the partial image leaves the full one as it is."""
    strokes = from_lists([[*random_drawing(np.random.default_rng(1)), [[5], [200]], [[], []]]])
    frame, points = Frame(40), len(strokes.points)
    cut = np.arange(-2, points + 3)
    index = np.zeros(len(cut), dtype=np.int64)
    images, partial = both(strokes, frame, index, cut=cut)
    alone = full(strokes, frame, index[:1])
    assert (images == alone).all()
    assert not partial[cut <= 0].any()
    assert (partial[cut >= points] == alone).all()
    for image, at in zip(partial, cut, strict=True):
        assert difference(image, reference(strokes.strokes_of(0), frame, cut=int(at))) <= 1
    ink = partial.reshape(len(cut), -1).sum(axis=1, dtype=np.int64)
    assert ink[-1] > ink[points // 2] > 0


def test_long_strokes() -> None:
    """More points than are set up at a time, and a cut on either side of that."""
    rng = np.random.default_rng(2)
    path = np.clip(np.cumsum(rng.integers(-3, 4, (2, 5 * ROOM)), axis=1) + 128, 0, 255)
    drawing = [path[:, : 3 * ROOM].tolist(), path[:, 3 * ROOM :].tolist()]
    strokes, frame = from_lists([drawing]), Frame(64, 2.0)
    cut = np.array([ROOM - 1, ROOM, ROOM + 1, ROOM + 2, 2 * ROOM + 7, 3 * ROOM, 3 * ROOM + 1])
    images, partial = both(strokes, frame, np.zeros(len(cut), np.int64), cut=cut)
    lists = strokes.strokes_of(0)
    assert difference(images[0], reference(lists, frame)) <= 1
    assert (images == images[0]).all()
    for image, at in zip(partial, cut, strict=True):
        assert difference(image, reference(lists, frame, cut=int(at))) <= 1


# --- extremes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 28, 256])
def test_nothing_to_draw(side: int) -> None:
    strokes = from_lists([[], [[[], []]], [[[7], [7]]], []])
    images, partial = both(strokes, Frame(side), everything(strokes), cut=np.full(4, 1))
    assert images.any(axis=(1, 2)).tolist() == [False, False, True, False]
    assert np.array_equal(images, partial)
    assert full(strokes, Frame(side), np.empty(0, np.int64)).shape == (0, side, side)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e30])
@pytest.mark.parametrize("where", [(0, 0), (1, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("side", [28, 256])
def test_maps_without_sense(value: float, where: tuple[int, int], side: int) -> None:
    """They draw what the definition says, mostly nothing, and leave the other drawings alone."""
    strokes, frame = random_set(4, count=3), Frame(side)
    index = everything(strokes)
    affine = np.tile(np.eye(2, 3, dtype=np.float32), (3, 1, 1))
    plain = full(strokes, frame, index, affine=affine)
    affine[(1, *where)] = value
    images = full(strokes, frame, index, affine=affine)
    assert np.array_equal(images[[0, 2]], plain[[0, 2]])
    expected = reference(strokes.strokes_of(1), frame, affine=affine[1])
    assert difference(images[1], expected) <= 1


@pytest.mark.parametrize("zoom", [0.0, 1e-6, 0.01, 5.0, 50.0, 400.0])
def test_zoom(zoom: float) -> None:
    strokes, frame = random_set(5, strokes=3), Frame(28)
    index = everything(strokes)
    affine = np.tile(np.eye(2, 3, dtype=np.float32) * np.float32(zoom), (len(index), 1, 1))
    images = full(strokes, frame, index, affine=affine)
    for d in index:
        expected = reference(strokes.strokes_of(int(d)), frame, affine=affine[d])
        assert difference(images[d], expected) <= 1


def test_very_many_strokes() -> None:
    rng = np.random.default_rng(6)
    strokes = from_lists([rng.integers(0, 256, (100_000, 2, 2)).tolist()])
    frame = Frame(28, 0.1)
    cut = np.array([400, 4000])
    images, partial = both(strokes, frame, np.zeros(2, np.int64), cut=cut)
    assert images[0, 10:18, 10:18].min() == 255
    lists = strokes.strokes_of(0)
    for image, at in zip(partial, cut, strict=True):
        some = [*lists[: at // 2], np.full((1, 2), 255, np.uint8)]  # as large as the whole drawing
        assert difference(image, reference(some, frame, cut=int(at))) <= 1


# --- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 3, 28, 31, 33, 64, 100])
def test_writes_only_its_images(side: int) -> None:
    strokes = random_set(8, count=5)
    index = everything(strokes)
    expected, part = both(strokes, Frame(side), index, cut=np.full(5, 9))
    for threads in (1, 3):
        room = np.full((2, 9, side, side), 77, dtype=np.uint8)
        pair = rasterize(
            strokes, Frame(side), index, cut=np.full(5, 9), out=room[0, 2:7],
            partial_out=room[1, 2:7], threads=threads,
        )  # fmt: skip
        assert pair[0].base is not None
        assert np.array_equal(room[0, 2:7], expected)
        assert np.array_equal(room[1, 2:7], part)
        assert (room[:, [0, 1, 7, 8]] == 77).all()


@pytest.mark.parametrize("side", [28, 200])
def test_threads(side: int) -> None:
    strokes = random_set(9, count=300)
    index = np.random.default_rng(0).integers(0, 300, 1000)
    cut = np.arange(1000) % 40
    one = both(strokes, Frame(side), index, cut=cut, threads=1)
    for threads in (0, 2, 7):
        more = both(strokes, Frame(side), index, cut=cut, threads=threads)
        assert np.array_equal(np.stack(one), np.stack(more))


def test_read_only_and_other_order() -> None:
    strokes = random_set(10)
    index = everything(strokes)
    expected = full(strokes, Frame(28), index)
    for array in (strokes.points, strokes.stroke_offset, strokes.drawing_offset, index):
        array.flags.writeable = False
    assert np.array_equal(full(strokes, Frame(28), index), expected)
    assert np.array_equal(full(strokes, Frame(28), np.repeat(index, 2)[::2]), expected)
    assert np.array_equal(full(strokes, Frame(28), index[::-1]), expected[::-1])


def test_offsets_out_of_order() -> None:
    """They are found, not followed."""
    points = np.zeros((6, 2), np.uint8)
    ok = np.array([0, 2, 4, 6])
    for stroke_offset, drawing_offset, bad in [
        (np.array([0, 2**40, 4, 6]), np.array([0, 1, 3]), 0),
        (np.array([0, 4, 2, 6]), np.array([0, 1, 3]), 1),
        (np.array([0, -5, 2, 6]), np.array([0, 1, 3]), 0),
        (ok, np.array([0, -1, 3]), 0),
        (ok, np.array([0, 5, 3]), 0),
    ]:
        strokes = Strokes(points, stroke_offset, drawing_offset)
        with pytest.raises(ValueError, match=rf"index\[{bad}\]"):
            rasterize(strokes, Frame(28), np.array([0, 1]))


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        {"side": 0},
        {"side": 4097},
        {"side": 28.0},
        {"side": 28, "line_width": 0.0},
        {"side": 28, "line_width": float("nan")},
        {"side": 28, "line_width": float("inf")},
        {"side": 28, "padding": -1.0},
        {"side": 28, "padding": float("inf")},
    ],
)
def test_frames_without_sense(frame: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=list(frame)[-1]):
        Frame(**frame)


def test_arguments_without_sense() -> None:
    strokes, frame = random_set(11), Frame(28)
    index = everything(strokes)
    out = np.empty((8, 28, 28), np.uint8)
    for wrong, word in [
        ({"index": np.array([0, 8])}, r"index\[1\] = 8 must be in 0..7"),
        ({"index": np.array([-1])}, r"index\[0\] = -1"),
        ({"index": np.zeros(8, np.int32)}, "int64"),
        ({"cut": np.zeros(7, np.int64)}, "cut"),
        ({"cut": np.zeros(8)}, "cut"),
        ({"affine": np.zeros((8, 2, 3))}, "float32"),
        ({"affine": np.zeros((8, 3, 2), np.float32)}, "affine"),
        ({"mode": "best"}, "mode"),
        ({"composite": "add"}, "composite"),
        ({"threads": -1}, "threads"),
        ({"out": out[:, :, ::-1]}, "order"),
        ({"out": out[:7]}, "out"),
        ({"partial_out": out}, "needs cut"),
        ({"cut": np.zeros(8, np.int64), "out": out, "partial_out": out}, "memory"),
    ]:
        arguments: dict[str, Any] = {"index": index} | wrong
        with pytest.raises(ValueError, match=word):
            rasterize(strokes, frame, **arguments)
