"""Likelihoods as models use them: formulas against torch.distributions and sums, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, ContinuousBernoulli, Normal

from fastvae.config import ModelConfig
from fastvae.errors import UserError
from fastvae.models import Draw, LossWeights
from fastvae.models.likelihoods import LIKELIHOODS, Likelihood

SHAPE = (2, 3, 4)
LEVELS = torch.arange(256, dtype=torch.float64) / 255.0

CASES: dict[str, dict[str, Any]] = {
    "bernoulli": {},
    "continuous_bernoulli": {},
    "gaussian-fixed": {"gaussian_std": 0.3},
    "gaussian-shared": {"gaussian_std": 0.3, "gaussian_scale": "shared"},
    "gaussian-pixel": {"gaussian_std": 0.3, "gaussian_scale": "pixel"},
    "dlogistic-1": {"mixtures": 1},
    "dlogistic-3": {"mixtures": 3},
}
every = pytest.mark.parametrize("case", CASES)


def make(case: str, **fields: Any) -> Likelihood:
    name = case.split("-")[0]
    config = ModelConfig(likelihood=name, image_shape=SHAPE, **{**CASES.get(case, {}), **fields})
    return LIKELIHOODS[name](config).double()


def numbers(likelihood: Likelihood, rows: int, scale: float = 1.5) -> Tensor:
    """Decoder outputs (rows, P * C, H, W)."""
    channels = likelihood.parameters_per_value * SHAPE[0]
    generator = torch.Generator().manual_seed(rows)
    shape = (rows, channels, *SHAPE[1:])
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def levels(rows: int) -> Tensor:
    """8-bit pixels in [0, 1]."""
    generator = torch.Generator().manual_seed(7)
    return LEVELS[torch.randint(0, 256, (rows, *SHAPE), generator=generator)]


def total(log_prob: Tensor) -> Tensor:
    return -log_prob.flatten(1).sum(dim=1)


# ---------------------------------------------------------------------------------- densities
def test_bernoulli() -> None:
    likelihood = make("bernoulli")
    params, x = numbers(likelihood, 4), levels(4).round()
    expected = total(Bernoulli(logits=params).log_prob(x))
    torch.testing.assert_close(likelihood.nll(params, x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(likelihood.mean(params), Bernoulli(logits=params).mean)


def test_continuous_bernoulli() -> None:
    likelihood = make("continuous_bernoulli")
    params, x = numbers(likelihood, 4, scale=4.0), levels(4)
    expected = total(ContinuousBernoulli(logits=params, lims=(0.4999, 0.5001)).log_prob(x))
    torch.testing.assert_close(likelihood.nll(params, x), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_of_the_continuous_bernoulli_by_integration(dtype: torch.dtype) -> None:
    """The density is proportional to exp(logit * x). Simpson's rule on 20,001 points."""
    near = [s * a for s in (-1.0, 1.0) for a in (0.0, 1e-9, 1e-4, 0.0499, 0.0501, 0.3, 2.0, 30.0)]
    logit = torch.tensor([*near, -200.0, 200.0], dtype=dtype)
    have = make("continuous_bernoulli").mean(logit[:, None])[:, 0]
    x = torch.linspace(0.0, 1.0, 20_001, dtype=torch.float64)
    weight = torch.ones_like(x)
    weight[1:-1:2], weight[2:-1:2] = 4.0, 2.0
    a = logit.double()
    density = weight * torch.exp(a[:, None] * x - a.clamp(min=0.0)[:, None])
    expected = (density * x).sum(dim=1) / density.sum(dim=1)
    tolerance = 2e-7 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(have.double(), expected, rtol=0.0, atol=tolerance)
    ends = make("continuous_bernoulli").mean(torch.tensor([[-1e30, 1e30]], dtype=dtype))
    torch.testing.assert_close(ends, torch.tensor([[0.0, 1.0]], dtype=dtype))


