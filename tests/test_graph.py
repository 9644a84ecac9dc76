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
from fastvae.engine import graph
from fastvae.engine.distributed import World
from fastvae.engine.graph import WARMUP, StepGraph, why_not
from fastvae.engine.metrics import Stopwatch
from fastvae.models import Inputs
from fastvae.presets import get_preset
from fastvae.train import evaluate_split, make_step, optimizer_step, train, train_step
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
    def record(_graph: Graph, **_options: str) -> Iterator[None]:
        log.append("record")
        yield

    monkeypatch.setattr(torch.cuda, "Stream", PretendedStream)
    monkeypatch.setattr(torch.cuda, "current_stream", PretendedStream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda _stream: log.append("stream"))
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    return log


def test_warm_up_then_capture_then_replay(pretend: list[str]) -> None:
    seen: list[Sequence[Inputs]] = []
    run = StepGraph(seen.append, forget=pretend.clear)
    for step in range(WARMUP + 3):
        run(
            iter([Inputs(torch.tensor(float(step))), Inputs(torch.tensor(-1.0), torch.tensor(9.0))])
        )
    # The step itself ran for the warm-up and once for the recording; then only replays.
    assert len(seen) == WARMUP + 1
    assert pretend == ["record", "replay", "replay", "replay"]
    assert run.captured
    assert not run.failed
    static = seen[-1]
    assert [i.x.item() for i in static] == [WARMUP + 2.0, -1.0]  # copied into
    assert static[1].y is not None
    assert static[1].y.item() == 9.0
    with pytest.raises(ValueError, match="shorter"):
        run([Inputs(torch.tensor(0.0))])


def test_a_failed_capture_warns_once_and_training_goes_on(
    pretend: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.contextmanager
    def refuse(_graph: object, **_options: str) -> Iterator[None]:
        yield
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    values: list[float] = []
    forgotten: list[bool] = []
    run = StepGraph(
        lambda given: values.append(given[0].x.item()), forget=lambda: forgotten.append(True)
    )
    for step in range(WARMUP + 2):
        run([Inputs(torch.tensor(float(step)))])
    printed = capsys.readouterr().err
    assert printed.count("could not be captured (operation not permitted)") == 1
    assert run.failed
    assert forgotten == [True]
    # Recording ran the Python code once more; a real recording computes nothing.
    assert values == [0.0, 1.0, 2.0, 3.0, 3.0, 4.0]


def test_gradients_of_a_broken_capture_are_forgotten(
    pretend: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the next backward pass would add to memory that was never written."""
    world = World(rank=0, size=1, device=torch.device("cpu"))
    trainers = [build(config(max_steps=9), world) for _ in range(2)]
    broken = trainers[0]

    @contextlib.contextmanager
    def refuse(_graph: object, **_options: str) -> Iterator[None]:
        yield  # as far as the gradients; then the optimizer fails

        raise RuntimeError("not permitted")

    monkeypatch.setattr(torch.cuda, "graph", refuse)

    def step(images: Sequence[Inputs]) -> None:
        if run.captured or run._static:  # the recording: backward, but no optimizer step
            for x in images:
                broken.objective(x, broken.rng, 0, broken.beta)[0].backward()
        else:
            optimizer_step(broken, images)

    run = StepGraph(step, forget=broken.optimizer.zero_grad)
    watch = Stopwatch()
    for count in range(WARMUP + 2):
        train_step(broken, run, count, watch)
        train_step(trainers[1], make_step(trainers[1]), count, watch)
    assert run.failed
    assert "stream" in pretend  # and back on the stream of before
    pairs = zip(broken.model.parameters(), trainers[1].model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


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
        {"kl__free_bits": 0.05, "model__encoder": "conv", "model__decoder": "conv"},
        {"deterministic": True},
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
def test_validation_between_replays_changes_nothing() -> None:
    """Averaged weights are swapped in and out: the graph's addresses must hold them again."""
    settings = config(max_steps=40, optim__ema_decay=0.9)
    steps = WARMUP + 9
    plain, _ = run_steps(settings, steps)
    looked, run = run_steps(settings, WARMUP + 3)
    watch = Stopwatch()
    for step in range(WARMUP + 3, steps):
        evaluate_split(looked, "val")
        looked.train_mode()
        train_step(looked, run, step, watch)
    for have, want in zip(looked.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(have, want)


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

    def step(given: Sequence[Inputs]) -> None:
        total.add_(given[0].x)
        total.item()

    run = graph.StepGraph(step, forget=lambda: None)
    for value in range(WARMUP + 3):
        run([Inputs(torch.tensor(float(value), device="cuda"))])
    assert run.failed
    assert "could not be captured" in capsys.readouterr().err
    assert total.item() == sum(range(WARMUP + 3))
