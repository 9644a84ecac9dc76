"""The window order: a bijection that looks random, and that one pass over the shards can serve.

Everything is keyed, so each of these numbers is the same on every run: no test here can flicker.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fastvae.data.order import WindowOrder
from fastvae.data.plan import Plan

COUNTS = [
    ([1], 1),
    ([7], 100),
    ([5, 5, 5, 5], 5),
    ([3, 0, 4, 1, 0, 12], 6),
    ([100, 90, 1, 33], 64),
    ([1] * 50, 7),
    ([500, 200, 40], 300),
]
ORDER = WindowOrder([100, 90, 1, 33, 0, 200], 64, seed=3)


def whole(order: WindowOrder, epoch: int) -> np.ndarray:
    return order.indices(np.arange(order.n, dtype=np.int64), epoch)


@pytest.mark.parametrize(("counts", "window"), COUNTS)
@pytest.mark.parametrize("epoch", [0, 1, 10**6])
def test_it_is_a_bijection(counts: list[int], window: int, epoch: int) -> None:
    order = WindowOrder(counts, window, seed=5)
    assert order.n == sum(counts)
    found = whole(order, epoch)
    assert found.dtype == np.int64
    assert np.array_equal(np.sort(found), np.arange(order.n))


@pytest.mark.parametrize(("counts", "window"), COUNTS)
def test_any_position_alone_is_as_in_the_whole(counts: list[int], window: int) -> None:
    order = WindowOrder(counts, window, seed=5)
    found = whole(order, 2)
    for position in range(order.n):
        assert order.indices(np.array([position]), 2)[0] == found[position]
    mixed = np.random.default_rng(0).permutation(order.n)
    assert np.array_equal(WindowOrder(counts, window, 5).indices(mixed, 2), found[mixed])


@pytest.mark.parametrize(("counts", "window"), COUNTS)
@pytest.mark.parametrize("epoch", [None, 0, 4])
def test_numbers_are_places_in_the_stream_of_shards(
    counts: list[int], window: int, epoch: int | None
) -> None:
    order = WindowOrder(counts, window, seed=5)
    shards = order.shards(epoch)
    stream = [(shard, row) for shard in shards.shard for row in range(counts[shard])]
    shard, row = order.locate(np.arange(order.n), epoch)
    assert list(zip(shard, row, strict=True)) == stream
    index = order.first[shard] + row
    assert np.array_equal(order.numbers(index, epoch), np.arange(order.n))
    if epoch is None:
        assert np.array_equal(index, np.arange(order.n))


def test_a_window_holds_what_follows_in_the_stream() -> None:
    """One window in memory is enough, and each shard is read once."""
    for epoch in range(3):
        number = ORDER.numbers(whole(ORDER, epoch), epoch)
        window = np.arange(ORDER.n) // ORDER.window
        assert np.array_equal(number // ORDER.window, window)


def test_orders_of_epochs_seeds_and_windows_differ() -> None:
    made = [WindowOrder([2] * 400, 100, seed) for seed in (0, 1)]
    orders = [whole(order, epoch) for order in made for epoch in (0, 1)]
    shards = [order.shards(epoch).shard.tobytes() for order in made for epoch in (0, 1)]
    assert len({order.tobytes() for order in orders}) == len(set(shards)) == 4
    for a in range(4):
        for b in range(a):
            assert abs(stats.spearmanr(orders[a], orders[b]).statistic) < 0.15
    one = WindowOrder([800], 100, 0)
    inside = one.numbers(whole(one, 0), 0).reshape(8, 100) % 100
    assert len({row.tobytes() for row in inside}) == 8


def test_places_within_windows_are_uniform() -> None:
    """Each sample of a window comes in each eighth of it equally often over the epochs."""
    window, epochs = 128, 240
    order = WindowOrder([2 * window], window, seed=1)
    counts = np.zeros((2 * window, 8))
    for epoch in range(epochs):
        place = np.argsort(whole(order, epoch))
        counts[np.arange(2 * window), place % window // 16] += 1
    expected = epochs / 8
    chi2 = ((counts - expected) ** 2 / expected).sum(axis=1)  # of each sample
    p = stats.chi2.sf(chi2, 7)
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert p.min() > 1e-5


def test_shards_come_at_all_places_equally_often() -> None:
    shards, epochs = 120, 240
    order = WindowOrder([1] * shards, 40, seed=9)
    counts = np.zeros((shards, 8))
    for epoch in range(epochs):
        counts[np.arange(shards), order.shards(epoch).place // 15] += 1
    expected = epochs / 8
    p = stats.chi2.sf(((counts - expected) ** 2 / expected).sum(axis=1), 7)
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert p.min() > 1e-5


def test_epochs_are_independent() -> None:
    """Where a sample comes says nothing of where it comes in the next epoch."""
    window, epochs = 128, 400
    order = WindowOrder([window], window, seed=2)
    places = np.array([np.argsort(whole(order, epoch)) for epoch in range(epochs)]) // 16
    pairs = np.zeros((8, 8))
    for sample in range(0, window, 32):
        np.add.at(pairs, (places[:-1, sample], places[1:, sample]), 1)
    assert stats.chi2_contingency(pairs).pvalue > 0.001


def test_it_is_pinned() -> None:
    """Runs are resumed by it: it may never change."""
    assert WindowOrder([5, 6, 4], 8, seed=1).indices(np.arange(15), 2).tolist() == PINNED
    large = WindowOrder([700] * 300, 400, seed=1)  # by the keyed permutation
    assert large.indices(np.arange(8) * 20_000, 2).tolist() == PINNED_LARGE


PINNED = [3, 2, 0, 4, 7, 5, 1, 6, 8, 14, 10, 13, 12, 9, 11]

PINNED_LARGE = [80178, 98525, 42991, 173562, 151649, 54808, 2703, 29476]


def test_the_plan_takes_it() -> None:
    plan = Plan(n=ORDER.n, batch_size=50, seed=7, world_size=2, rank=1, order=ORDER)
    assert plan.micro(2, 0)[0].tolist() == whole(ORDER, 0)[125:150].tolist()
    state = plan.state()
    assert state["window"] == 64
    for other in (
        WindowOrder([100, 90, 33, 1, 0, 200], 64, seed=3),
        WindowOrder([100, 90, 1, 33, 0, 200], 65, seed=3),
        WindowOrder([100, 90, 1, 33, 0, 200], 64, seed=4),
    ):
        assert state != {**state, **other.describe()}


def test_what_cannot_be_is_refused() -> None:
    for counts, window in (([], 4), ([0, 0], 4), ([3, -1], 4), ([3], 0)):
        with pytest.raises(ValueError, match="impossible order"):
            WindowOrder(counts, window, 0)
    for position in (-1, ORDER.n):
        with pytest.raises(ValueError, match="positions must be in"):
            ORDER.indices(np.array([position]), 0)
