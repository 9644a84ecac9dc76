"""One thread that prepares what will be asked for next."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_POLL = 0.5  # seconds between two looks at whether the thread still lives


class Prefetch(Generic[T]):
    """The items of an iterator, made ``depth`` ahead by one thread.

    What the iterator raises is raised by ``next``, in its place. The thread holds ``depth`` items
    at most and ends with ``close``, at the end of the iterator, or when this object is collected.

    Args:
        items: used by the thread alone.
        depth: items that lie ready.
    """

    def __init__(self, items: Iterator[T], depth: int = 2) -> None:
        self._ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_work, args=(items, self._ready, self._stop), name="prefetch", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Prefetch[T]:
        return self

    def __next__(self) -> T:
        while True:
            ended = self._stop.is_set() or not self._thread.is_alive()
            try:
                item, error = self._ready.get(block=not ended, timeout=_POLL)
                break
            except queue.Empty:
                if ended:
                    raise StopIteration from None
        if error is not None:
            self._stop.set()
            raise error
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """End the thread; it is gone when this returns (within seconds)."""
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._ready.get_nowait()  # it may wait for room
            except queue.Empty:
                self._thread.join(timeout=0.05)

    def __del__(self) -> None:
        self._stop.set()


def _work(
    items: Iterator[T],
    ready: queue.Queue[tuple[T | None, BaseException | None]],
    stop: threading.Event,
) -> None:
    def put(item: T | None, error: BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put((item, error), timeout=_POLL)
                return
            except queue.Full:
                continue

    try:
        for item in items:
            put(item, None)
            if stop.is_set():
                return
    except BaseException as error:
        put(None, error)
        return
    put(None, StopIteration())
