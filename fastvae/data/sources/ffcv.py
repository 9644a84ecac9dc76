"""The ffcv source: .beton files through FFCV's own loader, which also decodes JPEG fields.

FFCV reads ahead in a thread of its own, in an order that it is told beforehand, so this source is a
stream: it starts with the batches that ``follow`` announced and starts anew where others are asked
for. Numbers come from the file itself; FFCV reads images only. What is known of FFCV 1.0.2, the
last version, and done about it here:

- importing it, and each epoch, set the threads of PyTorch and Numba: they are set back;
- its batches lie in a ring of buffers that are written again: they are copied;
- an exception in its thread ends the thread and leaves the reader waiting: it is caught, the thread
  is watched, and what went wrong is raised here;
- it believes every size in a file, and keeps the batch before where a JPEG file cannot be decoded:
  the sizes are compared (``BetonFile``), the heads of JPEG files too, and checksums where a
  description gives them;
- it has no order but its own: an epoch is made with the order that is wanted (its code is compiled
  once).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import time
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvae.data.beton import BetonField
from fastvae.data.beton_layout import AGAIN
from fastvae.data.sources import Samples
from fastvae.data.sources.beton import BetonSource
from fastvae.errors import UserError
from fastvae.optional import require

Index = NDArray[np.int64]
_config: Any = numba.config  # its settings are not known to type checkers
NEEDS = (
    "apt-get install -y --no-install-recommends g++ pkg-config libopencv-dev libturbojpeg0-dev && "
    "pip install opencv-python-headless setuptools && pip install --no-deps ffcv==1.0.2"
)
_SEGMENT = 256  # batches that FFCV is told of at once
_AHEAD = 3  # batches that lie ready
_POLL = 0.2  # seconds between two looks at the thread
_IDLE = 30.0  # seconds that a thread may sleep and do nothing, as while a disk is slow
_LONGEST = 300.0  # seconds for a batch in any case


class FFCVSource(BetonSource):
    """The images of one file, raw or JPEG, all of one size.

    Args:
        on_damage: see ``BetonSource``.
        workers: threads that decode; more than one need Numba with OpenMP or TBB.
    """

    def __init__(
        self,
        path: Path,
        *,
        on_damage: Literal["raise", "skip"] = "raise",
        workers: int = 1,
    ) -> None:
        most = min(len(os.sched_getaffinity(0)), _config.NUMBA_NUM_THREADS)
        self._workers = max(1, min(workers, most))
        self._segments: Iterator[list[Index]] = iter(())
        self._coming: deque[Index] = deque()
        self._epoch: Any = None
        super().__init__(path, on_damage=on_damage)
        self.about = "FFCV"

    def _prepare(self) -> None:
        for field in self._images:
            self.file.sizes(field)  # compared with the places
        self._sound = np.zeros(self.file.n, dtype=bool)  # JPEG files whose heads have been read
        with threads_kept():
            self._loader = _open(self.file.path, self.file.fields, self._images, self._workers)

    def follow(self, batches: Iterator[Index]) -> None:
        self._stop()
        self._segments = _segments(batches)

    def gather(self, index: Tensor, epoch: int | None = None, *, pin: bool = False) -> Samples:
        rows = index.numpy()
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"samples {rows.min()} to {rows.max()} of {len(self)}")
        if not len(rows):
            return self._samples([self._empty(0, pin) for _ in self._images], rows)
        for field in self._images:
            self.file.touch(field, self._rows[rows])
            self._check_jpeg(field, self._rows[rows])
        try:
            ready = self._next(rows)
        except BaseException:
            self._stop()
            raise
        images = []
        for field in self._images:
            images.append(self._empty(len(rows), pin))
            images[-1].view(len(rows), -1).copy_(ready[field.name].reshape(len(rows), -1))
        return self._samples(images, rows)

    def _next(self, rows: Index) -> dict[str, Tensor]:
        """The batch ``rows`` (B,), in memory that FFCV will write to again."""
        if not self._coming:
            self._coming.extend(next(self._segments, []))
            self._end_epoch()
        if not self._coming or not np.array_equal(self._coming[0], rows):
            self._stop()
            self._coming.append(rows)
        if self._epoch is None:
            with threads_kept():  # until the thread has begun: it sets them as well
                self._epoch = self._begin()
                ready = self._take()
        else:
            ready = self._take()
        self._coming.popleft()
        names = [name for name in self.file.fields if name in {f.name for f in self._images}]
        return dict(zip(names, ready, strict=True))

    def _begin(self) -> Any:
        """FFCV's thread, at work on the coming batches."""
        self._loader.batch_size = len(self._coming[0])
        order = self._rows[np.concatenate(self._coming)].astype(np.uint64)
        return _watched()(self._loader, order)

    def _take(self) -> tuple[Tensor, ...]:
        """What the thread has made next; RuntimeError where it died, or does nothing."""
        thread, before = self._epoch, ""
        began = active = time.monotonic()
        while True:
            ended = not thread.is_alive()
            try:
                item = thread.output_queue.get(block=not ended, timeout=_POLL)
                break
            except queue.Empty:
                pass
            if ended:
                raise RuntimeError(f"{self.file.path}: FFCV failed: {thread.failure!r}")
            now, seen = time.monotonic(), _activity(thread.native_id)
            active, before = (active if seen == before else now), seen
            if now - active >= _IDLE or now - began > _LONGEST:
                raise RuntimeError(
                    f"{self.file.path}: FFCV is stuck: no batch for {now - began:.0f} s; use "
                    "--data.source beton"
                )
        if item is None:
            raise RuntimeError(f"{self.file.path}: FFCV ended before all batches were read")
        ready: tuple[Tensor, ...] = item[1]
        return ready

    def _check_jpeg(self, field: BetonField, rows: Index) -> None:
        """Compare the heads of JPEG files that have not been looked at with the field."""
        if field.jpeg is None or self._sound[rows].all():
            return
        assert field.pointers is not None
        sizes = self.file.sizes(field)
        for i in rows[field.jpeg[rows] & ~self._sound[rows]].tolist():
            place = int(field.pointers[i])
            found = jpeg_size(self.file.data[place : place + int(sizes[i])].data)
            if found != field.shape[:2]:
                what = "is no JPEG file" if found is None else f"is {found[0]}x{found[1]}"
                raise UserError(
                    f"{self.file.path} is damaged: sample {i:,} of field {field.name!r} {what}, "
                    f"expected {field.shape[0]}x{field.shape[1]}: {AGAIN}"
                )
        self._sound[rows] = True

    def _stop(self) -> None:
        """Forget what was announced, and end the thread."""
        self._segments = iter(())
        self._coming.clear()
        self._end_epoch()

    def _end_epoch(self) -> None:
        thread, self._epoch = self._epoch, None
        if thread is None:
            return
        thread.iter_ixes = iter(())  # no further batch
        thread.close()
        until = time.monotonic() + 1.0
        while thread.is_alive() and time.monotonic() < until:  # one that is stuck is left alone
            with contextlib.suppress(queue.Empty):
                thread.output_queue.get_nowait()  # it may wait for room
            thread.join(timeout=0.01)

    def close(self) -> None:
        self._stop()
        self._loader = None
        super().close()


