"""The table of results after the benchmarks: printed, and kept with ``--results STEM``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import ratio_table
from benchmarks.ratio_table import RATIOS
from benchmarks.table import ROWS, machine, markdown, write


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--results``."""
    parser.addoption(
        "--results",
        type=Path,
        metavar="STEM",
        help="also write the rows of results to STEM.json and STEM.md",
    )


@pytest.fixture(autouse=True)
def _ratios(request: pytest.FixtureRequest) -> Iterator[None]:
    """Gather the comparison that a benchmark leaves behind."""
    benchmark = None
    if "benchmark" in request.fixturenames:
        benchmark = request.getfixturevalue("benchmark")
    yield
    if benchmark is not None:
        ratio_table.collect(benchmark)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the tables."""
    stem = config.getoption("--results")
    if ROWS:
        terminalreporter.section("fused operations")
        terminalreporter.write_line(", ".join(f"{k} {v}" for k, v in machine().items()))
        for line in markdown(ROWS):
            terminalreporter.write_line(line)
        if stem is not None:
            write(stem, ROWS)
    if RATIOS:
        terminalreporter.section("times faster than others")
        for line in ratio_table.markdown(RATIOS):
            terminalreporter.write_line(line)
        if stem is not None:
            ratio_table.write(stem, RATIOS)
    if stem is not None and (ROWS or RATIOS):
        terminalreporter.write_line(f"written to {stem}.json and {stem}.md")
