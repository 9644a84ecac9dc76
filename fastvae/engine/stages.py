"""Stages of a training: which steps belong to which, and what changes with them."""

from __future__ import annotations

from dataclasses import dataclass

from fastvae.config import Config, KLConfig, StageConfig
from fastvae.engine import schedules


@dataclass(frozen=True)
class Stage:
    """One stage, in steps of the whole training."""

    number: int
    first: int
    """Its first step."""
    steps: int
    steps_per_epoch: int
    config: Config
    settings: StageConfig

    @property
    def end(self) -> int:
        """The step after its last one."""
        return self.first + self.steps

    @property
    def kl(self) -> KLConfig:
        return self.settings.kl

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a training step."""
        return schedules.learning_rate(
            self.config.optim,
            step - self.first,
            total_steps=self.steps,
            steps_per_epoch=self.steps_per_epoch,
            peak=self.settings.lr,
        )

    def beta_at(self, step: int) -> float:
        """Weight of the KL term at a training step."""
        return schedules.beta(
            self.kl,
            step - self.first,
            total_steps=self.steps,
            steps_per_epoch=self.steps_per_epoch,
        )

    def capacity_at(self, step: int) -> float:
        """Nats that the KL is drawn towards at a training step."""
        return schedules.capacity(
            self.config.objective, step - self.first, steps_per_epoch=self.steps_per_epoch
        )


def plan_stages(config: Config, steps_per_epoch: int) -> tuple[Stage, ...]:
    """The stages of a training; without a list, the one that the other sections describe."""
    if not config.stages:
        steps = config.max_steps or config.epochs * steps_per_epoch
        whole = StageConfig(epochs=config.epochs, lr=config.optim.lr, kl=config.kl)
        return (Stage(0, 0, steps, steps_per_epoch, config, whole),)
    stages, first = [], 0
    for number, settings in enumerate(config.stages):
        steps = settings.epochs * steps_per_epoch
        stages.append(Stage(number, first, steps, steps_per_epoch, config, settings))
        first += steps
    return tuple(stages)
