"""Training through the kernels gives the loss curve of training through PyTorch."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import command, environment, metrics

STEPS = 6
TOLERANCE = 2e-5
"""Relative, on every logged number of every step: float32 rounding, grown over the steps."""


@pytest.fixture(scope="module")
def strokes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """idx files of 28x28 images with a bright bar on grey noise: something to learn."""
    root = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(0)
    for part, count in (("train", 80), ("t10k", 8)):
        images = rng.integers(0, 90, (count, 28, 28), dtype=np.uint8)
        for row, place in zip(images, rng.integers(4, 20, count), strict=True):
            row[:, place : place + 4] = 230
        for name, array in (("images-idx3", images), ("labels-idx1", images[:, 0, 0])):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            path = root / f"{part}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(header + array.tobytes()))
    return root


def train(root: Path, out: Path, path: str, *options: str) -> Path:
    """A few steps of preset mnist on one path; returns the run folder."""
    words = [
        *("mnist", "--data.root", root, "--out", out, "--name", path, "--precision", "fp32"),
        *("--max-steps", str(STEPS), "--batch-size", "8", "--log.every", "1", "--device", "auto"),
        *("--data.val-fraction", "0.1", "--log.images", "2", "--no-log.tensorboard", *options),
    ]
    interpret = "1" if path == "triton" and not torch.cuda.is_available() else "0"
    done = subprocess.run(
        command(*words),
        env={**environment(), "FASTVAE_OPS": path, "TRITON_INTERPRET": interpret},
        capture_output=True,
        text=True,
        timeout=400,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out / path


@pytest.mark.parametrize(
    "options",
    [
        ("--data.binarize", "dynamic", "--kl.schedule", "linear", "--kl.warmup", "1"),
        ("--data.binarize", "none", "--kl.free-bits", "0.05", "--accumulate", "2"),
    ],
    ids=["dynamic bits, beta ramp", "grey, free bits, accumulated"],
)
def test_the_kernels_give_the_same_loss_curve(
    strokes: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    runs = {path: train(strokes, tmp_path, path, *options) for path in ("eager", "triton")}
    curves = {path: metrics(run, "train") for path, run in runs.items()}
    assert [line["step"] for line in curves["eager"]] == list(range(1, STEPS + 1))
    first, last = curves["eager"][0]["nll"], curves["eager"][-1]["nll"]
    assert last < first - 1.0  # it does learn: the same curve is not a flat line
    for ours, plain in zip(curves["triton"], curves["eager"], strict=True):
        for name in ("loss", "nll", "kl", "grad_norm"):
            assert ours[name] == pytest.approx(plain[name], rel=TOLERANCE, abs=1e-5), name
    for kind in ("val", "test"):
        ours, plain = (metrics(runs[path], kind)[-1] for path in ("triton", "eager"))
        for name in ("nelbo", "nll", "kl"):
            assert ours[name] == pytest.approx(plain[name], rel=TOLERANCE, abs=1e-4), name


def test_the_compiled_path_trains_too(strokes: Path, tmp_path: Path) -> None:
    plain = metrics(train(strokes, tmp_path, "eager"), "train")
    compiled = metrics(train(strokes, tmp_path, "compiled"), "train")
    for ours, theirs in zip(compiled, plain, strict=True):
        for name in ("loss", "nll", "kl", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=TOLERANCE, abs=1e-5), name


def test_a_path_that_cannot_run_is_one_line(strokes: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command("digits", "--max-steps", "1", "--out", tmp_path, "--device", "cpu"),
        env={**os.environ, **environment(), "FASTVAE_OPS": "triton", "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "FASTVAE_OPS=triton" in done.stderr
