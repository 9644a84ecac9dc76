"""The binary rasterizer against the rule in plain Python (seed_rule) and its recorded checksums."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastvae.kernels import bitrows
from fastvae.kernels.raster_binary import _line, rasterize_binary
from fastvae.kernels.strokes import Strokes, from_lists
from tests import seed_rule

REPO = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FASTVAE_SHARED_DATA") or REPO.parent / "shared" / "data")
REAL = SHARED / "quickdraw" / "simplified_300x25.tar.xz"

# sha256 of the original's images of seed_rule.EXAMPLE (ink 0, paper 1), first 16 digits:
# (side, pad): drawn, drawn and widened, its first stroke widened.
RECORDED = {
    (28, 10): ("a0b11a182866bd4e", "cc43377933485e4e", "ae6938d4d1f54ee9"),
    (32, 10): ("6048e7e6270b972f", "ba121ce6dba3aa0d", "b17a127a44a4aad9"),
    (64, 10): ("f718532cd9596ad1", "05be99973b0b3f79", "0a9a69973f4fc39c"),
    (256, 10): ("10d92b44ba2f8eed", "497ef5791818bcaf", "7982e7a6373191a7"),
    (28, 0): ("55ee487046b86f6a", "2122c65d4a8a9791", None),
    (64, 0): ("8900428b47c8c841", "09f5cc092a088e4b", None),
    (256, 0): ("3b0867272436b9a7", "e765ba6fac146b7e", None),
}


def digest(image: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:16]


def every(strokes: Strokes) -> NDArray[np.int64]:
    return np.arange(strokes.drawings)


def random_drawings(count: int, seed: int = 0) -> list[seed_rule.Drawing]:
    """0 to 5 strokes of 0 to 8 points: dots, lines over themselves, points outside nothing."""
    rng = np.random.default_rng(seed)
    drawings = []
    for i in range(count):
        high = (256, 256, 12)[i % 3]  # every third is small: many points in one place
        drawings.append(
            [rng.integers(0, high, (2, rng.integers(0, 9))).tolist() for _ in range(i % 6)]
        )
    return drawings


def random_cuts(drawings: list[seed_rule.Drawing], seed: int = 0) -> NDArray[np.int64]:
    """From -1 to two points more than there are."""
    rng = np.random.default_rng(seed)
    sizes = [sum(len(stroke[0]) for stroke in drawing) for drawing in drawings]
    return np.array([rng.integers(-1, size + 3) for size in sizes], dtype=np.int64)


@pytest.mark.parametrize(("side", "pad"), RECORDED)
def test_recorded_checksums(side: int, pad: int) -> None:
    drawn, widened, first = RECORDED[side, pad]
    strokes = from_lists([seed_rule.EXAMPLE])
    options: dict[str, Any] = {"pad": pad, "ink": 0, "paper": 1, "dots": False}
    cut = np.array([3])
    assert digest(rasterize_binary(strokes, side, every(strokes), widen=0, **options)) == drawn
    full, partial = rasterize_binary(strokes, side, every(strokes), cut=cut, **options)
    assert digest(full) == widened
    assert digest(seed_rule.draw(seed_rule.EXAMPLE, side, pad)) == drawn
    if first is not None:
        assert digest(partial) == first


def drawn_line(side: int, *ends: int) -> set[tuple[int, int]]:
    across = bitrows.words_per_row(side)
    canvas = np.zeros(side * across, np.uint64)
    _line(canvas, across, *ends)
    rows = bitrows.unpack(canvas.reshape(1, side, across), side)[0]
    return {(int(x), int(y)) for y, x in zip(*np.nonzero(rows), strict=True)}


def test_recorded_lines() -> None:
    for ends, pixels in {
        (0, 0, 3, 1): [(0, 0), (1, 0), (2, 1), (3, 1)],
        (0, 0, 4, 2): [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2)],
        (4, 2, 0, 0): [(4, 2), (3, 2), (2, 1), (1, 1), (0, 0)],
        (0, 0, 2, 4): [(0, 0), (0, 1), (1, 2), (1, 3), (2, 4)],
    }.items():
        assert seed_rule.line(*ends) == pixels
        assert drawn_line(5, *ends) == set(pixels)


def test_every_line_of_a_grid() -> None:
    for to_x in range(25):
        for to_y in range(25):
            for x, y in ((12, 12), (0, 0), (24, 0), (0, 24), (24, 24)):
                assert drawn_line(25, x, y, to_x, to_y) == set(seed_rule.line(x, y, to_x, to_y))


def test_lines_of_the_largest_side() -> None:
    rng = np.random.default_rng(0)
    ends = rng.integers(0, 4096, (12, 4)).tolist()
    ends += [[0, 0, 4095, 4094], [4095, 4095, 0, 1], [0, 4095, 4094, 0], [0, 0, 4095, 2047]]
    ends += [[0, 0, 4095, 2048], [0, 9, 4095, 9], [4095, 9, 0, 10], [5, 0, 5, 4095], [7, 7, 7, 7]]
    for line in ends:
        assert drawn_line(4096, *line) == set(seed_rule.line(*line)), line


@pytest.mark.parametrize("dots", [False, True])
@pytest.mark.parametrize(
    ("side", "pad", "widen"),
    [(64, 10, 1), (28, 0, 1), (28, 10, 0), (65, 3, 2), (130, 130, 1), (1, 0, 1), (1, 1, 0),
     (2, 1, 1), (63, 10, 70), (200, 199, 1), (256, 10, 1), (129, 0, 3)],
)  # fmt: skip
def test_random_drawings(side: int, pad: int, widen: int, dots: bool) -> None:
    drawings = random_drawings(60, seed=side)
    strokes, cut = from_lists(drawings), random_cuts(drawings, seed=side)
    options: dict[str, Any] = {"pad": pad, "widen": widen, "dots": dots, "cut": cut}
    index = every(strokes)
    full, partial = rasterize_binary(strokes, side, index, ink=0, paper=1, **options)
    bits = rasterize_binary(strokes, side, index, packed=True, **options)
    for d, drawing in enumerate(drawings):
        want = seed_rule.pair(drawing, side, pad, int(cut[d]), times=widen, dots=dots)
        np.testing.assert_array_equal(full[d], want[0], f"drawing {d}")
        np.testing.assert_array_equal(partial[d], want[1], f"drawing {d} up to {cut[d]}")
    for words, pixels in zip(bits, (full, partial), strict=True):
        assert words.dtype == np.uint64
        np.testing.assert_array_equal(words, bitrows.pack(1 - pixels))


def test_real_drawings() -> None:
    if not REAL.exists():
        pytest.skip("no shared data here (FASTVAE_SHARED_DATA)")
    with tarfile.open(REAL) as archive:
        files = [archive.extractfile(m) for m in archive if m.name.endswith(".ndjson")]
        lines = [line for file in files if file for line in file.read().splitlines()[:3]]
    drawings = [json.loads(line)["drawing"] for line in lines]
    assert len(drawings) == 900
    strokes, cut = from_lists(drawings), random_cuts(drawings)
    full, partial = rasterize_binary(strokes, 64, every(strokes), cut=cut, ink=0, paper=1)
    for d, drawing in enumerate(drawings):
        want = seed_rule.pair(drawing, 64, 10, int(cut[d]), dots=True)
        np.testing.assert_array_equal(full[d], want[0], f"drawing {d}")
        np.testing.assert_array_equal(partial[d], want[1], f"drawing {d} up to {cut[d]}")


def test_widening_is_opencvs_erosion() -> None:
    cv2 = pytest.importorskip("cv2")
    drawings = random_drawings(30)
    strokes = from_lists(drawings)
    options: dict[str, Any] = {"ink": 0, "paper": 1}
    thin = rasterize_binary(strokes, 64, every(strokes), widen=0, **options)
    for times in (1, 2, 5):
        wide = rasterize_binary(strokes, 64, every(strokes), widen=times, **options)
        kernel = np.ones((3, 3), np.uint8)
        theirs = np.array([cv2.erode(image, kernel, iterations=times) for image in thin])
        np.testing.assert_array_equal(wide, theirs)


def test_the_largest_side() -> None:
    drawings = [seed_rule.EXAMPLE, [[[0, 255, 3], [255, 0, 9]]]]
    strokes = from_lists(drawings)
    full, partial = rasterize_binary(
        strokes, 4096, every(strokes), pad=7, cut=np.array([4, 2]), ink=0, paper=1
    )
    for d, cut in enumerate((4, 2)):
        want = seed_rule.pair(drawings[d], 4096, 7, cut, dots=True)
        np.testing.assert_array_equal(full[d], want[0])
        np.testing.assert_array_equal(partial[d], want[1])


def test_a_cut_inside_a_stroke() -> None:
    strokes = from_lists([[[[0, 255], [0, 0]], [[0, 255], [255, 255]]]])
    index = np.zeros(6, np.int64)
    cut = np.array([-5, 0, 1, 2, 3, 99])
    for dots in (True, False):
        _, partial = rasterize_binary(strokes, 16, index, pad=0, widen=0, cut=cut, dots=dots)
        inked = (partial > 0).sum(axis=(1, 2)).tolist()
        assert inked == [0, 0, int(dots), 16, 16 + int(dots), 32]


def test_any_number_of_threads_and_any_order() -> None:
    drawings = random_drawings(300)
    strokes, cut = from_lists(drawings), random_cuts(drawings)
    index = np.random.default_rng(1).permutation(300)[:257]
    for side, packed in ((28, False), (64, True), (64, False)):
        options: dict[str, Any] = {"cut": cut[index], "packed": packed}
        one = rasterize_binary(strokes, side, index, threads=1, **options)
        straight = rasterize_binary(strokes, side, every(strokes), cut=cut, packed=packed)
        for a, b in zip(one, straight, strict=True):
            np.testing.assert_array_equal(a, b[index])
        for threads in (0, 2, 3, 16):
            again = rasterize_binary(strokes, side, index, threads=threads, **options)
            for a, b in zip(one, again, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("side", [1, 28, 64, 70])
def test_out_is_all_that_is_written(side: int, packed: bool) -> None:
    drawings = random_drawings(20)
    strokes, cut = from_lists(drawings), random_cuts(drawings)
    shape: tuple[int, ...] = (20, side, bitrows.words_per_row(side) if packed else side)
    size, dtype = int(np.prod(shape)), np.uint64 if packed else np.uint8
    wholes = [np.full(size + 256, 77, dtype) for _ in range(2)]
    outs = [whole[128:-128].reshape(shape) for whole in wholes]
    for threads in (1, 3):
        for out in outs:
            out[:] = 99
        got = rasterize_binary(
            strokes, side, every(strokes), pad=1, cut=cut, packed=packed,
            out=outs[0], partial_out=outs[1], threads=threads,
        )  # fmt: skip
        want = rasterize_binary(strokes, side, every(strokes), pad=1, cut=cut, packed=packed)
        for whole, out, a, b in zip(wholes, outs, got, want, strict=True):
            assert a is out
            np.testing.assert_array_equal(a, b)
            assert (whole[:128] == 77).all()
            assert (whole[-128:] == 77).all()


def test_values_of_pixels() -> None:
    strokes = from_lists([seed_rule.EXAMPLE])
    ink = rasterize_binary(strokes, 40, every(strokes)) == 255
    for value, paper in ((0, 1), (255, 0), (13, 200), (5, 5)):
        image = rasterize_binary(strokes, 40, every(strokes), ink=value, paper=paper)
        np.testing.assert_array_equal(image, np.where(ink, value, paper))


def test_nothing_to_draw() -> None:
    strokes = from_lists([[], [[[], []]], [[[3], [4]]]])
    none = np.empty(0, np.int64)
    assert rasterize_binary(strokes, 8, none, pad=0).shape == (0, 8, 8)
    full, partial = rasterize_binary(strokes, 8, none, pad=0, cut=none, packed=True)
    assert full.shape == partial.shape == (0, 8, 1)
    images = rasterize_binary(strokes, 8, every(strokes), pad=0, widen=0)
    assert (images > 0).sum(axis=(1, 2)).tolist() == [0, 0, 1]


def test_read_only_arrays_and_strided_indices(tmp_path: Path) -> None:
    strokes = from_lists(random_drawings(20))
    fields = ("points", "stroke_offset", "drawing_offset")
    for name in fields:
        np.save(tmp_path / f"{name}.npy", getattr(strokes, name))
    mapped = Strokes(*(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in fields))
    index = np.arange(20)[::3]
    cut = np.arange(20)[::3]
    ours = rasterize_binary(mapped, 28, index, cut=cut)
    plain = rasterize_binary(strokes, 28, index.copy(), cut=cut.copy())
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_array_equal(a, b)


STROKES = from_lists(random_drawings(4))
INDEX = np.arange(4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 0}, r"side must be an integer in 1\.\.4096, got 0"),
        ({"side": 4097}, "side must be"),
        ({"side": 28.0}, "side must be an integer"),
        ({"pad": -1}, r"pad must be an integer in 0\.\.28, got -1"),
        ({"pad": 29}, "pad must be"),
        ({"widen": -1}, "widen must be an integer >= 0"),
        ({"threads": -1}, "threads must be an integer >= 0"),
        ({"ink": 256}, r"ink must be an integer in 0\.\.255"),
        ({"paper": -1}, "paper must be an integer"),
        ({"index": np.array([4])}, r"index 4\.\.4 must be in 0\.\.3"),
        ({"index": np.array([-1])}, "must be in"),
        ({"index": np.arange(4, dtype=np.int32)}, "int64"),
        ({"cut": np.arange(3)}, r"cut must be \(4,\) int64"),
        ({"cut": np.zeros(4)}, "cut must be"),
        ({"out": np.zeros((4, 28, 27), np.uint8)}, "out must be"),
        ({"out": np.zeros((4, 28, 28), np.uint64)}, "out must be"),
        ({"out": np.zeros((4, 28, 1), np.uint8), "packed": True}, "out must be"),
        ({"partial_out": np.zeros((4, 28, 28), np.uint8)}, "partial_out needs cut"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"side": 28, "index": INDEX, **options}
    with pytest.raises(ValueError, match=message):
        rasterize_binary(STROKES, **arguments)


def test_outs_that_overlap() -> None:
    both = np.zeros((5, 28, 28), np.uint8)
    with pytest.raises(ValueError, match="must not share memory"):
        rasterize_binary(STROKES, 28, INDEX, cut=INDEX, out=both[:4], partial_out=both[1:])


@pytest.mark.parametrize(
    ("stroke_offset", "drawing_offset"),
    [([0, 3, 2, 4], [0, 3]), ([0, 9, 4], [0, 2]), ([0, -5, 4], [0, 2]), ([0, 4], [0, 7, 1]),
     ([0, 4], [0, -2, 1])],
)  # fmt: skip
def test_damaged_offsets_are_an_error(stroke_offset: list[int], drawing_offset: list[int]) -> None:
    strokes = Strokes(
        np.zeros((4, 2), np.uint8),
        np.array(stroke_offset, dtype=np.int64),
        np.array(drawing_offset, dtype=np.int64),
    )
    with pytest.raises(ValueError, match="drawing 0: its offsets do not ascend"):
        rasterize_binary(strokes, 28, every(strokes))
