"""Erosion, dilation and packing on a CPU against what people use instead.

    make bench BENCH=benchmarks/bench_morphology.py

All have one thread, their output is there beforehand where they allow it, and they take turns; a
ratio is CPU time of the peer over ours, per image, round by round. A turn goes through a batch of
512 images as often as it takes to last a few milliseconds, so small batches are in the cache, for
both. ``test_threads`` alone is about wall time: two threads against one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.measure import Run, Spread, ratios, side_by_side
from fastvae.kernels import bitrows, morphology

BATCH = 512
ROUNDS = 9
TURN = 4e-3  # seconds
PATIENCE = 8.0  # seconds that two_threads waits for free cores
Images = NDArray[np.uint8]


def compare(
    benchmark: BenchmarkFixture, ours: Run, peer: Run, counts: tuple[int, int], unit: str
) -> None:
    """Take turns and note how many times faster ours is, per thing done.

    Args:
        counts: how many things one run of ours, and of the peer, does.
        unit: what is done, per second.
    """
    runs = {"ours": ours, "peer": peer}
    repeats = {name: _repeats(run) for name, run in runs.items()}
    long = {name: _repeated(run, repeats[name]) for name, run in runs.items()}
    seconds = side_by_side({name: (lambda r=run: r) for name, run in long.items()}, ROUNDS)
    each = {
        name: [taken / (repeats[name] * count) for taken in seconds[name]]
        for name, count in zip(runs, counts, strict=True)
    }
    note(benchmark, each["ours"], each["peer"], unit)
    benchmark.pedantic(ours, rounds=5)


def note(benchmark: BenchmarkFixture, ours: list[float], peer: list[float], unit: str) -> None:
    """Keep rates and ratios of seconds per thing."""
    faster = ratios(peer, ours)
    benchmark.extra_info.update(
        ratio_p50=round(faster.p50, 2),
        ratio_p20=round(faster.p20, 2),
        ratio_p80=round(faster.p80, 2),
        ours_per_s=round(1 / Spread.of(ours).p50),
        peer_per_s=round(1 / Spread.of(peer).p50),
        unit=unit,
    )


def _repeats(run: Run) -> int:
    run()
    begin = time.perf_counter()
    run()
    return max(1, math.ceil(TURN / max(time.perf_counter() - begin, 1e-7)))


def _repeated(run: Run, times: int) -> Run:
    def repeated() -> None:
        for _ in range(times):
            run()

    return repeated


def grey(side: int, count: int = BATCH) -> Images:
    """Random pixels: speed does not depend on what is in the picture."""
    return np.random.default_rng(0).integers(0, 256, (count, side, side), dtype=np.uint8)


def opencv(images: Images, size: int, operation: str = "erode") -> Run:
    """cv2, image by image."""
    cv2 = pytest.importorskip(
        "cv2", reason="the peer is OpenCV: pip install opencv-python-headless"
    )
    cv2.setNumThreads(1)
    call, kernel = getattr(cv2, operation), np.ones((size, size), np.uint8)
    pairs = list(zip(images, np.empty_like(images), strict=True))

    def run() -> None:
        for image, out in pairs:
            call(image, kernel, dst=out)

    return run


def opencv_stack(images: Images, size: int) -> Run:
    """cv2, once for all images: one above the other, with white rows between them."""
    cv2 = pytest.importorskip(
        "cv2", reason="the peer is OpenCV: pip install opencv-python-headless"
    )
    cv2.setNumThreads(1)
    count, height, width = images.shape
    stack = np.full((count, height + size, width), 255, np.uint8)
    stack[:, :height] = images
    tall, kernel = stack.reshape(-1, width), np.ones((size, size), np.uint8)
    out = np.empty_like(tall)
    return lambda: cv2.erode(tall, kernel, dst=out)


def torch_pool(images: Images, size: int) -> Run:
    """torch: the largest of the negative."""
    import torch

    torch.set_num_threads(1)
    negative = -torch.from_numpy(images)[:, None].float()
    return lambda: torch.nn.functional.max_pool2d(negative, size, 1, size // 2)


def scipy_filter(images: Images, size: int) -> Run:
    """scipy.ndimage on the whole batch."""
    ndimage = pytest.importorskip("scipy.ndimage", reason="the peer is SciPy: pip install scipy")
    out = np.empty_like(images)
    return lambda: ndimage.minimum_filter(images, size=(1, size, size), output=out)


PEERS: dict[str, Callable[[Images, int], Run]] = {
    "opencv": opencv,
    "opencv-stack": opencv_stack,
    "torch": torch_pool,
    "scipy": scipy_filter,
}
SLOW = 32  # images that the slow peers get


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("size", morphology.SIZES)
@pytest.mark.parametrize("side", [28, 64, 256])
def test_grey(benchmark: BenchmarkFixture, side: int, size: int, peer: str) -> None:
    if size != 3 and peer in ("torch", "scipy"):
        pytest.skip("measured at size 3 only")
    images = grey(side, BATCH if side < 256 else 64)
    theirs = images if peer.startswith("opencv") else images[:SLOW]
    out = np.empty_like(images)
    benchmark.group = f"grey erosion {size}x{size}, {side}x{side}"
    compare(
        benchmark,
        lambda: morphology.erode(images, size, out=out, threads=1),
        PEERS[peer](theirs, size),
        (len(images), len(theirs)),
        "images",
    )


@pytest.mark.parametrize("side", [28, 64])
def test_grey_dilation(benchmark: BenchmarkFixture, side: int) -> None:
    images = grey(side)
    out = np.empty_like(images)
    benchmark.group = f"grey dilation 3x3, {side}x{side}"
    compare(
        benchmark,
        lambda: morphology.dilate(images, 3, out=out, threads=1),
        opencv(images, 3, "dilate"),
        (BATCH, BATCH),
        "images",
    )


@pytest.mark.parametrize("count", [BATCH, 16384])
@pytest.mark.parametrize("side", [28, 64, 256])
def test_packed(benchmark: BenchmarkFixture, side: int, count: int) -> None:
    """A batch in the cache, and (at 28 and 64) one that is not."""
    if side == 256 and count > BATCH:
        pytest.skip("a gigabyte of bytes for the peer")
    images = (grey(side, count) > 25).astype(np.uint8)
    words = bitrows.pack(images)
    out = np.empty_like(words)
    benchmark.group = f"packed erosion 3x3, {side}x{side} [{count}]"
    compare(
        benchmark,
        lambda: morphology.erode_packed(words, side, 3, out=out, threads=1),
        opencv(images[:BATCH], 3),
        (count, min(count, BATCH)),
        "images",
    )


@pytest.mark.parametrize("direction", ["pack", "unpack"])
def test_packing(benchmark: BenchmarkFixture, direction: str) -> None:
    """Against NumPy's packbits and unpackbits, at the width that needs no filling up."""
    images = (grey(64) > 128).astype(np.uint8)
    words = bitrows.pack(images)
    rows = words.view(np.uint8)
    runs: dict[str, tuple[Run, Run]] = {
        "pack": (
            lambda: bitrows.pack(images, threads=1),
            lambda: np.packbits(images, axis=-1, bitorder="little"),
        ),
        "unpack": (
            lambda: bitrows.unpack(words, 64, ink=1, threads=1),
            lambda: np.unpackbits(rows, axis=-1, bitorder="little"),
        ),
    }
    benchmark.group = f"{direction}, 64x64"
    compare(benchmark, *runs[direction], (BATCH, BATCH), "images")


