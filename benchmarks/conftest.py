"""The table of results after the benchmarks: printed, and kept with ``--results STEM``."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.table import ROWS, machine, markdown, write


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--results``."""
    parser.addoption(
        "--results",
        type=Path,
        metavar="STEM",
        help="also write the rows of results to STEM.json and STEM.md",
    )


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table."""
    if not ROWS:
        return
    terminalreporter.section("fused operations")
    terminalreporter.write_line(", ".join(f"{k} {v}" for k, v in machine().items()))
    for line in markdown(ROWS):
        terminalreporter.write_line(line)
    stem = config.getoption("--results")
    if stem is not None:
        write(stem, ROWS)
        terminalreporter.write_line(f"written to {stem}.json and {stem}.md")
