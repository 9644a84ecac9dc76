"""Tasks in processes, results in order, a bar with rate and ETA, and an orderly end.

Processes are spawned, not forked (Numba and PyTorch may have threads), end when their parent dies,
and stop at the next pack when a task fails or the user interrupts.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

T = TypeVar("T")
R = TypeVar("R")
_POLL = 0.2  # seconds between two looks at the counter


class Stopped(Exception):
    """The tasks were stopped before their end: what is left undone is another run's."""


class Progress(Protocol):
    """What a task tells of itself."""

    def add(self, count: int) -> None:
        """Count samples as done; raise Stopped where the work is to stop."""


class Counter:
    """Samples done, over all processes; asks workers to stop."""

    def __init__(self) -> None:
        context = mp.get_context("spawn")
        self._done = context.Value("q", 0)
        self._stop = context.Event()

    def add(self, count: int) -> None:
        with self._done.get_lock():
            self._done.value += count
        if self._stop.is_set():
            raise Stopped("stopped")

    def stop(self) -> None:
        """Ask all workers to stop."""
        self._stop.set()

    @property
    def done(self) -> int:
        """Samples done so far."""
        return int(self._done.value)


_counter: Counter | None = None


def _begin(counter: Counter) -> None:
    """In a worker: remember the counter, leave Ctrl-C to the parent, and die with it."""
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        parent = mp.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _call(work: Callable[[T, Progress], R], task: T) -> R:
    assert _counter is not None
    return work(task, _counter)


def run_tasks(
    work: Callable[[T, Progress], R],
    tasks: Sequence[T],
    workers: int,
    total: int,
    ahead: int = 0,
) -> Iterator[R]:
    """Run ``work(task, progress)`` for each task and give the results in order.

    Args:
        work: a function of a module, picklable.
        workers: processes; with 1 the work is done in this one.
        total: samples in all, for the bar, of which ``ahead`` are done.

    Raises:
        Stopped: a worker process died.
        Exception: whatever ``work`` raised first; the other workers stop.
    """
    counter = Counter()
    with tqdm(total=total, initial=ahead, unit="sample", disable=None, leave=False) as bar:

        def show() -> None:
            bar.update(ahead + counter.done - bar.n)

        if workers == 1 or len(tasks) <= 1:
            for task in tasks:
                yield work(task, _Shown(counter, show))
            return
        yield from _in_processes(work, tasks, min(workers, len(tasks)), counter, show)


class _Shown:
    """The counter of work that is done in this process: the bar moves with it."""

    def __init__(self, counter: Counter, show: Callable[[], None]) -> None:
        self.counter, self.show = counter, show

    def add(self, count: int) -> None:
        self.counter.add(count)
        self.show()


def _in_processes(
    work: Callable[[T, Progress], R],
    tasks: Sequence[T],
    workers: int,
    counter: Counter,
    show: Callable[[], None],
) -> Iterator[R]:
    pool = ProcessPoolExecutor(
        workers, mp_context=mp.get_context("spawn"), initializer=_begin, initargs=(counter,)
    )
    waiting: deque[Future[Any]] = deque()
    try:
        for task in tasks:
            with _without_interrupts():
                waiting.append(pool.submit(_call, work, task))  # which starts a process at first
            if len(waiting) > 2 * workers:
                yield _result(waiting, show)
        while waiting:
            yield _result(waiting, show)
    except BrokenProcessPool:
        raise Stopped("a worker process was killed (out of memory? fewer --workers)") from None
    finally:
        counter.stop()
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back: a process that is started here inherits that, so that it cannot be
    interrupted before ``_begin`` is reached. This one is told afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _result(waiting: deque[Future[Any]], show: Callable[[], None]) -> Any:
    """The result of the oldest task; raises at once when another one has failed."""
    while True:
        for future in waiting:
            if future.done() and future.exception() is not None:
                future.result()
        try:
            result = waiting[0].result(timeout=_POLL)
        except TimeoutError:
            show()
            continue
        waiting.popleft()
        show()
        return result
