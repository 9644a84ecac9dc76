"""Drawings from strokes on a device: against the definition, pixel by pixel, in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastvae import ops
from fastvae.kernels import raster_frame, raster_op, raster_torch, strokes_device
from fastvae.kernels.strokes import Strokes, from_lists
from fastvae.ops import DeviceStrokes, rasterize_strokes


@pytest.fixture(autouse=True)
def automatic_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTVAE_OPS", raising=False)


def scribbles(count: int, seed: int = 0) -> Strokes:
    """Drawings of 0 to 4 strokes of 1 to 7 points; some points twice in a row, some lines axial."""
    rng = np.random.default_rng(seed)

    def stroke() -> list[list[int]]:
        steps = rng.integers(-60, 61, (2, rng.integers(1, 8))) * rng.integers(0, 2, (2, 1))
        walk = np.clip(rng.integers(0, 256, (2, 1)) + steps.cumsum(axis=1), 0, 255)
        return [[int(v) for v in axis] for axis in walk]

    return from_lists([[stroke() for _ in range(rng.integers(0, 5))] for _ in range(count)])


def maps(count: int, seed: int = 0) -> Tensor:
    """Affine maps (count, 2, 3) that turn, stretch, mirror and move."""
    noise = torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(seed))
    return torch.eye(2, 3) + noise * torch.tensor([0.4, 0.4, 15.0])


def cuts(strokes: DeviceStrokes, indices: Tensor, seed: int = 0) -> Tensor:
    """A cut for each drawing, from 0 to all of its points."""
    count = (strokes.first[1:] - strokes.first[:-1])[indices]
    u = torch.rand(len(indices), generator=torch.Generator().manual_seed(seed))
    return (u * (count + 1)).long()


def band(t: float, nx: float, ny: float) -> float:
    """P(nx u + ny v <= t) for u, v uniform in [-1/2, 1/2]: differences of squared ramps."""
    b, a = sorted((abs(nx), abs(ny)))
    if b < 1e-9:
        return min(max(t / a + 0.5, 0.0), 1.0)
    corners = [(a + b) / 2, (a - b) / 2, -(a - b) / 2, -(a + b) / 2]
    ramps = [max(t + corner, 0.0) ** 2 for corner in corners]
    return (ramps[0] - ramps[1] - ramps[2] + ramps[3]) / (2 * a * b)


def loop(
    drawing: list[np.ndarray],
    side: int,
    cut: int | None = None,
    affine: np.ndarray | None = None,
    line_width: float = 16.0,
    padding: float = 16.0,
    composite: str = "over",
) -> np.ndarray:
    """The definition in plain Python: coverage (side, side) of one drawing."""
    margin = padding + line_width / 2
    scale = side / (256 + 2 * margin)
    radius = line_width * scale / 2
    top = np.max([stroke.max(axis=0) for stroke in drawing] or [[0, 0]], axis=0).astype(float)
    left = math.inf if cut is None else cut
    image = np.zeros((side, side))
    for stroke in drawing:
        points = stroke.astype(np.float64) + (256 - top) / 2
        if affine is not None:
            points = (points - 128) @ affine[:, :2].T.astype(np.float64) + 128 + affine[:, 2]
        points = ((points + margin) * scale)[: int(min(left, len(stroke)))]
        left -= len(points)
        segments = list(itertools.pairwise(points))
        if len(points) == 1:
            segments = [(points[0], points[0])]
        ink = np.zeros((side, side))
        for a, b in segments:
            along = b - a
            length = float(np.hypot(*along))
            nx, ny = (1.0, 0.0) if length == 0 else (-along[1] / length, along[0] / length)
            for row, column in np.ndindex(side, side):
                centre = np.array([column + 0.5, row + 0.5])
                u = 0.0 if length == 0 else min(max((centre - a) @ along / length**2, 0.0), 1.0)
                d = float(np.hypot(*(centre - a - u * along)))
                if d < radius + 1:
                    share = band(radius - d, nx, ny) - band(-radius - d, nx, ny)
                    ink[row, column] = max(ink[row, column], share)
        image = np.maximum(image, ink) if composite == "max" else 1 - (1 - image) * (1 - ink)
    return image


def draw(strokes: DeviceStrokes, side: int, indices: Tensor | None = None, **options: Any) -> Any:
    """Images of all drawings, or of those asked for."""
    order = torch.arange(strokes.drawings) if indices is None else indices
    return rasterize_strokes(strokes, order, side, **options)


@pytest.mark.parametrize("composite", ["over", "max"])
@pytest.mark.parametrize("line_width", [0.5, 16.0, 120.0])
@pytest.mark.parametrize("side", [1, 5, 12])
def test_equals_the_definition(side: int, line_width: float, composite: str) -> None:
    strokes = scribbles(9)
    device = DeviceStrokes.of(strokes)
    order = torch.arange(9)
    options: dict[str, Any] = {"line_width": line_width, "composite": composite}
    cut = cuts(device, order)
    for affine in (None, maps(9)):
        exact = raster_torch.coverage(
            device.points,
            device.last,
            device.first,
            order,
            cut,
            affine,
            side,
            line_width,
            16.0,
            composite == "over",
            torch.float64,
        )
        images = draw(device, side, cut=cut, affine=affine, **options)
        for kind, image in enumerate(images):
            assert image.shape == (9, 1, side, side)
            assert image.dtype == torch.uint8
            expected = np.stack(
                [
                    loop(
                        strokes.strokes_of(d),
                        side,
                        cut=int(cut[d]) if kind else None,
                        affine=None if affine is None else affine[d].numpy(),
                        **options,
                    )
                    for d in range(9)
                ]
            )
            np.testing.assert_allclose(exact[kind].numpy(), expected, rtol=0, atol=1e-8)
            np.testing.assert_allclose(image[:, 0].numpy(), 255 * expected, rtol=0, atol=0.5001)


@pytest.mark.parametrize(("side", "padding"), [(28, 16.0), (33, 0.0), (64, 40.0)])
@pytest.mark.parametrize("composite", ["over", "max"])
@pytest.mark.parametrize("line_width", [2.0, 16.0])
def test_equals_the_fast_mode_on_a_cpu(
    side: int, padding: float, composite: str, line_width: float
) -> None:
    """Within 1 of 255, and in some pixels of a thousand: it keeps its ink in 16 bits."""
    pytest.importorskip("fastvae.kernels.raster_fast", reason="no fast mode yet")
    from fastvae.kernels.raster import Frame, rasterize

    strokes = scribbles(60, seed=1)
    device = DeviceStrokes.of(strokes)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    cut = cuts(device, order)
    for affine in (None, maps(60)):
        expected = rasterize(
            strokes,
            Frame(side, line_width, padding),
            order.numpy(),
            cut=cut.numpy(),
            affine=None if affine is None else affine.numpy(),
            mode="fast",
            composite=composite,
        )
        got = draw(
            device,
            side,
            order,
            cut=cut,
            affine=affine,
            line_width=line_width,
            padding=padding,
            composite=composite,
        )
        for ours, theirs in zip(got, expected, strict=True):
            difference = (ours[:, 0].int() - torch.from_numpy(theirs).int()).abs()
            assert difference.max() <= 1
            assert (difference > 0).double().mean() < 3e-3


def test_constants_and_frame_are_those_of_the_cpu() -> None:
    """They are written twice: to import them would bring Numba into every training."""
    assert raster_torch.DOT == raster_frame.DOT
    assert raster_torch.FAR == raster_frame.FAR
    assert raster_torch.MAX_SIDE == raster_frame.MAX_SIDE
    frame = raster_frame.Frame(28, 10.0, 7.0)
    assert raster_torch.frame(28, 10.0, 7.0) == pytest.approx((frame.scale, frame.radius))


def points_of(*strokes: list[tuple[int, int]]) -> DeviceStrokes:
    """One drawing, of these strokes."""
    drawing = [[list(axis) for axis in zip(*stroke, strict=True)] for stroke in strokes]
    return DeviceStrokes.of(from_lists([drawing]))


def test_a_cut_of_all_points_is_the_whole_image_and_one_of_none_is_empty() -> None:
    strokes = DeviceStrokes.of(scribbles(30))
    count = strokes.first[1:] - strokes.first[:-1]
    for beyond in (count, count + 1, torch.full_like(count, 2**62)):
        whole, partial = draw(strokes, 28, cut=beyond)
        assert torch.equal(whole, partial)
        assert torch.equal(whole, draw(strokes, 28))
    assert torch.equal(draw(strokes, 28, cut=torch.ones_like(count))[0], whole)
    for none in (0, -1, -(2**62)):
        whole, partial = draw(strokes, 28, cut=torch.full_like(count, none))
        assert whole.any()
        assert not partial.any()


def test_a_partial_image_is_the_drawing_of_its_points_in_the_same_place() -> None:
    """The second stroke is one dot at the drawing's far corner, which keeps the frame."""
    corner = [(200, 180)]
    whole = points_of([(0, 0), (100, 10), (30, 90), (60, 60)], [(20, 30), (90, 20)], corner)
    for cut, shown in (
        (1, [[(0, 0)]]),
        (2, [[(0, 0), (100, 10)]]),
        (4, [[(0, 0), (100, 10), (30, 90), (60, 60)]]),
        (5, [[(0, 0), (100, 10), (30, 90), (60, 60)], [(20, 30)]]),
        (6, [[(0, 0), (100, 10), (30, 90), (60, 60)], [(20, 30), (90, 20)]]),
    ):
        _, partial = draw(whole, 40, cut=torch.tensor([cut]))
        expected = draw(points_of(*shown, corner), 40)
        assert expected[:, :, 26:, 26:].any()
        expected[:, :, 26:, 26:] = 0
        assert torch.equal(partial, expected), cut


