"""The training objective, computed in ONE forward that DistributedDataParallel wraps.

Calling ``ddp.module.encode(...)`` from the loop would skip DDP's gradient averaging without a word;
so the loop only ever calls the objective. The formulas are in ``fastvae/objectives/``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastvae.config import ModelConfig, ObjectiveConfig
from fastvae.errors import UserError
from fastvae.models import Inputs, Model
from fastvae.objectives import OBJECTIVES, Settings


class Objective(nn.Module):
    """Loss of a model on a batch. The networks run under autocast, the losses in float32.

    Args:
        model: the model.
        config: which objective.
        free_bits: nats that each latent's batch-mean KL counts at least. The mean is over the
            micro-batch of a rank, the only batch a forward sees.
        autocast: dtype of the networks, or None for float32.
        scale: factor of the loss, 1 / micro-batches per step. It belongs here: the gradient of the
            loss is written in the forward pass, where a factor costs nothing.
        images: size of the training set (what ``tc`` needs).
    """

    def __init__(
        self,
        model: Model,
        config: ObjectiveConfig | None = None,
        *,
        free_bits: float = 0.0,
        autocast: torch.dtype | None = None,
        scale: float = 1.0,
        images: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config or ObjectiveConfig()
        self.free_bits = free_bits
        self.autocast = autocast
        self.scale = scale
        self.images = images
        _check(model.config, self.config, free_bits)
        if self.config.kind == "tc" and images < 1:
            raise ValueError("objective.kind 'tc' needs images, the size of the training set")

    def forward(
        self,
        inputs: Inputs,
        rng: Tensor,
        sample_offset: int,
        beta: Tensor,
        capacity: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss and what to log.

        Args:
            inputs: the batch.
            rng: (2,) int64, noise state (see ``ops.rng_state``).
            sample_offset: number of the first image, added to the state's counter. With K samples
                per image both count samples: the state's counter is K times an image's number.
            beta: () float32, weight of the KL term.
            capacity: () float32, where ``config.capacity`` is set.

        Returns:
            The loss () times ``scale``, and (2, B) float32 without gradient: nll and kl of each
            image, in nats.
        """
        samples = self.config.samples
        enabled = self.autocast is not None
        with torch.autocast(inputs.x.device.type, dtype=self.autocast, enabled=enabled):
            out = self.model(inputs, rng, sample_offset * samples, samples)
        settings = Settings(
            config=self.config,
            beta=beta,
            capacity=torch.full_like(beta, self.config.capacity) if capacity is None else capacity,
            free_bits=self.free_bits,
            scale=self.scale,
            images=self.images,
            rng=rng,
            sample_offset=sample_offset * samples,
        )
        with torch.autocast(inputs.x.device.type, enabled=False):  # the caller's
            terms = OBJECTIVES[self.config.kind](self.model, out, inputs, settings)
        return terms.loss, torch.stack((terms.nll, terms.kl))


def _check(model: ModelConfig, config: ObjectiveConfig, free_bits: float) -> None:
    """Objectives that a model cannot be trained with are refused before training."""
    if model.kind != "vae" and config.kind != "elbo":
        raise UserError(
            f"objective.kind = {config.kind!r} needs a model with one Gaussian posterior, which "
            f"model.kind = {model.kind!r} has not: use --objective.kind elbo"
        )
    if model.kind != "vae" and config.samples > 1:
        raise UserError(f"objective.samples = {config.samples}: {model.kind} models take 1")
    if free_bits > 0.0 and (config.kind in ("iwae", "tc") or config.capacity):
        what = f"kind = {config.kind!r}" if config.capacity == 0.0 else "capacity"
        raise UserError(
            f"kl.free_bits = {free_bits:g} does not go with objective.{what}: set it to 0"
        )
    if free_bits > 0.0 and (model.prior in ("mog", "vamp") or model.kind == "vq"):
        what = f"prior {model.prior!r}" if model.kind == "vae" else f"kind {model.kind!r}"
        raise UserError(
            f"kl.free_bits = {free_bits:g} needs a KL for each latent, which model.{what} does not "
            "give: set kl.free_bits to 0"
        )
