"""Exponential moving average of the weights (Polyak and Juditsky 1992), for evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class EMA:
    """Shadow weights: shadow <- d * shadow + (1 - d) * weight after each step.

    The decay starts low, d = min(decay, (1 + t) / (10 + t)), so that the first random weights are
    soon forgotten. Decay 0 switches the average off and costs nothing.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.shadow = [p.detach().clone() for p in model.parameters()] if decay > 0 else []

    @property
    def active(self) -> bool:
        return self.decay > 0.0

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after training step ``step`` (0-based)."""
        if self.active:
            decay = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.shadow, list(self.model.parameters()), 1.0 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model holds the averaged weights. Storage is swapped, nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        if not self.active:
            return
        for i, param in enumerate(self.model.parameters()):
            self.shadow[i], param.data = param.data, self.shadow[i]

    def state_dict(self) -> dict[str, Tensor]:
        """A full model state with the averaged weights; empty when off."""
        if not self.active:
            return {}
        with self.applied():
            return {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        names = [name for name, _ in self.model.named_parameters()]
        for shadow, name in zip(self.shadow, names, strict=True):
            shadow.copy_(state[name])
