"""Rows of results: into the JSON of pytest-benchmark, and a table at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.measure import DEVICE, ON_GPU
from fastvae.run import environment


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    op: str
    provider: str
    mode: str
    captured: bool
    p20_ms: float
    p50_ms: float
    p80_ms: float
    bytes_min: int
    gb_per_s: float
    percent_of_copy: float
    peak_mb: float | None
    faster: float
    faster_p20: float
    faster_p80: float


ROWS: list[Row] = []
"""What was measured in this run."""


def report(benchmark: BenchmarkFixture, row: Row) -> None:
    """Put a row into the table and into the JSON of pytest-benchmark."""
    ROWS.append(row)
    benchmark.extra_info.update(asdict(row) | machine())


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    name = torch.cuda.get_device_name(DEVICE) if ON_GPU else "cpu"
    return {"device": name, "threads": torch.get_num_threads(), **environment()}


def markdown(rows: list[Row]) -> Iterator[str]:
    """The table in Markdown."""
    yield (
        "| operation | mode | provider | launches | ms (p20-p80) | GB/s | % of copy | peak MB "
        "| times faster than eager (p20-p80) |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for r in rows:
        peak = "-" if r.peak_mb is None else f"{r.peak_mb:.1f}"
        launches = "captured" if r.captured else "single"
        yield (
            f"| {r.op} | {r.mode} | {r.provider} | {launches} | {r.p50_ms:.3f} "
            f"({r.p20_ms:.3f}-{r.p80_ms:.3f}) | {r.gb_per_s:.1f} | {r.percent_of_copy:.0f} "
            f"| {peak} | {r.faster:.2f} ({r.faster_p20:.2f}-{r.faster_p80:.2f}) |"
        )
