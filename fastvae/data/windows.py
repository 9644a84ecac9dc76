"""Windows of a stream of samples, decoded one ahead.

A stream is the samples of all tars in the order of an epoch. It is cut into windows of equal size;
the latest window that was asked for lies in memory, and while a reader goes from one window to the
next, one thread decodes the following one. A step back (to the first window, where an epoch ends
with some of its first samples) leaves that one as it is.
"""

from __future__ import annotations

import concurrent.futures
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from fastvae.data.format import Rows
from fastvae.data.order import WindowOrder
from fastvae.data.sample_rows import SampleRows
from fastvae.data.sample_tar import BadTar
from fastvae.data.tar_index import OpenTar, TarIndex
from fastvae.data.urls import Closed
from fastvae.errors import UserError

Window = tuple[int | None, int]
"""An epoch (None: the natural order, of evaluation) and the number of a window in it."""
_PIECE = 64  # samples decoded between two looks at whether to stop
_POLL = 1.0  # seconds between two looks at whether the thread still lives


class Cursor:
    """Goes through the samples of one epoch in the order of its stream.

    Args:
        number: where in the stream to begin.
        stop: set by another thread to make ``read`` raise ``Closed`` soon.
    """

    def __init__(
        self,
        index: TarIndex,
        order: WindowOrder,
        epoch: int | None,
        number: int,
        stop: threading.Event,
    ) -> None:
        self.epoch = epoch
        self.number = number
        self.stop = stop
        self._index = index
        self._order = order
        self._tar: OpenTar | None = None
        self._rows: SampleRows | None = None

    def read(self, rows: Rows, count: int) -> None:
        """Decode the next ``count`` samples into the first rows of ``rows``.

        Raises:
            UserError: a tar is damaged or cannot be read; RuntimeError for anything unforeseen.
                Both name the tar, and the sample where there is one.
            Closed: it was told to stop.
        """
        done = 0
        try:
            while done < count:
                done += self._read_shard(rows, done, count - done)
        except (UserError, Closed):
            raise
        except OSError as error:
            raise UserError(f"cannot read {self._where}: {error.strerror or error}") from None
        except Exception as error:
            raise RuntimeError(f"reading {self._where}: {error!r}") from error

    def _read_shard(self, rows: Rows, at: int, most: int) -> int:
        """Decode up to ``most`` samples of the current tar; returns how many."""
        order = self._order.shards(self.epoch)
        place = int(np.searchsorted(order.start, self.number, side="right")) - 1
        shard = self._index.shards[order.shard[place]]
        row = self.number - int(order.start[place])
        if self._rows is None:
            self._tar = OpenTar(shard.url, allow_pipe=self._index.allow_pipe, stop=self.stop)
            groups = self._tar.samples.groups(row)
            self._rows = SampleRows(groups, shard.url, self._index.layout, row)
        n = min(most, shard.count - row)
        for start in range(0, n, _PIECE):
            if self.stop.is_set():
                raise Closed
            wanted = min(_PIECE, n - start)
            if self._rows.take(rows, at + start, wanted) < wanted:
                raise self._miscounted(shard.url, shard.count, "fewer")
        self.number += n
        if row + n == shard.count:
            if not self._rows.at_end():
                raise self._miscounted(shard.url, shard.count, "more")
            self.close()
        return n

    def _miscounted(self, url: str, count: int, how: str) -> BadTar:
        return BadTar(
            f"{url} has {how} samples than the {count:,} that were counted",
            "it has changed, or the sizes.json beside it is wrong",
        )

    @property
    def _where(self) -> str:
        return "a tar" if self._rows is None else self._rows.where

    def close(self) -> None:
        """Close the current tar; reading goes on by opening one."""
        if self._tar is not None:
            self._tar.close()
        self._tar = self._rows = None


