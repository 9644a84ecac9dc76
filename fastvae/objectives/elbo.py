"""The evidence lower bound, its weight beta, free bits and capacity.

    loss = mean over the batch of (nll + beta * kl), nats per image

Kingma and Welling (2014); beta: Higgins et al., "beta-VAE" (2017); capacity: Burgess et al.,
"Understanding disentangling in beta-VAE" (2018), equation 8, loss = nll + beta |kl - C|.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.models import Inputs, LossWeights, Model, Pass
from fastvae.objectives.terms import Settings, Terms, by_image


def elbo(model: Model, out: Pass, inputs: Inputs, settings: Settings) -> Terms:
    """nll + beta KL, with free bits or a capacity (Kingma and Welling 2014, Higgins et al. 2017).

    With one sample per image the gradient is written in the forward pass, in one kernel with the
    likelihood.
    """
    capacity = settings.config.capacity > 0.0
    if settings.config.samples > 1:
        terms = _averaged(model, out, inputs, settings)
    else:
        beta = torch.zeros_like(settings.beta) if capacity else settings.beta
        weights = LossWeights(beta, 0.0 if capacity else settings.free_bits, settings.scale)
        fused = model.likelihood.elbo(out.params, inputs.x, out.draw, weights)
        terms = Terms(fused.loss, fused.nll, fused.kl)
    loss = terms.loss
    if capacity:
        off = (out.draw.kl_row.mean() - settings.capacity).abs()
        loss = loss + settings.scale * settings.beta * off
    if out.extra is not None:
        loss = loss + settings.scale * out.extra
    return terms._replace(loss=loss)


def _averaged(model: Model, out: Pass, inputs: Inputs, settings: Settings) -> Terms:
    """The mean over several samples of each image."""
    samples = settings.config.samples
    nll = model.likelihood.nll(out.params, inputs.x, samples)
    loss = nll.mean()
    if not settings.config.capacity:
        loss = loss + settings.beta * kl_with_free_bits(out, settings.free_bits)
    kl = by_image(out.draw.kl_row.detach(), samples)
    return Terms(settings.scale * loss, by_image(nll.detach(), samples), kl)


def kl_with_free_bits(out: Pass, free_bits: float) -> Tensor:
    """Mean KL of the batch (); each latent's counts at least ``free_bits`` nats (Kingma et al.
    2016, "Improved variational inference with inverse autoregressive flow", appendix C.8)."""
    if free_bits == 0.0:
        return out.draw.kl_row.mean()
    return (out.draw.kl_dim / len(out.draw.kl_row)).clamp(min=free_bits).sum()