def two_threads(
    benchmark: BenchmarkFixture, run: Callable[[int], Any], count: int, unit: str
) -> None:
    """Wall time of ``run(2)``, which does ``count`` things, against ``run(1)``, in turns.

    Where others use the machine's cores there is nothing to be gained, so a turn counts only if
    one thread had a core to itself and two had most of two, by their CPU time. Which turns count
    does not depend on how fast they were against each other; how many did is noted.
    """
    taken: dict[int, list[float]] = {1: [], 2: []}
    turns, end = 0, time.perf_counter() + PATIENCE
    while time.perf_counter() < end:
        turns += 1
        wall, cores = {}, {}
        for threads in (1, 2):
            begin, cpu = time.perf_counter(), time.process_time()
            run(threads)
            wall[threads] = time.perf_counter() - begin
            cores[threads] = (time.process_time() - cpu) / wall[threads]
        if turns > 2 and cores[1] > 0.97 and cores[2] > 1.75:
            for threads, kept in taken.items():
                kept.append(wall[threads])
    if len(taken[2]) < 5:
        pytest.skip(f"two cores were free in {len(taken[2])} of {turns} turns")
    note(benchmark, *([t / count for t in taken[n]] for n in (2, 1)), f"{unit} (wall time)")
    benchmark.extra_info.update(turns=turns, turns_with_two_cores=len(taken[2]))
    benchmark.pedantic(run, args=(2,), rounds=5)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("side", [28, 64])
def test_threads(benchmark: BenchmarkFixture, side: int, size: int) -> None:
    count = 2**26 // side**2
    images = grey(side, count)
    out = np.empty_like(images)

    def run(threads: int) -> None:
        morphology.erode(images, size, out=out, threads=threads)

    benchmark.group = f"two threads, grey erosion {size}x{size}, {side}x{side}"
    two_threads(benchmark, run, count, "images")
