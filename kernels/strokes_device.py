"""Strokes where the rasterizer runs: the same drawings as ``strokes.Strokes``, in fewer bytes.

    drawing d  is points  first[d] .. first[d + 1]
    point   p  ends a stroke where bit p % 8 of last[p // 8] is set

One bit for each point takes the place of 8 bytes for each stroke. Per drawing of Quick, Draw! (44.5
points) that is 44.5 * (2 + 1/8) + 8 = 103 bytes: 50 million drawings take 5.1 GB, and 5.5 GB where
drawings have 48 points on average. Strokes without points cannot be said in this form, and draw
nothing; they are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:  # at run time it would bring Numba along
    from fastvae.kernels.strokes import Offsets, Strokes

_POINTS_AT_ONCE = 1 << 24  # while packing bits: a multiple of 8
_DRAWINGS_AT_ONCE = 1 << 22  # while checking: bounds the memory that the check takes


@dataclass(frozen=True, eq=False)
class DeviceStrokes:
    """Drawings as three dense tensors on one device.

    They are looked at when they are put together, which waits for the device; the kernels trust
    them from then on.

    Attributes:
        points: (P, 2) uint8, x and y.
        last: (at least ceil(P / 8),) uint8, one bit per point, the lowest bit first.
        first: (D + 1,) int64, ascending from 0 to P.
    """

    points: Tensor
    last: Tensor
    first: Tensor

    def __post_init__(self) -> None:
        _check_form(self)
        _check_values(self)

    @classmethod
    def of(cls, strokes: Strokes) -> DeviceStrokes:
        """The drawings of ``strokes``, on the CPU; ``to`` takes them elsewhere.

        The points are those of ``strokes``, not a copy, unless they are read-only (a memory map):
        PyTorch has no read-only tensors.
        """
        _check_offsets(strokes)
        points = strokes.points if strokes.points.flags.writeable else strokes.points.copy()
        parts = (
            points,
            _pack_ends(strokes.stroke_offset, len(points)),
            strokes.stroke_offset[strokes.drawing_offset],
        )
        return cls(*map(torch.from_numpy, parts))

    def to(self, device: torch.device | str) -> DeviceStrokes:
        """The same drawings on ``device``."""
        return DeviceStrokes(*(x.to(device) for x in (self.points, self.last, self.first)))

    @property
    def drawings(self) -> int:
        """Number of drawings."""
        return self.first.shape[0] - 1

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.points.device

    @property
    def nbytes(self) -> int:
        """Bytes of the three tensors."""
        return sum(x.numel() * x.element_size() for x in (self.points, self.last, self.first))


def _check_offsets(strokes: Strokes) -> None:
    """Raise ValueError with the first drawing whose offsets are out of order."""
    from fastvae.kernels.strokes import first_bad, read_only  # compiled by Numba, when it is needed

    for start in range(0, strokes.drawings, _DRAWINGS_AT_ONCE):
        index = np.arange(start, min(start + _DRAWINGS_AT_ONCE, strokes.drawings), dtype=np.int64)
        bad = first_bad(*strokes.arrays(), read_only(index))
        if bad >= 0:
            raise ValueError(f"drawing {start + bad} has offsets out of order")


def _pack_ends(stroke_offset: Offsets, points: int) -> np.ndarray:
    """One bit per point, (ceil(points / 8),) uint8: does a stroke end there?"""
    last = np.zeros((points + 7) // 8, dtype=np.uint8)
    for begin in range(0, points, _POINTS_AT_ONCE):
        flags = np.zeros(min(_POINTS_AT_ONCE, points - begin), dtype=np.bool_)
        # Ends in (begin, begin + len(flags)]. An empty stroke ends where the one before it does.
        low, high = np.searchsorted(stroke_offset, (begin, begin + len(flags)), side="right")
        flags[stroke_offset[low:high] - 1 - begin] = True
        packed = np.packbits(flags, bitorder="little")
        last[begin // 8 : begin // 8 + len(packed)] = packed
    return last


def _check_form(strokes: DeviceStrokes) -> None:
    """Shapes, dtypes, places."""
    points, last, first = strokes.points, strokes.last, strokes.first
    for name, value, dtype, dims in (
        ("points", points, torch.uint8, 2),
        ("last", last, torch.uint8, 1),
        ("first", first, torch.int64, 1),
    ):
        if value.dtype != dtype or value.dim() != dims or not value.is_contiguous():
            raise ValueError(
                f"{name} must be a contiguous tensor of {dims} axes and {dtype}, got "
                f"{tuple(value.shape)} {value.dtype} of strides {value.stride()}"
            )
        if value.device != points.device:
            raise ValueError(f"{name} is on {value.device}, points are on {points.device}")
    if points.shape[1] != 2:
        raise ValueError(f"points must be (P, 2), got {tuple(points.shape)}")
    if 8 * len(last) < len(points):
        raise ValueError(f"last has {8 * len(last)} bits for {len(points)} points")
    if len(first) < 1:
        raise ValueError("first must be (drawings + 1,), got (0,)")


def _check_values(strokes: DeviceStrokes) -> None:
    """Every drawing is a range of points, and ends where a stroke ends."""
    last, first, points = strokes.last, strokes.first, len(strokes.points)
    ends = int(first[0]), int(first[-1])
    if ends != (0, points):
        raise ValueError(f"first must run from 0 to {points} (points), got {ends}")
    for start in range(0, strokes.drawings, _DRAWINGS_AT_ONCE):
        begin, end = first[start:-1], first[start + 1 :]
        begin, end = begin[:_DRAWINGS_AT_ONCE], end[:_DRAWINGS_AT_ONCE]
        # Both ends within bounds first: where they are not, the bits below would be read outside.
        wrong = (begin > end) | (end > points) | (begin < 0)
        if wrong.any():
            d = start + int(wrong.nonzero()[0])
            raise ValueError(
                f"drawing {d}: first[{d}] .. first[{d + 1}] is no range of points 0..{points}"
            )
        drawn = (end > begin).nonzero()[:, 0]
        final = end[drawn] - 1
        open_ended = last[final >> 3] >> (final & 7).to(torch.uint8) & 1 == 0
        if open_ended.any():
            d = start + int(drawn[open_ended.nonzero()[0, 0]])
            raise ValueError(f"drawing {d}: last has no stroke ending where it ends")
