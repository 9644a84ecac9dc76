"""Learning rate and beta: exact values at chosen steps, the same for the same step."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from fastvae.config import KLConfig, ObjectiveConfig, OptimConfig
from fastvae.engine import schedules
from fastvae.errors import UserError

TOTAL, PER_EPOCH = 100, 10


def rate(step: int, total: int = TOTAL, **fields: Any) -> float:
    config = OptimConfig(**{"lr": 2.0, "unit": "step", **fields})
    return schedules.learning_rate(config, step, total_steps=total, steps_per_epoch=PER_EPOCH)


def weight(step: int, total: int = TOTAL, **fields: Any) -> float:
    config = KLConfig(**{"unit": "step", **fields})
    return schedules.beta(config, step, total_steps=total, steps_per_epoch=PER_EPOCH)


# ---------------------------------------------------------------------------------- learning rate
@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "exponential"])
def test_warmup_is_linear_and_ends_at_the_peak(schedule: str) -> None:
    values = [rate(s, schedule=schedule, warmup=4.0) for s in range(5)]
    assert values == pytest.approx([2.0 * (s + 1) / 5 for s in range(5)])
    assert rate(5, schedule=schedule, warmup=4.0) <= 2.0


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "exponential"])
def test_without_warmup_the_first_step_has_the_peak(schedule: str) -> None:
    assert rate(0, schedule=schedule, warmup=0.0) == 2.0


def test_fractional_warmup_rises_and_never_passes_the_peak() -> None:
    values = [rate(s, schedule="constant", warmup=2.5) for s in range(5)]
    assert values == pytest.approx([2 / 3, 4 / 3, 2.0, 2.0, 2.0])


def test_cosine() -> None:
    fields = {"schedule": "cosine", "warmup": 20.0, "final_lr": 0.1}
    assert rate(20, **fields) == 2.0
    assert rate(60, **fields) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert rate(40, **fields) == pytest.approx(
        2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    )
    assert rate(100, **fields) == pytest.approx(0.2)
    assert rate(99, **fields) == pytest.approx(0.2, abs=2e-3)
    assert rate(5000, **fields) == pytest.approx(0.2)
    falling = [rate(s, **fields) for s in range(20, 101)]
    assert falling == sorted(falling, reverse=True)


def test_piecewise_rates_hold_from_their_points_on() -> None:
    fields = {"schedule": "piecewise", "rates": ((1.0, 0.5), (4.0, 0.1)), "warmup": 0.0}
    steps = [rate(s, **fields) for s in range(6)]
    assert steps == pytest.approx([2.0, 1.0, 1.0, 1.0, 0.2, 0.2])
    epochs = [rate(s, unit="epoch", **fields) for s in (9, 10, 39, 40, 4000)]
    assert epochs == pytest.approx([2.0, 1.0, 1.0, 0.2, 0.2])
    warm = [rate(s, **fields | {"warmup": 2.0}) for s in range(4)]
    assert warm == pytest.approx([2 / 3, 4 / 3, 1.0, 1.0])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"schedule": "piecewise"}, "ascending"),
        ({"schedule": "piecewise", "rates": ((2.0, 0.5), (2.0, 0.1))}, "ascending"),
        ({"schedule": "piecewise", "rates": ((2.0, 0.0),)}, "shares above 0"),
        ({"schedule": "cosine", "rates": ((2.0, 0.5),)}, "--optim.schedule piecewise"),
    ],
)
def test_rates_that_make_no_sense(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=f"optim.rates.*{expected}"):
        rate(0, **fields)


def test_step_decay_changes_exactly_at_the_period() -> None:
    fields = {"schedule": "step", "warmup": 5.0, "period": 20.0, "gamma": 0.1}
    assert [rate(s, **fields) for s in (5, 24)] == [2.0, 2.0]
    assert [rate(s, **fields) for s in (25, 44)] == pytest.approx([0.2, 0.2])
    assert rate(45, **fields) == pytest.approx(0.02)


def test_exponential_decay_is_smooth() -> None:
    fields = {"schedule": "exponential", "warmup": 0.0, "period": 20.0, "gamma": 0.25}
    assert rate(20, **fields) == pytest.approx(0.5)
    assert rate(10, **fields) == pytest.approx(1.0)
    assert rate(1, **fields) == pytest.approx(2.0 * 0.25 ** (1 / 20))


def test_constant_stays() -> None:
    assert {rate(s, schedule="constant", warmup=0.0) for s in (0, 50, 99)} == {2.0}


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "exponential"])
def test_epochs_are_steps_times_steps_per_epoch(schedule: str) -> None:
    in_steps = {"schedule": schedule, "warmup": 15.0, "period": 25.0, "unit": "step"}
    in_epochs = {"schedule": schedule, "warmup": 1.5, "period": 2.5, "unit": "epoch"}
    for step in range(TOTAL):
        assert rate(step, **in_steps) == pytest.approx(rate(step, **in_epochs))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "exponential"])
def test_warmup_longer_than_the_run_fills_the_run(schedule: str) -> None:
    values = [rate(s, total=8, schedule=schedule, warmup=50.0) for s in range(8)]
    assert values == pytest.approx([2.0 * (s + 1) / 9 for s in range(8)])


def test_one_step_run_is_finite() -> None:
    for schedule in ("constant", "cosine", "step", "exponential"):
        for warmup in (0.0, 0.5, 1.0, 10.0):
            value = rate(0, total=1, schedule=schedule, warmup=warmup)
            assert 0.0 < value <= 2.0


# ---------------------------------------------------------------------------------- beta
def test_constant_beta() -> None:
    assert {weight(s, beta=0.3) for s in (0, 1, 99)} == {0.3}


def test_linear_beta() -> None:
    fields = {"schedule": "linear", "beta": 4.0, "start": 1.0, "warmup": 30.0}
    assert weight(0, **fields) == 1.0
    assert weight(10, **fields) == pytest.approx(2.0)
    assert weight(29, **fields) == pytest.approx(1.0 + 3.0 * 29 / 30)
    assert [weight(s, **fields) for s in (30, 31, 99)] == [4.0] * 3


def test_cosine_beta() -> None:
    fields = {"schedule": "cosine", "beta": 4.0, "start": 1.0, "warmup": 40.0}
    assert weight(0, **fields) == 1.0
    assert weight(20, **fields) == pytest.approx(2.5)
    assert weight(10, **fields) == pytest.approx(1.0 + 1.5 * (1 - math.sqrt(0.5)))
    assert weight(40, **fields) == pytest.approx(4.0)
    assert weight(90, **fields) == pytest.approx(4.0)


def test_a_ramp_may_fall() -> None:
    fields = {"schedule": "linear", "beta": 0.5, "start": 1.5, "warmup": 10.0}
    assert [weight(s, **fields) for s in (0, 5, 10)] == pytest.approx([1.5, 1.0, 0.5])


def test_cyclical_beta_follows_fu_et_al() -> None:
    """Their equation 6: with tau = position in the cycle, beta = tau / R up to R, then 1."""
    fields = {"schedule": "cyclical", "beta": 1.0, "cycles": 4, "ramp": 0.5}
    for step in range(TOTAL):
        tau = (step % 25) / 25
        assert weight(step, **fields) == pytest.approx(min(1.0, tau / 0.5)), step
    assert [weight(s, **fields) for s in (0, 25, 50, 75)] == [0.0] * 4
    assert [weight(s, **fields) for s in (13, 24, 99)] == [1.0] * 3


def test_cyclical_beta_ramps_between_start_and_beta() -> None:
    fields = {"schedule": "cyclical", "beta": 3.0, "start": 1.0, "cycles": 2, "ramp": 1.0}
    assert [weight(s, **fields) for s in (0, 25, 49, 50, 75)] == pytest.approx(
        [1.0, 2.0, 1.0 + 2.0 * 49 / 50, 1.0, 2.0]
    )


def test_cyclical_beta_with_cycles_of_broken_length() -> None:
    fields = {"schedule": "cyclical", "beta": 1.0, "cycles": 3, "ramp": 0.5}
    values = [weight(s, total=10, **fields) for s in range(10)]
    expected = [min(1.0, (s % (10 / 3)) / (10 / 3) / 0.5) for s in range(10)]
    assert values == pytest.approx(expected)
    assert sum(a > b for a, b in itertools.pairwise(values)) == 2  # two restarts


def test_piecewise_beta() -> None:
    fields = {"schedule": "piecewise", "start": 0.25, "points": ((10.0, 0.5), (20.0, 0.1))}
    assert [weight(s, **fields) for s in (0, 9)] == [0.25, 0.25]
    assert [weight(s, **fields) for s in (10, 19)] == [0.5, 0.5]
    assert [weight(s, **fields) for s in (20, 99)] == [0.1, 0.1]


def test_piecewise_point_at_zero_replaces_the_start() -> None:
    assert weight(0, schedule="piecewise", start=9.0, points=((0.0, 0.5),)) == 0.5


def test_beta_in_epochs() -> None:
    ramp = {"schedule": "linear", "beta": 1.0}
    steps = {"schedule": "piecewise", "start": 0.0}
    for step in range(TOTAL):
        assert weight(step, warmup=2.0, unit="epoch", **ramp) == pytest.approx(
            weight(step, warmup=20.0, unit="step", **ramp)
        )
        assert weight(step, points=((1.5, 1.0),), unit="epoch", **steps) == weight(
            step, points=((15.0, 1.0),), unit="step", **steps
        )


def test_every_cycle_restarts_exactly() -> None:
    """A float remainder would give the end of the ramp at some of these steps."""
    for total in range(10, 200):
        for cycles in range(2, 8):
            config = KLConfig(schedule="cyclical", cycles=cycles, start=0.1)
            for step in (s for s in range(total) if s * cycles % total == 0):
                value = schedules.beta(config, step, total_steps=total, steps_per_epoch=10)
                assert value == 0.1, (total, cycles, step)


def test_schedules_have_no_memory() -> None:
    optim = OptimConfig(schedule="cosine", warmup=1.0)
    kl = KLConfig(schedule="cyclical")
    sizes = {"total_steps": TOTAL, "steps_per_epoch": PER_EPOCH}

    def both(step: int) -> tuple[float, float]:
        return (
            schedules.learning_rate(optim, step, **sizes),
            schedules.beta(kl, step, **sizes),
        )

    forwards = [both(s) for s in range(TOTAL)]
    backwards = [both(s) for s in reversed(range(TOTAL))]
    assert forwards == backwards[::-1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "piecewise"}, "at least one"),
        ({"schedule": "piecewise", "points": ((2.0, 1.0), (1.0, 1.0))}, "ascending"),
        ({"schedule": "linear", "points": ((1.0, 1.0),), "warmup": 1.0}, "kl.schedule=piecewise"),
        ({"schedule": "linear"}, "kl.warmup"),
        ({"schedule": "cyclical", "ramp": 0.0}, "kl.ramp"),
        ({"schedule": "cyclical", "cycles": 0}, "kl.cycles"),
    ],
)
def test_schedules_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        KLConfig(**fields)


# ------------------------------------------------------------------------------- lines and capacity
def test_straight_lines_between_points() -> None:
    points = ((10.0, 0.5), (20.0, 1.0), (30.0, 1.0), (30.0, 3.0))
    values = [weight(s, schedule="lines", points=points) for s in (0, 10, 15, 20, 29, 30, 99)]
    assert values == [0.5, 0.5, 0.75, 1.0, 1.0, 3.0, 3.0]
    with pytest.raises(UserError, match="ascending"):
        KLConfig(schedule="lines", points=((3.0, 0.0), (2.0, 1.0)))
    with pytest.raises(UserError, match="ascending"):
        KLConfig(schedule="piecewise", points=((3.0, 0.0), (3.0, 1.0)))


def test_capacity_grows_over_its_epochs() -> None:
    def capacity(step: int, **fields: Any) -> float:
        return schedules.capacity(ObjectiveConfig(**fields), step, steps_per_epoch=PER_EPOCH)

    values = [capacity(s, capacity=8.0, capacity_warmup=2.0) for s in (0, 5, 10, 20, 21)]
    assert values == [0.0, 2.0, 4.0, 8.0, 8.0]
    assert capacity(0, capacity=8.0) == 8.0


def test_the_peak_can_be_a_stages_own() -> None:
    config = OptimConfig(lr=2.0, schedule="cosine", warmup=0.0)
    plain = [
        schedules.learning_rate(config, s, total_steps=TOTAL, steps_per_epoch=PER_EPOCH)
        for s in range(TOTAL)
    ]
    scaled = [
        schedules.learning_rate(config, s, total_steps=TOTAL, steps_per_epoch=PER_EPOCH, peak=0.5)
        for s in range(TOTAL)
    ]
    assert scaled == pytest.approx([v / 4 for v in plain])
