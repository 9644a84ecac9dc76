"""The plan: a bijection that looks random, the same stream for any number of ranks.

Everything is keyed, so each of these numbers is the same on every run: no test here can flicker.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from itertools import pairwise, permutations, product
from typing import Literal

import numpy as np
import pytest
from scipy import stats

from fastvae.data.plan import Plan, evaluation_slices, permute
from fastvae.errors import UserError

SIZES = [1, 2, 3, 15, 16, 17, 255, 256, 257, 1000, 4097, 60_000]
Tail = Literal["drop", "wrap"]


def whole(n: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return permute(np.arange(n, dtype=np.int64), n, seed, epoch)


def global_batch(plan: Plan, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and ordinals of one step, put together from all ranks and micro-batches."""
    parts = [
        dataclasses.replace(plan, rank=rank).micro(step, micro)
        for micro in range(plan.accumulate)
        for rank in range(plan.world_size)
    ]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def epoch_indices(plan: Plan, epoch: int) -> np.ndarray:
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    return np.concatenate([global_batch(plan, step)[0] for step in steps])


# ------------------------------------------------------------------------------------- permutation
@pytest.mark.parametrize("n", SIZES)
def test_permute_is_a_bijection(n: int) -> None:
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (2**62, 10**9)):
        order = whole(n, seed, epoch)
        assert order.dtype == np.int64
        assert np.array_equal(np.sort(order), np.arange(n))


@pytest.mark.parametrize("n", [n for n in SIZES if n >= 15])
def test_permute_depends_on_seed_and_epoch(n: int) -> None:
    orders = {whole(n, seed, epoch).tobytes() for seed, epoch in product(range(5), range(5))}
    assert len(orders) == 25
    assert np.array_equal(whole(n, 3, 4), whole(n, 3, 4))


def test_permute_is_pinned() -> None:
    """A change of these numbers would change the stream of every run that is resumed."""
    assert whole(10).tolist() == [2, 9, 5, 1, 4, 0, 6, 7, 8, 3]
    far = np.array([0, 1, 29_999, 59_999], dtype=np.int64)
    assert permute(far, 60_000, 7, 3).tolist() == [7433, 17724, 45156, 22834]


