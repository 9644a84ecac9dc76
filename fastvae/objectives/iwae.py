"""The importance-weighted bound on the evidence, which K samples per image make tighter.

Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders" (2016), equation 8:

    loss = mean over the batch of -log 1/K sum_k w_k,    w_k = p(x|z_k) (p(z_k) / q(z_k|x))^beta

With beta = 1 that is a bound on -log p(x), with K = 1 the negative ELBO, its KL from the sample.
"""

from __future__ import annotations

import math

import torch

from fastvae.models import Inputs, Model, Pass
from fastvae.objectives.terms import Settings, Terms, by_image


def iwae(model: Model, out: Pass, inputs: Inputs, settings: Settings) -> Terms:
    """Importance-weighted bound with ``samples`` draws per image (Burda et al. 2016).

    What is logged as nll and kl are means over the samples: their sum is the ELBO of one sample,
    and the loss is below it.
    """
    samples = settings.config.samples
    assert out.posterior is not None  # the objective refuses models without
    assert out.prior is not None
    nll = model.likelihood.nll(out.params, inputs.x, samples)
    log_prior = out.prior.repeat(samples).log_prob(out.draw.z)
    log_ratio = log_prior - out.posterior.repeat(samples).log_prob(out.draw.z)
    log_weight = (settings.beta * log_ratio - nll).view(-1, samples)
    loss = math.log(samples) - torch.logsumexp(log_weight, dim=1).mean()
    kl = by_image(out.draw.kl_row.detach(), samples)
    return Terms(settings.scale * loss, by_image(nll.detach(), samples), kl)
