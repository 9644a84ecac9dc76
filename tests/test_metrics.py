"""Metrics: means on the device, lines in a file, and what a resumed run does with them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastvae.engine import metrics
from fastvae.engine.distributed import World
from fastvae.engine.metrics import Meter, RunLog, Stopwatch

CPU = torch.device("cpu")
ALONE = World(rank=0, size=1, device=CPU)
OTHER = World(rank=1, size=2, device=CPU)


class Twice(World):
    """Another rank has seen the very same."""

    def sum(self, tensor: Tensor) -> Tensor:
        return 2 * tensor


def add(meter: Meter, *values: float) -> None:
    meter.add([torch.tensor(v) for v in values])


def test_means_over_steps() -> None:
    meter = Meter(("loss", "kl"), CPU)
    for loss, kl in ((1.0, 10.0), (2.0, 30.0), (6.0, 20.0)):
        add(meter, loss, kl)
    assert meter.read(ALONE) == {"loss": 3.0, "kl": 20.0}


def test_reading_starts_anew() -> None:
    meter = Meter(("loss",), CPU)
    add(meter, 1.0)
    meter.read(ALONE)
    add(meter, 5.0)
    assert meter.read(ALONE) == {"loss": 5.0}
    assert math.isnan(meter.read(ALONE)["loss"])


def test_values_that_are_not_finite_are_left_out() -> None:
    meter = Meter(("loss", "norm"), CPU)
    add(meter, 1.0, math.inf)
    add(meter, math.nan, 4.0)
    add(meter, 3.0, -math.inf)
    assert meter.read(ALONE) == {"loss": 2.0, "norm": 4.0}
    add(meter, math.nan, 1.0)
    means = meter.read(ALONE)
    assert math.isnan(means["loss"])
    assert means["norm"] == 1.0


def test_means_over_ranks() -> None:
    meter = Meter(("loss",), CPU)
    add(meter, 1.0)
    add(meter, 2.0)
    assert meter.read(Twice(rank=0, size=2, device=CPU)) == {"loss": 1.5}


def test_values_may_have_gradients_and_any_precision() -> None:
    meter = Meter(("a", "b"), CPU)
    meter.add([torch.tensor(1.5, requires_grad=True), torch.tensor(2.5, dtype=torch.bfloat16)])
    assert not meter.total.requires_grad
    assert meter.read(ALONE) == {"a": 1.5, "b": 2.5}


# ---------------------------------------------------------------------------------- the file
def log(folder: Path, start: int = 0, world: World = ALONE) -> RunLog:
    return RunLog(folder, world, tensorboard=False, start=start, total=100)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def filled(folder: Path, steps: int = 4) -> None:
    run = log(folder)
    for step in range(1, steps + 1):
        run.scalars("train", step, {"loss": float(step)})
        run.scalars("val", step, {"loss": step + 0.5})
        run.advance({"loss": "1"})
    run.close()


def test_lines_are_written(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    assert lines(tmp_path) == [
        {"kind": "train", "step": 1, "loss": 1.0},
        {"kind": "val", "step": 1, "loss": 1.5},
    ]


def test_lines_are_there_at_once(tmp_path: Path) -> None:
    run = log(tmp_path)
    run.scalars("train", 1, {"loss": 1.0})
    assert len(lines(tmp_path)) == 1
    run.close()


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    """NaN is no JSON: other programs could not read the file."""
    run = log(tmp_path)
    run.scalars("train", 1, {"a": math.nan, "b": math.inf, "c": 1.0})
    run.close()
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert lines(tmp_path) == [{"kind": "train", "step": 1, "a": None, "b": None, "c": 1.0}]


def test_resuming_drops_what_will_be_done_again(tmp_path: Path) -> None:
    filled(tmp_path)
    run = log(tmp_path, start=2)
    assert [(e["kind"], e["step"]) for e in lines(tmp_path)] == [
        ("train", 1),
        ("val", 1),
        ("train", 2),
        ("val", 2),
    ]
    run.scalars("train", 3, {"loss": -1.0})
    run.close()
    assert lines(tmp_path)[-1] == {"kind": "train", "step": 3, "loss": -1.0}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    "rest", ['{"kind": "tra', '{"kind": "train"}', "", "\0\0\0", "17", "null", '"step"', "[]"]
)
def test_resuming_drops_half_lines(tmp_path: Path, rest: str) -> None:
    filled(tmp_path, 2)
    whole = lines(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(rest)
    run = log(tmp_path, start=2)
    run.scalars("train", 3, {"loss": 3.0})
    run.close()
    assert lines(tmp_path) == [*whole, {"kind": "train", "step": 3, "loss": 3.0}]


def test_a_new_run_has_no_old_lines(tmp_path: Path) -> None:
    filled(tmp_path)
    log(tmp_path, start=0).close()
    assert lines(tmp_path) == []


def test_other_ranks_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = log(tmp_path, world=OTHER)
    run.scalars("train", 1, {"loss": 1.0})
    run.image("picture", 1, np.zeros((2, 2, 3), np.uint8))
    run.advance({"loss": "1"})
    run.say("hello")
    run.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_main_rank_speaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = log(tmp_path)
    run.say("hello")
    run.close()
    assert capsys.readouterr().out == "hello\n"


def test_tensorboard_gets_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[Any, ...]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            written.append(("open", Path(folder).name))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def add_image(self, tag: str, pixels: Any, step: int, dataformats: str) -> None:
            written.append((tag, pixels.shape, step, dataformats))

        def close(self) -> None:
            written.append(("close",))

    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    monkeypatch.setattr(tensorboard, "SummaryWriter", Writer)
    run = RunLog(tmp_path, ALONE, tensorboard=True, start=5, total=9)
    run.scalars("val", 6, {"nll": 2.0, "kl": 3.0})
    run.image("samples", 6, np.zeros((2, 4, 3), np.uint8))
    run.close()
    assert written == [
        ("open", "events"),
        ("val/nll", 2.0, 6),
        ("val/kl", 3.0, 6),
        ("samples", (2, 4, 3), 6, "HWC"),
        ("close",),
    ]


# ---------------------------------------------------------------------------------- time
def test_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    watch = Stopwatch()
    since, now[0] = now[0], 101.0
    watch.data(since)
    now[0] = 104.0
    assert watch.read(images=80) == {"images_per_s": 20.0, "data_wait": 0.25}
    now[0] = 106.0
    assert watch.read(images=10) == {"images_per_s": 5.0, "data_wait": 0.0}
    now[0] = 107.0
    pause, now[0] = now[0], 200.0
    watch.skip(pause)  # a validation between two steps of the same interval
    now[0] = 202.0
    assert watch.read(images=6)["images_per_s"] == 2.0
