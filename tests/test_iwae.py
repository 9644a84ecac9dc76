"""The importance-weighted bound against torch.distributions, on the same noise."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal

from fastvae import ops
from fastvae.config import ModelConfig, ObjectiveConfig
from fastvae.models import Inputs, build_model, count_parameters
from fastvae.models.vae import VAE
from fastvae.objective import Objective
from fastvae.objectives import OBJECTIVES, Settings
from fastvae.presets import get_preset

SHAPE = (1, 6, 6)
SEED, COUNTER = 11, 40


def make(dtype: torch.dtype = torch.float64, **fields: Any) -> VAE:
    """A small model with posteriors that differ clearly from the prior."""
    torch.manual_seed(0)
    parts = {"encoder": "mlp", "decoder": "mlp", "hidden": (12,), "hidden_blocks": 0}
    model = build_model(ModelConfig(image_shape=SHAPE, latent_dim=3, **{**parts, **fields}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.to(dtype)


def images(count: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1)) > 0.5
    return x.to(dtype)


def run(model: VAE, x: Tensor, samples: int, beta: float = 1.0) -> Any:
    """Loss, and nll and kl of each image, without the check that K is more than 1."""
    config = ObjectiveConfig(samples=samples)
    rng = ops.rng_state(SEED, counter=COUNTER * samples)
    settings = Settings(
        config=config,
        beta=torch.tensor(beta, dtype=x.dtype),
        capacity=torch.zeros((), dtype=x.dtype),
        free_bits=0.0,
        scale=1.0,
        images=100,
        rng=rng,
        sample_offset=0,
    )
    out = model(Inputs(x), rng, 0, samples)
    return OBJECTIVES["iwae"](model, out, Inputs(x), settings)


def prior_of(model: VAE) -> Any:
    if model.config.prior == "mog":
        spread = (model.prior.logvar / 2.0).exp()
        parts = Independent(Normal(model.prior.mean, spread), 1)
        return MixtureSameFamily(Categorical(logits=model.prior.logits), parts)
    zero = torch.zeros(model.latent_dim, dtype=torch.float64)
    return Independent(Normal(zero, torch.ones_like(zero)), 1)


def reference(model: VAE, x: Tensor, samples: int, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    """The bound () and nll (B, K), sample by sample with torch.distributions."""
    mean, logvar = model.encoder((x - 0.5) / 0.5)
    q = Independent(Normal(mean, (logvar / 2.0).exp()), 1)
    first = COUNTER * samples + samples * torch.arange(len(x))
    log_weights, nlls = [], []
    for k in range(samples):
        eps = ops.philox_normal(SEED, first + k, model.latent_dim)
        z = mean + (logvar / 2.0).exp() * eps
        p = Independent(Bernoulli(logits=model.decoder(z)), 3)
        nlls.append(-p.log_prob(x))
        log_weights.append(beta * (prior_of(model).log_prob(z) - q.log_prob(z)) - nlls[-1])
    weights = torch.stack(log_weights, dim=1)
    return -(weights.logsumexp(dim=1) - math.log(samples)).mean(), torch.stack(nlls, dim=1)


@pytest.mark.parametrize("prior", ["standard", "mog"])
@pytest.mark.parametrize(("samples", "beta"), [(1, 1.0), (2, 1.0), (7, 1.0), (7, 0.3), (7, 0.0)])
def test_bound_and_gradients(prior: str, samples: int, beta: float) -> None:
    model = make(prior=prior, components=5)
    x = images()
    terms = run(model, x, samples, beta)
    expected, nll = reference(model, x, samples, beta)
    torch.testing.assert_close(terms.loss, expected, rtol=1e-8, atol=0.0)
    torch.testing.assert_close(terms.nll, nll.mean(dim=1).detach(), rtol=1e-10, atol=1e-10)
    assert terms.loss.shape == ()
    assert terms.nll.shape == terms.kl.shape == (4,)
    assert not any(t.requires_grad for t in terms[1:])
    names = [n for n, p in model.named_parameters() if beta > 0.0 or not n.startswith("prior")]
    wanted = [dict(model.named_parameters())[n] for n in names]
    have = torch.autograd.grad(terms.loss, wanted)
    torch.testing.assert_close(have, torch.autograd.grad(expected, wanted), rtol=1e-8, atol=1e-9)


def test_float32_agrees_with_float64() -> None:
    wide, narrow = make(), make(torch.float32)
    narrow.load_state_dict({k: v.float() for k, v in wide.state_dict().items()})
    loss = run(narrow, images(dtype=torch.float32), 50).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), run(wide, images(), 50).loss, rtol=1e-5, atol=1e-4)


def test_one_sample_is_the_elbo() -> None:
    """With the KL from the sample: equal to the formula's on average."""
    model, x = make(), images(2).repeat(20_000, 1, 1, 1)
    with torch.no_grad():
        bound = run(model, x, 1).loss.item()
        rng = ops.rng_state(SEED, counter=COUNTER)
        elbo, _ = Objective(model)(Inputs(x), rng, 0, torch.ones((), dtype=torch.float64))
    # Both see the same 40,000 draws, of log q - log p - KL with a deviation of 1.6.
    assert bound == pytest.approx(elbo.item(), abs=0.04)
    assert bound != elbo.item()


