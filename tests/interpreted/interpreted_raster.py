"""rasterize_strokes in Triton's interpreter against plain PyTorch.

Run by test_interpreter.py in a process with TRITON_INTERPRET=1. Both compute in float32 and nearly
in the same order; a pixel may fall on the other side of a rounding, 1 of 255.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastvae import ops
from fastvae.kernels import raster_op, raster_torch, raster_triton
from fastvae.kernels.strokes import from_lists
from fastvae.ops import DeviceStrokes

if os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("needs TRITON_INTERPRET=1, set before Triton is imported")


def scribbles(count: int, seed: int = 0) -> DeviceStrokes:
    """Drawings of 0 to 3 strokes of 1 to 5 points; some points twice in a row, some lines axial."""
    rng = np.random.default_rng(seed)

    def stroke() -> list[list[int]]:
        steps = rng.integers(-60, 61, (2, rng.integers(1, 6))) * rng.integers(0, 2, (2, 1))
        walk = np.clip(rng.integers(0, 256, (2, 1)) + steps.cumsum(axis=1), 0, 255)
        return [[int(v) for v in axis] for axis in walk]

    lists = [[stroke() for _ in range(rng.integers(0, 4))] for _ in range(count)]
    return DeviceStrokes.of(from_lists(lists))


def maps(count: int) -> Tensor:
    noise = torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(0))
    return torch.eye(2, 3) + noise * torch.tensor([0.4, 0.4, 15.0])


def cuts(strokes: DeviceStrokes, order: Tensor) -> Tensor:
    count = (strokes.first[1:] - strokes.first[:-1])[order]
    u = torch.rand(len(order), generator=torch.Generator().manual_seed(0))
    return (u * (count + 1)).long()


def both(
    strokes: DeviceStrokes,
    order: Tensor,
    side: int,
    cut: Tensor | None = None,
    affine: Tensor | None = None,
    line_width: float = 16.0,
    padding: float = 16.0,
    over: bool = True,
) -> tuple[Tensor, Tensor]:
    """Images of the launcher and of plain PyTorch."""
    parts = (strokes.points, strokes.last, strokes.first)
    given: Any = (*parts, order, cut, affine, side, line_width, padding, over)
    return raster_triton.rasterize(*given), raster_torch.rasterize(*given)


def assert_close(fused: Tensor, plain: Tensor) -> None:
    assert fused.dtype == plain.dtype == torch.uint8
    assert fused.shape == plain.shape
    assert fused.stride() == plain.stride()
    difference = (fused.int() - plain.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).sum() <= 1 + 1e-3 * difference.numel()


@pytest.mark.parametrize("over", [True, False])
@pytest.mark.parametrize("line_width", [0.5, 16.0, 200.0])
@pytest.mark.parametrize("side", [1, 5, 33])
def test_as_plain_pytorch(side: int, line_width: float, over: bool) -> None:
    """One tile and several, lines within a pixel and lines that fill the image."""
    strokes, order = scribbles(4), torch.tensor([3, 0, 1, 2])
    for affine in (None, maps(4)):
        cut = cuts(strokes, order)
        assert_close(*both(strokes, order, side, cut, affine, line_width, over=over))
    assert_close(*both(strokes, order[:1], side, None, None, line_width, padding=0.0, over=over))


def test_lines_between_the_two_kernels() -> None:
    """At half the diagonal of a pixel, the far edge of a line stops counting."""
    strokes, order = scribbles(3), torch.arange(3)
    scale_of_16 = 28 / 304
    for radius in (0.70, 0.7071, 0.7072, 0.72):
        # r = w s / (2 (256 + 2 p + w)): the padding makes up for the width.
        width = 2 * radius / scale_of_16
        padding = 24 - width / 2
        assert raster_torch.frame(28, width, padding)[1] == pytest.approx(radius)
        assert_close(*both(strokes, order, 28, line_width=width, padding=padding))


def test_cuts_of_every_length() -> None:
    lists = [[[[0, 150, 100], [0, 150, 10]], [[20], [30]], [[90, 150], [20, 210]]]]
    strokes = DeviceStrokes.of(from_lists(lists))
    cut = torch.tensor([-(2**63), -1, 0, 1, 2, 3, 4, 5, 6, 7, 2**63 - 1])
    order = torch.zeros(len(cut), dtype=torch.int64)
    fused, plain = both(strokes, order, 16, cut)
    assert_close(fused, plain)
    whole, partial = fused
    assert (whole == whole[0]).all()  # the dot of a stroke cut behind its first point is not in it
    assert not partial[:3].any()
    assert torch.equal(partial[-3:], whole[-3:])
    ink = partial.flatten(1).sum(dim=1, dtype=torch.int64)
    assert (ink[3:9] > ink[2:8]).all()


def test_more_points_than_are_read_at_once() -> None:
    generator = np.random.default_rng(3)
    walk = [[int(v) for v in generator.integers(0, 200, 70)] for _ in range(2)]
    strokes = DeviceStrokes.of(from_lists([[walk, [[255], [3]]], [[[3], [255]], walk]]))
    assert_close(*both(strokes, torch.tensor([0, 1]), 8, cut=torch.tensor([70, 66])))


def test_indices_outside_and_empty_drawings() -> None:
    strokes = DeviceStrokes.of(from_lists([[], [[[5, 90], [6, 6]]], []]))
    order = torch.tensor([1, -1, 0, 3, 2**40, -(2**63), 2**63 - 1, 2])
    fused, plain = both(strokes, order, 8, cut=torch.full_like(order, 2))
    assert_close(fused, plain)
    assert fused.flatten(2).any(dim=2).tolist() == [[True] + 7 * [False]] * 2
    nothing = DeviceStrokes.of(from_lists([]))
    assert not both(nothing, order, 8)[0].any()
    # Beside ``first`` lies what would be a range of points, were it read.
    first = torch.tensor([0, 2, 0, 0, 2, 2, 0, 2])[2:6]
    framed = DeviceStrokes(strokes.points, strokes.last, first)
    assert both(framed, torch.tensor([-2, 1, 4]), 8)[0].flatten(2).any(dim=2).tolist() == [
        [False, True, False]
    ]
    assert both(strokes, order[:0], 8)[0].shape == (1, 0, 1, 8, 8)


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -3e38, 1e-30, 0.0, 90.0])
def test_maps_that_lead_nowhere(value: float) -> None:
    strokes, order = scribbles(2, seed=5), torch.tensor([0, 1, 0, 1])
    affine = torch.eye(2, 3).repeat(4, 1, 1)
    affine[0, 0, 0] = affine[1, 1, 0] = affine[2, 1, 2] = value
    assert_close(*both(strokes, order, 8, affine=affine))


def test_segments_with_one_end_far_away() -> None:
    """The middle of the drawing stays where it is; what is left of it and right of it leaves."""
    lists = [[[[100, 200], [100, 100]], [[200, 100], [150, 100]], [[0], [200]]]]
    strokes, order = DeviceStrokes.of(from_lists(lists)), torch.zeros(4, dtype=torch.int64)
    affine = torch.eye(2, 3).repeat(4, 1, 1)
    affine[:, 0, 0] = torch.tensor([1e3, 1e4, 1e6, 1e12])
    fused, plain = both(strokes, order, 8, affine=affine)
    assert_close(fused, plain)
    assert fused[0].flatten(1).any(dim=1).tolist() == [True, True, False, False]


def test_strides_do_not_matter() -> None:
    strokes, order = scribbles(4), torch.tensor([3, 0, 2, 1])
    spread = torch.stack((order, cuts(strokes, order) + 1), dim=1)
    affine = maps(4)
    expected, _ = both(strokes, order, 8, spread[:, 1].contiguous(), affine)
    got, _ = both(strokes, spread[:, 0], 8, spread[:, 1], affine.mT.contiguous().mT)
    assert torch.equal(got, expected)


def test_the_operation_takes_this_path_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVAE_OPS", "triton")
    launched: list[int] = []
    launcher = raster_triton.rasterize

    def spy(*given: Any) -> Tensor:
        launched.append(1)
        return launcher(*given)

    monkeypatch.setitem(raster_op.forms.__dict__, "triton", spy)
    strokes, order = scribbles(4), torch.tensor([2, 3])
    cut = cuts(strokes, order)
    images = ops.rasterize_strokes(strokes, order, 8, cut=cut)
    assert launched == [1]
    assert_close(torch.stack(tuple(images)), both(strokes, order, 8, cut)[1])
