"""Time launch parameters on this GPU and rewrite kernels/launch_table.py.

    python -m benchmarks.tune_kernels                    # every row; some minutes
    python -m benchmarks.tune_kernels --rows pixel rescale --table other_table.py

For each row of the table, candidates are timed over the shapes of five systems, from MNIST to
512 x 512 images, with CUDA events, from a cold L2 cache, one after another in each round so that
clocks and heat hit all alike. A candidate is judged by the geometric mean, over the shapes, of its
median time against that of the present row; it replaces the row if it is faster by 2 %.

A new tile changes the order of some sums, and so the last bits of losses: commit the table, record
the compile gate again (python -m benchmarks.compile_gate --update), and do not tune in the middle
of a study.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import math
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvae.kernels.launch import LAUNCH, Launch
from fastvae.kernels.launch_table import TABLE

TABLE_FILE = Path(__file__).resolve().parent.parent / "kernels" / "launch_table.py"
GAIN = 0.02  # less is within what a second measurement would find
WARPS = (1, 2, 4, 8)
PER_THREAD = (2, 4, 8, 16, 32)
FLUSH_BYTES = 256 * 2**20  # more than any L2 cache holds

Run = Callable[[], object]
Row = dict[str, int | str]


@dataclass(frozen=True)
class System:
    """Shapes of one model in training; channels and side of its images, samples per image."""

    name: str
    rows: int
    channels: int
    side: int
    latents: int
    samples: int = 1

    @property
    def pixels(self) -> int:
        return self.channels * self.side**2


SYSTEMS = (
    System("MNIST 512x784", 512, 1, 28, 20),
    System("64x64 128x12288", 128, 3, 64, 128),
    System("64x64 1024x12288", 1024, 3, 64, 256),
    System("512x512 32x786432", 32, 3, 512, 512),
    System("IWAE 6400x784", 6400, 1, 28, 50, samples=50),
)


@dataclass(frozen=True)
class Timing:
    """Microseconds: median, and the 20th and 80th percentile."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(times: list[float]) -> Timing:
        fifths = statistics.quantiles(times, n=5, method="inclusive")
        return Timing(statistics.median(times), fifths[0], fifths[-1])