def test_a_dot_is_a_disc_of_the_width_of_the_line() -> None:
    for strokes in (points_of([(0, 0)]), points_of([(0, 0), (0, 0)]), points_of([(0, 0)] * 5)):
        image = draw(strokes, 101, line_width=60.0, padding=0.0)[0, 0].double() / 255
        assert image.sum().item() == pytest.approx(math.pi * (30 * 101 / 316) ** 2, rel=2e-3)
        assert torch.equal(image, image.flip(0))
        assert torch.equal(image, image.flip(1))
        assert image[50, 50] == 1
        assert image[0, 0] == 0


def test_strokes_add_up_and_segments_of_a_stroke_do_not() -> None:
    line = [(0, 40), (200, 60)]
    once, back = draw(points_of(line), 28), draw(points_of([*line, line[0]]), 28)
    twice, largest = (
        draw(points_of(line, line), 28),
        draw(points_of(line, line), 28, composite="max"),
    )
    assert torch.equal(once, back)
    assert torch.equal(once, largest)
    share = once.double() / 255
    assert ((twice.double() / 255 - (1 - (1 - share) ** 2)).abs() < 1.6 / 255).all()
    assert (twice > once).any()


def test_jitter_moves_drawings_about_the_centre() -> None:
    strokes = DeviceStrokes.of(scribbles(10))
    same = torch.eye(2, 3).repeat(10, 1, 1)
    plain = draw(strokes, 32)
    assert torch.equal(draw(strokes, 32, affine=same), plain)
    mirrored = same * torch.tensor([[-1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    assert ((draw(strokes, 32, affine=mirrored).int() - plain.flip(3).int()).abs() <= 1).all()
    moved = same + torch.tensor([[0.0, 0.0, 304 / 32], [0.0, 0.0, -2 * 304 / 32]])  # px
    got, expected = draw(strokes, 32, affine=moved), plain.roll((-2, 1), (2, 3))
    assert ((got.int() - expected.int()).abs() <= 1)[:, :, 1:-3, 2:-1].all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -3e38, 1e-30, 0.0])
def test_maps_that_lead_nowhere(value: float) -> None:
    """Nothing crashes, and what can be drawn is."""
    strokes = DeviceStrokes.of(scribbles(6))
    for row, column in np.ndindex(2, 3):
        affine = torch.eye(2, 3).repeat(6, 1, 1)
        affine[::2, row, column] = value
        cut = cuts(strokes, torch.arange(6))
        images = draw(strokes, 16, affine=affine, cut=cut)
        for image, plain in zip(images, draw(strokes, 16, cut=cut), strict=True):
            assert torch.equal(image[1::2], plain[1::2])
            if not abs(value) < 1e29:
                assert not image[::2].any()


@pytest.mark.parametrize(("factor", "drawn"), [(1e3, True), (1e4, True), (1e6, False)])
def test_segments_with_one_end_far_away(factor: float, drawn: bool) -> None:
    """The middle of the drawing stays where it is; what is beside it leaves."""
    for line in ([(100, 100), (200, 100)], [(200, 150), (100, 100)]):
        strokes = points_of(line, [(0, 200)])
        affine = torch.tensor([[[factor, 0.0, 0.0], [0.0, 1.0, 0.0]]])
        assert draw(strokes, 8, affine=affine).any() == drawn


def test_a_drawing_does_not_depend_on_its_batch() -> None:
    strokes = DeviceStrokes.of(scribbles(50))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    cut, affine = cuts(strokes, order), maps(50)
    whole = torch.stack(draw(strokes, 20, order, cut=cut, affine=affine))
    parts = [
        torch.stack(draw(strokes, 20, a, cut=b, affine=c))
        for a, b, c in zip(order.split(7), cut.split(7), affine.split(7), strict=True)
    ]
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_empty_batches_and_empty_drawings() -> None:
    strokes = DeviceStrokes.of(from_lists([[], [[[5], [6]]], []]))
    none = torch.zeros(0, dtype=torch.int64)
    assert draw(strokes, 8, none).shape == (0, 1, 8, 8)
    whole, partial = draw(strokes, 8, none, cut=none, affine=torch.zeros(0, 2, 3))
    assert whole.shape == partial.shape == (0, 1, 8, 8)
    assert draw(strokes, 8).flatten(1).any(dim=1).tolist() == [False, True, False]
    nothing = DeviceStrokes.of(from_lists([]))
    assert nothing.drawings == 0
    assert draw(nothing, 8).shape == (0, 1, 8, 8)


def test_indices_outside() -> None:
    """An error on a CPU; the kernels themselves, which cannot tell, draw nothing."""
    strokes = DeviceStrokes.of(scribbles(5))
    for bad in (-1, 5, 2**40, -(2**63)):
        with pytest.raises(ValueError, match=r"indices .* must be in 0\.\.4"):
            draw(strokes, 8, torch.tensor([0, bad]))
    parts = (strokes.points, strokes.last, strokes.first)
    order = torch.tensor([4, -1, 3, 5, 2**40, -(2**63), 2**63 - 1])
    images = raster_op.rasterize(*parts, order, order, None, 16, 16.0, 16.0, True)
    assert not images[:, [1, 3, 4, 5, 6]].any()
    assert torch.equal(images[0, [0, 2]], draw(strokes, 16, order[[0, 2]]))
    empty = DeviceStrokes.of(from_lists([]))
    parts = (empty.points, empty.last, empty.first)
    assert not raster_op.rasterize(*parts, order, None, None, 16, 16.0, 16.0, True).any()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"strokes": scribbles(1)}, "strokes must be DeviceStrokes, got Strokes"),
    ({"indices": [0]}, "indices must be a tensor, got list"),
    ({"indices": torch.zeros(3)}, r"indices must be \(3,\) torch.int64, got \(3,\) torch.float32"),
    ({"indices": torch.zeros(1, 3).long()}, r"indices must be \(B,\)"),
    ({"cut": torch.zeros(2).long()}, r"cut must be \(3,\) torch.int64, got \(2,\)"),
    ({"cut": torch.zeros(3).int()}, r"cut must be .* torch.int32"),
    ({"affine": torch.zeros(3, 6)}, r"affine must be \(3, 2, 3\) torch.float32, got \(3, 6\)"),
    ({"affine": torch.zeros(3, 2, 3).double()}, "affine must be .* torch.float64"),
    ({"affine": torch.zeros(3, 2, 3, requires_grad=True)}, "affine gets no gradient"),
    ({"cut": torch.zeros(3, device="meta").long()}, "one device.*cut on meta"),
    ({"side": 0}, "side = 0: expected an integer of 1"),
    ({"side": 8.0}, "side = 8.0"),
    ({"side": 4097}, "side = 4097: expected at most 4096"),
    ({"line_width": 0.0}, "line_width = 0.0: expected more than 0"),
    ({"line_width": math.nan}, "line_width = nan: expected a finite number"),
    ({"padding": -1.0}, "padding = -1.0: expected a finite number of 0"),
    ({"composite": "add"}, "composite = 'add': expected over or max"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message for _, message in BAD])
