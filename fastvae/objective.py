"""The training objective, computed in ONE forward that DistributedDataParallel wraps.

    loss = mean over the batch of (nll + beta * kl), nats per image

Calling ``ddp.module.encode(...)`` from the loop would skip DDP's gradient averaging without a word;
so the loop only ever calls the objective.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastvae.models import VAE, LossWeights


class Objective(nn.Module):
    """Negative ELBO of a VAE. The networks run under autocast, the losses in float32.

    Args:
        model: the VAE.
        free_bits: nats that each latent's batch-mean KL counts at least (Kingma et al. 2016,
            "Improved variational inference with inverse autoregressive flow", appendix C.8). The
            mean is over the micro-batch of a rank, the only batch a forward sees.
        autocast: dtype of the networks, or None for float32.
        scale: factor of the loss, 1 / micro-batches per step. It belongs here: the gradient of the
            loss is written in the forward pass, where a factor costs nothing.
    """

    def __init__(
        self,
        model: VAE,
        *,
        free_bits: float,
        autocast: torch.dtype | None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.free_bits = free_bits
        self.autocast = autocast
        self.scale = scale

    def forward(
        self, x: Tensor, rng: Tensor, sample_offset: int, beta: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss and what to log.

        Args:
            x: (B, C, H, W) images.
            rng: (2,) int64, noise state (see ``ops.rng_state``).
            sample_offset: number of the first image, added to the state's counter.
            beta: () float32, weight of the KL term.

        Returns:
            The loss () times ``scale``, and (2, B) float32 without gradient: nll and kl of each
            image, in nats.
        """
        enabled = self.autocast is not None
        with torch.autocast(x.device.type, dtype=self.autocast, enabled=enabled):
            params, draw = self.model(x, rng, sample_offset)
        weights = LossWeights(beta=beta, free_bits=self.free_bits, scale=self.scale)
        out = self.model.likelihood.elbo(params, x, draw, weights)
        return out.loss, torch.stack((out.nll, out.kl))