def candidates(present: Launch) -> list[Launch]:
    """The present parameters first, then others: 2 to 32 elements per thread, two tile shapes."""
    found = [present]
    for warps in WARPS:
        for share in PER_THREAD:
            elements = 32 * warps * share
            for block in (elements, elements // 4):
                launch = Launch(elements, block, warps)
                if 128 <= elements <= 8192 and block >= 64 and launch not in found:
                    found.append(launch)
    return found


def choose(timings: dict[Launch, list[Timing]], present: Launch) -> tuple[Launch, float]:
    """The fastest by the geometric mean over shapes, and its time relative to ``present``."""

    def relative(launch: Launch) -> float:
        pairs = zip(timings[launch], timings[present], strict=True)
        return statistics.geometric_mean(mine.median / theirs.median for mine, theirs in pairs)

    best = min(timings, key=relative)
    return (best, relative(best)) if relative(best) < 1 - GAIN else (present, 1.0)


def workloads(row: str, system: System, device: str) -> Iterator[tuple[str, Run]]:
    """What is timed for a row of the table: a label, and a call of the launcher."""
    from fastvae.kernels import gather_triton, gaussian_triton, likelihood_triton, philox_triton

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    rng = empty(2, dtype=torch.int64)
    off = [-math.inf, math.inf] * 2
    matrix = (system.rows, system.latents)
    if row == "normal":
        order = torch.arange(system.rows, device=device)
        yield "fp32", lambda: philox_triton.philox_normal(0, order, system.latents)
    elif row in ("sample_kl", "sample_kl_backward"):
        head = empty(system.rows, 2 * system.latents)
        pair = head.chunk(2, dim=1)
        inputs = (*pair, None, None, rng)
        if row == "sample_kl":
            sample = gaussian_triton.sample_kl
            yield "fp32", lambda: sample(*inputs, 0, False, off, torch.float32)
        else:
            grads = (empty(*matrix), empty(system.rows), empty(system.latents))
            back = gaussian_triton.sample_kl_backward
            yield "fp32", lambda: back(*grads, *inputs, empty(0), 0, False, off)
    elif row in ("pixel", "dlogistic", "dlogistic_mixture"):
        kind, mixtures, parts = {
            "pixel": ("bernoulli", 1, 1),
            "dlogistic": ("dlogistic", 1, 2),
            "dlogistic_mixture": ("dlogistic", 10, 30),
        }[row]
        targets = system.rows // system.samples
        for label, dtype, kept in (
            ("fp32", torch.float32, torch.float32),
            ("bf16, uint8 target", torch.bfloat16, torch.uint8),
        ):
            params = empty(system.rows, parts * system.pixels, dtype=dtype)
            target = empty(targets, system.pixels, dtype=kept)
            given = (params, None, target, None, kind, system.samples, False, mixtures, 1.0)
            yield label, lambda given=given: likelihood_triton.pixel_nll_grad(*given)
    elif row == "rescale":
        # In place over zeros: no value moves, and 2 is a factor that does not return early.
        grad, factor = empty(system.rows, system.pixels), empty() + 2.0
        yield "fp32", lambda: likelihood_triton.rescale_(grad, factor)
    elif row == "gather":
        count = max(system.rows, 2**28 // system.pixels)  # far more than the cache
        images = empty(count, system.channels, system.side, system.side, dtype=torch.uint8)
        order = torch.randint(0, count, (system.rows,), device=device)
        given = (images, order, order, None, None, rng, torch.float32, False, 0.0)
        gather = gather_triton.gather_normalize
        yield "fp32", lambda: gather(*given, "none", 0.5)
        if system.channels == 1:
            yield "fp32, stochastic bits", lambda: gather(*given, "stochastic", 0.5)
    else:
        raise ValueError(f"no workload for row {row!r} of the launch table")


def time_all(row: str, run: Run, launches: list[Launch], rounds: int) -> dict[Launch, Timing]:
    """Time ``run`` under each of ``launches``; those that do not fit the GPU are left out."""
    from triton.runtime.errors import OutOfResources

    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    events: dict[Launch, list[tuple[Any, Any]]] = {}
    present = LAUNCH[row]
    try:
        for launch in launches:  # compile
            LAUNCH[row] = launch
            try:
                run()
            except OutOfResources as error:
                print(f"  {launch}: {error}")
                continue
            events[launch] = []
        for _ in range(rounds):
            for launch, pairs in events.items():
                LAUNCH[row] = launch
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                flush.zero_()  # keeps the GPU busy until the launch is queued, too
                start.record()
                run()
                end.record()
                pairs.append((start, end))
            torch.cuda.synchronize()
    finally:
        LAUNCH[row] = present
    return {
        launch: Timing.of([1e3 * start.elapsed_time(end) for start, end in pairs])
        for launch, pairs in events.items()
    }


def tune(row: str, rounds: int) -> Row:
    """Measure one row of the table and return what should stand there."""
    present = LAUNCH[row]
    total: dict[Launch, list[Timing]] = {launch: [] for launch in candidates(present)}
    labels: list[str] = []
    for system in SYSTEMS:
        for label, run in workloads(row, system, "cuda"):
            labels.append(f"{system.name} {label}")
            timings = time_all(row, run, list(total), rounds)
            total = {launch: [*total[launch], timings[launch]] for launch in timings}
            _print_best(row, labels[-1], timings, present)
    best, relative = choose(total, present)
    if best == present:
        print(f"{row}: stays {present}")
        return dict(TABLE[row])
    slowest = max(range(len(labels)), key=lambda i: total[present][i].median)
    new, old = total[best][slowest], total[present][slowest]
    print(f"{row}: {best} takes {relative:.3f} of the time of {present}")
    return {
        "elements": best.elements,
        "block": best.block,
        "warps": best.warps,
        "why": f"tuned on {_machine()}: {new.median:.1f} us against {old.median:.1f} us of "
        f"{present.elements}/{present.block}/{present.warps} at {labels[slowest]}, "
        f"{relative:.2f} of its time over {len(labels)} shapes",
    }


def _print_best(row: str, label: str, timings: dict[Launch, Timing], present: Launch) -> None:
    ranked = sorted(timings, key=lambda launch: timings[launch].median)
    print(f"{row}, {label}: median us (20 % to 80 %)")
    for launch in dict.fromkeys([present, *ranked[:3]]):
        t = timings[launch]
        mark = "present" if launch == present else ""
        shape = f"{launch.elements:5}/{launch.block:5}/{launch.warps}"
        print(f"  {shape} {t.median:8.2f} ({t.low:.2f} to {t.high:.2f}) {mark}")


def _machine() -> str:
    import triton

    today = datetime.date.today().isoformat()
    gpu = torch.cuda.get_device_name()
    return f"{gpu}, {today}, torch {torch.__version__}, triton {triton.__version__}"


def render(table: dict[str, Row], source: str) -> str:
    """The text of the table file: ``source`` with its table replaced, as the formatter has it."""
    head, found, _ = source.partition("TABLE: ")
    if not found:
        raise ValueError("no line 'TABLE: ...' in the launch table")
    lines = [head + "TABLE: dict[str, dict[str, int | str]] = {"]
    for name, row in table.items():
        lines.append(f'    "{name}": {{')
        lines += [f'        "{key}": {row[key]},' for key in ("elements", "block", "warps")]
        lines += [*_render_why(str(row["why"])), "    },"]
    return "\n".join([*lines, "}", ""])


def _render_why(why: str) -> list[str]:
    if '"' in why or "\\" in why:
        raise ValueError(f"a reason that would need quoting: {why}")
    line = f'        "why": "{why}",'
    if len(line) <= 100:
        return [line]
    parts = textwrap.wrap(why, 84, break_long_words=False, break_on_hyphens=False)
    quoted = [f'            "{part} "' for part in parts[:-1]] + [f'            "{parts[-1]}"']
    return ['        "why": (', *quoted, "        ),"]


def read_table(path: Path) -> dict[str, Row]:
    """The table of a file, which need not be the installed one."""
    spec = importlib.util.spec_from_file_location("launch_table_read", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    table: dict[str, Row] = module.TABLE
    return table


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune_kernels")
    parser.add_argument("--rows", nargs="+", choices=list(TABLE), default=list(TABLE))
    parser.add_argument("--rounds", type=int, default=40, help="timings of each candidate")
    parser.add_argument("--table", type=Path, default=TABLE_FILE, help="file to rewrite")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("tune_kernels: needs a GPU, and there is none; nothing was changed", file=sys.stderr)
        return 2
    source = (arguments.table if arguments.table.exists() else TABLE_FILE).read_text()
    table = {name: dict(row) for name, row in TABLE.items()}
    for row in arguments.rows:
        table[row] = tune(row, arguments.rounds)
    arguments.table.write_text(render(table, source))
    if read_table(arguments.table) != table:
        raise RuntimeError(f"{arguments.table} does not read back as it was written")
    print(f"wrote {arguments.table}; now: python -m benchmarks.compile_gate --update --jobs 2")
    return 0


if __name__ == "__main__":
    sys.exit(main())
