"""Every registered preset, shrunk: it trains in fp32 and bf16, alone and on two ranks, resumes to
the same bits, and answers what people ask of a model."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import environment, metrics, weights
from torch import nn
from variant_cases import SHRUNK, Pictures, shrunk, sources

from fastvae import trainer as trainer_module
from fastvae.config import replace
from fastvae.data.batch import Batch
from fastvae.engine.distributed import World
from fastvae.engine.metrics import Stopwatch
from fastvae.estimate import estimate
from fastvae.presets import list_presets
from fastvae.run import load
from fastvae.train import make_step, train, train_step
from fastvae.trainer import build

NAMES = list(list_presets())
WORLD = World(rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "load_splits", sources)


def test_no_preset_is_left_out() -> None:
    assert set(SHRUNK) == set(NAMES)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_trains_and_resumes(tmp_path: Path, name: str, precision: str) -> None:
    config = shrunk(name, out=str(tmp_path), precision=precision)
    folder = train(config)
    lines = metrics(folder, "train")
    losses = [line["nll"] + line["beta"] * line["kl"] for line in lines]
    assert all(torch.isfinite(torch.tensor([line["loss"] for line in lines])))
    assert not any(line["skipped"] for line in lines)
    assert sum(losses[-4:]) < sum(losses[:4])
    # Cut back to the middle, and on again.
    expected = weights(folder)
    half = len(lines) // 2
    for path in (folder / "checkpoints").iterdir():
        if path.is_symlink():
            path.unlink()
        elif int(path.name.removeprefix("step-")) > half:
            shutil.rmtree(path)
    train(replace(config, resume=True, name=folder.name))
    assert weights(folder) == expected
    assert {p.name for p in (folder / "images").iterdir()} >= {
        "samples.png",
        "reconstructions.png",
        "curves.png",
    }
    _check_calls(folder)


def _check_calls(folder: Path) -> None:
    """Encode, decode, reconstruct, sample and estimate with the loaded model; batches of one."""
    model = load(folder, checkpoint_name="last")
    shape = model.config.image_shape
    samples = Pictures(shape, 5).gather(torch.arange(5))
    y = samples.condition if model.config.condition == "image" else None
    label = samples.label if model.config.classes else None
    again = model.reconstruct(samples.images, y, label)
    assert again.shape == (5, *shape)
    assert 0.0 <= again.min() <= again.max() <= 1.0
    given: dict[str, Any] = {"y": y, "label": label}
    one = {k: None if v is None else v[:1] for k, v in given.items()}
    torch.testing.assert_close(
        model.reconstruct(samples.images[:1], *one.values()), again[:1], rtol=1e-4, atol=1e-5
    )
    z = model.encode_mean(samples.images, y, label)
    assert z.shape == (5, model.latent_dim)
    torch.testing.assert_close(model.decode(z, y, label), again, rtol=1e-5, atol=1e-6)
    drawn = model.sample(5, **given, seed=1)
    assert torch.equal(drawn, model.sample(5, **given, seed=1))
    assert not torch.equal(drawn, model.sample(5, **given, seed=2))
    assert torch.equal(
        model.sample(5, **given, temperature=0.0, seed=1)[0],
        model.sample(5, **given, temperature=0.0, seed=1)[0],
    )
    index = torch.arange(5)
    x = (samples.images / 255.0 > 0.5).float()
    weight = torch.ones(5)
    condition = None if samples.condition is None else samples.condition / 255.0
    batch = Batch(x, condition, samples.label, weight, index, index)
    elbo = estimate(model, iter([batch]), WORLD, seed=0)
    tighter = estimate(model, iter([batch]), WORLD, seed=0, samples=64)
    assert tighter.iwae is not None
    assert tighter.iwae < tighter.nelbo + 1e-3
    assert elbo.kl >= -1e-3 or model.config.prior in ("vamp", "mog")


@pytest.mark.slow
def test_two_ranks_have_equal_gradients_weights_and_statistics() -> None:
    script = Path(__file__).with_name("variant_cases.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc_per_node=2", str(script)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.split()[0] in NAMES]
    assert [row[:2] for row in rows] == [[n, p] for n in NAMES for p in ("fp32", "bf16")]
    for name, precision, grads, state, losses in rows:
        assert float(grads) == 0.0, (name, precision)
        assert float(state) == 0.0, (name, precision)
        assert float(losses) > 0.0, (name, precision)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_it_is_the_same_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced whole by torch.compile; the code it would generate is torch's business and slow."""
    plain = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self: plain(self, backend="eager", fullgraph=True)
    )
    torch._dynamo.reset()  # or numbers that differ from preset to preset would become variables
    results = []
    for compiled in (False, True):
        t = build(shrunk(name, model__dropout=0.0, compile=compiled), WORLD)
        train_step(t, make_step(t), 0, Stopwatch())
        results.append(t.meter.read(WORLD))
    assert results[1] == pytest.approx(results[0], rel=1e-4)  # losses and the gradient's norm
