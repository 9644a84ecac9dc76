"""What objectives are given and what they give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from fastvae.config import ObjectiveConfig


@dataclass(frozen=True)
class Settings:
    """What an objective needs besides the batch."""

    config: ObjectiveConfig
    beta: Tensor
    """() weight of the KL term in this step."""
    capacity: Tensor
    """() nats that the KL is drawn towards in this step, when ``config.capacity`` is set."""
    free_bits: float
    scale: float
    """Factor of the loss."""
    images: int
    """Size of the training set (tc)."""
    rng: Tensor
    """(2,) int64, the noise state that the posterior was drawn with (mmd)."""
    sample_offset: int
    """Number of the first row of latents, added to the state's counter."""


class Terms(NamedTuple):
    """What an objective gives."""

    loss: Tensor
    """() with gradient, times ``scale``."""
    nll: Tensor
    """(B,) -log p(x|z) of each image in nats, mean over its samples; without gradient."""
    kl: Tensor
    """(B,) KL(q || p) of each image in nats, mean over its samples; without gradient."""


def by_image(rows: Tensor, samples: int) -> Tensor:
    """Means over the samples of each image. Shapes: (B * samples,) -> (B,)."""
    return rows.view(-1, samples).mean(dim=1)
