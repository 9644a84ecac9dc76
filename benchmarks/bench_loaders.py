"""Batches of small images on a CPU: ours against what people use.

    make bench BENCH=benchmarks/bench_loaders.py

CPU time of the process, all its threads counted, by turns with the peer in one process, everything
in the page cache. Both sides give batches of 256, uint8 images and int64 labels, epoch after epoch
in new orders (``loader_peers.py``); computing our order is counted. 28x28x1 is MNIST where its
files are beside the checkout (else bytes at random), 64x64x3 bytes at random. Each benchmark's
extra_info has how many times faster, ratio_p50 with its 20th and 80th percentile over the rounds,
and the samples per second of both.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks import loader_peers as peers
from benchmarks.loader_peers import BATCH, Epoch, Images, Labels
from benchmarks.measure import ON_GPU, Prepare, Run, Spread, ratios, side_by_side
from fastvae import ops
from fastvae.data.idx import read_idx
from fastvae.data.sources.resident import ResidentSource
from fastvae.kernels.gather_numba import write
from fastvae.kernels.gather_rows import gather_packs

REPO = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FASTVAE_SHARED_DATA") or REPO.parent / "shared" / "data")
MNIST = SHARED / "mnist" / "train-images-idx3-ubyte.gz"
ROUNDS = 11
SHAPES = {"28x28x1": (60_000, 28, 28, 1), "64x64x3": (20_000, 64, 64, 3)}
PNG_SAMPLES = 8 * BATCH  # it is slow

pytestmark = pytest.mark.skipif(ON_GPU, reason="of the CPU, and measure.py times the GPU here")


class Set:
    """One set of images in all its forms, each made when it is first asked for."""

    def __init__(self, folder: Path, shape: tuple[int, int, int, int]) -> None:
        generator = np.random.default_rng(0)
        self.folder = folder
        self.images: Images = (
            generator.integers(0, 256, shape, dtype=np.uint8)
            if shape[1] != 28 or not MNIST.is_file()
            else read_idx(MNIST).reshape(shape)
        )
        self.labels: Labels = generator.integers(0, 10, len(self.images))

    def reader(self, name: str) -> Epoch:
        """A way to read it."""
        if name == "mapped":
            return peers.mapped(self.shards)
        if name == "FFCV NDArray":
            pytest.importorskip("ffcv", reason="ffcv is not installed")
            return peers.ffcv(self._at("beton", peers.write_beton))
        if name == "WebDataset, the same shards":
            return peers.unbatched_webdataset(self.shards)
        if name == "WebDataset, the same shards, shuffled within packs only":
            return peers.packed_webdataset(self.shards)
        if name == "WebDataset, png per sample":
            path = self._at("png", peers.write_png_tar, PNG_SAMPLES)
            return peers.png_webdataset(path)
        return peers.tensor_dataset(self.images, self.labels)

    @property
    def shards(self) -> Path:
        return self._at("shards", peers.write_shards)

    def _at(
        self, name: str, write: Callable[[Path, Images, Labels], Path], count: int | None = None
    ) -> Path:
        path = self.folder / name
        if not path.exists():
            write(path, self.images[:count], self.labels[:count])
        return path


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Set]:
    """By shape."""
    torch.set_num_threads(1)
    return {name: Set(tmp_path_factory.mktemp(name), shape) for name, shape in SHAPES.items()}


def consume(epoch: Epoch, times: int = 1) -> tuple[Run, list[int]]:
    """Epochs one after the other, each run the next ``times`` ones; and the samples of a run."""
    number, samples = itertools.count(), [0]

    def run() -> None:
        samples[0] = 0
        for _ in range(times):
            for _images, labels in epoch(next(number)):
                samples[0] += len(labels)

    return run, samples


def compare(
    benchmark: BenchmarkFixture,
    ours: Prepare,
    peer: Prepare,
    count: Callable[[], tuple[int, int]],
    *,
    unit: str = "samples/s",
    rounds: int = ROUNDS,
) -> None:
    """Let the two take turns; write down rates and their ratio. count: samples of a run of each."""
    seconds = side_by_side({"ours": ours, "peer": peer}, rounds, warmup=2)
    mine, theirs = count()
    each = {
        "ours": [s / mine for s in seconds["ours"]],
        "peer": [s / theirs for s in seconds["peer"]],
    }
    faster = ratios(each["peer"], each["ours"])
    benchmark.extra_info.update(
        ratio_p50=faster.p50,
        ratio_p20=faster.p20,
        ratio_p80=faster.p80,
        ours_per_s=1 / Spread.of(each["ours"]).p50,
        peer_per_s=1 / Spread.of(each["peer"]).p50,
        unit=unit,
    )
    benchmark.pedantic(ours(), rounds=3)


MAPPED = [
    (shape, peer)
    for shape in SHAPES
    for peer in (
        "FFCV NDArray",
        "WebDataset, the same shards",
        "WebDataset, the same shards, shuffled within packs only",
        "WebDataset, png per sample",
        "TensorDataset, DataLoader",
    )
    if shape == "28x28x1" or peer != "WebDataset, png per sample"
]


@pytest.mark.parametrize(("shape", "peer"), MAPPED)
def test_mapped(benchmark: BenchmarkFixture, sets: dict[str, Set], shape: str, peer: str) -> None:
    """Shards from the page cache, each epoch in a random order of all samples."""
    theirs, their_samples = consume(sets[shape].reader(peer))
    run, samples = consume(sets[shape].reader("mapped"), times=5 if shape == "28x28x1" else 2)
    benchmark.group, benchmark.name = f"mapped shards, {shape}", f"against {peer}"
    compare(benchmark, lambda: run, lambda: theirs, lambda: (samples[0], their_samples[0]))


@pytest.mark.parametrize("shape", SHAPES)
def test_first_epoch(benchmark: BenchmarkFixture, sets: dict[str, Set], shape: str) -> None:
    """The epoch that verifies all bytes, shards opened and mapped anew, against one that trusts
    them: the ratio is what a checksum of everything costs (1 is nothing)."""
    shards = sets[shape].shards
    done: list[int] = []

    def opened(verify: bool) -> Prepare:
        def prepare() -> Run:
            run, samples = consume(peers.mapped(shards, verify=verify))

            def counted() -> None:
                run()
                done.append(samples[0])

            return counted

        return prepare

    benchmark.group, benchmark.name = f"first epoch, {shape}", "without over with checksums"
    compare(benchmark, opened(False), opened(True), lambda: (done[-1], done[-1]))


def batches(count: int) -> list[Tensor]:
    """Some batches of indices in random order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return list(order.split(BATCH))[:-1][:200]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("what", ["rows into an array", "a source's batch"])
