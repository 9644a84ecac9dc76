"""The training objective, computed in ONE forward that DistributedDataParallel wraps.

    loss = mean over the batch of (nll + beta * kl), nats per image

Calling ``ddp.module.encode(...)`` from the loop would skip DDP's gradient averaging without a word;
so the loop only ever calls the objective.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastvae.models import VAE, Posterior


class Objective(nn.Module):
    """Negative ELBO of a VAE. The networks run under autocast, the losses in float32.

    Args:
        model: the VAE.
        free_bits: nats that each latent's batch-mean KL counts at least (Kingma et al. 2016,
            "Improved variational inference with inverse autoregressive flow", appendix C.8). The
            mean is over the micro-batch of a rank, the only batch a forward sees.
        autocast: dtype of the networks, or None for float32.
    """

    def __init__(self, model: VAE, *, free_bits: float, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.model = model
        self.free_bits = free_bits
        self.autocast = autocast

    def forward(self, x: Tensor, eps: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and what to log.

        Shapes: x (B, C, H, W), eps (B, Z) standard normal, beta () float32; returns the loss (),
        and (2, B) float32 without gradient: nll and kl of each sample, in nats.
        """
        nll, kl_latents, _ = self.terms(x, eps)
        kl = kl_latents.sum(dim=1)
        if self.free_bits > 0.0:
            kl_term = kl_latents.mean(dim=0).clamp(min=self.free_bits).sum()
        else:
            kl_term = kl.mean()
        loss = nll.mean() + beta * kl_term
        return loss, torch.stack((nll, kl)).detach()

    def terms(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Posterior]:
        """The parts of the ELBO in nats: nll (B,), KL per latent (B, Z), and the posterior."""
        enabled = self.autocast is not None
        with torch.autocast(x.device.type, dtype=self.autocast, enabled=enabled):
            params, posterior = self.model(x, eps)
        with torch.autocast(x.device.type, enabled=False):
            nll = self.model.likelihood.nll(params, x)
            kl_latents = self.model.prior.kl(posterior.mean, posterior.logvar)
        return nll, kl_latents, posterior