def test_the_bound_is_above_the_elbo_and_grows_with_the_samples() -> None:
    """Burda et al. (2016), theorem 1, for a fixed model, averaged over 2,000 draws of each image;
    the evidence is that of a Monte Carlo estimate with 200,000 latents from the prior."""
    model, x = make(), images(2)
    many = x.repeat_interleave(2000, dim=0)
    with torch.no_grad():
        bounds = [-run(model, many, k).loss.item() for k in (1, 2, 5, 20, 100)]
        rng = ops.rng_state(SEED, counter=COUNTER)
        elbo, _ = Objective(model)(Inputs(many), rng, 0, torch.ones((), dtype=torch.float64))
        z = ops.philox_normal(3, torch.arange(200_000), 3).double()
        p = Independent(Bernoulli(logits=model.decoder(z)), 3)
        log_p = torch.stack([p.log_prob(image).logsumexp(dim=0) for image in x])
    evidence = (log_p - math.log(200_000)).mean().item()
    assert bounds[0] == pytest.approx(-elbo.item(), abs=0.1)
    steps = [b - a for a, b in itertools.pairwise(bounds)]
    assert min(steps) > 0.01
    assert bounds[-1] == pytest.approx(evidence, abs=0.1)
    assert bounds[1] > -elbo.item() + 0.1


def test_scale_and_micro_batches() -> None:
    """Two halves at scale 1/2 make the gradient of the whole batch: draws are keyed by image."""
    model, x = make(), images(6)
    config = ObjectiveConfig(kind="iwae", samples=5)
    one = torch.ones((), dtype=torch.float64)
    whole, terms = Objective(model, config)(Inputs(x), ops.rng_state(2), 0, one)
    parts = [
        Objective(model, config, scale=0.5)(Inputs(x[i : i + 3]), ops.rng_state(2), i, one)
        for i in (0, 3)
    ]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole)
    torch.testing.assert_close(torch.cat([t for _, t in parts], dim=1), terms)
    grads = torch.autograd.grad(whole, list(model.parameters()))
    halves = torch.autograd.grad(parts[0][0] + parts[1][0], list(model.parameters()))
    torch.testing.assert_close(halves, grads)


def test_preset_is_the_papers() -> None:
    config = get_preset("iwae-mlp")
    # 784-200-200-(50, 50) and 50-200-200-784, weights and biases.
    encoder = 785 * 200 + 201 * 200 + 201 * 100
    assert count_parameters(build_model(config.model)) == encoder + 51 * 200 + 201 * (200 + 784)
    assert (config.objective.kind, config.objective.samples) == ("iwae", 50)
    assert (config.batch_size, config.data.binarize, config.optim.eps) == (20, "dynamic", 1e-4)
    times = [time for time, _ in config.optim.rates]
    assert [b - a for a, b in itertools.pairwise(times)] == [3.0**i for i in range(7)]
    assert times[-1] + 3**7 == 3280
    assert config.optim.rates[7][1] == pytest.approx(0.1)
