"""The vector-quantised VAE: latents are entries of a learned codebook.

van den Oord, Vinyals, Kavukcuoglu, "Neural discrete representation learning" (2017), with the
codebook as moving averages (its appendix A.1; Razavi, van den Oord, Vinyals, "Generating diverse
high-fidelity images with VQ-VAE-2", 2019). Two things are ours: the prior over codes is counted
along with the training, so that nll + kl is a true bound on -log p(x), and codes that nobody uses
start anew among the encodings that are served worst.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastvae import ops
from fastvae.config import ModelConfig
from fastvae.models.blocks import ACTIVATIONS, ConvBlock, Stages
from fastvae.models.distributions import Draw
from fastvae.models.inputs import Inputs
from fastvae.models.levels import Up, down, refuse_parts, see, seen_channels, sides
from fastvae.models.likelihoods import Likelihood
from fastvae.models.model import Model, Pass

DEAD = 0.01
"""A code is dead when it is used less than this share of what equal use of all would be."""
PRIOR_SLOWER = 10.0
"""The prior's averages go back this many times as far as the codebook's: they need more counts."""
_SEEDING = ops.derive_seed(0, "dead codes")


class Codebook(nn.Module):
    """K vectors, each the moving average of the encodings nearest to it.

    Buffers: codes (K, D); usage (K,) and sums (K, D), averages per batch of how many encodings
    chose a code and of their sum. codes = sums / usage once a batch has been seen.
    """

    codes: Tensor
    usage: Tensor
    sums: Tensor

    def __init__(self, size: int, dim: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("codes", torch.randn(size, dim))
        self.register_buffer("usage", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(size, dim))

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Number of the nearest code, by |v - c|^2 = |v|^2 + (|c|^2 - 2 v.c), of which |v|^2 is the
        same for all. In float32 (where TF32 is allowed, the product takes it: of two codes that are
        all but equally near, either may win). Shapes: (N, D) -> (N,) int64."""
        with torch.autocast(vectors.device.type, enabled=False):
            square = self.codes.square().sum(dim=1)
            return torch.addmm(square, vectors, self.codes.T, alpha=-2.0).argmin(dim=1)

    @torch.no_grad()
    def follow(self, vectors: Tensor, chosen: Tensor, rng: Tensor) -> None:
        """Move towards a batch of encodings, of all ranks together: once for each forward pass.

        A code that falls out of use is set on one of the batch's encodings. What is not finite
        changes nothing, on any rank.

        Shapes: vectors (N, D), chosen (N,) int64, rng (2,) int64.
        """
        size, dim = self.codes.shape
        counts = torch.zeros_like(self.usage).index_add_(
            0, chosen, torch.ones_like(chosen, dtype=self.usage.dtype)
        )
        sums = torch.zeros_like(self.sums).index_add_(0, chosen, vectors)
        error = (vectors - self.codes[chosen]).square().sum(dim=1)
        fresh = worst_served(vectors, error, size, rng)
        counts, sums, fresh = over_ranks(torch.cat((counts[:, None], sums, fresh), dim=1)).split(
            (1, dim, dim), dim=1
        )
        usage = self.usage.lerp(counts[:, 0], 1.0 - self.decay)
        sums = self.sums.lerp(sums, 1.0 - self.decay)
        share = usage.mean()
        dead = usage < DEAD * share
        usage = torch.where(dead, share, usage)
        sums = torch.where(dead[:, None], share * fresh, sums)
        finite = torch.isfinite(sums).all() & torch.isfinite(fresh).all()
        for buffer, new in (
            (self.codes, sums / usage[:, None]),
            (self.usage, usage),
            (self.sums, sums),
        ):
            buffer.copy_(torch.where(finite, new, buffer))


def worst_served(vectors: Tensor, error: Tensor, count: int, rng: Tensor) -> Tensor:
    """Draw encodings of all ranks' batches, each with a probability proportional to its error.

    That is the seeding of k-means++ (Arthur and Vassilvitskii 2007). The draw depends on the noise
    state alone: it is the same for any number of ranks that share a batch out in order.

    Shapes: vectors (N, D), error (N,), rng (2,) int64. Returns (count, D): the drawn encodings of
    this rank and zeros for those of others, so that their sum over ranks has all.
    """
    edges = error.double().cumsum(dim=0)
    rank, size = (dist.get_rank(), dist.get_world_size()) if _several_ranks() else (0, 1)
    totals = edges.new_zeros(size)
    totals[rank] = edges[-1]
    ends = over_ranks(totals).cumsum(dim=0)
    words = ops.philox_words(_SEEDING, (rng[0] ^ rng[1])[None], count)[0]
    place = (words.double() + 0.5) / 2.0**32 * ends[-1]
    owner = torch.searchsorted(ends, place, right=True).clamp(max=size - 1)
    start = 0.0 if rank == 0 else ends[rank - 1]
    pick = torch.searchsorted(edges, place - start, right=True).clamp(max=len(edges) - 1)
    return torch.where((owner == rank)[:, None], vectors[pick], 0.0)


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def over_ranks(tensor: Tensor) -> Tensor:
    """Sum over ranks."""
    if not _several_ranks():
        return tensor
    if torch.compiler.is_compiling():
        torch._dynamo.graph_break()  # the reduction itself is not compiled
    total = tensor.contiguous().clone()
    dist.all_reduce(total)
    return total


