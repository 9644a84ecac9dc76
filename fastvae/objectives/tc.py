"""The KL term in three parts, of which the total correlation is weighted (beta-TC-VAE).

Chen, Li, Grosse, Duvenaud, "Isolating sources of disentanglement in VAEs" (2018):

    loss = nll + mi_weight * MI + beta * TC + dimension_weight * DW    (means, nats per image)

    MI = E[log q(z|x) - log q(z)]              mutual information of image and latents
    TC = E[log q(z) - sum_j log q(z_j)]        total correlation of the latents
    DW = E[sum_j log q(z_j) - log p(z)]        the KL of each latent's own aggregate posterior

Whatever is put for q(z) and q(z_j), the three add up to E[log q(z|x) - log p(z)], the KL.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastvae import ops
from fastvae.models import Inputs, LatentDistribution, Model, Pass, Posterior
from fastvae.objectives.terms import Settings, Terms, by_image


class Parts(NamedTuple):
    """Parts of the KL of each row, nats, (B * K,) each."""

    information: Tensor
    correlation: Tensor
    dimensions: Tensor


def tc(model: Model, out: Pass, inputs: Inputs, settings: Settings) -> Terms:
    """nll + MI + beta TC + the latents' own KL, weighted (beta-TC-VAE, Chen et al. 2018)."""
    config, samples = settings.config, settings.config.samples
    assert out.posterior is not None  # the objective refuses models without
    assert out.prior is not None
    parts = split_kl(out.draw.z, out.posterior, out.prior, settings.images)
    nll = model.likelihood.nll(out.params, inputs.x, samples)
    loss = (
        nll.mean()
        + config.mi_weight * parts.information.mean()
        + settings.beta * parts.correlation.mean()
        + config.dimension_weight * parts.dimensions.mean()
    )
    kl = by_image(out.draw.kl_row.detach(), samples)
    return Terms(settings.scale * loss, by_image(nll.detach(), samples), kl)


def split_kl(z: Tensor, posterior: Posterior, prior: LatentDistribution, images: int) -> Parts:
    """Estimate the three parts from one batch.

    Takes B * K * B * Z numbers of memory, a few times over: 2 MB for a batch of 128 and 32 latents,
    130 MB for 512 and 128.

    Args:
        z: (B * K, Z) latents drawn from the posterior, the K of each image one after another.
        posterior: (B, Z) of a batch of different images.
        images: size of the training set (or the batch, if that is larger).
    """
    count = len(posterior.mean)
    samples = len(z) // count
    pairs = ops.gaussian_log_prob(z[:, None], posterior.mean, posterior.logvar)  # (B * K, B, Z)
    weight = log_weights(count, images, z).repeat_interleave(samples, dim=0)
    joint = torch.logsumexp(weight + pairs.sum(dim=2), dim=1)
    each = torch.logsumexp(weight[:, :, None] + pairs, dim=1).sum(dim=1)
    own = posterior.repeat(samples).log_prob(z)
    return Parts(own - joint, joint - each, each - prior.repeat(samples).log_prob(z))


def log_weights(count: int, images: int, like: Tensor) -> Tensor:
    """Log weights with which the posteriors of a batch stand for those of the whole set.

    q(z) = 1/N sum_n q(z|x_n). For z drawn for image i, its own posterior is one term of the N; the
    others of the batch, drawn without replacement from the other N - 1, stand for them all:

        q(z) ~ 1/N q(z|x_i) + (N - 1) / (N (B - 1)) sum over j != i of q(z|x_j)

    This is the stratified estimate of Chen et al. (appendix C.2) made alike for all images of the
    batch: right on average, and exact for the whole set in one batch. Their minibatch-weighted one
    (appendix C.1), 1 / (N B) for all, is a lower bound, and a loose one. On a trained model of
    MNIST (20 latents, batch 64) the total correlation is 16.7 nats; this estimate says 18.2, that
    one 231.

    Shapes: returns (B, B), row i for z of image i; of the dtype and device of ``like``.
    """
    images = max(images, count)
    weight = like.new_full((count, count), -math.log(images))
    if count > 1:
        other = math.log((images - 1) / (count - 1))
        same = torch.eye(count, dtype=torch.bool, device=like.device)
        weight = weight + torch.where(same, 0.0, other)
    return weight