class Windows:
    """The windows of all epochs of a stream.

    Args:
        size: samples of a window; the last one of an epoch may have fewer.
        thread: decodes ahead.
    """

    def __init__(self, index: TarIndex, order: WindowOrder, size: int, thread: Thread) -> None:
        self.size = size
        self._index = index
        self._order = order
        self._count = -(-order.n // size)
        self._thread = thread
        self._ready: dict[Window, Rows] = {}
        self._spare: list[Rows] = []
        self._coming: tuple[Window, Future[Rows]] | None = None
        # Used by whoever decodes: by the thread while a window comes, else by the caller.
        self._cursor: Cursor | None = None
        self._stop = threading.Event()
        self._latest: Window | None = None

    def check(self) -> None:
        """Raise what the thread met with."""
        if self._coming is not None and self._coming[1].done() and self._coming[1].exception():
            future, self._coming = self._coming[1], None
            future.result()

    def get(self, window: Window) -> Rows:
        """The samples of a window: row i is number ``window[1] * size + i`` of the stream. Good
        until the next call: the room is used again."""
        if window not in self._ready:
            rows = self._receive() if self._coming and self._coming[0] == window else None
            if rows is None and self._coming and window < self._coming[0]:
                self._keep(1)
                rows = self._step_back(window, self._coming[1])
            elif rows is None:
                self._call_off()
                self._keep(1)
                rows = self._load(window)
            self._ready[window] = rows
        return self._ready[window]

    def settle(self, windows: list[Window]) -> None:
        """Be told that these have been used, in this order: keep the last, and begin with the one
        after it."""
        self._ready[windows[-1]] = self._ready.pop(windows[-1])  # the youngest
        self._keep(1)
        goes_on = windows[0] == self._after(self._latest)
        in_order = (goes_on or windows[0] == self._latest) and windows[0] <= windows[-1]
        self._latest = windows[-1]
        following = self._after(self._latest)
        if goes_on and self._coming is not None and self._coming[0] != following:
            self._call_off()  # what was left by a step back that was none
        if self._coming is None and in_order and following is not None:
            self._coming = following, self._thread.submit(lambda: self._load(following))

    def close(self) -> None:
        """Give up what comes; call it again when the thread has ended, to close files."""
        self._stop.set()
        if self._coming is not None:
            self._coming[1].cancel()
        if not self._thread.alive:
            self._drop_cursor()
        self._ready, self._spare = {}, []

    def _after(self, window: Window | None) -> Window | None:
        """The window that is likely to be asked for after another."""
        if window is None:
            return None
        epoch, number = window
        if number + 1 < self._count:
            return epoch, number + 1
        return None if epoch is None else (epoch + 1, 0)

    def _keep(self, most: int) -> None:
        """Let go of the oldest windows."""
        while len(self._ready) > most:
            self._release(self._ready.pop(next(iter(self._ready))))

    def _release(self, rows: Rows) -> None:
        if not self._spare:
            self._spare.append(rows)

    def _receive(self) -> Rows | None:
        """The window that comes, when it is there; None where the thread has not begun."""
        assert self._coming is not None
        future, self._coming = self._coming[1], None
        if future.cancel():
            return None
        self._thread.wait(future)
        return future.result()

    def _call_off(self) -> None:
        """Give up the window that comes."""
        if self._coming is None:
            return
        future, self._coming = self._coming[1], None
        if not future.cancel():
            self._stop.set()
            self._thread.wait(future)
            self._stop.clear()
            if future.exception() is None:
                self._release(future.result())

    def _step_back(self, window: Window, coming: Future[Rows]) -> Rows:
        """Decode a window before the one that comes, which is kept, with its place in the tars."""
        self._thread.wait(coming)  # it uses what is used here
        kept, self._cursor = self._cursor, None
        try:
            return self._load(window)
        finally:
            self._drop_cursor()
            self._cursor = kept

    def _load(self, window: Window) -> Rows:
        epoch, number = window
        first = number * self.size
        cursor = self._cursor
        if cursor is None or (cursor.epoch, cursor.number) != (epoch, first):
            self._drop_cursor()
            cursor = self._cursor = Cursor(self._index, self._order, epoch, first, self._stop)
        rows = self._spare.pop() if self._spare else self._index.layout.allocate(self.size)
        try:
            cursor.read(rows, min(self.size, self._order.n - first))
        except BaseException:
            self._drop_cursor()
            raise
        return rows

    def _drop_cursor(self) -> None:
        if self._cursor is not None:
            self._cursor.close()
        self._cursor = None


Job = tuple[Callable[[], Rows], "Future[Rows]"]


class Thread:
    """One thread that does what it is given, in order. It ends with ``close``, or when this object
    is collected; it never keeps the process alive."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=_work, args=(self._jobs,), name="fastvae-stream", daemon=True
        )
        self._thread.start()
        weakref.finalize(self, self._jobs.put, None)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, call: Callable[[], Rows]) -> Future[Rows]:
        future: Future[Rows] = Future()
        self._jobs.put((call, future))
        return future

    def wait(self, future: Future[Rows]) -> None:
        """Wait until it is done, as long as there is a thread to do it."""
        while not future.done():
            concurrent.futures.wait([future], timeout=_POLL)
            if not self.alive and not future.done():
                raise RuntimeError("the thread that reads ahead is gone (was the process forked?)")

    def close(self, timeout: float) -> None:
        """End the thread after what it is doing; waits for that at most ``timeout`` seconds."""
        self._jobs.put(None)
        self._thread.join(timeout)


def _work(jobs: queue.SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        call, future = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
        del job, call, future  # nothing that they belong to is kept alive while waiting