def test_wrong_arguments(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "strokes": DeviceStrokes.of(scribbles(4)),
        "indices": torch.arange(3),
        "side": 8,
    }
    with pytest.raises(ValueError, match=message) as raised:
        rasterize_strokes(**(given | changes))
    assert str(raised.value).startswith("rasterize_strokes: ")


def arguments(cut: bool, affine: bool, over: bool = True) -> tuple[Any, ...]:
    strokes = DeviceStrokes.of(scribbles(6))
    order = torch.tensor([5, 0, 0, 2])
    return (
        strokes.points,
        strokes.last,
        strokes.first,
        order,
        cuts(strokes, order) if cut else None,
        maps(4) if affine else None,
        11,
        16.0,
        16.0,
        over,
    )


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_opcheck(cut: bool, affine: bool) -> None:
    given = arguments(cut, affine)
    torch.library.opcheck(torch.ops.fastvae.rasterize_strokes.default, given)


@pytest.mark.parametrize("path", ["eager", "compiled"])
def test_in_a_compiled_graph(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVAE_OPS", path)
    strokes = DeviceStrokes.of(scribbles(8))

    def batch(order: Tensor, cut: Tensor, affine: Tensor) -> Tensor:
        whole, partial = rasterize_strokes(strokes, order, 14, cut=cut, affine=affine)
        return torch.cat((whole, partial), dim=1).float() / 255

    compiled = torch.compile(batch, fullgraph=True)
    for order in (torch.tensor([7, 0, 3]), torch.tensor([1, 1, 2])):
        given = order, cuts(strokes, order), maps(3)
        assert torch.equal(compiled(*given), batch(*given))


def test_strides_do_not_matter() -> None:
    strokes = DeviceStrokes.of(scribbles(6))
    order, affine = torch.tensor([5, 0, 3]), maps(3)
    cut = cuts(strokes, order)
    expected = draw(strokes, 9, order, cut=cut, affine=affine)
    spread = torch.stack((order, cut), dim=1)
    got = draw(strokes, 9, spread[:, 0], cut=spread[:, 1], affine=affine.mT.contiguous().mT)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def ends_of(strokes: DeviceStrokes) -> list[int]:
    bits = np.unpackbits(strokes.last.numpy(), bitorder="little")[: len(strokes.points)]
    return np.flatnonzero(bits).tolist()


def test_the_form_on_a_device() -> None:
    strokes = scribbles(40)
    device = DeviceStrokes.of(strokes)
    assert device.drawings == strokes.drawings
    assert device.device == torch.device("cpu")
    assert device.points.numpy() is not strokes.points
    assert np.array_equal(device.points.numpy(), strokes.points)
    assert ends_of(device) == (strokes.stroke_offset[1:] - 1).tolist()
    starts = strokes.stroke_offset[strokes.drawing_offset]
    assert device.first.tolist() == starts.tolist()
    points = len(strokes.points)
    assert device.nbytes == 2 * points + (points + 7) // 8 + 8 * 41
    again = device.to("cpu")
    assert torch.equal(again.last, device.last)


def test_a_drawing_takes_about_103_bytes() -> None:
    """44.5 points in 5.3 strokes, as in Quick, Draw!: 50 million take 5.2 GB."""
    lengths = np.tile([9, 8, 8, 8, 8, 4], 200)[:1060]
    offset = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    drawing = np.linspace(0, 1060, 201).astype(np.int64)
    strokes = Strokes(np.zeros((offset[-1], 2), np.uint8), offset, drawing)
    per = DeviceStrokes.of(strokes).nbytes / 200
    assert per == pytest.approx(len(strokes.points) / 200 * 2.125 + 8, abs=0.1)
    assert 50e6 * per < 5.5e9


def test_strokes_without_points_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.arange(22, dtype=np.uint8).reshape(11, 2)
    offset = np.array([0, 0, 3, 3, 3, 4, 11, 11, 11], dtype=np.int64)
    strokes = Strokes(points, offset, np.array([0, 1, 4, 4, 7, 8], dtype=np.int64))
    for at_once in (1 << 24, 8):  # bits are packed piece by piece
        monkeypatch.setattr(strokes_device, "_POINTS_AT_ONCE", at_once)
        device = DeviceStrokes.of(strokes)
        assert ends_of(device) == [2, 3, 10]
        assert device.first.tolist() == [0, 0, 3, 3, 11, 11]
        drawn = draw(device, 8).flatten(1).any(dim=1)
        assert drawn.tolist() == [False, True, False, True, False]


def test_pieces_of_packed_bits_and_of_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    strokes = scribbles(100)
    whole = DeviceStrokes.of(strokes)
    monkeypatch.setattr(strokes_device, "_POINTS_AT_ONCE", 16)
    monkeypatch.setattr(strokes_device, "_DRAWINGS_AT_ONCE", 7)
    pieces = DeviceStrokes.of(strokes)
    assert torch.equal(whole.last, pieces.last)
    first = whole.first.clone()
    first[93] = len(whole.points) + 1
    with pytest.raises(ValueError, match=r"first\[92\] \.\. first\[93\] is no range"):
        DeviceStrokes(whole.points, whole.last, first)


@pytest.mark.filterwarnings("error")
def test_read_only_points_are_copied() -> None:
    strokes = scribbles(3)
    strokes.points.flags.writeable = False
    device = DeviceStrokes.of(strokes)
    device.points.zero_()
    assert strokes.points.any()


U8, I64 = torch.uint8, torch.int64
POINTS, LAST = torch.zeros(4, 2, dtype=U8), torch.tensor([0b1010], dtype=U8)
FIRST = torch.tensor([0, 2, 4])


@pytest.mark.parametrize(
    ("points", "last", "first", "message"),
    [
        (POINTS.int(), LAST, FIRST, "points must be a contiguous tensor of 2 axes and torch.uint8"),
        (POINTS.mT, LAST, FIRST, "points must be a contiguous"),
        (POINTS.view(2, 4), LAST, FIRST, r"points must be \(P, 2\)"),
        (POINTS, LAST.long(), FIRST, "last must be a contiguous tensor of 1 axes"),
        (POINTS, LAST[:0], FIRST, "last has 0 bits for 4 points"),
        (POINTS, LAST, FIRST.int(), "first must be a contiguous tensor of 1 axes and torch.int64"),
        (POINTS, LAST, FIRST[:0], "first must be"),
        (POINTS, LAST, FIRST.to("meta"), "first is on meta"),
        (
            POINTS,
            LAST,
            torch.tensor([1, 4]),
            r"first must run from 0 to 4 \(points\), got \(1, 4\)",
        ),
        (POINTS, LAST, torch.tensor([0, 3]), "first must run from 0 to 4"),
        (POINTS, LAST, torch.tensor([0, 4, 2, 4]), r"first\[1\] \.\. first\[2\] is no range"),
        (POINTS, LAST, torch.tensor([0, -2, 4]), r"first\[0\] \.\. first\[1\] is no range"),
        (POINTS, LAST, torch.tensor([0, 2**62, 4]), r"first\[0\] \.\. first\[1\] is no range"),
        (
            POINTS,
            LAST,
            torch.tensor([0, 1, 4]),
            "drawing 0: last has no stroke ending where it ends",
        ),
        (POINTS, LAST * 0 + 2, FIRST, "drawing 1: last has no stroke ending where it ends"),
    ],
)
def test_corrupt_strokes_are_refused(
    points: Tensor, last: Tensor, first: Tensor, message: str
) -> None:
    DeviceStrokes(POINTS, LAST, FIRST)
    with pytest.raises(ValueError, match=message):
        DeviceStrokes(points, last, first)


def test_corrupt_offsets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first drawing that is wrong is named, also where it stands in a later piece."""
    points = np.zeros((4, 2), np.uint8)
    for stroke, drawing, bad in (
        ([0, 3, 2, 4], [0, 1, 3], 1),
        ([0, 1, 2, 4], [0, 1, 2, 1, 3], 2),
        ([0, 1, 2, 4], [0, 1, 9, 3], 1),
        ([0, 1, 2**62, 4], [0, 1, 3], 1),
        ([0, -5, 2, 4], [0, 1, 3], 0),
    ):
        strokes = Strokes(points, np.array(stroke, np.int64), np.array(drawing, np.int64))
        for at_once in (1 << 22, 1):
            monkeypatch.setattr(strokes_device, "_DRAWINGS_AT_ONCE", at_once)
            with pytest.raises(ValueError, match=f"^drawing {bad} has offsets out of order$"):
                DeviceStrokes.of(strokes)


def test_it_is_part_of_the_public_face() -> None:
    assert ops.DeviceStrokes is DeviceStrokes
    assert ops.rasterize_strokes is rasterize_strokes