@contextlib.contextmanager
def threads_kept() -> Iterator[None]:
    """Give PyTorch and Numba the numbers of threads back that they had."""
    before = torch.get_num_threads(), numba.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])


def jpeg_size(raw: memoryview) -> tuple[int, int] | None:
    """Height and width that the head of a JPEG file gives; None if it is none."""
    at = 2 if raw[:2].tobytes() == b"\xff\xd8" else len(raw)
    while at + 9 <= len(raw) and raw[at] == 0xFF:
        kind = raw[at + 1]
        if kind == 0xFF:  # filling
            at += 1
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = raw[at + 5 : at + 7], raw[at + 7 : at + 9]
            return int.from_bytes(height, "big"), int.from_bytes(width, "big")
        else:
            at += 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
    return None


def _segments(batches: Iterator[Index]) -> Iterator[list[Index]]:
    """Batches of one size each, some at a time: FFCV knows no others."""
    for _, run in itertools.groupby(batches, key=len):
        while segment := list(itertools.islice(run, _SEGMENT)):
            yield segment


def _open(path: Path, fields: Iterable[str], wanted: list[BetonField], workers: int) -> Any:
    """FFCV's loader of the wanted fields."""
    loader = _ffcv().loader
    names = {field.name for field in wanted}
    return loader.Loader(
        str(path),
        batch_size=1,
        num_workers=workers,
        os_cache=True,
        order=loader.OrderOption.SEQUENTIAL,
        seed=0,  # else it draws one from NumPy's global generator
        pipelines={name: None for name in fields if name not in names},
        drop_last=False,
        batches_ahead=_AHEAD,
    )


def _ffcv() -> Any:
    try:
        return require(
            "ffcv",
            extra="ffcv",
            purpose="--data.source ffcv",
            alternative="--data.source beton (ffcv is compiled: see the README)",
        )
    except ImportError as error:  # built against another OpenCV, for example
        raise UserError(
            f"ffcv is installed but cannot be imported ({error}); build it again: {NEEDS}"
        ) from None


@lru_cache(maxsize=1)
def _watched() -> Any:
    """FFCV's epoch, but one that keeps what ended it."""
    epoch: Any = _ffcv().loader.epoch_iterator.EpochIterator

    class Watched(epoch):
        failure: BaseException | None = None

        def run(self) -> None:
            try:
                super().run()
            except BaseException as error:
                self.failure = error

    return Watched


def _activity(thread: int) -> str:
    """Something that changes while a thread computes, or waits for a disk or for its turn."""
    try:
        text = Path(f"/proc/self/task/{thread}/stat").read_text()
    except OSError:
        return str(time.monotonic())
    values = text.rpartition(")")[2].split()
    state, used = values[0], values[11:13]
    return " ".join([state, *used]) if state == "S" else str(time.monotonic())
