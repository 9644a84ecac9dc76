"""Raw drawings to simplified ones: against Google's own, and against a plain NumPy form."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fastvae.kernels import simplify as module
from fastvae.kernels.parse import BAD, RawParsed, parse_ndjson, parse_ndjson_raw
from fastvae.kernels.simplify import MOST_SAMPLES, simplify
from fastvae.kernels.strokes import offsets

GOOGLE = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "quickdraw"
Stroke = NDArray[np.float64]


def raw_set(drawings: list[list[Stroke]]) -> RawParsed:
    """Drawings of strokes (N, 3): x, y, t."""
    strokes = [stroke for drawing in drawings for stroke in drawing]
    points = np.concatenate([np.empty((0, 3)), *strokes])
    count = len(drawings)
    return RawParsed(
        key_id=np.arange(count, dtype=np.uint64),
        recognized=np.ones(count, dtype=np.uint8),
        word=np.zeros(count, dtype=np.int32),
        words=["cat"],
        offset=np.zeros(count, dtype=np.int64),
        lines=count,
        bad=np.empty(0, dtype=BAD),
        x=np.ascontiguousarray(points[:, 0]),
        y=np.ascontiguousarray(points[:, 1]),
        t=np.ascontiguousarray(points[:, 2]),
        has_times=np.ones(count, dtype=np.uint8),
        stroke_offset=offsets(np.array([len(stroke) for stroke in strokes], dtype=np.int64)),
        drawing_offset=offsets(np.array([len(drawing) for drawing in drawings], dtype=np.int64)),
    )


def stroke(points: list[tuple[float, float]], step: float = 10.0) -> Stroke:
    return np.array([(x, y, step * i) for i, (x, y) in enumerate(points)], dtype=np.float64)


def scribbles(count: int, seed: int = 0) -> list[list[Stroke]]:
    """Random walks with a direction that turns slowly."""
    rng = np.random.default_rng(seed)
    drawings = []
    for _ in range(count):
        strokes = []
        for _ in range(rng.integers(1, 5)):
            length = int(rng.integers(2, 80))
            angle = np.cumsum(rng.normal(0, 0.5, length)) + rng.uniform(0, 6)
            steps = rng.uniform(0, 12, (length, 1)) * np.stack([np.cos(angle), np.sin(angle)], 1)
            place = np.cumsum(steps, axis=0) + rng.uniform(0, 500, 2)
            strokes.append(np.column_stack([place, np.cumsum(rng.uniform(5, 30, length))]))
        drawings.append(strokes)
    return drawings


def plain(drawing: list[Stroke]) -> list[NDArray[np.float64]]:
    """The rule in NumPy, before rounding: (N, 3) per stroke."""
    points = np.concatenate(drawing)
    low, extent = points[:, :2].min(axis=0), np.ptp(points[:, :2], axis=0).max()
    done = []
    for one in drawing:
        place = (one[:, :2] - low) * (255 / extent)
        length = np.hypot(*np.diff(place, axis=0).T)
        along = np.concatenate([[0], np.cumsum(length)])
        wanted = np.append(np.arange(0, along[-1], 1.0), along[-1])
        axes = (place[:, 0], place[:, 1], one[:, 2] - drawing[0][0, 2])
        samples = np.stack([np.interp(wanted, along, axis) for axis in axes], axis=1)
        done.append(samples[peucker(samples, 0, len(samples) - 1)])
    return done


def peucker(samples: NDArray[np.float64], a: int, b: int) -> list[int]:
    if b - a < 2:
        return [a, b]
    way, chord = samples[a + 1 : b, :2] - samples[a, :2], samples[b, :2] - samples[a, :2]
    size = np.hypot(*chord)
    far = np.abs(way[:, 0] * chord[1] - way[:, 1] * chord[0]) / size if size else np.hypot(*way.T)
    if far.max() <= 2:
        return [a, b]
    best = a + 1 + int(np.argmax(far > far.max() - 1e-9))
    return peucker(samples, a, best)[:-1] + peucker(samples, best, b)


def test_as_the_plain_form() -> None:
    drawings = scribbles(300)
    strokes, times = simplify(raw_set(drawings))
    strokes.check()
    ends = strokes.stroke_offset
    for d, drawing in enumerate(drawings):
        for s, one in enumerate(plain(drawing), start=int(strokes.drawing_offset[d])):
            span = slice(ends[s], ends[s + 1])
            expected = np.clip(np.round(one[:, :2]), 0, 255)
            assert np.array_equal(strokes.points[span], expected)
            assert np.abs(times[span] - one[:, 2]).max() <= 0.5 + 1e-6


@pytest.mark.skipif(not GOOGLE.is_dir(), reason="Google's files are not here")
def test_as_google_does() -> None:
    raw = b"\n".join(path.read_bytes() for path in sorted((GOOGLE / "raw").glob("*.ndjson")))
    simple = b"\n".join(p.read_bytes() for p in sorted((GOOGLE / "simplified").glob("*.ndjson")))
    parsed, google = parse_ndjson_raw(raw), parse_ndjson(simple)
    place = {int(key): d for d, key in enumerate(google.key_id)}
    ours, times = simplify(parsed)
    both = [(d, place[int(key)]) for d, key in enumerate(parsed.key_id) if int(key) in place]
    assert len(both) >= 50
    same = 0
    for d, g in both:
        mine, theirs = ours.strokes_of(d), google.strokes.strokes_of(g)
        assert len(mine) == len(theirs)
        same += all(map(np.array_equal, mine, theirs))
    assert same >= 0.96 * len(both), f"{same} of {len(both)}"
    for one in np.split(times, ours.stroke_offset[1:-1]):
        assert (np.diff(one) >= 0).all()


def test_shift_scale_and_rounding() -> None:
    for height, rounded in ((253, 126), (255, 128)):  # both are halfway, at scale 1/2
        line = stroke([(100, 50), (100 + 510, 50), (100 + 510, 50 + height)])
        strokes, times = simplify(raw_set([[line]]))
        assert strokes.points.tolist() == [[0, 0], [255, 0], [255, rounded]]
    assert times.tolist() == [0, 10, 20]


def test_what_is_on_a_line_goes() -> None:
    straight = stroke([(i, 2 * i) for i in range(50)], step=3)
    strokes, times = simplify(raw_set([[straight]]))
    assert strokes.points.tolist() == [[0, 0], [128, 255]]
    assert times.tolist() == [0, 147]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(7, 7)], [[0, 0]] * 2),
        ([(7, 7)] * 2, [[0, 0]] * 2),
        ([(7, 7)] * 5, [[0, 0]] * 2),
        ([(1, 1), (2, 1)], [[0, 0], [255, 0]]),
        ([(1, 1), (2, 1), (1, 1)], [[0, 0], [255, 0], [0, 0]]),
        ([(-1e7, 0), (1e7, 0)], [[0, 0], [255, 0]]),
        ([(0, 0), (5e-324, 0)], [[0, 0]] * 2),
    ],
)
def test_small_strokes(points: list[tuple[float, float]], expected: list[list[int]]) -> None:
    strokes, times = simplify(raw_set([[stroke(points)]]))
    assert strokes.points.tolist() == expected
    assert len(times) == len(expected)


def test_strokes_without_length_beside_others() -> None:
    dot, still = stroke([(30, 40)]), stroke([(10, 0)] * 3)
    strokes, _ = simplify(raw_set([[stroke([(0, 0), (51, 51)]), dot, still]]))
    found = [one.tolist() for one in strokes.strokes_of(0)]
    assert found == [[[0, 0], [255, 255]], [[150, 200]] * 2, [[50, 0]] * 2]


def test_nothing() -> None:
    strokes, times = simplify(raw_set([]))
    assert (strokes.drawings, len(strokes.points), len(times)) == (0, 0, 0)
    strokes, _ = simplify(raw_set([[], [stroke([(0, 0), (1, 1)])], []]))
    assert strokes.drawing_offset.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_and_pieces_change_nothing(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_set(scribbles(200, seed=1))
    whole, times = simplify(raw)
    monkeypatch.setattr(module, "PIECE", 7)
    parts, part_times = simplify(raw, threads=threads)
    assert np.array_equal(parts.points, whole.points)
    assert np.array_equal(parts.stroke_offset, whole.stroke_offset)
    assert np.array_equal(part_times, times)


def test_a_million_points() -> None:
    rng = np.random.default_rng(0)
    turn = np.linspace(0, 40, 10**6)
    spiral = np.stack([turn * np.cos(turn), turn * np.sin(turn), np.arange(10.0**6)], axis=1)
    strokes, times = simplify(raw_set([[spiral]]))
    assert 20 < len(strokes.points) < 2000
    assert (np.diff(times) > 0).all()
    noise = np.column_stack([rng.uniform(0, 255, (10**6, 2)), np.arange(10.0**6)])
    strokes, _ = simplify(raw_set([[noise]]))
    assert 1000 < len(strokes.points) <= MOST_SAMPLES + 2


def test_times_beyond_int32() -> None:
    late = stroke([(0, 0), (9, 9)])
    late[:, 2] = (1e12, 1e12 + 5e9)
    assert simplify(raw_set([[late]]))[1].tolist() == [0, 2**31 - 1]
    late[:, 2] = (1.5e12, 1.5e12 + 25)
    assert simplify(raw_set([[late]]))[1].tolist() == [0, 25]


@pytest.mark.parametrize(
    ("field", "place", "value"),
    [
        ("stroke_offset", 3, -1),
        ("stroke_offset", 3, 10**9),
        ("drawing_offset", 2, 10**9),
        ("drawing_offset", 2, -5),
        ("x", 30, np.nan),
        ("y", 30, np.inf),
        ("t", 30, np.nan),
    ],
)
def test_broken_sets_are_named(field: str, place: int, value: float) -> None:
    raw = raw_set([[stroke([(i, i * i) for i in range(10)])] for _ in range(5)])
    array = getattr(raw, field).copy()
    array[place] = value
    with pytest.raises(ValueError, match=r"drawing [1-3] "):
        simplify(dataclasses.replace(raw, **{field: array}))


def test_wrong_arguments() -> None:
    raw = raw_set(scribbles(2))
    with pytest.raises(ValueError, match="threads"):
        simplify(raw, threads=0)
    with pytest.raises(ValueError, match="elements"):
        simplify(dataclasses.replace(raw, x=raw.x[1:]))
    with pytest.raises(ValueError, match="float64"):
        simplify(dataclasses.replace(raw, x=raw.x.astype(np.float32)))
