"""Another order for sources that are read in one direction: whole shards, shuffled in windows.

Shards come one after another in an order keyed by (seed, epoch); the stream of their samples is cut
into windows, and the samples of a window are permuted among each other, keyed by (seed, epoch,
window). So a reader that goes through each shard once, with one window in memory, can serve it.
Like the keyed permutation of the plan it is a pure function: any position of any epoch is computed
alone, and there is no state to save.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvae.data.plan import mix64, permute

Indices = NDArray[np.int64]
_SMALL = 256  # values; the domain of ``permute`` is never smaller


class ShardOrder(NamedTuple):
    """The order in which S shards come; numbers in the stream are places in it."""

    shard: Indices
    """(S,) which shard comes when."""
    start: Indices
    """(S + 1,) number in the stream of the first sample of each shard, in this order; then n."""
    place: Indices
    """(S,) when each shard comes: the inverse of ``shard``."""


class WindowOrder:
    """An order of n samples in shards: the index of a sample counts through the shards as given.

    Args:
        counts: samples of each shard; 0 is allowed.
        window: samples that are permuted among each other; the last window of an epoch may be
            smaller.
        seed: any integer.
    """

    def __init__(self, counts: Sequence[int], window: int, seed: int) -> None:
        self.counts: Indices = np.asarray(counts, dtype=np.int64)
        if self.counts.ndim != 1 or (self.counts < 0).any() or not self.counts.sum() or window < 1:
            raise ValueError(f"impossible order: window {window} over {list(counts)[:5]}...")
        self.first: Indices = _running(self.counts)
        """(S + 1,) index of the first sample of each shard; then n."""
        self.n = int(self.first[-1])
        self.window = min(window, self.n)
        self.seed = seed
        # Of the epochs that the plan, the reader and the one who reads ahead are in.
        self.shards = lru_cache(maxsize=4)(self._shards)

    @property
    def windows(self) -> int:
        """Windows of an epoch."""
        return -(-self.n // self.window)

    def indices(self, positions: Indices, epoch: int) -> Indices:
        """Samples (K,) at positions (K,) of an epoch, both in [0, n)."""
        if len(positions) and not 0 <= positions.min() <= positions.max() < self.n:
            raise ValueError(f"positions must be in [0, {self.n})")
        number = np.empty_like(positions)
        window = positions // self.window
        for w in np.unique(window).tolist():
            inside = window == w
            start = w * self.window
            size = min(self.window, self.n - start)
            key = _derive("window", self.seed, w)
            number[inside] = start + _shuffle(positions[inside] - start, size, key, epoch)
        shard, row = self.locate(number, epoch)
        return self.first[shard] + row

    def _shards(self, epoch: int | None) -> ShardOrder:
        """The order of the shards in an epoch; None for the order as given."""
        shard = np.arange(len(self.counts), dtype=np.int64)
        if epoch is not None:
            shard = _shuffle(shard, len(shard), _derive("shards", self.seed), epoch)
        return ShardOrder(shard, _running(self.counts[shard]), np.argsort(shard))

    def locate(self, number: Indices, epoch: int | None) -> tuple[Indices, Indices]:
        """Shard and row (K,) of the samples with these numbers (K,) in the stream of an epoch."""
        order = self.shards(epoch)
        place = np.searchsorted(order.start, number, side="right") - 1
        return order.shard[place], number - order.start[place]

    def numbers(self, index: Indices, epoch: int | None) -> Indices:
        """Numbers (K,) in the stream of an epoch of samples ``index`` (K,): the inverse."""
        order = self.shards(epoch)
        shard = np.searchsorted(self.first, index, side="right") - 1
        return order.start[order.place[shard]] + index - self.first[shard]

    def describe(self) -> dict[str, int | str]:
        """What the order depends on, besides the seed of the plan."""
        counts = hashlib.blake2b(self.counts.astype("<i8").tobytes(), digest_size=8).hexdigest()
        return {
            "order": "windows",
            "window": self.window,
            "window_seed": self.seed,
            "shard_counts": counts,
        }


def _shuffle(places: Indices, n: int, seed: int, epoch: int) -> Indices:
    """As ``permute``, which is slow for a small n: that is sorted by random numbers."""
    if n >= _SMALL:
        return permute(places, n, seed, epoch)
    key = np.uint64(_derive("epoch", seed, epoch))
    return np.argsort(mix64(np.arange(n, dtype=np.uint64), key), kind="stable")[places]


def _running(counts: Indices) -> Indices:
    """(S + 1,) sums of the counts before each, and of all."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _derive(name: str, *numbers: int) -> int:
    """A seed of its own for each use."""
    text = "/".join(["fastvae.order", name, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
