"""Two gloo ranks under torchrun, for real: same stream, same losses, equal gradients."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from launch import environment, metrics, run, weights

pytestmark = pytest.mark.slow
OPTIONS = ("digits", "--max-steps", "50", "--log.every", "1", "--log.no-tensorboard")


def test_two_ranks_match_one(tmp_path: Path) -> None:
    run(*OPTIONS, "--out", tmp_path, "--name", "one")
    run(*OPTIONS, "--out", tmp_path, "--name", "two", ranks=2)
    run(*OPTIONS, "--out", tmp_path, "--name", "both", "--accumulate", "2", ranks=2)
    one = metrics(tmp_path / "one", "train")
    assert len(one) == 50
    for name in ("two", "both"):
        other = metrics(tmp_path / name, "train")
        for key in ("loss", "nll", "kl"):
            expected = [entry[key] for entry in one]
            assert [entry[key] for entry in other] == pytest.approx(expected, rel=2e-5), key
        assert [e["lr"] for e in other] == [e["lr"] for e in one]
        # Every sample is counted once, whatever the number of ranks.
        for kind in ("val", "test"):
            result, expected = (
                metrics(tmp_path / name, kind)[-1],
                metrics(tmp_path / "one", kind)[-1],
            )
            assert result["images"] == expected["images"]
            assert result["nelbo"] == pytest.approx(expected["nelbo"], rel=1e-5)


def test_two_ranks_are_deterministic(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(*OPTIONS, "--deterministic", "--out", tmp_path, "--name", name, ranks=2)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_resume_with_another_number_of_ranks(tmp_path: Path) -> None:
    """The stream goes on where it was: the plan does not depend on the number of ranks."""
    words = ("digits", "--optim.schedule", "constant", "--optim.warmup", "0", "--out", tmp_path)
    words = (*words, "--log.every", "1")
    run(*words, "--name", "whole", "--max-steps", "40")
    run(*words, "--name", "parts", "--max-steps", "15", ranks=2)
    run(*words, "--name", "parts", "--max-steps", "40", "--resume")
    expected = [entry["loss"] for entry in metrics(tmp_path / "whole", "train")]
    found = [entry["loss"] for entry in metrics(tmp_path / "parts", "train")]
    assert found == pytest.approx(expected, rel=2e-5)


def test_evaluate_under_torchrun(tmp_path: Path) -> None:
    run(*OPTIONS, "--out", tmp_path, "--name", "run")
    words = (tmp_path / "run", "--samples", "7")
    single = run(*words, module="fastvae.evaluate").stdout.splitlines()
    double = run(*words, module="fastvae.evaluate", ranks=2).stdout.splitlines()
    assert single == double


def test_gradients_are_equal_on_all_ranks(tmp_path: Path) -> None:
    """The trap: ``ddp.module.encode(...)`` in a loop leaves each rank with its own gradients."""
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS, encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc_per_node=2", str(script), str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "spread of our gradients 0.0\n" in done.stdout
    shown = [line for line in done.stdout.splitlines() if line.startswith("spread around")]
    assert float(shown[0].split()[-1]) > 0.1, "the trap itself should show a difference"


GRADIENTS = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from fastvae.config import replace
from fastvae.engine import distributed
from fastvae.models import Inputs
from fastvae.presets import get_preset
from fastvae.trainer import build

def main():
    world = distributed.join("cpu")
    trainer = build(replace(get_preset("digits"), out=sys.argv[1]), world)
    batch = trainer.loaders["train"].train_batch(trainer.plan, 0)
    inputs = Inputs(batch.x)
    offset = trainer.plan.offset(0)

    def spread():
        flat = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
        low, high = flat.clone(), flat.clone()
        dist.all_reduce(low, op=dist.ReduceOp.MIN)
        dist.all_reduce(high, op=dist.ReduceOp.MAX)
        trainer.optimizer.zero_grad()
        return float((high - low).max())

    loss, _ = trainer.objective(inputs, trainer.rng, offset, torch.tensor(1.0))
    loss.backward()
    ours = spread()
    loss, _ = trainer.objective.module(inputs, trainer.rng, offset, torch.tensor(1.0))
    loss.backward()
    around = spread()
    if world.is_main:
        print("spread of our gradients", ours)
        print("spread around DDP", around)

# In a function: a process group that lives until the interpreter ends may abort it.
main()
distributed.leave()
"""
