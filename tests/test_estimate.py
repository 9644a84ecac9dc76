"""Estimates of the evidence against numerical integration, and what must not change them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from fastvae.config import DataConfig, ModelConfig
from fastvae.data.batch import Batch
from fastvae.data.loader import Loader, Pixels
from fastvae.data.sources.resident import ResidentSource
from fastvae.engine.distributed import World
from fastvae.estimate import Estimate, estimate
from fastvae.models import VAE, build_model

CPU = torch.device("cpu")
ALONE = World(rank=0, size=1, device=CPU)
SHAPE = (1, 2, 4)


@dataclass(frozen=True)
class Counted(World):
    """Ranks run one after the other: the last to sum gets the total."""

    parts: list[Tensor] = field(default_factory=list)

    def sum(self, tensor: Tensor) -> Tensor:
        self.parts.append(tensor.clone())
        return torch.stack(self.parts).sum(dim=0)


def make(latents: int = 2, **fields: Any) -> VAE:
    """A small Bernoulli VAE whose decoder is far from linear and whose posterior is wide."""
    torch.manual_seed(0)
    config = ModelConfig(
        encoder="mlp",
        decoder="mlp",
        image_shape=SHAPE,
        latent_dim=latents,
        hidden=(8,),
        hidden_blocks=0,
        **fields,
    )
    model = build_model(config)
    with torch.no_grad():
        for part, factor in ((model.encoder, 0.7), (model.decoder, 2.0)):
            for p in part.parameters():
                p.mul_(factor)
    return model.eval()


def loader(images: int = 11) -> Loader:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, *SHAPE), dtype=np.uint8)
    return Loader(
        ResidentSource.from_numpy(pixels, None), Pixels(DataConfig(binarize="threshold"), 0), CPU
    )


def run(model: VAE, images: int = 11, batch: int = 5, **options: Any) -> Estimate:
    batches = loader(images).evaluation_batches(batch, 1, 0)
    return estimate(model, batches, ALONE, **{"seed": 1, **options})


def exact(model: VAE, images: int = 11, label: int | None = None) -> float:
    """-log p(x), averaged, by summing p(x|z) p(z) over a fine grid of latents, in float64."""
    latents = model.config.latent_dim
    step = {1: 0.002, 2: 0.05}[latents]
    line = torch.arange(-7.0, 7.0, step, dtype=torch.float64)
    z = torch.cartesian_prod(*[line] * latents).view(-1, latents)
    log_p = prior_density(model, z, label) + latents * math.log(step)
    if label is not None:
        assert model.label is not None
        embedding = model.label.weight[label].double().expand(len(z), -1)
    logits = model.decoder.double()(z if label is None else torch.cat((z, embedding), 1)).flatten(1)
    model.decoder.float()
    x = loader(images).rows(np.arange(images)).x.double().flatten(1)
    log_bits = torch.nn.functional.logsigmoid
    likelihood = x @ log_bits(logits).T + (1 - x) @ log_bits(-logits).T
    return float(-torch.logsumexp(likelihood + log_p, dim=1).mean())


def prior_density(model: VAE, z: Tensor, label: int | None) -> Tensor:
    """log p(z) from torch.distributions. Shapes: z (N, Z) float64; returns (N,)."""
    zero = torch.zeros(z.shape[1], dtype=torch.float64)
    if model.config.prior == "standard":
        return Independent(Normal(zero, zero + 1.0), 1).log_prob(z)
    if model.config.prior == "conditional":
        mean, logvar = model.prior.table.weight[label].double().chunk(2)
        return Independent(Normal(mean, (logvar / 2).exp()), 1).log_prob(z)
    if model.config.prior == "vamp":
        mean, logvar = model.encoder(2.0 * model.prior.pseudo.sigmoid() - 1.0)
        logits = torch.zeros(len(mean))
    else:
        logits, mean, logvar = model.prior.logits, model.prior.mean, model.prior.logvar
    components = Independent(Normal(mean.double(), (logvar.double() / 2).exp()), 1)
    return MixtureSameFamily(Categorical(logits=logits.double()), components).log_prob(z)


# ---------------------------------------------------------------------------------- the numbers
@pytest.mark.parametrize("latents", [1, 2])
def test_bounds_against_numerical_integration(latents: int) -> None:
    model = make(latents)
    with torch.no_grad():
        truth = exact(model)

    def bound(samples: int, seeds: int) -> float:
        results = [run(model, samples=samples, seed=s).iwae for s in range(seeds)]
        return float(np.mean([r for r in results if r is not None]))

    assert bound(2000, 4) == pytest.approx(truth, abs=0.005)
    nelbo = run(model, samples=2000).nelbo
    means = [bound(k, 40) for k in (2, 10, 100)]
    assert nelbo - 0.1 > means[0] > means[1] > means[2] > truth - 0.01


def scattered(prior: str) -> VAE:
    """A model whose learned prior is far from its start."""
    fields = {"classes": 3, "label_dim": 2} if prior == "conditional" else {"components": 4}
    model = make(prior=prior, **fields)
    with torch.no_grad():
        for p in model.prior.parameters():
            p.add_(torch.randn_like(p))
    return model


@pytest.mark.parametrize("prior", ["conditional", "mog", "vamp"])
def test_learned_priors_against_numerical_integration(prior: str) -> None:
    model = scattered(prior)
    label = 2 if prior == "conditional" else None
    with torch.no_grad():
        truth = exact(model, label=label)

    def result(samples: int, seed: int = 1) -> Estimate:
        x = loader().rows(np.arange(11)).x
        labels = None if label is None else torch.full((11,), label)
        batch = dataclasses.replace(batch_of(x), label=labels)
        return estimate(model, iter([batch]), ALONE, seed=seed, samples=samples)

    many = result(8000)
    assert many.iwae == pytest.approx(truth, abs=0.01)
    assert many.nelbo > many.iwae + 0.05
    few = [np.mean([result(k, seed).iwae for seed in range(10)]) for k in (2, 20)]
    assert many.nelbo > few[0] > few[1] > truth - 0.02


@pytest.mark.parametrize("prior", ["mog", "vamp"])
def test_kl_of_mixtures_against_numerical_integration(prior: str) -> None:
    """Its mean over samples; the sum over a grid of latents is the truth."""
    model = scattered(prior)
    mean, logvar = (t.double() for t in model.encode(loader().rows(np.arange(11)).x))
    line = torch.arange(-12.0, 12.0, 0.05, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)
    with torch.no_grad():
        log_p = prior_density(model, z, None)
    log_q = Independent(Normal(mean[:, None], (logvar[:, None] / 2).exp()), 1).log_prob(z)
    kl = (log_q.exp() * (log_q - log_p)).sum(dim=1) * 0.05**2
    assert run(model, samples=8000).kl == pytest.approx(kl.mean().item(), abs=0.02)


def test_exact_when_the_posterior_is_the_prior() -> None:
    """A decoder that ignores z and a posterior that is the prior: every bound is -log p(x)."""
    model = make()
    with torch.no_grad():
        model.encoder.head.weight.zero_()
        model.encoder.head.bias.zero_()
        model.decoder.head.weight.zero_()
        truth = exact(model)
    for k in (1, 3, 64):
        result = run(model, samples=k)
        assert result.nelbo == pytest.approx(truth, abs=1e-5)
        assert result.kl == pytest.approx(0.0, abs=1e-7)
        assert result.iwae == (None if k == 1 else pytest.approx(truth, abs=1e-5))


def test_terms_are_nll_and_kl() -> None:
    model = make()
    result = run(model, samples=500)
    x = loader().rows(np.arange(11)).x
    mean, logvar = model.encode(x)
    q = torch.distributions.Normal(mean, (logvar / 2).exp())
    p = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    kl = torch.distributions.kl_divergence(q, p).sum(dim=1).mean().item()
    assert result.kl == pytest.approx(kl, rel=1e-5)
    assert result.nelbo == result.nll + result.kl
    torch.manual_seed(0)
    z = q.sample((2000,))
    logits = model.decoder(z.flatten(0, 1)).view(2000, 11, -1)
    nll = -torch.distributions.Bernoulli(logits=logits).log_prob(x.flatten(1)).sum(dim=2)
    error = nll.mean(dim=1).std().item() * math.sqrt(1 / 2000 + 1 / 500)
    assert result.nll == pytest.approx(nll.mean().item(), abs=5 * error)


def test_one_sample_has_no_importance_weighted_bound() -> None:
    result = run(make(), samples=1)
    assert result.samples == 1
    assert result.iwae is None
    assert result.iwae_bits_per_dim is None
    assert "iwae" not in result.as_dict()
    assert "iwae" in run(make(), samples=2).as_dict()


def test_bits_per_dim() -> None:
    result = run(make(), samples=3)
    assert result.bits_per_dim == pytest.approx(result.nelbo / math.log(2.0) / 8)
    assert result.iwae is not None
    assert result.iwae_bits_per_dim == pytest.approx(result.iwae / math.log(2.0) / 8)


def test_fair_coins_cost_one_bit_each() -> None:
    model = make()
    with torch.no_grad():
        for part in (model.encoder.head, model.decoder.head):
            part.weight.zero_()
            part.bias.zero_()
    assert run(model).bits_per_dim == pytest.approx(1.0, abs=1e-6)


class Means(nn.Module):
    """Posterior means of chosen variance over images that are all -1 or all 1, half of each."""

    def __init__(self, variances: list[float]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(variances).sqrt())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = 7.0 + x.flatten(1).mean(dim=1, keepdim=True) * self.scale
        return mean, torch.zeros_like(mean)


def test_active_units() -> None:
    model = make(5)
    model.encoder = Means([0.0, 0.0099, 0.0101, 0.5, 3.0])
    x = torch.zeros(8, *SHAPE)
    x[::2] = 1.0
    halves = [batch_of(x[:4]), batch_of(x[4:], first=4)]
    assert estimate(model, iter(halves), ALONE, seed=0).active_units == 3
    # One padding row that would move every mean.
    weight = torch.tensor([0.0, *[1.0] * 8])
    padded = batch_of(torch.cat((100.0 * x[:1], x)), weight=weight)
    assert estimate(model, iter([padded]), ALONE, seed=0).active_units == 3
    constant = [batch_of(x[::2])]  # no variation: none is active, whatever the mean is
    assert estimate(model, iter(constant), ALONE, seed=0).active_units == 0


def batch_of(x: Tensor, first: int = 0, weight: Tensor | None = None) -> Batch:
    index = torch.arange(first, first + len(x))
    ones = torch.ones(len(x))
    return Batch(
        x=x, y=None, label=None, weight=ones if weight is None else weight, index=index,
        ordinal=index,
    )  # fmt: skip


# ---------------------------------------------------------------------------------- the counting
class Counter(nn.Module):
    """Passes through, and writes down how many rows it saw."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.rows: list[int] = []

    def forward(self, x: Tensor, *rest: Any) -> Any:
        self.rows.append(len(x))
        assert not torch.is_grad_enabled()
        assert not self.training
        return self.inner(x, *rest)


