"""The Triton kernels against float64 on a CPU, in Triton's interpreter.

The interpreter is chosen when Triton is imported, so each family of kernels runs in a process of
its own: the tests are in tests/interpreted/.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

FOLDER = Path(__file__).resolve().parent / "interpreted"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("interpreted_*.py")), ids=lambda p: p.stem)
def test_kernels_in_the_interpreter(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)],
        cwd=FOLDER.parent.parent,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("PYTEST")},
            "TRITON_INTERPRET": "1",
            "FASTVAE_OPS": "triton",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=500,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout.splitlines()[-1]
