"""Partial drawings and jitter: the rules, the keys, the bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastvae.kernels import cuts
from fastvae.kernels.philox import philox_words
from fastvae.kernels.philox_numba import four_words, unit
from fastvae.kernels.raster import Frame, rasterize
from fastvae.kernels.strokes import Strokes, from_lists

PLAIN = cuts.View(side=4096, scale=1.0, offset=1000.0, radius=-0.5)  # only what coincides is unseen
LINES = cuts.View(side=64, scale=64 / 304, offset=24 * 64 / 304, radius=8 * 64 / 304)


def drawings(count: int, seed: int = 0, strokes: int = 8) -> Strokes:
    """Random drawings of 1..strokes strokes of 1..12 points."""
    rng = np.random.default_rng(seed)
    return from_lists(
        [
            [
                rng.integers(0, 256, (2, rng.integers(1, 13))).tolist()
                for _ in range(1 + i % strokes)
            ]
            for i in range(count)
        ]
    )


def every(strokes: Strokes) -> np.ndarray:
    return np.arange(strokes.drawings)


def sizes(strokes: Strokes) -> tuple[np.ndarray, np.ndarray]:
    """Strokes and points of each drawing."""
    ends = strokes.stroke_offset[strokes.drawing_offset]
    return np.diff(strokes.drawing_offset), np.diff(ends)


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 7, 2**63 - 1])
def test_philox_words_are_those_of_the_reference(seed: int) -> None:
    ordinals = torch.tensor([0, 1, 77, 2**33 + 5, 2**62])
    for stream in (0, 18):
        expected = philox_words(seed, ordinals, 8, stream=stream).tolist()
        ours = [
            [int(w) for group in (0, 1) for w in four_words(seed, o, group, stream)]
            for o in ordinals.tolist()
        ]
        assert ours == expected


def test_strokes_mode_is_the_original_rule() -> None:
    strokes = drawings(400)
    cut = cuts.prefix_cuts(strokes, every(strokes), 5, "strokes", PLAIN)
    count, _ = sizes(strokes)
    for d in range(strokes.drawings):
        u = unit(four_words(5, d, 0, 16)[0])
        shown = max(int(u * count[d]), 1)
        lengths = [len(s) for s in strokes.strokes_of(d)]
        assert cut[d] == sum(lengths[:shown]), d
    several = count > 1
    assert (cut < sizes(strokes)[1])[several].all()
    assert (cut == sizes(strokes)[1])[~several].all()  # one stroke: the original shows it


@pytest.mark.parametrize("mode", ["points", "time"])
def test_prefix_modes_show_the_share(mode: str) -> None:
    strokes = drawings(600, strokes=12)
    _, points = sizes(strokes)
    first = strokes.stroke_offset[strokes.drawing_offset[:-1]]
    time = np.concatenate([np.arange(n, dtype=np.int32) * 10 for n in points])
    for low, high in ((0.0, 1.0), (0.4, 0.6), (1.0, 1.0), (0.0, 0.0)):
        cut = cuts.prefix_cuts(
            strokes, every(strokes), 9, mode, PLAIN, low=low, high=high, time=time
        )
        u = [low + (high - low) * unit(four_words(9, d, 0, 16)[0]) for d in range(len(points))]
        share = np.array(u)
        if mode == "points":
            expected = np.floor(share * points)
        else:
            expected = [
                (time[a : a + n] <= v * time[a + n - 1]).sum()
                for a, n, v in zip(first, points, share, strict=True)
            ]
        expected = np.clip(expected, 1, np.maximum(points - 1, 1))
        np.testing.assert_array_equal(cut, expected)


def test_times_count_from_the_first_point() -> None:
    strokes = from_lists([[[[0, 50, 100, 150], [0, 0, 0, 0]]]])
    time = np.array([1000, 1010, 1020, 1100], dtype=np.int32)
    cut = cuts.prefix_cuts(strokes, every(strokes), 0, "time", PLAIN, low=0.3, high=0.3, time=time)
    assert cut.tolist() == [3]


def test_a_cut_that_would_hide_nothing_visible_moves_forward() -> None:
    near = [[10, 200], [10, 10]]
    apart = [[10, 200], [200, 200]]
    strokes = from_lists([[near, apart, near, near]] * 50)
    cut = cuts.prefix_cuts(strokes, every(strokes), 0, "strokes", LINES, low=0.76, high=0.99)
    assert set(cut.tolist()) == {2}  # with two or three strokes it would be the full image
    together = from_lists([[near, near, near]])
    assert cuts.prefix_cuts(together, every(together), 0, "strokes", LINES, low=0.9).tolist() == [2]


def test_partial_is_never_everything() -> None:
    strokes = drawings(3000, seed=3)
    count, points = sizes(strokes)
    for mode in ("strokes", "points"):
        for seed in range(4):
            cut = cuts.prefix_cuts(strokes, every(strokes), seed, mode, LINES, high=1.0)
            assert (cut[count > 1] < points[count > 1]).all()
            assert (cut >= 1).all()


def test_keyed_by_seed_and_index_alone() -> None:
    strokes = drawings(300)
    index = np.random.default_rng(1).permutation(300)[:64]
    whole = cuts.prefix_cuts(strokes, every(strokes), 11, "strokes", LINES)
    np.testing.assert_array_equal(
        cuts.prefix_cuts(strokes, index, 11, "strokes", LINES), whole[index]
    )
    assert (cuts.prefix_cuts(strokes, every(strokes), 12, "strokes", LINES) != whole).mean() > 0.3
    maps = cuts.jitter(every(strokes), 3, rotate=10.0, scale=0.1, shear=0.1, shift=5.0)
    np.testing.assert_array_equal(
        cuts.jitter(index, 3, rotate=10.0, scale=0.1, shear=0.1, shift=5.0), maps[index]
    )


def test_jitter_is_within_its_bounds_and_none_is_identity() -> None:
    index = np.arange(5000)
    maps = cuts.jitter(index, 7, rotate=20.0, scale=0.2, shear=0.0, shift=8.0)
    matrix = maps[:, :, :2].astype(np.float64)
    angle = np.degrees(np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0]))
    assert np.abs(angle).max() <= 20.0 + 1e-4
    assert np.abs(angle).max() > 19.0
    widths = np.linalg.norm(matrix, axis=1)
    assert widths.min() >= np.exp(-0.2) - 1e-6
    assert widths.max() <= np.exp(0.2) + 1e-6
    assert abs(angle.mean()) < 1.0
    assert np.abs(maps[:, :, 2]).max() <= 8.0
    still = cuts.jitter(index[:3], 7, rotate=0.0, scale=0.0, shear=0.0, shift=0.0)
    np.testing.assert_array_equal(still, np.tile(np.eye(2, 3, dtype=np.float32), (3, 1, 1)))


def test_boxes_hide_a_point_of_the_drawing() -> None:
    strokes = drawings(500, seed=8)
    side, scale, margin = 64, 64 / 304, 24.0
    box = cuts.boxes(strokes, every(strokes), 2, LINES, low=0.5, high=0.9)
    for d in range(strokes.drawings):
        points = np.concatenate(strokes.strokes_of(d)).astype(np.float64)
        pixel = (points + (256.0 - points.max(axis=0)) / 2.0 + margin) * scale
        top, bottom, left, right = box[d]
        x, y = pixel[:, 0], pixel[:, 1]
        assert ((left <= x) & (x <= right) & (top <= y) & (y <= bottom)).any()
        assert 0 <= top < bottom <= side
        assert 0 <= left < right <= side
        assert max(bottom - top, right - left) <= side * 0.5**0.5 + 1.0


def test_boxes_of_drawings_that_are_not_centred() -> None:
    strokes = from_lists([[[[0, 40], [0, 10]]]])
    view = cuts.View(side=64, scale=54 / 256, offset=5.0, radius=1.5, centred=False)
    box = cuts.boxes(strokes, np.arange(1), 0, view, low=1.0)
    middle = box.reshape(2, 2).mean(axis=1)
    ends = [(5.0, 5.0), (10 * 54 / 256 + 5.0, 40 * 54 / 256 + 5.0)]
    assert min(np.abs(middle - end).max() for end in ends) <= 1.0


@pytest.mark.parametrize("mode", ["strokes", "points"])
def test_what_is_hidden_is_seen_in_any_view(mode: str) -> None:
    """Against images: a partial one differs from the full one, unless everything is near."""
    strokes = drawings(400, seed=4)
    index = every(strokes)
    several = sizes(strokes)[0] > 1
    frame = Frame(side=28)
    view = cuts.View(28, frame.scale, frame.margin * frame.scale, frame.radius)
    maps = cuts.jitter(index, 1, rotate=90.0, scale=1.0, shear=0.5, shift=60.0)
    for affine in (None, maps):
        cut = cuts.prefix_cuts(strokes, index, 3, mode, view, affine=affine)
        full, partial = rasterize(strokes, frame, index, cut=cut, affine=affine)
        equal = ((full > 127) == (partial > 127)).all(axis=(1, 2)) & several
        # What is left shows one stroke (or point) only, and nothing else is in the image.
        first = np.diff(strokes.stroke_offset)[strokes.drawing_offset[:-1]]
        assert (cut[equal] <= (first[equal] if mode == "strokes" else 1)).all()
        assert equal.mean() < 0.05


def test_a_late_cut_moves_by_one_stroke_only() -> None:
    apart = [[[0, 250], [y, y]] for y in (0, 60, 120, 180, 240)]
    strokes = from_lists([[*apart, apart[0]]] * 40)
    cut = cuts.prefix_cuts(strokes, every(strokes), 0, "strokes", LINES, low=0.84, high=0.99)
    assert set(cut.tolist()) == {8}  # four strokes: the fifth is seen, the sixth repeats the first


def test_extreme_input() -> None:
    empty = from_lists([[], [[[5], [5]]], [[[1, 1], [2, 2]], [[1], [2]]]])
    for mode in ("strokes", "points"):
        cut = cuts.prefix_cuts(empty, every(empty), 0, mode, LINES)
        assert cut[0] == 0
        assert cut[1] == 1
        assert 1 <= cut[2] < 3
    assert cuts.prefix_cuts(empty, np.empty(0, dtype=np.int64), 0, "points", LINES).shape == (0,)
    box = cuts.boxes(empty, every(empty), 0, LINES)
    assert box[0].tolist() == [0, 0, 0, 0]
    assert (box[1:, 1] > box[1:, 0]).all()
    many = Strokes(
        np.zeros((1_000_000, 2), dtype=np.uint8),
        np.arange(1_000_001),
        np.array([0, 1_000_000]),
    )
    assert cuts.prefix_cuts(many, every(many), 0, "strokes", LINES, low=0.9).tolist() == [1]


def test_wrong_arguments() -> None:
    strokes = drawings(3)
    index = every(strokes)
    with pytest.raises(ValueError, match="expected 0 <= low <= high <= 1"):
        cuts.prefix_cuts(strokes, index, 0, "points", LINES, low=0.7, high=0.5)
    with pytest.raises(ValueError, match="mode = 'stroke'"):
        cuts.prefix_cuts(strokes, index, 0, "stroke", LINES)
    with pytest.raises(ValueError, match="needs the time"):
        cuts.prefix_cuts(strokes, index, 0, "time", LINES)
    with pytest.raises(ValueError, match=r"index 0\.\.3 must be in 0\.\.2"):
        cuts.prefix_cuts(strokes, np.arange(4), 0, "points", LINES)
    broken = strokes.stroke_offset.copy()
    broken[1] = 10**12
    damaged = Strokes(strokes.points, broken, strokes.drawing_offset)
    with pytest.raises(ValueError, match="drawing 0: its offsets"):
        cuts.prefix_cuts(damaged, index, 0, "points", LINES)
    with pytest.raises(ValueError, match="is less than"):
        damaged.check()
