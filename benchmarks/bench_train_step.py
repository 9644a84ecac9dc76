"""One optimizer step: fastvae against the loop that people write by hand, on the same networks.

    make bench

The plain loop is a DataLoader over float32 tensors, torch.optim.AdamW as it comes, noise from
randn, and ``loss.item()`` at each step. All sides have the same modules, batch and precision
(float32). On a CPU the figures are CPU time of one process with one thread, and ``compiled`` is
``--compile``; on a GPU they are wall time up to the end of the last kernel, and ``captured`` is
``--cuda-graph``.
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

from benchmarks.measure import DEVICE, ON_GPU
from fastvae.config import Config, replace
from fastvae.engine.distributed import World
from fastvae.engine.metrics import Stopwatch
from fastvae.models import Inputs, build_model
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
    trainer = build(config, World(rank=0, size=1, device=DEVICE))
    step, steps, watch = make_step(trainer), itertools.count(), Stopwatch()

    def run() -> None:
        for _ in range(STEPS):
            train_step(trainer, step, next(steps) % trainer.total_steps, watch)
        if ON_GPU:
            torch.cuda.synchronize()

    return run


def plain(config: Config) -> Callable[[], None]:
    """STEPS steps of a hand-written loop."""
    model = build_model(config.model).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr)
    images = torch.rand(6000, *config.model.image_shape)
    loader = DataLoader(TensorDataset(images), config.batch_size, shuffle=True, drop_last=True)

    def forever() -> Iterator[torch.Tensor]:
        while True:
            for (x,) in loader:
                yield x

    batches = forever()

    def run() -> None:
        for batch in itertools.islice(batches, STEPS):
            x = batch.to(DEVICE)
            mean, logvar = model.posterior(Inputs(x))
            z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            nll = F.binary_cross_entropy_with_logits(model.decoder(z), x, reduction="sum")
            kl = -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp())
            loss = (nll + kl) / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    return run


OPTIONS: dict[str, dict[str, bool]] = {
    "fastvae": {},
    "plain": {},
    **({"captured": {"cuda_graph": True}} if ON_GPU else {"compiled": {"compile": True}}),
}


@pytest.mark.parametrize("provider", OPTIONS)
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
        **OPTIONS[provider],
    )
    run = (plain if provider == "plain" else ours)(config)
    benchmark.group = f"train step, {network}, batch 128, fp32 ({STEPS} steps per round)"
    benchmark.pedantic(run, rounds=7, warmup_rounds=2)