@pytest.mark.parametrize("samples", [1, 7, 50])
def test_exactly_k_samples_per_image(samples: int) -> None:
    model = make()
    encoder, decoder = Counter(model.encoder), Counter(model.decoder)
    model.encoder, model.decoder = encoder, decoder
    result = run(model.train(), images=10, batch=5, samples=samples, rows=15)
    assert encoder.rows == [5, 5]
    assert sum(decoder.rows) == 10 * samples
    assert max(decoder.rows) <= 15
    assert (result.images, result.samples) == (10, samples)
    assert model.training, "the mode is not given back"


def same(a: Estimate, b: Estimate) -> None:
    """Equal up to float32 rounding."""
    assert (a.images, a.samples, a.active_units) == (b.images, b.samples, b.active_units)
    one, two = a.as_dict(), b.as_dict()
    assert one.keys() == two.keys()
    for name in one:
        assert one[name] == pytest.approx(two[name], rel=2e-6), name


@pytest.mark.parametrize("samples", [1, 7])
@pytest.mark.parametrize("batch", [1, 2, 4, 11, 64])
def test_batch_size_does_not_matter(batch: int, samples: int) -> None:
    same(run(make(), batch=batch, samples=samples), run(make(), batch=5, samples=samples))


@pytest.mark.parametrize("rows", [1, 5, 12, 10_000])
def test_rows_decoded_at_once_do_not_matter(rows: int) -> None:
    same(run(make(), samples=9, rows=rows), run(make(), samples=9, rows=25))


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_number_of_ranks_does_not_matter(ranks: int) -> None:
    model, parts = make(), []  # type: ignore[var-annotated]
    for rank in range(ranks):
        world = Counted(rank=rank, size=ranks, device=CPU, parts=parts)
        batches = loader().evaluation_batches(2, ranks, rank)
        result = estimate(model, batches, world, seed=1, samples=4)
    assert len(parts) == ranks, "one reduction per rank"
    same(result, run(make(), samples=4))


