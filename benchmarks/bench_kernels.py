"""The fused operations against what people write instead: forward, backward, and both.

    make bench BENCH=benchmarks/bench_kernels.py

On a CPU the figures are CPU time of one thread; on a GPU the table has time between CUDA events
with a cold L2 cache, as single launches and captured in a CUDA graph. Each row says how many times
faster than eager PyTorch, as the median over rounds in which the two took turns, with the 20th and
80th percentile. ``--results STEM`` keeps the table, ``--benchmark-json FILE`` everything.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.kernel_cases import CASES, MODES, PROVIDERS, Case, provider
from benchmarks.measure import (
    ON_GPU,
    Run,
    Spread,
    captured,
    copy_rate,
    peak_bytes,
    ratios,
    side_by_side,
)
from benchmarks.table import Row, report

ROUNDS = 60 if ON_GPU else 15
LAUNCHES = ("single", "captured") if ON_GPU else ("single",)


@pytest.mark.parametrize("launches", LAUNCHES)
@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_kernel(
    benchmark: BenchmarkFixture, case: Case, mode: str, name: str, launches: str
) -> None:
    if launches == "captured" and mode == "backward":
        pytest.skip("a backward pass alone is not captured")
    ours, eager = provider(case, name, mode), provider(case, "eager", mode)
    if launches == "captured":
        ours, eager = captured(ours), captured(eager)
    seconds = side_by_side({"eager": eager, "this": ours}, ROUNDS)
    time, faster = Spread.of(seconds["this"]), ratios(seconds["eager"], seconds["this"])
    size = case.bytes_min(mode)
    peak = None if launches == "captured" else peak_bytes(ours)  # a graph has its memory already
    row = Row(
        op=case.label,
        provider=name,
        mode=mode,
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
    benchmark.group = f"{case.label}, {mode}, {launches}"
    benchmark.pedantic(_to_the_end, setup=lambda: ((ours(),), {}), rounds=5)


def _to_the_end(run: Run) -> None:
    run()
    if ON_GPU:
        torch.cuda.synchronize()
