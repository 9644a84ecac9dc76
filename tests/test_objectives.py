"""Objectives: ELBO with capacity, free bits and several samples; total correlation; discrepancy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from fastvae import ops
from fastvae.config import ModelConfig, ObjectiveConfig
from fastvae.errors import UserError
from fastvae.models import VAE, Inputs, Posterior, build_model
from fastvae.models.distributions import DiagonalGaussian, UnitGaussian
from fastvae.objective import Objective
from fastvae.objectives.mmd import draw_prior, kernel, squared_mmd
from fastvae.objectives.tc import log_weights, split_kl

SHAPE = (1, 4, 4)
Z = 3
RNG = ops.rng_state(5)
KINDS: list[dict[str, Any]] = [
    {"kind": "elbo"},
    {"kind": "elbo", "samples": 3},
    {"kind": "elbo", "capacity": 7.0},
    {"kind": "elbo", "capacity": 7.0, "samples": 3},
    {"kind": "tc"},
    {"kind": "tc", "samples": 3, "mi_weight": 0.5, "dimension_weight": 2.0},
    {"kind": "mmd"},
    {"kind": "mmd", "samples": 3, "mmd_weight": 10.0},
]
every = pytest.mark.parametrize("given", KINDS, ids=lambda g: "-".join(map(str, g.values())))


def make(**fields: Any) -> VAE:
    torch.manual_seed(0)
    config = ModelConfig(
        **{
            "encoder": "mlp",
            "decoder": "mlp",
            "image_shape": SHAPE,
            "latent_dim": Z,
            "hidden": (8,),
            "components": 4,
            **fields,
        }
    )
    model = build_model(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def batch(count: int = 6) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    return Inputs((torch.rand(count, *SHAPE, generator=generator) > 0.5).double())


def objective(model: VAE, given: dict[str, Any], **options: Any) -> Objective:
    return Objective(model, ObjectiveConfig(**given), images=50, **options)


def one(value: float = 1.0) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def normal(posterior: Posterior) -> Normal:
    return Normal(posterior.mean, (posterior.logvar / 2).exp())


# ---------------------------------------------------------------------------------- all of them
@every
def test_gradients_match_finite_differences(given: dict[str, Any]) -> None:
    model, inputs = make().double(), batch()
    f = objective(model, given)

    def loss() -> Tensor:
        return f(inputs, RNG, 0, one(0.7))[0]

    grads = torch.autograd.grad(loss(), list(model.parameters()))
    generator = torch.Generator().manual_seed(4)
    directions = [
        torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in model.parameters()
    ]
    values = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for p, d in zip(model.parameters(), directions, strict=True):
                p.add_(d, alpha=step)
        values.append(loss().item())
    expected = sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True))
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(expected, rel=1e-5)


@every
def test_scale_is_a_factor_of_the_loss_alone(given: dict[str, Any]) -> None:
    model, inputs = make().double(), batch()
    loss, terms = objective(model, given)(inputs, RNG, 0, one(0.7))
    half, again = objective(model, given, scale=0.5)(inputs, RNG, 0, one(0.7))
    torch.testing.assert_close(half, 0.5 * loss)
    assert torch.equal(terms, again)
    assert terms.shape == (2, 6)
    assert not terms.requires_grad


@every
def test_what_is_logged_is_the_elbo(given: dict[str, Any]) -> None:
    """nll and kl of each image, as means over its samples, whatever is minimised."""
    model, inputs = make().double(), batch()
    _, terms = objective(model, given)(inputs, RNG, 4, one(0.7))
    samples = given.get("samples", 1)
    q = normal(model.posterior(inputs))
    eps = ops.philox_normal(5, 4 * samples + torch.arange(6 * samples), Z)
    z = q.mean.repeat_interleave(samples, 0) + q.scale.repeat_interleave(samples, 0) * eps
    targets = inputs.x.repeat_interleave(samples, 0)
    p = torch.distributions.Bernoulli(logits=model.decoder(z))
    nll = -p.log_prob(targets).sum(dim=(1, 2, 3)).view(6, samples).mean(dim=1)
    kl = kl_divergence(q, Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean))).sum(dim=1)
    torch.testing.assert_close(terms, torch.stack((nll, kl)).detach(), rtol=1e-9, atol=1e-9)


@every
@pytest.mark.parametrize("prior", ["standard", "conditional", "mog", "vamp"])
def test_every_objective_goes_with_every_prior(given: dict[str, Any], prior: str) -> None:
    """Under autocast too; losses are float32, and every parameter gets a gradient."""
    model = make(prior=prior, classes=3 if prior == "conditional" else 0)
    label = torch.tensor([0, 1, 2, 0, 1, 2]) if prior == "conditional" else None
    inputs = Inputs(batch().x.float(), label=label)
    loss, terms = objective(model, given)(inputs, RNG, 0, torch.ones(()))
    half = objective(model, given, autocast=torch.bfloat16)(inputs, RNG, 0, torch.ones(()))
    assert (half[0].dtype, half[1].dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(half[1], terms, rtol=0.05, atol=0.5)
    torch.testing.assert_close(half[0], loss, rtol=0.05, atol=1.0)
    half[0].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name


@pytest.mark.parametrize("kind", ["tc", "mmd"])
def test_compiled_in_one_graph(kind: str) -> None:
    torch._dynamo.reset()
    model, inputs = make(), Inputs(batch().x.float())
    f = objective(model, {"kind": kind, "samples": 2})
    loss = f(inputs, RNG, 0, torch.ones(()))[0]
    again = torch.compile(f, backend="eager", fullgraph=True)(inputs, RNG, 0, torch.ones(()))[0]
    torch.testing.assert_close(again, loss)


@pytest.mark.parametrize("kind", ["tc", "mmd"])
def test_callers_autocast_does_not_reach_the_losses(kind: str) -> None:
    model, inputs = make(), Inputs(batch().x.float())
    f = objective(model, {"kind": kind})
    plain = f(inputs, RNG, 0, torch.ones(()))[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(f(inputs, RNG, 0, torch.ones(()))[0], plain)


@pytest.mark.parametrize("kind", ["tc", "mmd"])
def test_one_image_is_no_batch_but_no_error(kind: str) -> None:
    model = make().double()
    loss, terms = objective(model, {"kind": kind})(batch(1), RNG, 0, one())
    assert torch.isfinite(loss)
    if kind == "mmd":  # nothing to compare
        torch.testing.assert_close(loss, terms.sum())


@pytest.mark.parametrize(
    ("given", "free_bits", "prior", "message"),
    [
        ({"kind": "tc"}, 0.1, "standard", "= 0.1 does not go with objective.kind = 'tc'"),
        ({"kind": "iwae", "samples": 5}, 0.1, "standard", "not go with objective.kind = 'iwae'"),
        ({"capacity": 2.0}, 0.1, "standard", "does not go with objective.capacity: set it to 0"),
        ({"kind": "mmd"}, 0.1, "vamp", "needs a KL for each latent, which model.prior 'vamp'"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(
    given: dict[str, Any], free_bits: float, prior: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        objective(make(prior=prior), given, free_bits=free_bits)


def test_capacity_is_for_the_elbo() -> None:
    with pytest.raises(UserError, match=r"objective.capacity is for the elbo, not for tc"):
        ObjectiveConfig(kind="tc", capacity=1.0)


def test_tc_needs_the_size_of_the_training_set() -> None:
    with pytest.raises(ValueError, match="size of the training set"):
        Objective(make(), ObjectiveConfig(kind="tc"))


# ---------------------------------------------------------------------------------- elbo
@pytest.mark.parametrize("samples", [2, 5])
def test_elbo_of_several_samples_is_the_mean(samples: int) -> None:
    model, inputs = make().double(), batch()
    f = objective(model, {"samples": samples})
    loss, terms = f(inputs, RNG, 0, one(0.3))
    torch.testing.assert_close(loss, (terms[0] + 0.3 * terms[1]).mean())
    # Sample k of image i is numbered i * K + k: what one pass over repeated images draws.
    repeated = Inputs(inputs.x.repeat_interleave(samples, dim=0))
    single, rows = objective(model, {})(repeated, RNG, 0, one(0.3))
    torch.testing.assert_close(loss, single)
    torch.testing.assert_close(terms, rows.view(2, -1, samples).mean(dim=2))
    for have, want in zip(
        torch.autograd.grad(loss, list(model.parameters())),
        torch.autograd.grad(single, list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(have, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", ["elbo", "mmd"])
@pytest.mark.parametrize("samples", [1, 4])
def test_free_bits_are_of_the_batch_mean(samples: int, kind: str) -> None:
    model, inputs = make().double(), batch()
    q = normal(model.posterior(inputs))
    each = kl_divergence(q, Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean))).mean(dim=0)
    bound = each.detach().sort().values[1].item() + 1e-3  # above two of three
    given = {"kind": kind, "samples": samples, "mmd_weight": 0.0}
    f = objective(model, given, free_bits=bound)
    loss, terms = f(inputs, RNG, 0, one(0.7))
    expected = terms[0].mean() + 0.7 * each.clamp(min=bound).sum()
    torch.testing.assert_close(loss, expected)
    assert loss > (terms[0] + 0.7 * terms[1]).mean() + 1e-3


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("capacity", [0.5, 40.0])
def test_capacity_draws_the_kl_towards_it(samples: int, capacity: float) -> None:
    model, inputs = make().double(), batch()
    f = objective(model, {"capacity": 40.0, "samples": samples})
    loss, terms = f(inputs, RNG, 0, one(3.0), one(capacity))
    kl = terms[1].mean()
    assert 0.5 < kl < 40.0
    torch.testing.assert_close(loss, terms[0].mean() + 3.0 * (kl - capacity).abs())
    # Below the capacity the gradient of the KL is turned round.
    beta = 3.0 if kl > capacity else -3.0
    parameters = list(model.encoder.parameters())
    out = model(inputs, RNG, 0, samples)
    nll = model.likelihood.nll(out.params, inputs.x, samples).mean()
    expected = torch.autograd.grad(nll + beta * out.draw.kl_row.mean(), parameters)
    for have, want in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-6, atol=1e-8)


def test_the_configured_capacity_is_the_default() -> None:
    model, inputs = make().double(), batch()
    f = objective(model, {"capacity": 4.0})
    assert f(inputs, RNG, 0, one())[0] == f(inputs, RNG, 0, one(), one(4.0))[0]
    assert f(inputs, RNG, 0, one())[0] != f(inputs, RNG, 0, one(), one(3.0))[0]


# ---------------------------------------------------------------------------------- tc
def test_parts_add_up_to_the_kl() -> None:
    model, inputs = make().double(), batch()
    posterior = model.posterior(inputs)
    q = Independent(normal(posterior), 1)
    z = torch.randn(6, Z, dtype=torch.float64)
    zero = torch.zeros(Z, dtype=torch.float64)
    for prior, truth in (
        (UnitGaussian(), Independent(Normal(zero, zero + 1.0), 1)),
        (DiagonalGaussian(posterior.logvar, posterior.mean), None),
    ):
        parts = split_kl(z, posterior, prior, images=1000)
        log_p = prior.log_prob(z) if truth is None else truth.log_prob(z)
        torch.testing.assert_close(sum(parts), q.log_prob(z) - log_p, rtol=1e-10, atol=1e-10)


def test_parts_are_exact_for_the_whole_set() -> None:
    """With the whole training set as batch q(z) is known: a mixture of all posteriors. The means
    over draws are then KL divergences, here integrated over a grid in two dimensions."""
    torch.manual_seed(0)
    mean, logvar = torch.randn(5, 2).double(), torch.randn(5, 2).double() - 1.0
    posterior = Posterior(mean, logvar)
    line = torch.arange(-9.0, 9.0, 0.05, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    pairs = normal(Posterior(mean[:, None], logvar[:, None])).log_prob(grid)  # (5, G, 2)
    density = pairs.sum(dim=2).exp()
    own = [normal(Posterior(mean, logvar)).log_prob(line[:, None, None]).exp().mean(dim=1)]
    marginal = torch.cartesian_prod(own[0][:, 0], own[0][:, 1]).log()  # log q(z_1), log q(z_2)
    joint = density.mean(dim=0)
    prior = Normal(0.0, 1.0).log_prob(grid).sum(dim=1)
    cell = 0.05**2
    information = (density * (density.log() - joint.log())).nan_to_num().sum() / 5 * cell
    correlation = (joint * (joint.log() - marginal.sum(dim=1))).nan_to_num().sum() * cell
    dimensions = (joint * (marginal.sum(dim=1) - prior)).nan_to_num().sum() * cell
    assert correlation > 0.05, "nothing to see"

    draws = 20_000
    eps = ops.philox_normal(0, torch.arange(5 * draws), 2).double()
    repeated = posterior.repeat(draws)
    z = repeated.mean + (repeated.logvar / 2).exp() * eps
    parts = split_kl(z, posterior, UnitGaussian(), images=5)
    for part, expected in zip(parts, (information, correlation, dimensions), strict=True):
        error = part.std() / math.sqrt(len(part))
        assert error < 0.01
        assert abs(float(part.mean() - expected)) < 4.5 * float(error)


def test_weights_are_right_on_average() -> None:
    """Over all batches that hold image 0, the estimate of q(z) is the truth."""
    size, count = 6, 3
    density = torch.rand(size, dtype=torch.float64)  # q(z|x_n) at one z drawn for image 0
    weight = log_weights(count, size, density).exp()
    assert weight.sum(dim=1).tolist() == pytest.approx([1.0] * count)
    estimates = []
    for a in range(1, size):
        for b in range(a + 1, size):
            chosen = density[torch.tensor([0, a, b])]
            estimates.append(float((weight[0] * chosen).sum()))
    assert sum(estimates) / len(estimates) == pytest.approx(float(density.mean()))
    whole = log_weights(size, size, density).exp()
    torch.testing.assert_close(whole, torch.full((size, size), 1.0 / size).double())


def test_tc_is_the_weighted_sum_of_parts() -> None:
    model, inputs = make().double(), batch()
    given = {"kind": "tc", "mi_weight": 0.5, "dimension_weight": 2.0, "samples": 2}
    loss, terms = objective(model, given)(inputs, RNG, 0, one(6.0))
    out = model(inputs, RNG, 0, 2)
    parts = split_kl(out.draw.z, out.posterior, UnitGaussian(), 50)
    weighted = 0.5 * parts[0].mean() + 6.0 * parts[1].mean() + 2.0 * parts[2].mean()
    torch.testing.assert_close(loss, terms[0].mean() + weighted)


def test_independent_latents_have_no_total_correlation() -> None:
    """Posteriors on a product of lines; moved onto a diagonal they have one."""
    points = torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64)
    square = torch.cartesian_prod(points, points)
    diagonal = points.repeat(3)[:, None].expand(9, 2)
    eps = ops.philox_normal(0, torch.arange(9 * 4000), 2).double()
    found = []
    for mean in (square, diagonal):
        posterior = Posterior(mean, torch.full_like(mean, -4.0))
        z = mean.repeat_interleave(4000, 0) + math.exp(-2.0) * eps
        found.append(split_kl(z, posterior, UnitGaussian(), images=9).correlation.mean().item())
    assert found[0] == pytest.approx(0.0, abs=1e-9)
    assert found[1] == pytest.approx(math.log(3.0), abs=1e-3)


# ---------------------------------------------------------------------------------- mmd
def test_equal_sets_have_no_discrepancy() -> None:
    a = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    assert squared_mmd(a, a.clone()).abs() < 1e-6
    assert squared_mmd(a, a + 0.5) > 0.02
    assert squared_mmd(a, a + 5.0) > squared_mmd(a, a + 0.5)


def test_discrepancy_against_the_definition() -> None:
    """Sums over pairs i != j, written out."""
    a, b = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0)).double()

    def k(x: Tensor, y: Tensor) -> float:
        return float(8.0 / (8.0 + (x - y).square().sum()))

    total = 0.0
    for i in range(7):
        for j in range(7):
            if i != j:
                total += k(a[i], a[j]) + k(b[i], b[j]) - k(a[i], b[j]) - k(a[j], b[i])
    assert float(squared_mmd(a, b)) == pytest.approx(total / 42)
    torch.testing.assert_close(kernel(a, b)[2, 5].item(), k(a[2], b[5]))
    several = squared_mmd(torch.stack((a, b)), torch.stack((b, b)))
    torch.testing.assert_close(several, torch.stack((squared_mmd(a, b), squared_mmd(b, b))))


@pytest.mark.parametrize("n", [2, 10])
def test_discrepancy_is_right_on_average_for_any_batch(n: int) -> None:
    """Zero for equal distributions, and the same number for others whatever n."""
    a, b = torch.randn(2, 20_000, 2, generator=torch.Generator().manual_seed(n)).double()
    equal = squared_mmd(a.view(-1, n, 2), b.view(-1, n, 2))
    assert equal.mean().abs() < 4.0 * equal.std() / math.sqrt(len(equal))
    shifted = squared_mmd(a.view(-1, n, 2), 1.0 + b.view(-1, n, 2))
    truth = squared_mmd(a[:1000], 1.0 + b[:1000])
    error = float(shifted.std()) / math.sqrt(len(shifted))
    assert float(shifted.mean()) == pytest.approx(float(truth), abs=5.0 * error + 0.02)
    assert truth > 0.05


def test_mmd_is_the_elbo_and_the_discrepancy() -> None:
    model, inputs = make().double(), batch()
    loss, terms = objective(model, {"kind": "mmd", "mmd_weight": 20.0})(inputs, RNG, 3, one(0.5))
    z = model(inputs, RNG, 3).draw.z
    drawn = draw_prior(UnitGaussian(), z, RNG, 3)
    expected = (terms[0] + 0.5 * terms[1]).mean() + 20.0 * squared_mmd(z, drawn)
    torch.testing.assert_close(loss, expected)


def test_noise_of_the_prior_is_a_function_of_seed_and_number() -> None:
    like = torch.zeros(8, Z)
    whole = draw_prior(UnitGaussian(), like, RNG, 10)
    assert torch.equal(whole[2:], draw_prior(UnitGaussian(), like[2:], RNG, 12))
    advanced = RNG + torch.tensor([0, 12])
    assert torch.equal(whole[2:], draw_prior(UnitGaussian(), like[2:], advanced, 0))
    assert not torch.equal(whole, draw_prior(UnitGaussian(), like, ops.rng_state(6), 10))
    # It is not the posterior's.
    posterior = ops.philox_normal(5, torch.arange(10, 18), Z)
    assert not torch.isclose(whole, posterior).any()
    many = draw_prior(UnitGaussian(), torch.zeros(20_000, Z), RNG, 0)
    torch.testing.assert_close(many.mean(dim=0), torch.zeros(Z), rtol=0.0, atol=0.03)
    torch.testing.assert_close(many.std(dim=0), torch.ones(Z), rtol=0.02, atol=0.0)
    theirs = ops.philox_normal(5, torch.arange(20_000), Z)
    assert (many * theirs).mean(dim=0).abs().max() < 0.03


def test_samples_of_one_image_are_not_compared() -> None:
    """With K samples the discrepancy is the mean of K, each of one sample per image."""
    model, inputs = make().double(), batch()
    given = {"kind": "mmd", "samples": 2, "mmd_weight": 20.0}
    loss, terms = objective(model, given)(inputs, RNG, 0, one())
    z = model(inputs, RNG, 0, 2).draw.z
    drawn = draw_prior(UnitGaussian(), z, RNG, 0)
    each = [squared_mmd(z[k::2], drawn[k::2]) for k in range(2)]
    torch.testing.assert_close(loss, terms.sum(dim=0).mean() + 20.0 * sum(each) / 2)


def test_the_discrepancy_holds_latents_at_the_prior() -> None:
    """Without a KL term they drift away; with the discrepancy in its place they do not."""
    found = []
    for weight in (0.0, 100.0):
        torch.manual_seed(0)
        model = build_model(make().config)
        f = objective(model, {"kind": "mmd", "mmd_weight": weight})
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        inputs = Inputs(batch(64).x.float())
        for step in range(150):
            optimizer.zero_grad()
            f(inputs, RNG, 64 * step, torch.zeros(()))[0].backward()
            optimizer.step()
        z = model(inputs, RNG).draw.z.detach()
        found.append(float(squared_mmd(z, draw_prior(UnitGaussian(), z, RNG, 0))))
    assert found[0] > 0.1
    assert found[1] < 0.02
