"""The anti-aliased rasterizer on a CPU against what people draw strokes with.

    make bench BENCH=benchmarks/bench_raster.py

CPU time of one thread, by turns with the peer in one process, on real drawings of Quick, Draw!
(every tenth of 7,500; both sides draw the same ones). Each benchmark's extra_info has how many
times faster, ratio_p50 with its 20th and 80th percentile over the rounds, and the drawings per
second of both. Ours writes batches of 50 to 750 images into an array that is used again; a peer
draws into one surface of its own. The peers' drawings are Python lists before the clock starts.
``test_threads`` is wall time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.measure import ON_GPU, Run, Spread, ratios, side_by_side
from benchmarks.stroke_peers import Drawing, Peer, cairo, drawings_of, opencv
from fastvae.kernels.raster import Frame, Mode, rasterize
from fastvae.kernels.strokes import Strokes, from_lists

REPO = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FASTVAE_SHARED_DATA") or REPO.parent / "shared" / "data")
DRAWINGS = SHARED / "quickdraw" / "simplified_300x25.tar.xz"
ROUNDS = 9
EVERY = 10
BATCH = {28: 750, 64: 750, 256: 50}

PEERS: dict[str, tuple[str, Callable[[Frame], Peer]]] = {
    "pycairo ARGB32": ("cairo", cairo),
    "pycairo A8": ("cairo", lambda frame: cairo(frame, "A8")),
    "cv2 LINE_AA": ("cv2", opencv),
}
CASES = [(side, peer) for side in BATCH for peer in PEERS if peer != "cv2 LINE_AA" or side == 28]


@pytest.fixture(scope="session")
def every_tenth() -> tuple[Strokes, list[Drawing]]:
    """Real drawings, in both forms."""
    if not DRAWINGS.is_file():
        pytest.skip("no shared data here (FASTVAE_SHARED_DATA)")
    lists = []
    with tarfile.open(DRAWINGS) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".ndjson") else None
            if file is not None:
                lists += [json.loads(line)["drawing"] for line in file]
    strokes = from_lists(lists[::EVERY])
    return strokes, drawings_of(strokes)


def ours(strokes: Strokes, side: int, mode: Mode, repeat: int, threads: int = 1) -> Run:
    """Draw the whole set ``repeat`` times, in batches."""
    index: NDArray[np.int64] = np.arange(strokes.drawings, dtype=np.int64)
    batches = [index[i : i + BATCH[side]] for i in range(0, len(index), BATCH[side])]
    frame, out = Frame(side), np.empty((BATCH[side], side, side), dtype=np.uint8)

    def run() -> None:
        for _ in range(repeat):
            for batch in batches:
                rasterize(strokes, frame, batch, mode=mode, out=out[: len(batch)], threads=threads)

    return run


def theirs(draw: Peer, drawings: list[Drawing]) -> Run:
    """The same with a peer, once."""

    def run() -> None:
        for drawing in drawings:
            draw(drawing)

    return run


def available(mode: Mode) -> None:
    """Skip what is not there, and what would be timed by the wrong clock."""
    if importlib.util.find_spec(f"fastvae.kernels.raster_{mode}") is None:
        pytest.skip(f"mode {mode!r} is not there")
    if ON_GPU:
        pytest.skip("a benchmark of the CPU, and measure.py times the GPU here")


def report(
    benchmark: BenchmarkFixture, faster: Spread, ours_per_s: float, peer_per_s: float
) -> None:
    benchmark.extra_info.update(
        ratio_p50=faster.p50,
        ratio_p20=faster.p20,
        ratio_p80=faster.p80,
        ours_per_s=ours_per_s,
        peer_per_s=peer_per_s,
        unit="drawings/s",
    )


@pytest.mark.parametrize(("side", "peer"), CASES)
@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_raster(
    benchmark: BenchmarkFixture,
    every_tenth: tuple[Strokes, list[Drawing]],
    mode: Mode,
    side: int,
    peer: str,
) -> None:
    available(mode)
    module, make = PEERS[peer]
    pytest.importorskip(module, reason=f"{module} is not installed")
    strokes, drawings = every_tenth
    repeat = 10
    run, other = ours(strokes, side, mode, repeat), theirs(make(Frame(side)), drawings)
    seconds = side_by_side({"ours": lambda: run, "peer": lambda: other}, ROUNDS, warmup=1)
    each = {name: [s / len(drawings) for s in taken] for name, taken in seconds.items()}
    each["ours"] = [s / repeat for s in each["ours"]]
    rate = {name: 1 / Spread.of(taken).p50 for name, taken in each.items()}
    report(benchmark, ratios(each["peer"], each["ours"]), rate["ours"], rate["peer"])
    benchmark.group = f"raster {mode}, {side}x{side}"
    benchmark.name = f"against {peer}"
    benchmark.pedantic(run, rounds=5)


@pytest.mark.parametrize("side", BATCH)
@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_threads(
    benchmark: BenchmarkFixture,
    every_tenth: tuple[Strokes, list[Drawing]],
    mode: Mode,
    side: int,
) -> None:
    """Two threads against one, wall time: peer_per_s is that of one."""
    available(mode)
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    strokes, _ = every_tenth
    # Tens of milliseconds a call: what is measured is drawing, not starting threads.
    many = strokes.select(np.arange(64 * BATCH[side]) % strokes.drawings)
    index: NDArray[np.int64] = np.arange(many.drawings, dtype=np.int64)
    out = np.empty((len(index), side, side), dtype=np.uint8)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for count in range(ROUNDS + 1):
        for threads, taken in seconds.items():
            begin = time.perf_counter()
            rasterize(many, Frame(side), index, mode=mode, out=out, threads=threads)
            if count:
                taken.append(time.perf_counter() - begin)
    rate = {n: len(index) / Spread.of(taken).p50 for n, taken in seconds.items()}
    report(benchmark, ratios(seconds[1], seconds[2]), rate[2], rate[1])
    benchmark.group = f"raster {mode}, two threads against one"
    benchmark.name = f"{side}x{side}"
    benchmark.pedantic(
        lambda: rasterize(many, Frame(side), index, mode=mode, out=out, threads=2), rounds=5
    )
