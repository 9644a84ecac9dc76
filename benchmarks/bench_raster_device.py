"""The rasterizer on a GPU: drawings per second, from strokes that are resident there.

    make bench BENCH=benchmarks/bench_raster_device.py

A million made-up drawings of the size of Quick, Draw!'s (45 points in 5 strokes) lie on the device;
a batch is drawn from places far apart. Times are between CUDA events from a cold L2 cache, as a
single launch and captured in a CUDA graph, side by side with the eager form, which cannot be
captured. The bytes are the least that has to be moved: points in, images out. Arithmetic, not
bytes, is what takes the time (``kernels/raster_triton.py`` has the count), so expect a small
percentage of a copy. Skipped without a GPU: on a CPU the way is ``raster.rasterize``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.measure import (
    DEVICE,
    ON_GPU,
    Prepare,
    Spread,
    captured,
    copy_rate,
    path,
    peak_bytes,
    ratios,
    side_by_side,
)
from benchmarks.table import Row, report
from fastvae.kernels.strokes import Strokes, offsets
from fastvae.ops import DeviceStrokes, rasterize_strokes

pytestmark = pytest.mark.skipif(not ON_GPU, reason="no GPU: this measures the device's rasterizer")

DRAWINGS = 1_000_000
ROUNDS = 20


@dataclass(frozen=True)
class Case:
    """A batch of drawings: whole, or with partial images; as they are, or jittered."""

    rows: int
    side: int
    partial: bool = False
    jitter: bool = False

    @property
    def label(self) -> str:
        kind = "pairs" if self.partial else "whole"
        return f"raster {self.side}x{self.side} [{self.rows}] {kind}{' jitter' * self.jitter}"


CASES = [
    Case(512, 28),
    Case(512, 64),
    Case(512, 64, partial=True),
    Case(512, 64, partial=True, jitter=True),
    Case(4096, 64, partial=True, jitter=True),
    Case(256, 256, partial=True, jitter=True),
]


@lru_cache(maxsize=1)
def resident() -> DeviceStrokes:
    """Random walks on the device."""
    rng = np.random.default_rng(0)
    strokes = rng.integers(1, 10, DRAWINGS)
    lengths = rng.integers(1, 18, strokes.sum())
    steps = rng.integers(-25, 26, (lengths.sum(), 2), dtype=np.int16).astype(np.int64)
    starts = offsets(lengths)[:-1]
    steps[starts] = rng.integers(0, 256, (len(starts), 2))
    walk = steps.cumsum(axis=0)
    walk -= np.repeat(walk[starts] - steps[starts], lengths, axis=0)
    points = np.clip(walk, 0, 255).astype(np.uint8)
    return DeviceStrokes.of(Strokes(points, offsets(lengths), offsets(strokes))).to(DEVICE)


def prepared(case: Case, form: str) -> tuple[Prepare, int]:
    """A batch to be drawn, and the least number of bytes that this moves."""
    strokes = resident()
    generator = torch.Generator().manual_seed(1)
    order = torch.randint(0, DRAWINGS, (case.rows,), generator=generator).to(DEVICE)
    count = (strokes.first[1:] - strokes.first[:-1])[order]
    cut = (count + 1) // 2 if case.partial else None
    affine = None
    if case.jitter:
        noise = 0.1 * torch.randn(case.rows, 2, 3, generator=generator)
        affine = (torch.eye(2, 3) + noise).to(DEVICE)

    def draw() -> Tensor | tuple[Tensor, Tensor]:
        with path(form):
            return rasterize_strokes(strokes, order, case.side, cut=cut, affine=affine)

    arguments = case.rows * (8 + 16 + 8 * case.partial + 24 * case.jitter)
    images = case.rows * case.side**2 * (1 + case.partial)
    points = int(count.sum())

    def prepare() -> Callable[[], object]:
        return draw

    return prepare, 2 * points + points // 8 + arguments + images


@pytest.mark.parametrize("launches", ["single", "captured"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_raster_device(benchmark: BenchmarkFixture, case: Case, launches: str) -> None:
    ours, size = prepared(case, "triton")
    eager, _ = prepared(case, "eager")
    if launches == "captured":
        ours = captured(ours)
    seconds = side_by_side({"eager": eager, "this": ours}, ROUNDS)
    time, faster = Spread.of(seconds["this"]), ratios(seconds["eager"], seconds["this"])
    peak = None if launches == "captured" else peak_bytes(ours)
    row = Row(
        op=case.label,
        provider="triton",
        mode="forward",
        captured=launches == "captured",
        p20_ms=time.p20 * 1e3,
        p50_ms=time.p50 * 1e3,
        p80_ms=time.p80 * 1e3,
        bytes_min=size,
        gb_per_s=size / time.p50 * 1e-9,
        percent_of_copy=100.0 * size / time.p50 / copy_rate(size),
        peak_mb=None if peak is None else peak / 1e6,
        faster=faster.p50,
        faster_p20=faster.p20,
        faster_p80=faster.p80,
    )
    report(benchmark, row)
    benchmark.extra_info.update(
        ratio_p20=faster.p20,
        ratio_p50=faster.p50,
        ratio_p80=faster.p80,
        ours_per_s=case.rows / time.p50,
        peer_per_s=case.rows / Spread.of(seconds["eager"]).p50,
        unit="drawings",
        bytes_per_drawing=resident().nbytes / DRAWINGS,
    )
    benchmark.group = f"{case.label}, {launches}"

    def to_the_end(run: Callable[[], object]) -> None:
        run()
        torch.cuda.synchronize()

    benchmark.pedantic(to_the_end, setup=lambda: ((ours(),), {}), rounds=5)
