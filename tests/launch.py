"""Start training the way users do: as a process, alone or under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def command(*words: str | Path, ranks: int = 1, module: str = "fastvae.train") -> list[str]:
    """``python -m module words``, or the same under torchrun with that many ranks."""
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
    return [*launcher, module, *map(str, words)]


def environment() -> dict[str, str]:
    """One thread per process, and the checkout on the path."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(
    *words: str | Path, ranks: int = 1, module: str = "fastvae.train", code: int | None = 0
) -> subprocess.CompletedProcess[str]:
    """Run to the end and check the exit code (None: any)."""
    done = subprocess.run(
        command(*words, ranks=ranks, module=module),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    if code is not None:
        assert done.returncode == code, f"ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done


def metrics(run_folder: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind in a run's metrics.jsonl."""
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def weights(run_folder: Path, name: str = "model") -> bytes:
    """The bytes of the last checkpoint's weights."""
    return (run_folder / "checkpoints" / "last" / f"{name}.safetensors").read_bytes()
