"""Batch norm over ranks, in single batches, and under skipped steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launch import metrics, run
from torch import nn

from fastvae.config import Config, replace
from fastvae.engine.batchnorm import check_batch
from fastvae.engine.distributed import World
from fastvae.engine.optim import GuardedStep
from fastvae.errors import UserError
from fastvae.models import build_model
from fastvae.presets import get_preset

WORDS = (
    *("digits", "--model.encoder", "resnet", "--model.decoder", "resnet", "--model.channels"),
    *("4", "8", "--model.norm", "batch", "--max-steps", "12", "--log.every", "1"),
    *("--log.no-tensorboard", "--model.encoder-blocks", "1", "--model.decoder-blocks", "1"),
)


@pytest.mark.slow
def test_statistics_over_ranks_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Losses of training and of validation (which uses the running statistics)."""
    run(*WORDS, "--out", tmp_path, "--name", "one")
    run(*WORDS, "--out", tmp_path, "--name", "two", ranks=2)
    run(*WORDS, "--out", tmp_path, "--name", "local", "--batchnorm", "local", ranks=2)
    for kind in ("train", "val"):
        one, two, local = (metrics(tmp_path / n, kind) for n in ("one", "two", "local"))
        expected = [line["loss"] for line in one]
        assert [line["loss"] for line in two] == pytest.approx(expected, rel=1e-4)
        if kind == "train":
            assert [line["loss"] for line in local] != pytest.approx(expected, rel=1e-4)


def config(**changes: object) -> Config:
    base = {"model__encoder": "resnet", "model__channels": (4,), "model__norm": "batch"}
    return replace(get_preset("digits"), **(base | changes))


@pytest.mark.parametrize(
    ("changes", "ranks", "fits"),
    [
        ({"batch_size": 1}, 1, False),
        ({"batch_size": 2}, 1, True),
        ({"batch_size": 4, "accumulate": 4}, 1, False),
        ({"batch_size": 2}, 2, True),
        ({"batch_size": 2, "batchnorm": "local"}, 2, False),
        ({"batch_size": 1, "model__norm": "group"}, 1, True),
    ],
    ids=str,
)
def test_a_single_image_is_refused(changes: dict[str, object], ranks: int, fits: bool) -> None:
    settings = config(**changes)
    world = World(rank=0, size=ranks, device=torch.device("cpu"))
    model = build_model(settings.model)
    if fits:
        check_batch(model, settings, world)
    else:
        with pytest.raises(UserError, match=r"1 image at a time.*--model.norm group"):
            check_batch(model, settings, world)


def test_a_skipped_step_leaves_batch_statistics_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    guard = GuardedStep(
        optimizer,
        clip_norm=0.0,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        device=torch.device("cpu"),
        buffers=model.buffers(),
    )
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    means = []
    for broken in (False, True, False):
        guard.begin()
        guard.backward(model(x * float("nan") if broken else x).square().sum())
        guard.step()
        means.append(model[1].running_mean.clone())  # type: ignore[union-attr, operator]
    assert means[0].any()
    assert torch.equal(means[0], means[1])
    assert torch.isfinite(means[2]).all()
    assert not torch.equal(means[1], means[2])
    assert guard.skipped == 1.0
