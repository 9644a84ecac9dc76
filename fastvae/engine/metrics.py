"""Metrics: summed on the device, read once per logging interval, written by the main rank."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastvae.command import mute_stdout
from fastvae.engine.distributed import World


class Meter:
    """Means of a few named scalars over steps. Values that are not finite are left out."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names = names
        self.total = torch.zeros(2, len(names), device=device)

    def add(self, values: list[Tensor]) -> None:
        """Add one value () per name. Nothing is read back."""
        row = torch.stack([v.detach().float() for v in values])
        finite = torch.isfinite(row)
        self.total += torch.stack((torch.where(finite, row, 0.0), finite.float()))

    def read(self, world: World) -> dict[str, float]:
        """Means over steps and ranks since the last read (the one synchronisation), then reset."""
        total, count = world.sum(self.total).double().tolist()
        self.total.zero_()
        pairs = zip(self.names, total, count, strict=True)
        return {name: t / c if c else math.nan for name, t, c in pairs}


class RunLog:
    """metrics.jsonl, TensorBoard events and the progress bar of a run; silent on other ranks."""

    def __init__(
        self, folder: Path, world: World, *, tensorboard: bool, start: int, total: int
    ) -> None:
        self._main = world.is_main
        self._file = None
        self._writer: Any = None
        if not self._main:
            return
        path = folder / "metrics.jsonl"
        _drop_lines_after(path, start)
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # slow to import: main rank only

            self._writer = SummaryWriter(str(folder / "events"), purge_step=start + 1)
        quiet = not sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=start, disable=quiet, unit="step", dynamic_ncols=True, leave=False
        )

    def scalars(self, kind: str, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl and one point per curve.

        Args:
            kind: train, val or test.
            step: optimizer steps done.
        """
        if self._file is None:
            return
        clean = {k: (v if math.isfinite(v) else None) for k, v in values.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **clean}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def image(self, tag: str, step: int, pixels: Any) -> None:
        """A picture (H, W, C) uint8 for TensorBoard."""
        if self._writer is not None:
            self._writer.add_image(tag, pixels, step, dataformats="HWC")

    def advance(self, shown: dict[str, str] | None = None) -> None:
        """One step done; optionally new numbers beside the bar."""
        if self._main:
            self._bar.update()
            if shown:
                self._bar.set_postfix(shown)

    def say(self, text: str) -> None:
        """Print a line above the bar (main rank)."""
        if self._main:
            self._bar.clear()
            try:
                print(text, flush=True)
            except OSError:
                mute_stdout()  # nobody listens: no reason to stop training

    def close(self) -> None:
        """Flush everything to disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._bar.close()
        if self._writer is not None:
            self._writer.close()


def _drop_lines_after(path: Path, step: int) -> None:
    """Forget what a resumed run will write again, and a line cut by a kill."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            if entry["step"] <= step and entry["kind"] != "test":
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # the half line of a killed run
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    temporary.replace(path)


class Stopwatch:
    """Wall time of an interval, and how much of it was spent waiting for data."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin a new interval."""
        self._begin = time.perf_counter()
        self._data = 0.0

    def skip(self, since: float) -> None:
        """Leave out the time from ``since`` (perf_counter, seconds) to now."""
        self._begin += time.perf_counter() - since

    def data(self, since: float) -> None:
        """Count the time from ``since`` (perf_counter, seconds) to now as waiting for data."""
        self._data += time.perf_counter() - since

    def read(self, images: int) -> dict[str, float]:
        """Images per second and the share of time spent on data, then begin a new interval."""
        seconds = max(1e-9, time.perf_counter() - self._begin)
        result = {"images_per_s": images / seconds, "data_wait": self._data / seconds}
        self.start()
        return result
