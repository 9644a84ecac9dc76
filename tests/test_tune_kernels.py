"""The tuning script, as far as it goes without a GPU: candidates, choice, the file it writes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import tune_kernels
from benchmarks.tune_kernels import Timing
from fastvae.kernels.launch import LAUNCH, Launch
from fastvae.kernels.launch_table import TABLE

ROOT = Path(__file__).resolve().parent.parent
PRESENT, OTHER, THIRD = Launch(1024, 256, 4), Launch(2048, 2048, 4), Launch(512, 512, 2)


def timings(*medians: float) -> list[Timing]:
    return [Timing(median, 0.9 * median, 1.1 * median) for median in medians]


def test_the_present_table_is_rendered_as_it_stands() -> None:
    source = tune_kernels.TABLE_FILE.read_text()
    assert tune_kernels.render(TABLE, source) == source


def test_a_new_table_reads_back(tmp_path: Path) -> None:
    table = {name: dict(row) for name, row in TABLE.items()}
    long = (
        "tuned on a GPU, 2026-01-02, torch 2.13.0+cu130, triton 3.9.0: 1.5 us against 2.5 us " * 3
    )
    table["pixel"] = {"elements": 512, "block": 256, "warps": 2, "why": long.strip()}
    path = tmp_path / "launch_table.py"
    path.write_text(tune_kernels.render(table, tune_kernels.TABLE_FILE.read_text()))
    assert tune_kernels.read_table(path) == table
    text = path.read_text()
    assert max(map(len, text.splitlines())) <= 100
    assert text.startswith('"""The launch table')
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "format",
            "--check",
            "--isolated",
            "--line-length=100",
            path,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 or "No module named ruff" in done.stderr, done.stdout
    with pytest.raises(ValueError, match="quoting"):
        tune_kernels.render({"x": {**table["pixel"], "why": 'a "b"'}}, text)
    with pytest.raises(ValueError, match="no line 'TABLE"):
        tune_kernels.render(table, "")


@pytest.mark.parametrize("row", TABLE)
def test_candidates(row: str) -> None:
    found = tune_kernels.candidates(LAUNCH[row])
    assert found[0] == LAUNCH[row]
    assert 20 < len(found) == len(set(found))
    for launch in found:
        for number in (launch.elements, launch.block, launch.warps):
            assert number & (number - 1) == 0
        assert launch.block <= launch.elements
        for columns in (20, 784, 786_432):
            width, height = launch.tile(columns)
            assert width * height <= launch.elements
            assert 1 <= width * height / (32 * launch.warps) <= 32
            assert columns / width < 65_536  # the second axis of a grid


def test_the_fastest_over_all_shapes_is_chosen() -> None:
    measured = {PRESENT: timings(10, 100), OTHER: timings(5, 150), THIRD: timings(9, 80)}
    best, relative = tune_kernels.choose(measured, PRESENT)
    assert best == THIRD
    assert relative == pytest.approx((0.9 * 0.8) ** 0.5)


def test_a_gain_within_the_noise_changes_nothing() -> None:
    measured = {PRESENT: timings(10, 100), OTHER: timings(9.9, 99)}
    assert tune_kernels.choose(measured, PRESENT) == (PRESENT, 1.0)


def test_timing_takes_the_median_and_the_fifths() -> None:
    times = [float(i) for i in range(11)]
    assert Timing.of([*times[:-1], 1e6]) == Timing(5.0, 2.0, 8.0)


def test_without_a_gpu_it_says_so_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "table.py"
    assert tune_kernels.main(["--table", str(path)]) == 2
    assert not path.exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs a GPU" in line


def test_every_row_has_a_workload_that_launches_its_kernel() -> None:
    """Compiled for sm_90 instead of launched: the script must still work when a GPU is there."""
    pytest.importorskip("triton", reason="Triton is not installed")
    script = """
from benchmarks.compile_gate import compiling
from benchmarks.tune_kernels import SYSTEMS, TABLE, workloads
for row in TABLE:
    for label, run in workloads(row, SYSTEMS[0], "cpu"):
        with compiling("sm_90") as kernels:
            run()
        print(row, *(kernel.metadata.name for kernel in kernels))
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    launched = dict(re.findall(r"^(\w+) (\w+)$", done.stdout, re.M))
    assert launched == {
        "normal": "_normal_kernel",
        "sample_kl": "_sample_kl_kernel",
        "sample_kl_backward": "_sample_kl_backward_kernel",
        "pixel": "_pixel_kernel",
        "dlogistic": "kernel",
        "dlogistic_mixture": "kernel",
        "rescale": "_rescale_kernel",
        "gather": "_gather_kernel",
    }