def test_padding_counts_for_nothing() -> None:
    model = make()
    x = loader().rows(np.arange(6)).x
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    padded = estimate(model, iter([batch_of(x, weight=weight)]), ALONE, seed=1, samples=3)
    junk = torch.cat((x[:4], 1 - x[4:]))
    other = estimate(model, iter([batch_of(junk, weight=weight)]), ALONE, seed=1, samples=3)
    assert padded == other
    same(padded, estimate(model, iter([batch_of(x[:4])]), ALONE, seed=1, samples=3))


def test_a_batch_of_nothing_but_padding() -> None:
    """More ranks than images: some see only padding."""
    model, parts = make(), []  # type: ignore[var-annotated]
    for rank in range(4):
        world = Counted(rank=rank, size=4, device=CPU, parts=parts)
        result = estimate(model, loader(2).evaluation_batches(1, 4, rank), world, seed=1)
    same(result, run(make(), images=2))


def test_the_seed_decides() -> None:
    assert run(make(), seed=3) == run(make(), seed=3)
    assert run(make(), seed=3).nll != run(make(), seed=4).nll


def test_generators_and_weights_are_left_alone() -> None:
    model = make()
    before = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    run(model, samples=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_dropout_is_off() -> None:
    same(run(make(dropout=0.5).train()), run(make()))


def test_progress_is_told() -> None:
    seen: list[int] = []

    def batches() -> Iterator[Batch]:
        yield from loader(10).evaluation_batches(5, 1, 0)

    estimate(make(), batches(), ALONE, seed=0, progress=seen.append)
    assert seen == [5, 5]
