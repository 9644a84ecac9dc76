"""Prints the table of results after the benchmarks."""

from __future__ import annotations

import pytest

from benchmarks.table import ROWS, machine, markdown


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if not ROWS:
        return
    terminalreporter.section("fused operations")
    terminalreporter.write_line(", ".join(f"{k} {v}" for k, v in machine().items()))
    for line in markdown(ROWS):
        terminalreporter.write_line(line)
