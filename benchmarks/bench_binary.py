"""The binary rasterizer on a CPU against the rule in plain Python: pairs of images, widened.

    make bench BENCH=benchmarks/bench_binary.py

The peer is ``tests/seed_rule.py``: Bresenham in Python, each image of a pair drawn from its start,
then widened by cv2.erode, as the original does. Real drawings (300 categories of Quick, Draw!, in
the shared data) where they are, else made-up ones of their size. One thread, CPU time in turns;
``test_threads`` alone is about wall time.
"""

from __future__ import annotations

import json
import os
import tarfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.bench_morphology import compare, two_threads
from fastvae.kernels.raster_binary import rasterize_binary
from fastvae.kernels.strokes import Strokes, from_lists
from tests import seed_rule

REPO = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FASTVAE_SHARED_DATA") or REPO.parent / "shared" / "data")
BATCH = 512
PEER = 150  # drawings that the peer gets


@lru_cache(maxsize=1)
def drawings() -> tuple[list[seed_rule.Drawing], Strokes, NDArray[np.int64]]:
    """Drawings, the same as arrays, and how many points of each its partial image shows.

    Shuffled, so that any part of them is a fair sample.
    """
    rng = np.random.default_rng(0)
    archive = SHARED / "quickdraw" / "simplified_300x25.tar.xz"
    lists: list[seed_rule.Drawing] = []
    if archive.exists():
        with tarfile.open(archive) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.name.endswith(".ndjson") else None
                lines = file.read().splitlines() if file else []
                lists += [json.loads(line)["drawing"] for line in lines]
    else:
        for _ in range(7500):
            strokes = rng.integers(1, 10)
            lists.append(
                [rng.integers(0, 256, (2, rng.integers(2, 16))).tolist() for _ in range(strokes)]
            )
    lists = [lists[i] for i in rng.permutation(len(lists))]
    cut = []
    for drawing in lists:  # the original: the first max(int(u * strokes), 1) strokes
        shown = max(int(rng.random() * len(drawing)), 1)
        cut.append(sum(len(stroke[0]) for stroke in drawing[:shown]))
    return lists, from_lists(lists), np.array(cut, dtype=np.int64)


@pytest.mark.parametrize("form", ["bytes", "packed"])
@pytest.mark.parametrize("side", [28, 64, 256])
def test_pairs(benchmark: BenchmarkFixture, side: int, form: str) -> None:
    """All drawings, in batches of 512 into the same arrays."""
    cv2 = pytest.importorskip("cv2", reason="the original widens with OpenCV")
    cv2.setNumThreads(1)
    kernel = np.ones((3, 3), np.uint8)
    lists, strokes, cut = drawings()
    packed = form == "packed"
    index = np.arange(len(lists))
    shape = (BATCH, side, -(-side // 64) if packed else side)
    out, partial = (np.empty(shape, np.uint64 if packed else np.uint8) for _ in range(2))
    batches = [index[i : i + BATCH] for i in range(0, len(index), BATCH)]

    def ours() -> None:
        for batch in batches:
            n = len(batch)
            rasterize_binary(
                strokes, side, batch, cut=cut[batch], packed=packed,
                out=out[:n], partial_out=partial[:n], threads=1,
            )  # fmt: skip

    def widen(image: seed_rule.Image, times: int) -> seed_rule.Image:
        wide: seed_rule.Image = cv2.erode(image, kernel, iterations=times)
        return wide

    cuts = cut[:PEER].tolist()

    def peer() -> None:
        for drawing, points in zip(lists, cuts, strict=False):
            seed_rule.pair(drawing, side, 10, points, widen=widen)

    benchmark.group = f"binary pairs, widened, {side}x{side}"
    compare(benchmark, ours, peer, (len(index), PEER), f"pairs ({form})")


@pytest.mark.parametrize("side", [28, 64, 256])
def test_threads(benchmark: BenchmarkFixture, side: int) -> None:
    lists, strokes, cut = drawings()
    count = len(lists) if side < 256 else 1500
    index = np.arange(count)
    out, partial = (np.empty((count, side, side), np.uint8) for _ in range(2))

    def run(threads: int) -> None:
        rasterize_binary(
            strokes, side, index, cut=cut[:count], out=out, partial_out=partial, threads=threads
        )

    benchmark.group = f"two threads, binary pairs, {side}x{side}"
    two_threads(benchmark, run, count, "pairs")
