"""A run that is killed and resumed ends with the very bits of one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from launch import command, environment, metrics, run, weights

STEPS = 240
# Everything with state of its own: optimizer, averaged weights, dropout's generator, beta schedule.
OPTIONS = [
    *("digits", "--deterministic", "--max-steps", str(STEPS), "--checkpoint.every", "7"),
    *("--optim.ema-decay", "0.99", "--model.dropout", "0.1", "--kl.schedule", "linear"),
    *("--kl.warmup", "3", "--log.every", "5", "--log.no-tensorboard", "--accumulate", "2"),
]


def start_and_kill(words: list[str], ranks: int, folder: Path, after_step: int) -> None:
    """Start training and kill -9 all of its processes once a checkpoint past a step is there."""
    process = subprocess.Popen(
        command(*words, ranks=ranks),
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        steps = [int(p.name[5:]) for p in (folder / "checkpoints").glob("step-*")]
        if steps and max(steps) >= after_step:
            break
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_run_resumes_to_identical_bits(tmp_path: Path, ranks: int) -> None:
    after_step = random.randrange(10, STEPS - 100)
    print(f"killed after step {after_step}")  # shown when the test fails
    run(*OPTIONS, "--out", tmp_path, "--name", "whole", ranks=ranks)
    words = [*OPTIONS, "--out", str(tmp_path), "--name", "killed"]
    start_and_kill(words, ranks, tmp_path / "killed", after_step)
    done = run(*words, "--resume", ranks=ranks)
    assert "resumed at step" in done.stdout
    for name in ("model", "ema"):
        assert weights(tmp_path / "killed", name) == weights(tmp_path / "whole", name)
    steps = [entry["step"] for entry in metrics(tmp_path / "killed", "train")]
    assert steps == sorted(set(steps)), "a step is logged twice"
    final = [metrics(tmp_path / name, "test")[-1]["nelbo"] for name in ("whole", "killed")]
    assert final[0] == final[1]


def test_resume_uses_the_checkpoint_before_a_damaged_one(tmp_path: Path) -> None:
    words = [*OPTIONS, "--out", str(tmp_path), "--name", "run"]
    run(*words)
    expected = weights(tmp_path / "run")
    last = (tmp_path / "run" / "checkpoints" / "last").resolve()
    file = last / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    done = run(*words, "--resume")
    assert str(last) in done.stderr
    assert "model.safetensors does not match its checksum" in done.stderr
    assert weights(tmp_path / "run") == expected


def test_the_best_survives_a_kill_before_its_link(tmp_path: Path) -> None:
    """A kill can fall between a checkpoint and the link ``best`` to it."""
    words = ["digits", "--max-steps", "66", "--log.no-tensorboard", "--out", str(tmp_path)]
    words += ["--name", "run", "--log.eval-every", "1"]
    run(*words)
    checkpoints = tmp_path / "run" / "checkpoints"
    best = (checkpoints / "best").resolve()
    other = next(p for p in checkpoints.glob("step-*") if p != best)
    (checkpoints / "best").unlink()
    (checkpoints / "best").symlink_to(other.name)
    run(*words, "--resume")
    assert (checkpoints / "best").resolve() == best
    assert len(metrics(tmp_path / "run", "test")) == 1, "a second resume must not repeat the test"


def test_changed_options_of_the_optimizer_count(tmp_path: Path) -> None:
    words = ("digits", "--out", tmp_path, "--name", "run", "--log.no-tensorboard")
    run(*words, "--max-steps", "10", "--optim.weight-decay", "0.1")
    more = ("--max-steps", "20", "--optim.weight-decay", "0.5", "--precision", "fp16")
    done = run(*words, *more, "--resume")
    assert "optim.weight_decay changes from 0.1 to 0.5" in done.stderr
    state = torch.load(tmp_path / "run" / "checkpoints" / "last" / "state.pt", weights_only=True)
    assert state["optimizer"]["param_groups"][0]["weight_decay"] == 0.5
    assert 'precision = "fp16"' in (tmp_path / "run" / "config.toml").read_text()


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sigterm_saves_and_says_how_to_go_on(tmp_path: Path, ranks: int) -> None:
    words = ["digits", "--epochs", "10000", "--out", str(tmp_path), "--name", "run"]
    process = subprocess.Popen(
        command(*words, ranks=ranks),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "run" / "checkpoints" / "last").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert "checkpoint saved" in said
    assert "--resume" in said
    if ranks == 1:  # torchrun has an exit code of its own
        assert process.returncode == 75
        assert len(said.strip().splitlines()) == 1
    done = run(tmp_path / "run", "--resume", "--max-steps", "1", code=None)
    assert "resumed at step" in done.stdout