@pytest.mark.parametrize("n", [17, 1000, 4097])
def test_permute_of_some_positions_equals_those_of_all(n: int) -> None:
    """Any position can be computed anywhere: alone, in any order, repeated."""
    order = whole(n, 5, 6)
    chosen = np.array([n - 1, 0, 7, 7, n // 2], dtype=np.int64)
    assert np.array_equal(permute(chosen, n, 5, 6), order[chosen])
    for position in range(0, n, 97):
        alone = permute(np.array([position], dtype=np.int64), n, 5, 6)
        assert alone.tolist() == [order[position]]


def test_permute_leaves_its_argument_alone() -> None:
    positions = np.arange(100, dtype=np.int64)
    permute(positions, 100, 0, 0)
    assert np.array_equal(positions, np.arange(100))
    assert permute(positions[:0], 100, 0, 0).shape == (0,)


def test_permute_of_more_samples_than_memory_could_hold() -> None:
    n = 2**40 + 12345
    got = permute(np.arange(n - 1000, n, dtype=np.int64), n, 0, 0)
    assert len(set(got.tolist())) == 1000
    assert got.min() >= 0
    assert got.max() < n
    assert 0.4 < got.mean() / n < 0.6


@pytest.mark.parametrize(("n", "draws"), [(3, 60), (16, 300), (17, 300), (60, 600)])
@pytest.mark.parametrize("vary", ["seed", "epoch"])
def test_each_sample_is_equally_likely_at_each_position(n: int, draws: int, vary: str) -> None:
    """Chi-square of the position x sample table; its margins are fixed, so (n - 1)^2 degrees."""
    table = np.zeros((n, n))
    for k in range(draws):
        order = whole(n, k, 0) if vary == "seed" else whole(n, 0, k)
        table[np.arange(n), order] += 1
    # Entries of a random permutation matrix have variance (1/n)(1 - 1/n): the sum of squares over
    # expected counts is (n - 1)/n too small per degree, hence the factor.
    chi2 = ((table - draws / n) ** 2 / (draws / n)).sum() * (n - 1) / n
    assert 1e-3 < stats.chi2.sf(chi2, (n - 1) ** 2) < 1 - 1e-3


@pytest.mark.parametrize("position", [0, 299])
def test_positions_are_uniform_in_a_larger_set(position: int) -> None:
    at = np.array([position], dtype=np.int64)
    found = [int(permute(at, 300, seed, epoch)[0]) for seed in range(30) for epoch in range(80)]
    assert 1e-3 < stats.chisquare(np.bincount(found, minlength=300)).pvalue < 1 - 1e-3


def test_all_orders_of_four_samples_are_equally_likely() -> None:
    seen = Counter(tuple(whole(4, seed, epoch)) for seed in range(10) for epoch in range(24))
    counts = [seen[order] for order in permutations(range(4))]
    assert sum(counts) == 240
    assert 1e-3 < stats.chisquare(counts).pvalue < 1 - 1e-3


@pytest.mark.parametrize("n", [1000, 4097, 60_000])
def test_position_and_sample_are_uncorrelated(n: int) -> None:
    rows = [np.arange(n), *(whole(n, 0, epoch) for epoch in range(4)), whole(n, 1, 0)]
    correlation = np.corrcoef(rows)
    off_diagonal = correlation[~np.eye(len(rows), dtype=bool)]
    assert np.abs(off_diagonal).max() < 4 / math.sqrt(n)


@pytest.mark.parametrize("n", [255, 1000])
def test_epochs_share_as_few_places_as_chance_gives(n: int) -> None:
    """Fixed points between epochs, and neighbours that stay neighbours: one each, on average."""
    epochs = 300
    orders = [whole(n, 7, epoch) for epoch in range(epochs + 1)]
    same = sum(int((a == b).sum()) for a, b in pairwise(orders))
    fixed = sum(int((order == np.arange(n)).sum()) for order in orders[:-1])
    follow = sum(int((np.diff(order) == 1).sum()) for order in orders[:-1])
    for count in (same, fixed, follow):
        assert abs(count - epochs) < 4 * math.sqrt(epochs)


def test_batches_of_a_sorted_set_are_mixed() -> None:
    """Files often come sorted by class: each batch must hold each class in proportion."""
    plan = Plan(n=10_000, batch_size=500, seed=0)
    label = np.arange(10_000) // 1000
    worst = min(
        stats.chisquare(np.bincount(label[global_batch(plan, step)[0]], minlength=10)).pvalue
        for step in range(100)
    )
    assert worst > 1e-4


# -------------------------------------------------------------------------------------------- plan
@pytest.mark.parametrize(("n", "batch"), [(1, 1), (10, 10), (100, 7), (257, 64), (1000, 24)])
@pytest.mark.parametrize("epoch", [0, 3])
def test_drop_takes_each_sample_at_most_once(n: int, batch: int, epoch: int) -> None:
    plan = Plan(n=n, batch_size=batch, seed=1)
    assert plan.steps_per_epoch == n // batch
    found = epoch_indices(plan, epoch)
    assert len(found) == n // batch * batch
    assert len(set(found.tolist())) == len(found)
    assert found.min() >= 0
    assert found.max() < n


@pytest.mark.parametrize(
    ("n", "batch"), [(1, 1), (10, 10), (100, 7), (257, 64), (1000, 24), (5, 12), (1, 4)]
)
@pytest.mark.parametrize("epoch", [0, 3])
def test_wrap_takes_each_sample_and_repeats_the_start(n: int, batch: int, epoch: int) -> None:
    plan = Plan(n=n, batch_size=batch, seed=1, tail="wrap")
    assert plan.steps_per_epoch == -(-n // batch)
    found = epoch_indices(plan, epoch)
    assert np.array_equal(np.sort(found[:n]), np.arange(n))
    assert np.array_equal(found[n:], np.resize(found[:n], len(found) - n))


def test_dropped_samples_change_with_the_epoch() -> None:
    plan = Plan(n=100, batch_size=64, seed=0)
    seen = {i for epoch in range(15) for i in epoch_indices(plan, epoch).tolist()}
    assert seen == set(range(100))


@pytest.mark.parametrize("tail", ["drop", "wrap"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("world_size", range(1, 9))
def test_any_world_sees_the_same_stream(world_size: int, accumulate: int, tail: Tail) -> None:
    """Not only the same set: laid out round by round and rank by rank, the very same order."""
    one = Plan(n=4000, batch_size=1680, seed=3, tail=tail)
    many = dataclasses.replace(one, world_size=world_size, accumulate=accumulate)
    assert many.steps_per_epoch == one.steps_per_epoch
    assert many.micro_batch * world_size * accumulate == 1680
    for step in (0, 1, 2, 3, 1000):
        index, ordinal = global_batch(many, step)
        expected_index, expected_ordinal = global_batch(one, step)
        assert np.array_equal(index, expected_index)
        assert np.array_equal(ordinal, expected_ordinal)


def test_more_micro_batches_than_ranks() -> None:
    one = Plan(n=100, batch_size=24, seed=0)
    for world_size, accumulate in ((1, 24), (2, 12), (3, 8), (24, 1)):
        many = dataclasses.replace(one, world_size=world_size, accumulate=accumulate)
        for got, expected in zip(global_batch(many, 5), global_batch(one, 5), strict=True):
            assert np.array_equal(got, expected)


@pytest.mark.parametrize("tail", ["drop", "wrap"])
def test_ordinals_number_the_stream_without_gaps(tail: Tail) -> None:
    plan = Plan(n=50, batch_size=12, seed=0, world_size=2, accumulate=3, tail=tail)
    ordinals = np.concatenate([global_batch(plan, step)[1] for step in range(20)])
    assert ordinals.dtype == np.int64
    assert np.array_equal(np.sort(ordinals), np.arange(240))


def test_equal_steps_and_sizes_on_each_rank() -> None:
    for world_size in range(1, 9):
        plan = Plan(n=3001, batch_size=840, seed=0, world_size=world_size)
        ranks = [dataclasses.replace(plan, rank=rank) for rank in range(world_size)]
        assert {rank.steps_per_epoch for rank in ranks} == {3}
        sizes = {len(rank.micro(2, 0)[0]) for rank in ranks}
        assert sizes == {840 // world_size}


@pytest.mark.parametrize("first", [1, 3, 4, 17, 40])
def test_resuming_at_any_step_repeats_the_stream(first: int) -> None:
    """In another world as well: the state is the step number alone."""
    make = {"n": 100, "batch_size": 24, "seed": 9}
    before = Plan(**make, world_size=2)  # type: ignore[arg-type]
    stream = [global_batch(before, step) for step in range(45)]
    after = Plan(**make, world_size=4, accumulate=3)  # type: ignore[arg-type]
    assert after.state() == before.state()
    for step in range(first, 45):
        index, ordinal = global_batch(after, step)
        assert np.array_equal(index, stream[step][0])
        assert np.array_equal(ordinal, stream[step][1])


def test_state_names_what_the_stream_depends_on() -> None:
    plan = Plan(n=100, batch_size=24, seed=9)
    base = plan.state()
    for change in ({"n": 101}, {"batch_size": 12}, {"seed": 8}, {"tail": "wrap"}):
        assert dataclasses.replace(plan, **change).state() != base


def test_late_steps_cost_what_early_ones_do() -> None:
    plan = Plan(n=60_000, batch_size=128, seed=0, world_size=2, rank=1)
    for step in (10**9, 2**40, 10**15):
        index, ordinal = plan.micro(step, 0)
        assert len(set(index.tolist())) == 64
        assert index.min() >= 0
        assert index.max() < 60_000
        assert ordinal.tolist() == list(range(step * 128 + 64, step * 128 + 128))
    epoch = 10**9 // plan.steps_per_epoch
    found = [plan.micro(epoch * 468 + step, 0)[0] for step in range(468)]
    assert len(np.unique(np.concatenate(found))) == 468 * 64


@pytest.mark.parametrize(
    ("batch", "world_size", "accumulate", "fixes"),
    [
        (64, 3, 1, ("3 ranks", "multiple of 3", "63")),
        (10, 2, 4, ("2 ranks x 4 micro-batches", "multiple of 8", "8")),
        (3, 4, 1, ("4 ranks", "multiple of 4", "4")),
    ],
)
def test_indivisible_batch(
    batch: int, world_size: int, accumulate: int, fixes: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as error:
        Plan(n=100, batch_size=batch, seed=0, world_size=world_size, accumulate=accumulate)
    said = str(error.value)
    assert f"batch_size = {batch} cannot be split" in said
    assert all(fix in said for fix in fixes), said
    example = int(said.rpartition("e.g. ")[2])
    Plan(n=100, batch_size=example, seed=0, world_size=world_size, accumulate=accumulate)


def test_batch_larger_than_the_set() -> None:
    with pytest.raises(UserError, match="batch_size = 11 is larger than the training set") as error:
        Plan(n=10, batch_size=11, seed=0)
    assert "10 images" in str(error.value)
    assert "--batch-size" in str(error.value)
    assert "--data.tail wrap" in str(error.value)
    assert Plan(n=10, batch_size=11, seed=0, tail="wrap").steps_per_epoch == 1


# -------------------------------------------------------------------------------------- evaluation
@pytest.mark.parametrize("world_size", range(1, 6))
@pytest.mark.parametrize("n", [0, 1, 2, 7, 99, 100, 101, 500])
@pytest.mark.parametrize("batch", [1, 10, 64])
def test_evaluation_counts_each_sample_once(n: int, batch: int, world_size: int) -> None:
    ranks = [evaluation_slices(n, batch, world_size, rank) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    assert len(ranks[0]) == -(-n // (batch * world_size))
    counted: list[int] = []
    for index, weight in (pair for rank in ranks for pair in rank):
        assert index.dtype == np.int64
        assert weight.dtype == np.float32
        assert index.shape == weight.shape == (batch,)
        assert set(weight.tolist()) <= {0.0, 1.0}
        assert ((index >= 0) & (index < n)).all()
        assert (index[weight == 0] == n - 1).all()
        counted += index[weight == 1].tolist()
    assert sorted(counted) == list(range(n))


def test_evaluation_on_one_rank_is_in_order() -> None:
    slices = evaluation_slices(25, 10, 1, 0)
    index = np.concatenate([s[0] for s in slices])
    weight = np.concatenate([s[1] for s in slices])
    assert index[weight == 1].tolist() == list(range(25))
    assert weight.sum() == 25
