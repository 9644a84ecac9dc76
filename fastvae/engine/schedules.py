"""Schedules: the learning rate and beta as pure functions of the step.

Nothing to save, nothing to restore: a resumed run computes the same value from the same step.
"""

from __future__ import annotations

import itertools
import math

from fastvae.config import KLConfig, ObjectiveConfig, OptimConfig


def _steps(length: float, unit: str, steps_per_epoch: int) -> float:
    return length * steps_per_epoch if unit == "epoch" else length


def learning_rate(
    config: OptimConfig,
    step: int,
    *,
    total_steps: int,
    steps_per_epoch: int,
    peak: float | None = None,
) -> float:
    """Learning rate of training step ``step`` (0-based): linear warm-up, then the schedule.

    Args:
        peak: rate at the top, in place of the configured one.
    """
    lr = config.lr if peak is None else peak
    warmup = min(_steps(config.warmup, config.unit, steps_per_epoch), float(total_steps))
    if step < warmup:
        return lr * (step + 1) / (math.floor(warmup) + 1)
    since = step - warmup
    if config.schedule == "cosine":
        share = min(1.0, since / max(1.0, total_steps - warmup))
        low = config.final_lr
        return lr * (low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * share)))
    if config.schedule == "piecewise":
        shares = [s for t, s in config.rates if step >= _steps(t, config.unit, steps_per_epoch)]
        return lr * (shares[-1] if shares else 1.0)
    periods = since / _steps(config.period, config.unit, steps_per_epoch)
    if config.schedule == "step":
        return lr * config.gamma ** math.floor(periods)
    if config.schedule == "exponential":
        return lr * config.gamma**periods
    return lr


def beta(config: KLConfig, step: int, *, total_steps: int, steps_per_epoch: int) -> float:
    """Weight of the KL term at training step ``step`` (0-based)."""
    if config.schedule == "piecewise":
        value = config.start
        for time, then in config.points:
            if step >= _steps(time, config.unit, steps_per_epoch):
                value = then
        return value
    if config.schedule == "lines":
        return _on_lines(config, step, steps_per_epoch)
    if config.schedule == "cyclical":
        # Fu et al. (2019), "Cyclical annealing schedule": ramp up, then hold, in each cycle.
        # In integers: the float remainder of a cycle's first step can come out as a whole cycle.
        within = (step * config.cycles % total_steps) / total_steps
        share = min(1.0, within / config.ramp)
        return config.start + (config.beta - config.start) * share
    if config.schedule in ("linear", "cosine"):
        share = min(1.0, step / _steps(config.warmup, config.unit, steps_per_epoch))
        if config.schedule == "cosine":
            share = 0.5 * (1.0 - math.cos(math.pi * share))
        return config.start + (config.beta - config.start) * share
    return config.beta


def _on_lines(config: KLConfig, step: int, steps_per_epoch: int) -> float:
    """Where the straight lines between the points are at this step; flat before and after them."""
    corners = [(_steps(time, config.unit, steps_per_epoch), value) for time, value in config.points]
    if step < corners[0][0]:
        return corners[0][1]
    for (before, low), (after, high) in itertools.pairwise(corners):
        if before <= step < after:
            return low + (high - low) * (step - before) / (after - before)
    return corners[-1][1]


def capacity(config: ObjectiveConfig, step: int, *, steps_per_epoch: int) -> float:
    """Nats that the KL is drawn towards at training step ``step`` (0-based)."""
    ramp = config.capacity_warmup * steps_per_epoch
    return config.capacity * (min(1.0, step / ramp) if ramp > 0 else 1.0)