def test_gaussian_with_a_fixed_deviation() -> None:
    likelihood = make("gaussian-fixed")
    params, x = numbers(likelihood, 4), levels(4)
    expected = total(Normal(params.sigmoid(), 0.3).log_prob(x))
    torch.testing.assert_close(likelihood.nll(params, x), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(likelihood.mean(params), params.sigmoid())
    assert likelihood.parameters_per_value == 1
    assert not list(likelihood.parameters())


def test_gaussian_with_one_learned_deviation() -> None:
    """It starts where it is configured, and its best value is the root of the mean square."""
    likelihood = make("gaussian-shared")
    params, x = numbers(likelihood, 4), levels(4)
    expected = total(Normal(params.sigmoid(), 0.3).log_prob(x))
    torch.testing.assert_close(likelihood.nll(params, x), expected, rtol=1e-6, atol=1e-6)
    (parameter,) = likelihood.parameters()
    optimizer = torch.optim.LBFGS([parameter], max_iter=100, tolerance_grad=1e-12)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = likelihood.nll(params, x).sum()
        value.backward()
        return value

    optimizer.step(loss)
    deviation = (params.sigmoid() - x).square().mean().sqrt()
    best = total(Normal(params.sigmoid(), deviation).log_prob(x))
    torch.testing.assert_close(likelihood.nll(params, x).detach(), best, rtol=1e-6, atol=1e-6)


def test_gaussian_with_a_deviation_for_each_value() -> None:
    """The first half of the channels are means; 0 in the second gives the configured deviation."""
    likelihood = make("gaussian-pixel")
    params, x = numbers(likelihood, 4), levels(4)
    params[:, 2:] = 0.0
    expected = total(Normal(params[:, :2].sigmoid(), 0.3).log_prob(x))
    torch.testing.assert_close(likelihood.nll(params, x), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(likelihood.mean(params), params[:, :2].sigmoid())
    # Far above the bound of 1/255 it is the decoder's number.
    params[:, 2:] = numbers(likelihood, 4)[:, 2:].abs()
    logvar = 2 * math.log(0.3) + params[:, 2:]
    expected = total(Normal(params[:, :2].sigmoid(), (logvar / 2).exp()).log_prob(x))
    torch.testing.assert_close(likelihood.nll(params, x), expected, rtol=2e-4, atol=2e-3)


def test_learned_deviations_stay_above_one_level() -> None:
    """Or a constant region would draw the loss down without end; and they find back."""
    for case in ("gaussian-shared", "gaussian-pixel"):
        likelihood = make(case)
        params = numbers(likelihood, 1)
        if case == "gaussian-shared":
            likelihood.logvar.data.fill_(-1e4)
        else:
            params[:, 2:] = -1e4
        perfect = params[:, :2].sigmoid()
        expected = total(Normal(perfect, 1.0 / 255.0).log_prob(perfect))
        torch.testing.assert_close(likelihood.nll(params, perfect), expected)
    logvar = torch.tensor([-12.0], requires_grad=True, dtype=torch.float64)
    likelihood.nll(torch.cat((torch.zeros(1, 2, 3, 4).double(), logvar.expand(1, 2, 3, 4)), 1),
                   levels(1)).backward()  # fmt: skip
    assert logvar.grad.item() < -1.0
    with pytest.raises(UserError, match=r"model.gaussian_std = 0.003: a learned deviation stays"):
        make("gaussian-shared", gaussian_std=0.003)
    make("gaussian-fixed", gaussian_std=0.003)


@pytest.mark.parametrize("mixtures", [1, 3])
def test_discretised_logistic_sums_to_one(mixtures: int) -> None:
    """Over the 256 levels of one value, whatever the parameters; and E[x] is the mean's."""
    likelihood = LIKELIHOODS["dlogistic"](ModelConfig(image_shape=(1, 1, 1), mixtures=mixtures))
    generator = torch.Generator().manual_seed(0)
    shape = (40, likelihood.parameters_per_value, 1, 1)
    params = torch.randn(shape, generator=generator, dtype=torch.float64)
    params[:, mixtures % 3 if mixtures == 1 else 2 * mixtures :] *= 2.0  # scales of 1/300 to 300
    every_level = LEVELS.view(-1, 1, 1, 1).repeat(40, 1, 1, 1)
    log_p = -likelihood.nll(params.repeat_interleave(256, dim=0), every_level).view(40, 256)
    torch.testing.assert_close(log_p.exp().sum(dim=1), torch.ones(40).double(), atol=1e-9, rtol=0)
    expected = (log_p.exp() * LEVELS).sum(dim=1)
    have = likelihood.mean(params).flatten()
    torch.testing.assert_close(have, expected, rtol=0.0, atol=0.5 / 255.0)
    wide = (params[:, -mixtures:].flatten(1) > -4.0).all(dim=1)
    assert wide.sum() > 10
    torch.testing.assert_close(have[wide], expected[wide], rtol=0.0, atol=1e-4)


def test_mean_of_the_discretised_logistic_is_in_range() -> None:
    likelihood = LIKELIHOODS["dlogistic"](ModelConfig(image_shape=(1, 1, 1), mixtures=2))
    noise = torch.randn(1000, 6, 1, 1, generator=torch.Generator().manual_seed(0))
    for size in (50.0, 1e6, 1e37):
        mean = likelihood.mean(size * noise)
        assert torch.isfinite(mean).all()
        assert mean.min() >= 0.0
        assert mean.max() <= 1.0


# ---------------------------------------------------------------------------------- all of them
@every
def test_rows_of_several_samples(case: str) -> None:
    likelihood = make(case)
    params, x = numbers(likelihood, 6), levels(2)
    expected = likelihood.nll(params, x.repeat_interleave(3, dim=0))
    torch.testing.assert_close(likelihood.nll(params, x, 3), expected)


@every
def test_fused_loss_is_nll_and_kl(case: str) -> None:
    """``elbo`` is ``nll`` plus beta kl, with gradients to decoder outputs, parameters and KL."""
    likelihood = make(case)
    params, x = numbers(likelihood, 4).requires_grad_(), levels(4)
    kl = torch.rand(4, 5, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    leaves = [params, kl, *likelihood.parameters()]
    draw = Draw(torch.zeros(4, 5), kl.sum(dim=1), kl.sum(dim=0))
    out = likelihood.elbo(params, x, draw, LossWeights(0.3, 0.0, 0.5))
    nll = likelihood.nll(params, x)
    expected = 0.5 * (nll + 0.3 * kl.sum(dim=1)).mean()
    torch.testing.assert_close(out.loss, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out.nll, nll.detach(), rtol=1e-10, atol=1e-10)
    for have, want in zip(
        torch.autograd.grad(out.loss, leaves),
        torch.autograd.grad(expected, leaves),
        strict=True,
    ):
        torch.testing.assert_close(have, want, rtol=1e-7, atol=1e-9)


@every
def test_gradients_match_finite_differences(case: str) -> None:
    likelihood = make(case)
    params, x = numbers(likelihood, 2, scale=0.7).requires_grad_(), levels(2)
    leaves = [params, *likelihood.parameters()]
    grads = torch.autograd.grad(likelihood.nll(params, x).sum(), leaves)
    for leaf, grad in zip(leaves, grads, strict=True):
        direction = torch.randn_like(leaf)
        values = []
        for sign in (1.0, -2.0):
            with torch.no_grad():
                leaf.add_(direction, alpha=sign * 1e-5)
            values.append(likelihood.nll(params, x).sum().item())
        slope = (values[0] - values[1]) / 2e-5
        assert slope == pytest.approx((grad * direction).sum().item(), rel=1e-5, abs=1e-5)
        with torch.no_grad():
            leaf.add_(direction, alpha=1e-5)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs(case: str, dtype: torch.dtype) -> None:
    """What a decoder gives under autocast; sums are in float32."""
    likelihood = make(case).float()
    params, x = numbers(likelihood, 3).to(dtype), levels(3).float()
    nll, expected = likelihood.nll(params, x), likelihood.nll(params.float(), x)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, expected, rtol=2e-3, atol=1e-2)
    mean = likelihood.mean(params)
    assert mean.dtype == torch.float32
    assert mean.shape == x.shape
    assert 0.0 <= mean.min() < mean.max() <= 1.0