def test_resident(benchmark: BenchmarkFixture, sets: dict[str, Set], shape: str, what: str) -> None:
    """Rows of a tensor in memory against ``torch.index_select(out=)``; a source's batch is
    allocated and has labels (the peer's too, by a second index_select)."""
    images, labels = (torch.from_numpy(x) for x in (sets[shape].images, sets[shape].labels))
    order = batches(len(images))
    rows = torch.empty(BATCH, *images.shape[1:], dtype=torch.uint8)
    chosen = torch.empty(BATCH, dtype=torch.int64)
    first = np.array([0, len(images)])
    address = np.array([images.data_ptr()])
    first.flags.writeable = address.flags.writeable = False
    numbers, target = [index.numpy() for index in order], rows.view(BATCH, -1).numpy()
    source = ResidentSource(images.permute(0, 3, 1, 2), labels, fingerprint="")

    def into() -> None:
        for index in numbers:
            gather_packs(first, address, target.shape[1], index, target)

    def batch() -> None:
        for index in order:
            source.gather(index)

    def theirs() -> None:
        for index in order:
            torch.index_select(images, 0, index, out=rows)
            if what == "a source's batch":
                torch.index_select(labels, 0, index, out=chosen)

    run = into if what == "rows into an array" else batch
    benchmark.group, benchmark.name = f"resident, {shape}", f"{what}, against index_select(out=)"
    count = len(order) * BATCH
    compare(benchmark, lambda: run, lambda: theirs, lambda: (count, count))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("memory", ["used again", "new"])
@pytest.mark.parametrize("layout", ["planes", "channels last"])
def test_fused(
    benchmark: BenchmarkFixture, sets: dict[str, Set], shape: str, memory: str, layout: str
) -> None:
    """uint8 rows to a float32 batch in [0, 1] against index_select, copy and mul; both write to
    memory that is used again, or to a new tensor (ours by the public operation)."""
    stored = torch.from_numpy(sets[shape].images).permute(0, 3, 1, 2)
    last = layout == "channels last"
    images = stored if last else stored.contiguous()
    dense = images.permute(0, 2, 3, 1) if last else images
    order = batches(len(images))[:60]
    rows = torch.empty(BATCH, *dense.shape[1:], dtype=torch.uint8)
    floats = torch.empty(BATCH, *dense.shape[1:])
    out = floats.permute(0, 3, 1, 2) if last else floats

    def ours() -> None:
        for index in order:
            if memory == "new":
                ops.gather_normalize(images, index, channels_last=last)
            else:
                write(out, images, index, index, None, None, None, 0.0, "none", 0.5)

    def theirs() -> None:
        for index in order:
            if memory == "new":
                dense.index_select(0, index).to(torch.float32).mul_(1 / 255)
            else:
                torch.index_select(dense, 0, index, out=rows)
                floats.copy_(rows).mul_(1 / 255)

    benchmark.group = f"uint8 to float32, {shape}, {layout}"
    benchmark.name = f"against index_select, copy, mul ({memory} memory)"
    count = len(order) * BATCH
    compare(benchmark, lambda: ours, lambda: theirs, lambda: (count, count))
