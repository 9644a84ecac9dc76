"""Estimates of the evidence: ELBO, importance-weighted bound, active units.

Everything runs in float32 without gradients, counts each sample exactly once over all ranks, and
keys its noise by sample index: the same numbers for any batch size and number of ranks, up to
float32 rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fastvae import ops
from fastvae.data.batch import Batch
from fastvae.engine.distributed import World
from fastvae.models import Inputs, Model

ACTIVE_VARIANCE = 0.01
"""A latent is active when its posterior mean varies by more than this over the data (Burda, Grosse,
Salakhutdinov, "Importance weighted autoencoders", 2016, section 5.2)."""


ENCODED_VALUES = 2**22
"""Image values that are encoded at once at most: 5 images of 512x512, 341 of 64x64."""
DECODED_VALUES = 2**24
"""Image values that are decoded at once at most."""


def batch_that_fits(image_shape: tuple[int, ...], wanted: int) -> int:
    """Images to encode at once: as many as wanted, fewer where they are large."""
    return max(1, min(wanted, ENCODED_VALUES // math.prod(image_shape)))


@dataclass(frozen=True)
class Estimate:
    """Means over a split, in nats per image unless said otherwise."""

    images: int
    nelbo: float
    """-ELBO = nll + kl."""
    nll: float
    """Reconstruction term, -E_q[log p(x|z)]."""
    kl: float
    bits_per_dim: float
    """nelbo / (ln 2 * number of image values)."""
    active_units: int
    samples: int
    """Posterior samples per image (K)."""
    iwae: float | None
    """Importance-weighted bound on -log p(x) with K samples; None for K = 1 (that is the ELBO)."""
    iwae_bits_per_dim: float | None

    def as_dict(self) -> dict[str, float]:
        """The figures that are there."""
        return {k: v for k, v in asdict(self).items() if v is not None}


@torch.no_grad()
def estimate(
    model: Model,
    batches: Iterator[Batch],
    world: World,
    *,
    seed: int,
    samples: int = 1,
    rows: int = 4096,
    progress: Callable[[int], object] | None = None,
) -> Estimate:
    """Estimate the ELBO with exactly ``samples`` posterior samples per image, and the IWAE bound.

    log p(x) >= E[log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x)], z_k ~ q(z|x)   (Burda et al. 2016)

    Args:
        batches: evaluation batches of this rank (weight 0 marks padding).
        samples: K.
        rows: largest number of latent vectors decoded at once.
        progress: called with the number of images after each batch.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    noise_seed = ops.derive_seed(seed, "evaluation")
    # Sums in float64 on the device: images, nll, kl, iwae, then of the means and their squares.
    sums = torch.zeros(4 + 2 * model.latent_dim, dtype=torch.float64, device=device)
    for batch in batches:
        inputs = Inputs.for_model(model.config, batch.x, batch.y, batch.label)
        inferred = model.infer(inputs)
        nll, log_weights = _log_weights(
            model, inputs, inferred, batch.index, noise_seed, samples, rows
        )
        kl = model.exact_kl(inferred)
        if kl is None:  # the mean of log q - log p over the samples
            kl = -log_weights.mean(dim=1) - nll
        bound = math.log(samples) - torch.logsumexp(log_weights, dim=1)
        weight = batch.weight.double()
        mean = model.latent_mean(inferred).double()
        sums += torch.cat(
            (
                weight.sum().view(1),
                (torch.stack((nll, kl, bound)).double() * weight).sum(dim=1),
                (mean * weight[:, None]).sum(dim=0),
                (mean.square() * weight[:, None]).sum(dim=0),
            )
        )
        if progress is not None:
            progress(len(weight) * world.size)
    model.train(was_training)
    return _finish(world.sum(sums).cpu(), model, samples)


def _log_weights(
    model: Model,
    inputs: Inputs,
    inferred: Any,
    index: Tensor,
    seed: int,
    samples: int,
    rows: int,
) -> tuple[Tensor, Tensor]:
    """Mean nll over samples (B,) and log p(x, z_k) - log q(z_k|x) (B, K), both in nats.

    Images x samples are decoded in chunks of at most ``rows`` latents; the encoder runs once.
    """
    count, device = len(inputs.x), inputs.x.device
    rows = min(rows, DECODED_VALUES // math.prod(model.config.image_shape))
    chunk = max(1, rows // max(1, count))
    nll_sum = torch.zeros(count, device=device)
    log_weights = torch.empty(count, samples, device=device)
    for start in range(0, samples, chunk):
        k = torch.arange(start, min(samples, start + chunk), device=device)
        ordinal = (index[:, None] * samples + k).reshape(-1)
        nll, log_ratio = model.importance(inputs, inferred, seed, ordinal, len(k))
        log_weights[:, start : start + len(k)] = (log_ratio - nll).view(count, -1)
        nll_sum += nll.view(count, -1).sum(dim=1)
    return nll_sum / samples, log_weights


def _finish(sums: Tensor, model: Model, samples: int) -> Estimate:
    images, nll, kl, iwae = sums[:4].tolist()
    mean, square = (sums[4:] / images).chunk(2)
    variance = square - mean.square()
    to_bits = 1.0 / (math.log(2.0) * math.prod(model.config.image_shape))
    nll, kl, iwae = nll / images, kl / images, iwae / images
    return Estimate(
        images=round(images),
        nelbo=nll + kl,
        nll=nll,
        kl=kl,
        bits_per_dim=(nll + kl) * to_bits,
        active_units=int((variance > ACTIVE_VARIANCE).sum()),
        samples=samples,
        iwae=iwae if samples > 1 else None,
        iwae_bits_per_dim=iwae * to_bits if samples > 1 else None,
    )
