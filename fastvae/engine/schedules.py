"""Schedules: the learning rate and beta as pure functions of the step.

Nothing to save, nothing to restore: a resumed run computes the same value from the same step.
"""

from __future__ import annotations

import math

from fastvae.config import KLConfig, OptimConfig


def _steps(length: float, unit: str, steps_per_epoch: int) -> float:
    return length * steps_per_epoch if unit == "epoch" else length


def learning_rate(
    config: OptimConfig, step: int, *, total_steps: int, steps_per_epoch: int
) -> float:
    """Learning rate of training step ``step`` (0-based): linear warm-up, then the schedule."""
    warmup = min(_steps(config.warmup, config.unit, steps_per_epoch), float(total_steps))
    if step < warmup:
        return config.lr * (step + 1) / (math.floor(warmup) + 1)
    since = step - warmup
    if config.schedule == "cosine":
        share = min(1.0, since / max(1.0, total_steps - warmup))
        low = config.final_lr
        return config.lr * (low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * share)))
    periods = since / _steps(config.period, config.unit, steps_per_epoch)
    if config.schedule == "step":
        return config.lr * config.gamma ** math.floor(periods)
    if config.schedule == "exponential":
        return config.lr * config.gamma**periods
    return config.lr


def beta(config: KLConfig, step: int, *, total_steps: int, steps_per_epoch: int) -> float:
    """Weight of the KL term at training step ``step`` (0-based)."""
    if config.schedule == "piecewise":
        value = config.start
        for time, then in config.points:
            if step >= _steps(time, config.unit, steps_per_epoch):
                value = then
        return value
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