class CodePrior(nn.Module):
    """p(code | position), and given the label where there are classes: smoothed counts.

        p(k | position) = (n(position, k) + S p(k)) / (n(position) + S),   S = K / 10
        p(k) = (n(k) + 1) / (n + K)

    with counts n that decay. A class's table leans on that of all classes in the same way. Counts
    are of training batches only, and positive throughout: nll - log p is a bound on -log p(x).

    Buffers: counts (classes or 1, P, K).
    """

    counts: Tensor

    def __init__(self, positions: int, size: int, classes: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.by_label = classes > 0
        self.strength = size / 10.0
        self.register_buffer("counts", torch.zeros(max(1, classes), positions, size))

    def table(self) -> Tensor:
        """log p(code | position, label), nats. Shapes: returns (classes or 1, P, K)."""
        by_position = self.counts.sum(dim=0)
        total = by_position.sum(dim=0)
        p = (total + 1.0) / (total.sum() + len(total))
        p = self._lean(by_position, p)
        return (self._lean(self.counts, p) if self.by_label else p[None]).log()

    def _lean(self, counts: Tensor, general: Tensor) -> Tensor:
        total = counts.sum(dim=-1, keepdim=True)
        return (counts + self.strength * general) / (total + self.strength)

    def log_prob(self, codes: Tensor, label: Tensor | None) -> Tensor:
        """log p(codes), nats. Shapes: codes (B, P) int64, label (B,); returns (B,)."""
        return self.table()[self._places(codes, label)].sum(dim=1)

    def _places(self, codes: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Where codes are in the table. Shapes: broadcastable to (B, P)."""
        return (
            self._rows(label, codes)[:, None],
            torch.arange(codes.shape[1], device=codes.device)[None],
            codes,
        )

    def _rows(self, label: Tensor | None, codes: Tensor) -> Tensor:
        """Which table each image has: its label's, or the only one. Shapes: returns (B,)."""
        if self.by_label and label is not None:
            return label
        return torch.zeros(len(codes), dtype=torch.int64, device=codes.device)

    @torch.no_grad()
    def count(self, codes: Tensor, label: Tensor | None) -> None:
        """Count the codes of a batch, of all ranks together."""
        one = torch.ones((), dtype=self.counts.dtype, device=codes.device).expand(codes.shape)
        places = self._places(codes, label)
        found = torch.zeros_like(self.counts).index_put_(places, one, accumulate=True)
        self.counts.mul_(self.decay).add_(over_ranks(found))

    def sample(self, uniform: Tensor, label: Tensor | None, temperature: float) -> Tensor:
        """Codes from uniform numbers in (0, 1), by the distribution function.

        Probabilities are raised to the power 1 / temperature; 0 takes the likeliest code.

        Shapes: uniform (B, P) float64, label (B,); returns (B, P) int64.
        """
        log_p = self.table().double()
        log_p = log_p - log_p.amax(dim=-1, keepdim=True)
        p = (log_p / temperature).exp() if temperature else (log_p == 0.0).double()
        edges = p.cumsum(dim=-1)
        rows = self._rows(label, uniform)
        codes = []
        for position, u in enumerate(uniform.unbind(dim=1)):
            here = edges[rows, position]
            codes.append(torch.searchsorted(here, u[:, None] * here[:, -1:], right=True))
        return torch.cat(codes, dim=1).clamp(max=p.shape[-1] - 1)


class VQEncoder(nn.Module):
    """Strided convolutions, residual blocks and a 1x1 convolution to code vectors; the codebook.

    Shapes: (B, channels, H, W) -> (B, D, h, w), float32.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        act = config.activation
        widths = (seen_channels(config), *config.channels)
        layers: list[nn.Module] = []
        for level, (before, after) in enumerate(itertools.pairwise(widths)):
            layers += [ACTIVATIONS[act]()] if level else []
            layers.append(down(before, after, 3 if level else 5))
        layers += [ConvBlock(widths[-1], act) for _ in range(config.encoder_blocks)]
        last = nn.Conv2d(widths[-1], config.code_dim, 1)
        self.convs = Stages(*layers, ACTIVATIONS[act](), last)
        self.codebook = Codebook(config.codes, config.code_dim, config.code_decay)

    def forward(self, seen: Tensor) -> Tensor:
        return ops.widen(self.convs(seen))


class VQDecoder(nn.Module):
    """A convolution from code vectors, residual blocks, then transposed convolutions.

    Shapes: (B, D (+ label), h, w) -> (B, channels, H, W).
    """

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        act = config.activation
        labels = config.label_dim if config.classes else 0
        widths = [*reversed(config.channels), channels]
        layers: list[nn.Module] = [nn.Conv2d(config.code_dim + labels, widths[0], 3, padding=1)]
        layers += [ConvBlock(widths[0], act) for _ in range(config.decoder_blocks)]
        targets = sides(config)[-2::-1]
        for (before, after), side in zip(itertools.pairwise(widths), targets, strict=True):
            layers += [ACTIVATIONS[act](), Up(before, after, side)]
        self.convs = Stages(*layers)

    def forward(self, h: Tensor) -> Tensor:
        return self.convs(h)


class Coded(NamedTuple):
    """What the encoder says of a batch."""

    codes: Tensor
    """(B, P) int64, numbers of codebook entries, row by row of the feature map."""
    kl: Tensor
    """(B,) -log p(codes), nats."""


class VQVAE(Model):
    """Encoder, codebook, prior over codes, decoder.

    The posterior puts all its mass on the nearest codes k(x), so that KL(q || p) = -log p(k(x)). It
    has no gradient. The further term of the loss is ``commitment`` times the squared distance
    between encodings and their codes, summed over an image's positions and dimensions, mean over
    the batch: the scale of a log likelihood in nats, as the reconstruction is.

    For people latents are the codes' numbers as floats (B, P); ``decode`` rounds them.
    """

    encoder: VQEncoder
    prior: CodePrior

    def __init__(self, config: ModelConfig, likelihood: Likelihood) -> None:
        super().__init__()
        refuse_parts(config)
        self.config = config
        self.likelihood = likelihood
        self.side = sides(config)[-1]
        self.latent_dim = self.side[0] * self.side[1]
        self.label = nn.Embedding(config.classes, config.label_dim) if config.classes else None
        self.encoder = VQEncoder(config)
        slower = 1.0 - (1.0 - config.code_decay) / PRIOR_SLOWER
        self.prior = CodePrior(self.latent_dim, config.codes, config.classes, slower)
        channels = likelihood.parameters_per_value * config.image_shape[0]
        self.decoder = VQDecoder(config, channels)

    def forward(
        self, inputs: Inputs, rng: Tensor, sample_offset: int = 0, samples: int = 1
    ) -> Pass:
        h = self.encoder(see(self.config, self.label, inputs))
        vectors = self._vectors(h.detach())
        codes = self.encoder.codebook.nearest(vectors).view(len(h), -1)
        quantised = self._map(codes)
        kl = -self.prior.log_prob(codes, inputs.label)
        commitment = (h - quantised).square().sum(dim=(1, 2, 3)).mean()
        if self.encoder.training:
            self.encoder.codebook.follow(vectors, codes.flatten(), rng)
        if self.prior.training:
            self.prior.count(codes, inputs.label)
        # The value is the code's to the bit, and the gradient passes to h as it is.
        params = self._decode(quantised + (h - h.detach()), inputs)
        z = codes.to(h.dtype)
        if samples > 1:  # the posterior has one value
            params, z, kl = (t.repeat_interleave(samples, dim=0) for t in (params, z, kl))
        return Pass(params, Draw(z, kl, kl.new_empty(0)), extra=self.config.commitment * commitment)

    def _vectors(self, h: Tensor) -> Tensor:
        """Feature maps as rows of vectors. Shapes: (B, D, h, w) -> (B * P, D)."""
        return h.permute(0, 2, 3, 1).reshape(-1, h.shape[1])

    def _map(self, codes: Tensor) -> Tensor:
        """Vectors of codes as feature maps. Shapes: (B, P) int64 -> (B, D, h, w)."""
        return self.encoder.codebook.codes[codes].unflatten(1, self.side).permute(0, 3, 1, 2)

    def _decode(self, h: Tensor, inputs: Inputs) -> Tensor:
        if self.label is not None:
            planes = self.label(inputs.label)[:, :, None, None].expand(-1, -1, *self.side)
            h = torch.cat((h, planes.to(h.dtype)), dim=1)
        return self.decoder(h)

    def infer(self, inputs: Inputs) -> Coded:
        h = self.encoder(see(self.config, self.label, inputs))
        codes = self.encoder.codebook.nearest(self._vectors(h)).view(len(h), self.latent_dim)
        return Coded(codes, -self.prior.log_prob(codes, inputs.label))

    def exact_kl(self, inferred: Coded) -> Tensor:
        return inferred.kl

    def importance(
        self, inputs: Inputs, inferred: Coded, seed: int, ordinal: Tensor, samples: int
    ) -> tuple[Tensor, Tensor]:
        params = self._decode(self._map(inferred.codes), inputs)
        nll = self.likelihood.nll(params, inputs.x)
        return nll.repeat_interleave(samples), -inferred.kl.repeat_interleave(samples)

    def latent_mean(self, inferred: Coded) -> Tensor:
        return inferred.codes.to(inferred.kl.dtype)

    def generate(self, z: Tensor, inputs: Inputs) -> Tensor:
        codes = z.round().clamp(0, self.config.codes - 1).to(torch.int64)
        return self._decode(self._map(codes), inputs)

    def prior_latents(self, inputs: Inputs, seed: int, temperature: float) -> Tensor:
        ordinal = torch.arange(len(inputs.x), device=inputs.x.device)
        words = ops.philox_words(seed, ordinal, self.latent_dim)
        uniform = (words.double() + 0.5) / 2.0**32
        return self.prior.sample(uniform, inputs.label, temperature).to(inputs.x.dtype)
