"""One optimizer step: fastvae against the loop that people write by hand, on the same networks.

    make bench

The plain loop is a DataLoader over float32 tensors, torch.optim.AdamW as it comes, noise from
randn, and ``loss.item()`` at each step. Both sides have the same modules, batch and precision
(float32); the figures are CPU time of one process with one thread.
"""

from __future__ import annotations

import gzip
import itertools
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch.utils.data import DataLoader, TensorDataset

from fastvae.config import Config, replace
from fastvae.engine.distributed import World
from fastvae.engine.metrics import Stopwatch
from fastvae.models import build_model
from fastvae.presets import get_preset
from fastvae.train import make_step, train_step
from fastvae.trainer import build

STEPS = 20  # per round


@pytest.fixture(scope="module")
def mnist_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """idx files of random pixels: speed does not depend on what is in the picture."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for part, count in (("train", 6000), ("t10k", 100)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", images[:, 0, 0])):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            path = root / f"{part}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(header + array.tobytes(), compresslevel=1))
    return root


def ours(config: Config) -> Callable[[], None]:
    """STEPS steps of fastvae's loop."""
    trainer = build(config, World(rank=0, size=1, device=torch.device("cpu")))
    step, steps, watch = make_step(trainer), itertools.count(), Stopwatch()

    def run() -> None:
        for _ in range(STEPS):
            train_step(trainer, step, next(steps) % trainer.total_steps, watch)

    return run


def plain(config: Config) -> Callable[[], None]:
    """STEPS steps of a hand-written loop."""
    model = build_model(config.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr)
    images = torch.rand(6000, *config.model.image_shape)
    loader = DataLoader(TensorDataset(images), config.batch_size, shuffle=True, drop_last=True)

    def forever() -> Iterator[torch.Tensor]:
        while True:
            for (x,) in loader:
                yield x

    batches = forever()

    def run() -> None:
        for x in itertools.islice(batches, STEPS):
            mean, logvar = model.encoder(x)
            z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            nll = F.binary_cross_entropy_with_logits(model.decoder(z), x, reduction="sum")
            kl = -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp())
            loss = (nll + kl) / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    return run


@pytest.mark.parametrize("provider", ["fastvae", "plain"])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_train_step(
    benchmark: BenchmarkFixture, mnist_like: Path, network: str, provider: str
) -> None:
    config = replace(
        get_preset("mnist"),
        precision="fp32",
        batch_size=128,
        data__root=str(mnist_like),
        model__encoder=network,
        model__decoder=network,
        model__hidden=(256,) if network == "conv" else (512, 256),
        optim__clip_norm=0.0,
    )
    run = (ours if provider == "fastvae" else plain)(config)
    benchmark.group = f"train step, {network}, batch 128, fp32 ({STEPS} steps per round)"
    benchmark.pedantic(run, rounds=7, warmup_rounds=2)
