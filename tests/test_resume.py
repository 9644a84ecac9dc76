"""A run that is killed and resumed ends with the very bits of one that was not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from launch import command, environment, metrics, run, weights

from fastvae.run import RunFolder
from fastvae.start import parse_train
from fastvae.train import train

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
    # torchrun gives its workers sessions of their own: killing its group would leave them running.
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == (ranks if ranks > 1 else 0)
    for pid in (*map(int, workers), process.pid):
        os.kill(pid, signal.SIGKILL)
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


SHORT = ("--max-steps", "12", "--checkpoint.every", "4", "--log.no-tensorboard")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short finished run."""
    out = tmp_path_factory.mktemp("runs")
    run("digits", "--out", out, "--name", "run", *SHORT)
    return out / "run"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


@pytest.mark.parametrize("way", ["folder", "config.toml", "dot", "name", "no config.toml"])
def test_every_way_to_name_the_run_resumes_it(
    copied: Path, way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first: tuple[str, ...] = (str(copied),)
    if way == "config.toml":
        first = (str(copied / "config.toml"),)
    elif way == "dot":
        monkeypatch.chdir(copied)
        first = (".",)
    elif way == "name":
        first = ("digits", "--out", str(copied.parent), "--name", "run")
    elif way == "no config.toml":
        (copied / "config.toml").unlink()
    train(parse_train([*first, "--resume", "--max-steps", "14"]))
    assert "resumed at step 12 of 14" in capsys.readouterr().out
    assert [p.name for p in copied.parent.iterdir()] == ["run"]
    assert 'preset = "digits"' in (copied / "config.toml").read_text()


def test_resume_starts_afresh_when_the_kill_came_before_the_first_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    words = ["digits", "--out", str(tmp_path), "--name", "run", *SHORT, "--resume"]
    train(parse_train(words))
    assert "starting it afresh" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "last").exists()


def test_one_process_at_a_time(copied: Path) -> None:
    folder = RunFolder(copied)
    folder.lock()
    try:
        done = run(copied, "--resume", code=2)
    finally:
        folder.unlock()
    assert "another process is training in" in done.stderr
    run(copied, "--resume")


def test_a_damaged_best_is_not_the_end(copied: Path) -> None:
    checkpoints = copied / "checkpoints"
    (checkpoints / "best").unlink()
    (checkpoints / "best").symlink_to("step-00000004")
    state = checkpoints / "step-00000004" / "state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    done = run(copied, "--resume")
    assert "test -elbo" in done.stdout


def test_a_closed_pipe_does_not_stop_training(tmp_path: Path) -> None:
    words = map(str, ("digits", "--out", tmp_path, "--name", "run", *SHORT))
    process = subprocess.Popen(
        command(*words), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=120) == 0, process.stderr and process.stderr.read()
    assert metrics(tmp_path / "run", "test")


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
