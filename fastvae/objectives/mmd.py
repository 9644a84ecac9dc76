"""The ELBO with a discrepancy between all latents together and the prior (InfoVAE).

Zhao, Song, Ermon, "InfoVAE: information maximizing variational autoencoders" (2017):

    loss = nll + beta * KL(q(z|x) || p(z)) + mmd_weight * MMD^2(q(z), p(z))

with beta = 1 - alpha and mmd_weight = alpha + lambda - 1. beta = 0 is their MMD-VAE, and close to
the Wasserstein autoencoder (Tolstikhin et al. 2018), from which the kernel is. With beta = 1 the KL
alone holds the latents at the prior and this term has little to add: set kl.beta to 0 or near it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae import ops
from fastvae.models import Inputs, LatentDistribution, Model, Pass
from fastvae.objectives.elbo import kl_with_free_bits
from fastvae.objectives.terms import Settings, Terms, by_image

PRIOR_DRAWS = 2**61
"""Number of the first draw from the prior: noise of the posterior never gets that far."""


def mmd(model: Model, out: Pass, inputs: Inputs, settings: Settings) -> Terms:
    """nll + beta KL + the squared discrepancy of latents and prior (InfoVAE, Zhao et al. 2017)."""
    samples = settings.config.samples
    assert out.prior is not None  # the objective refuses models without
    z = out.draw.z
    drawn = draw_prior(out.prior.repeat(samples), z, settings.rng, settings.sample_offset)
    # One sample of each image at a time: two of the same image are no independent draws of q(z).
    q, p = (t.unflatten(0, (-1, samples)).transpose(0, 1) for t in (z, drawn))
    nll = model.likelihood.nll(out.params, inputs.x, samples)
    loss = (
        nll.mean()
        + settings.beta * kl_with_free_bits(out, settings.free_bits)
        + settings.config.mmd_weight * squared_mmd(q, p).mean()
    )
    kl = by_image(out.draw.kl_row.detach(), samples)
    return Terms(settings.scale * loss, by_image(nll.detach(), samples), kl)


def draw_prior(prior: LatentDistribution, like: Tensor, rng: Tensor, sample_offset: int) -> Tensor:
    """One latent vector from the prior for each row of ``like``, whose noise is a function of seed
    and number as the posterior's is, but another one. Shapes: like (R, Z); returns (R, Z)."""
    zero = like.new_zeros(len(like), like.shape[1] + 1)
    # A unit Gaussian's draw is its noise. The last column picks a component where there are some.
    noise = ops.reparam_kl(zero, zero, rng, sample_offset=PRIOR_DRAWS + sample_offset)[0]
    return prior.sample(noise[:, :-1], torch.special.ndtr(noise[:, -1]), temperature=1.0)


def squared_mmd(a: Tensor, b: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of two sets of n samples: zero for equal sets, and on
    average that of the distributions for any n, so that micro-batches and ranks may be averaged.

    Gretton et al., "A kernel two-sample test" (2012), lemma 6: the mean over pairs i != j of
    k(a_i, a_j) + k(b_i, b_j) - k(a_i, b_j) - k(b_i, a_j). It may be a little below zero.

    Shapes: (..., n, Z) both; returns (...).
    """
    n = a.shape[-2]
    pairs = kernel(a, a) + kernel(b, b) - kernel(a, b) - kernel(b, a)
    between = pairs.sum(dim=(-2, -1)) - pairs.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    return between / max(1, n * (n - 1))


def kernel(a: Tensor, b: Tensor) -> Tensor:
    """Inverse multiquadratic, C / (C + |a_i - b_j|^2), with C = 2 Z, the mean squared distance of
    two draws from the unit Gaussian (Tolstikhin et al. 2018, section 4). Unlike a Gaussian's, its
    tails still draw far latents in.

    Shapes: (..., n, Z), (..., m, Z); returns (..., n, m).
    """
    scale = 2.0 * a.shape[-1]
    inner = a @ b.transpose(-2, -1)
    square = a.square().sum(dim=-1)[..., :, None] + b.square().sum(dim=-1)[..., None, :]
    return scale / (scale + (square - 2.0 * inner).clamp(min=0.0))
