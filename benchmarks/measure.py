"""Timing of alternatives side by side in one process.

Machines drift: the alternatives take turns, round by round, and a ratio is the median of the
ratios within rounds. On a CPU the clock is the process's CPU time; on a GPU it is CUDA events
around each run, after the L2 cache was overwritten.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch

Run = Callable[[], object]
Prepare = Callable[[], Run]
"""Does what is not timed and returns what is."""

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if ON_GPU else torch.device("cpu")


@dataclass(frozen=True)
class Spread:
    """Seconds (or ratios) over the rounds: 20th, 50th and 80th percentile."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        cuts = statistics.quantiles(values, n=10, method="inclusive")
        return cls(cuts[1], cuts[4], cuts[7])


def side_by_side(
    prepare: dict[str, Prepare], rounds: int, warmup: int = 3
) -> dict[str, list[float]]:
    """Seconds of each alternative in each round; they take turns."""
    clock = _gpu_seconds if ON_GPU else _cpu_seconds
    seconds: dict[str, list[float]] = {name: [] for name in prepare}
    for count in range(warmup + rounds):
        for name, make in prepare.items():
            taken = clock(make())
            if count >= warmup:
                seconds[name].append(taken)
    return seconds


def ratios(slow: list[float], fast: list[float]) -> Spread:
    """How many times faster, round by round."""
    return Spread.of([a / b for a, b in zip(slow, fast, strict=True)])


def _cpu_seconds(run: Run) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def _gpu_seconds(run: Run) -> float:
    _flush_buffer().zero_()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1e-3


@lru_cache(maxsize=1)
def _flush_buffer() -> torch.Tensor:
    """Four times the L2 cache: overwriting it leaves nothing of the inputs there."""
    size = torch.cuda.get_device_properties(DEVICE).L2_cache_size
    return torch.empty(4 * size, dtype=torch.uint8, device=DEVICE)


def captured(prepare: Prepare) -> Prepare:
    """The same work as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            prepare()()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        prepare()()
    return lambda: graph.replay


@lru_cache(maxsize=64)
def copy_rate(size: int) -> float:
    """Bytes per second, read and written, of a plain copy that moves ``size`` bytes in all."""
    source = torch.empty(max(1, size // 2), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    taken = side_by_side({"copy": lambda: lambda: target.copy_(source)}, rounds=11)["copy"]
    return size / max(1e-9, statistics.median(taken))


def peak_bytes(prepare: Prepare) -> int | None:
    """Device memory that one run needs beyond what was there; None on a CPU."""
    if not ON_GPU:
        return None
    run = prepare()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@contextmanager
def path(name: str) -> Iterator[None]:
    """Force a path of the operations (FASTVAE_OPS) for the time being."""
    before = os.environ.get("FASTVAE_OPS")
    os.environ["FASTVAE_OPS"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["FASTVAE_OPS"]
        else:
            os.environ["FASTVAE_OPS"] = before
