"""The whole-step CUDA graph: when it is taken, what it does, and that it is the same training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastvae.config import Config, replace
from fastvae.data.batch import Batch
from fastvae.engine import graph
from fastvae.engine.distributed import World
from fastvae.engine.graph import WARMUP, StepGraph, why_not
from fastvae.engine.metrics import Stopwatch
from fastvae.presets import get_preset
from fastvae.train import make_step, optimizer_step, train, train_step
from fastvae.trainer import Trainer, build

GPU = World(rank=0, size=1, device=torch.device("cuda", 0))


def config(**changes: Any) -> Config:
    return replace(get_preset("digits"), cuda_graph=True, **changes)


def test_reasons_not_to_capture() -> None:
    assert why_not(config(), GPU) == ""
    assert "on cpu" in why_not(config(), World(rank=0, size=1, device=torch.device("cpu")))
    assert "several processes" in why_not(config(), World(rank=0, size=2, device=GPU.device))
    assert "bf16" in why_not(config(precision="fp16"), GPU)
    assert "apex_adam" in why_not(config(optim__optimizer="apex_adam"), GPU)
    for optimizer in ("adam", "rmsprop"):
        assert why_not(config(optim__optimizer=optimizer), GPU) == ""


def test_on_a_cpu_training_says_why_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(max_steps=3, out=str(tmp_path), device="cpu", log__tensorboard=False)
    train(settings)
    assert "--cuda-graph: not captured: CUDA graphs need a CUDA device" in capsys.readouterr().out
    with_option = (tmp_path / "digits" / "metrics.jsonl").read_text()
    train(replace(settings, cuda_graph=False, name="plain"))
    assert "--cuda-graph" not in capsys.readouterr().out

    def losses(text: str) -> list[str]:
        return [part for part in text.split(",") if "loss" in part or "nll" in part]

    assert losses(with_option) == losses((tmp_path / "plain" / "metrics.jsonl").read_text())


# ------------------------------------------------------------------ the logic, on pretended graphs
class Cell:
    """The smallest batch: a tensor that knows how to be copied."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def clone(self) -> Cell:
        return Cell(self.value.clone())

    def copy_from(self, other: Cell) -> None:
        self.value.copy_(other.value)


class PretendedStream:
    def wait_stream(self, other: object) -> None: ...


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch.cuda's graph calls on a CPU: recording keeps the step, replaying runs it."""
    log: list[str] = []

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    @contextlib.contextmanager
    def record(_graph: Graph) -> Iterator[None]:
        log.append("record")
        yield

    monkeypatch.setattr(torch.cuda, "Stream", PretendedStream)
    monkeypatch.setattr(torch.cuda, "current_stream", PretendedStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    return log


def test_warm_up_then_capture_then_replay(pretend: list[str]) -> None:
    seen: list[Sequence[Cell]] = []
    run = StepGraph[Cell](seen.append)
    for step in range(WARMUP + 3):
        run(iter([Cell(torch.tensor(float(step))), Cell(torch.tensor(-1.0))]))
    # The step itself ran for the warm-up and once for the recording; then only replays.
    assert len(seen) == WARMUP + 1
    assert pretend == ["record", "replay", "replay", "replay"]
    assert run.captured
    assert not run.failed
    static = seen[-1]
    assert [cell.value.item() for cell in static] == [WARMUP + 2.0, -1.0]  # copied into
    with pytest.raises(ValueError, match="shorter"):
        run([Cell(torch.tensor(0.0))])


def test_a_failed_capture_warns_once_and_training_goes_on(
    pretend: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.contextmanager
    def refuse(_graph: object) -> Iterator[None]:
        yield
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    values: list[float] = []
    run = StepGraph[Cell](lambda cells: values.append(cells[0].value.item()))
    for step in range(WARMUP + 2):
        run([Cell(torch.tensor(float(step)))])
    printed = capsys.readouterr().err
    assert printed.count("could not be captured (operation not permitted)") == 1
    assert run.failed
    # Recording ran the Python code once more; a real recording computes nothing.
    assert values == [0.0, 1.0, 2.0, 3.0, 3.0, 4.0]


def test_batches_are_copied_with_all_their_fields() -> None:
    def batch(value: float, label: bool = True) -> Batch:
        rows = torch.full((2,), int(value))
        x = torch.full((2, 3, 4, 4), value).contiguous(memory_format=torch.channels_last)
        return Batch(
            x=x,
            y=None,
            label=rows if label else None,
            weight=torch.full((2,), value),
            index=rows.clone(),
            ordinal=rows.clone(),
        )

    first, second = batch(1.0), batch(2.0)
    static = first.clone()
    assert static.x.is_contiguous(memory_format=torch.channels_last)
    address = static.x.data_ptr()
    static.copy_from(second)
    assert static.x.data_ptr() == address
    for name in ("x", "label", "weight", "index", "ordinal"):
        assert torch.equal(getattr(static, name), getattr(second, name)), name
    assert first.x.max() == 1.0
    assert batch(1.0, label=False).clone().label is None


def test_the_step_is_plain_where_it_cannot_be_captured() -> None:
    world = World(rank=0, size=1, device=torch.device("cpu"))
    trainer = build(config(max_steps=2), world)
    assert not isinstance(make_step(trainer), StepGraph)
    assert not isinstance(trainer.optimizer.param_groups[0]["lr"], Tensor)


# ---------------------------------------------------------------------------------- on a GPU
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def run_steps(settings: Config, steps: int) -> tuple[Trainer, Any]:
    trainer = build(settings, GPU)
    run, watch = make_step(trainer), Stopwatch()
    for step in range(steps):
        train_step(trainer, run, step, watch)
    torch.cuda.synchronize()
    return trainer, run


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 2, "optim__clip_norm": 1.0},
        {"precision": "bf16", "optim__ema_decay": 0.9},
        {"kl__schedule": "linear", "kl__warmup": 0.5, "data__binarize": "dynamic"},
        {"optim__optimizer": "rmsprop"},
    ],
    ids=str,
)
def test_captured_training_is_the_same_training(changes: dict[str, Any]) -> None:
    """Same kernels, same order: the weights agree to the last bit after replays."""
    steps = WARMUP + 9
    captured, run = run_steps(config(max_steps=40, **changes), steps)
    assert isinstance(run, StepGraph)
    assert run.captured
    plain, watch = build(config(max_steps=40, **changes), GPU), Stopwatch()

    def plain_step(batches: Any) -> None:
        optimizer_step(plain, batches)

    for step in range(steps):
        train_step(plain, plain_step, step, watch)
    for have, want in zip(captured.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(have, want)
    assert captured.meter.read(GPU) == plain.meter.read(GPU)


@pytest.mark.gpu
@needs_gpu
def test_replays_never_wait_for_the_device() -> None:
    trainer, run = run_steps(config(max_steps=40), WARMUP + 2)
    watch = Stopwatch()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(WARMUP + 2, WARMUP + 6):
            train_step(trainer, run, step, watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_gpu
def test_a_step_that_reads_the_device_falls_back(capsys: pytest.CaptureFixture[str]) -> None:
    total = torch.zeros((), device="cuda")

    def step(cells: Sequence[Cell]) -> None:
        total.add_(cells[0].value)
        total.item()

    run = graph.StepGraph[Cell](step)
    for value in range(WARMUP + 3):
        run([Cell(torch.tensor(float(value), device="cuda"))])
    assert run.failed
    assert "could not be captured" in capsys.readouterr().err
    assert total.item() == sum(range(WARMUP + 3))
