"""Training in stages: schedules, weights, what is frozen, and resuming in any of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import metrics, run, weights
from torch import Tensor

from fastvae.config import Config, KLConfig, StageConfig, replace
from fastvae.configio import to_dict, to_toml
from fastvae.engine.distributed import World
from fastvae.engine.stages import plan_stages
from fastvae.errors import UserError
from fastvae.presets import get_preset
from fastvae.run import load
from fastvae.train import train
from fastvae.trainer import begin_stage, build

WORLD = World(rank=0, size=1, device=torch.device("cpu"))
LINES = KLConfig(schedule="lines", points=((0.0, 0.0), (1.0, 1.0), (1.0, 3.0)))
FIRST = StageConfig(epochs=2, lr=1e-3, kl=LINES)
SECOND = StageConfig(epochs=1, lr=1e-4, kl=KLConfig(beta=0.0), freeze=("encoder",))


def config(*stages: StageConfig, **changes: Any) -> Config:
    """The digits through a small network with batch norms and dropout, 3 steps per epoch."""
    settings = {
        "batch_size": 400,
        "deterministic": True,
        "model__encoder": "resnet",
        "model__decoder": "mlp",
        "model__channels": (4, 8),
        "model__encoder_blocks": 1,
        "model__norm": "batch",
        "model__dropout": 0.2,
        "optim__warmup": 0.0,
        "optim__ema_decay": 0.0,
        "optim__schedule": "constant",
        "log__tensorboard": False,
        "log__every": 1,
        "checkpoint__keep": 9,
        **changes,
    }
    return replace(get_preset("digits"), stages=stages, **settings)


def write(settings: Config, path: Path) -> Path:
    data = {k: v for k, v in to_dict(settings).items() if k not in ("name", "resume")}
    path.write_text(to_toml(data))
    return path


def encoder_of(folder: Path, which: str = "last") -> dict[str, Tensor]:
    state = load(folder, checkpoint_name=which).state_dict()
    return {k: v for k, v in state.items() if k.startswith("encoder.")}


def test_schedules_start_anew_with_each_stage(tmp_path: Path) -> None:
    folder = train(config(FIRST, SECOND, out=str(tmp_path)))
    lines = metrics(folder, "train")
    assert [line["lr"] for line in lines] == [1e-3] * 6 + [1e-4] * 3
    betas = [0.0, 1 / 3, 2 / 3, 3.0, 3.0, 3.0, 0.0, 0.0, 0.0]
    assert [line["beta"] for line in lines] == pytest.approx(betas)


def test_what_is_frozen_stays_to_the_last_bit(tmp_path: Path) -> None:
    """Weights and batch statistics alike, and the rest moves."""
    first = train(config(FIRST, out=str(tmp_path), name="first"))
    both = train(config(FIRST, SECOND, out=str(tmp_path), name="both"))
    before, after = encoder_of(first), encoder_of(both)
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    moved = load(both, checkpoint_name="last").state_dict()
    kept = load(first, checkpoint_name="last").state_dict()
    names = [name for name in kept if name.startswith("decoder.")]
    assert names
    assert all(not torch.equal(kept[name], moved[name]) for name in names)


def test_the_optimizer_begins_anew_and_leaves_out_what_is_frozen() -> None:
    trainer = build(config(FIRST, SECOND), WORLD)
    old = trainer.optimizer
    begin_stage(trainer, trainer.stages[1])
    assert trainer.optimizer is not old
    assert not trainer.optimizer.state
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in trainer.model.parameters() if p.requires_grad}
    assert not any(p.requires_grad for p in trainer.model.encoder.parameters())  # type: ignore
    trainer.train_mode()
    modes = {name: part.training for name, part in trainer.model.named_children()}
    assert not modes.pop("encoder")
    assert all(modes.values())


def test_weights_to_begin_with(tmp_path: Path) -> None:
    """fresh: others than before; a path: those of another run; best: the best of the stage."""
    only = StageConfig(epochs=1, lr=1e-9, kl=KLConfig(beta=0.0))
    other = train(config(FIRST, out=str(tmp_path), name="other"))
    given = replace_stage(only, load=str(other))
    started = train(config(given, out=str(tmp_path), name="started", seed=5))
    for name, value in load(other).state_dict().items():
        if "running" not in name and "batches" not in name:  # batch statistics go on
            torch.testing.assert_close(
                load(started).state_dict()[name], value, rtol=1e-5, atol=1e-6
            )
    fresh = train(config(only, replace_stage(only, load="fresh"), out=str(tmp_path), name="fresh"))
    begin, end = (load(fresh, checkpoint_name=f"step-{n:08d}") for n in (3, 6))
    assert not torch.allclose(
        begin.state_dict()["decoder.head.weight"], end.state_dict()["decoder.head.weight"]
    )


def replace_stage(stage: StageConfig, **changes: Any) -> StageConfig:
    return StageConfig(**{**stage.__dict__, **changes})


def test_a_wrong_path_is_named_before_training(tmp_path: Path) -> None:
    stage = StageConfig(load=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        train(config(stage, out=str(tmp_path / "runs")))


def test_a_part_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"stages.0.freeze leaves nothing to train"):
        build(config(StageConfig(freeze=("encoder", "decoder"))), WORLD)


def test_without_stages_there_is_one() -> None:
    (stage,) = plan_stages(get_preset("digits"), 10)
    assert (stage.first, stage.end) == (0, 1000)
    (stage,) = plan_stages(replace(get_preset("digits"), max_steps=7), 10)
    assert stage.end == 7


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [2, 3, 4])
def test_resumed_in_any_stage_it_ends_with_the_same_bits(tmp_path: Path, stopped: int) -> None:
    """Stopped within the first stage, at its very end, and within the second."""
    stages = (replace_stage(FIRST, epochs=1), SECOND)
    folder = train(config(*stages, out=str(tmp_path), checkpoint__every=1))
    expected = weights(folder)
    for path in (folder / "checkpoints").iterdir():
        if path.is_symlink():
            path.unlink()
        elif int(path.name.removeprefix("step-")) > stopped:
            shutil.rmtree(path)
    run(folder, "--resume")
    assert weights(folder) == expected


@pytest.mark.slow
def test_two_ranks_go_through_the_stages_as_one_does(tmp_path: Path) -> None:
    settings = config(FIRST, SECOND, deterministic=False, model__dropout=0.0)
    path = write(settings, tmp_path / "mine.toml")
    for ranks in (1, 2):
        words = (path, "--out", tmp_path, "--name", f"r{ranks}")
        run(*words, ranks=ranks)
    one, two = (metrics(tmp_path / f"r{n}", "train") for n in (1, 2))
    for key in ("loss", "nll", "kl"):
        expected = [line[key] for line in one]
        assert [line[key] for line in two] == pytest.approx(expected, rel=1e-4), key
