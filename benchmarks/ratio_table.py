"""The table of ratios: what a benchmark left in ``extra_info``, gathered over the run.

A benchmark that compares two things in turns leaves ``ratio_p50``, ``ratio_p20``, ``ratio_p80``
(how many times faster than its peer, round by round), ``ours_per_s``, ``peer_per_s`` and ``unit``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.table import machine


@dataclass(frozen=True)
class Ratio:
    """One comparison."""

    group: str
    name: str
    ratio_p20: float
    ratio_p50: float
    ratio_p80: float
    ours_per_s: float
    peer_per_s: float
    unit: str


RATIOS: list[Ratio] = []
"""What was measured in this run."""


def collect(benchmark: BenchmarkFixture) -> None:
    """Take the comparison that a benchmark has made, if it has."""
    info = benchmark.extra_info
    if "ratio_p50" in info:
        numbers = {
            key: float(info[key])
            for key in ("ratio_p20", "ratio_p50", "ratio_p80", "ours_per_s", "peer_per_s")
        }
        RATIOS.append(
            Ratio(benchmark.group or "", benchmark.name, unit=str(info["unit"]), **numbers)
        )


def markdown(rows: list[Ratio]) -> Iterator[str]:
    """The table, a line at a time."""
    yield "| what | against | times faster (20th to 80th percentile) | ours | theirs | unit |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        spread = f"{row.ratio_p20:.3g} to {row.ratio_p80:.3g}"
        yield (
            f"| {row.group} | {row.name} | **{row.ratio_p50:.3g}** ({spread}) | "
            f"{_rate(row.ours_per_s)} | {_rate(row.peer_per_s)} | {row.unit} |"
        )


def write(stem: Path, rows: list[Ratio]) -> None:
    """STEM.json and STEM.md."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    about = machine()
    data = {"machine": about, "rows": [asdict(row) for row in rows]}
    stem.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    head = [", ".join(f"{key} {value}" for key, value in about.items()), ""]
    text = "\n".join([*head, *markdown(rows)]) + "\n"
    stem.with_suffix(".md").write_text(text, encoding="utf-8")


def _rate(value: float) -> str:
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {letter}"
    return f"{value:.3g}"
