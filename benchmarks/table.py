"""Rows of results: into the JSON of pytest-benchmark, and a table at the end of the run."""

from __future__ import annotations

import datetime
import json
import platform
import re
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.measure import DEVICE, ON_GPU


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


def machine() -> dict[str, str]:
    """Where and with what it was measured."""
    return {
        "device": torch.cuda.get_device_name(DEVICE) if ON_GPU else _processor(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="ascii", errors="ignore") if info.exists() else ""
    found = re.search(r"^model name\s*: (.+)$", text, re.M)
    return found[1] if found else platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    root = Path(__file__).resolve().parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


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


def write(stem: Path, rows: list[Row]) -> None:
    """Keep the rows: STEM.json for programs, STEM.md for people."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    about = machine()
    data = {"machine": about, "rows": [asdict(row) for row in rows]}
    stem.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    head = ", ".join(f"{key} {value}" for key, value in about.items())
    text = "\n".join([head, "", *markdown(rows)]) + "\n"
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
