"""The objective against torch.distributions, in float64, under autocast and compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from fastvae import ops
from fastvae.config import ModelConfig
from fastvae.models import VAE, Inputs, build_model
from fastvae.objective import Objective

SHAPE = (1, 8, 8)


def make(**fields: Any) -> VAE:
    torch.manual_seed(0)
    config = ModelConfig(
        **{
            "image_shape": SHAPE,
            "latent_dim": 5,
            "channels": (4, 6),
            "hidden": (16,),
            "hidden_blocks": 1,
            **fields,
        }
    )
    model = build_model(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def batch(dtype: torch.dtype = torch.float32, count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(count, *SHAPE, generator=generator) > 0.5).to(dtype)
    return x, ops.rng_state(1)


def reference(model: VAE, x: Tensor, rng: Tensor) -> tuple[Tensor, Tensor]:
    """nll (B,) and KL (B, Z) from torch.distributions."""
    mean, logvar = model.encoder(2.0 * x - 1.0)
    eps = ops.philox_normal(int(rng[0]), rng[1] + torch.arange(len(x)), mean.shape[1])
    q = Normal(mean, (logvar / 2).exp())
    logits = model.decoder(mean + q.scale * eps)
    nll = -Bernoulli(logits=logits).log_prob(x).sum(dim=(1, 2, 3))
    return nll, kl_divergence(q, Normal(torch.zeros_like(mean), torch.ones_like(mean)))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
def test_terms_are_those_of_torch_distributions(beta: float) -> None:
    model = make().double()
    x, rng = batch(torch.float64)
    objective = Objective(model)
    loss, terms = objective(Inputs(x), rng, 0, torch.tensor(beta, dtype=torch.float64))
    nll, kl = reference(model, x, rng)
    torch.testing.assert_close(terms[0], nll.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(terms[1], kl.sum(dim=1).detach(), rtol=1e-10, atol=1e-12)
    expected = (nll + beta * kl.sum(dim=1)).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    assert loss.shape == ()
    assert not terms.requires_grad
    expected_grads = torch.autograd.grad(expected, list(model.parameters()))
    for have, want in zip(
        torch.autograd.grad(loss, list(model.parameters())), expected_grads, strict=True
    ):
        torch.testing.assert_close(have, want, rtol=1e-9, atol=1e-10)


def test_grey_targets_are_bernoulli_means() -> None:
    """The cross-entropy with target t is t times that of 1 plus (1 - t) times that of 0."""
    model = make().double()
    x, rng = batch(torch.float64)
    grey = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)).double()
    logits = model.decoder(ops.philox_normal(int(rng[0]), torch.arange(len(x)), 5).double())
    q = Bernoulli(logits=logits)
    expected = -(grey * q.log_prob(torch.ones_like(x)) + (1 - grey) * q.log_prob(x * 0))
    nll = model.likelihood.nll(logits, grey)
    torch.testing.assert_close(nll, expected.sum(dim=(1, 2, 3)), rtol=1e-12, atol=1e-12)


def test_nll_of_extreme_logits_is_finite() -> None:
    model = make()
    logits = torch.tensor([1e4, -1e4]).view(1, 1, 1, 2).requires_grad_()
    nll = model.likelihood.nll(logits, torch.tensor([1.0, 1.0]).view(1, 1, 1, 2))
    assert nll.item() == 1e4
    nll.sum().backward()
    assert logits.grad.flatten().tolist() == [0.0, -1.0]


@pytest.mark.parametrize("free_bits", [0.01, 0.5, 100.0])
def test_free_bits(free_bits: float) -> None:
    model = make().double()
    x, rng = batch(torch.float64)
    objective = Objective(model, free_bits=free_bits)
    loss, terms = objective(Inputs(x), rng, 0, torch.tensor(0.7, dtype=torch.float64))
    nll, kl = reference(model, x, rng)
    per_latent = [max(free_bits, float(v)) for v in kl.detach().mean(dim=0)]
    assert loss.item() == pytest.approx(nll.mean().item() + 0.7 * sum(per_latent), rel=1e-12)
    # What is logged is the true KL.
    torch.testing.assert_close(terms[1], kl.sum(dim=1).detach(), rtol=1e-10, atol=1e-12)


def test_free_bits_take_the_gradient_from_latents_below() -> None:
    model = make(encoder="mlp", decoder="mlp").double()
    x, rng = batch(torch.float64)
    with torch.no_grad():  # latent 0 far from the prior, the others on it; the decoder is blind
        model.encoder.head.weight.zero_()
        model.encoder.head.bias.zero_()
        model.encoder.head.bias[0] = 3.0
        model.decoder.head.weight.zero_()
    objective = Objective(model, free_bits=0.25)
    objective(Inputs(x), rng, 0, torch.ones((), dtype=torch.float64))[0].backward()
    grad = model.encoder.head.bias.grad
    assert grad[0].item() == pytest.approx(3.0)
    assert grad[1:].abs().max() == 0.0


@pytest.mark.parametrize("decoder", ["conv", "mlp"])
def test_losses_are_float32_under_autocast(decoder: str) -> None:
    model = make(encoder=decoder, decoder=decoder)
    x, rng = batch()
    plain, plain_terms = Objective(model)(Inputs(x), rng, 0, torch.ones(()))
    half = Objective(model, autocast=torch.bfloat16)
    seen = []
    model.decoder.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    loss, terms = half(Inputs(x), rng, 0, torch.ones(()))
    assert seen == [torch.bfloat16]
    assert (loss.dtype, terms.dtype) == (torch.float32, torch.float32)
    assert not torch.equal(loss, plain)
    torch.testing.assert_close(loss, plain, rtol=0.02, atol=0.0)
    torch.testing.assert_close(terms, plain_terms, rtol=0.05, atol=0.5)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    # The sums themselves are in float32: they are not multiples of bf16's steps.
    assert not torch.equal(terms[0], terms[0].bfloat16().float())


def test_callers_autocast_does_not_reach_the_losses() -> None:
    model = make()
    x, rng = batch()
    objective = Objective(model)
    plain = objective(Inputs(x), rng, 0, torch.ones(()))[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(objective(Inputs(x), rng, 0, torch.ones(()))[0], plain)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("free_bits", [0.0, 0.3])
def test_compiled_objective_is_the_same(free_bits: float, autocast: torch.dtype | None) -> None:
    torch._dynamo.reset()
    model = make()
    x, rng = batch()
    beta = torch.tensor(0.7)
    objective = Objective(model, free_bits=free_bits, autocast=autocast)
    loss, terms = objective(Inputs(x), rng, 0, beta)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    compiled = torch.compile(objective, backend="aot_eager", fullgraph=True)
    again, terms_again = compiled(Inputs(x), rng, 0, beta)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(terms_again, terms)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if autocast is None else {"rtol": 0.05, "atol": 0.05}
    grads = torch.autograd.grad(again, list(model.parameters()))
    for have, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(have, want, **tolerance)


def test_beta_is_no_constant_of_the_compiled_graph() -> None:
    torch._dynamo.reset()
    model = make(encoder="mlp", decoder="mlp")
    x, rng = batch()
    objective = Objective(model)
    compiled = torch.compile(objective, backend="eager", fullgraph=True)
    torch._dynamo.utils.counters.clear()
    for value in (0.1, 0.2, 0.9):
        beta = torch.full((), value)
        torch.testing.assert_close(
            compiled(Inputs(x), rng, 0, beta)[0], objective(Inputs(x), rng, 0, beta)[0]
        )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_scale_is_a_factor_of_the_loss_alone() -> None:
    model = make()
    x, rng = batch()
    whole, terms = Objective(model)(Inputs(x), rng, 0, torch.tensor(0.7))
    parameters = list(model.parameters())
    expected = torch.autograd.grad(whole, parameters)
    quarter = Objective(model, scale=0.25)
    loss, terms_again = quarter(Inputs(x), rng, 0, torch.tensor(0.7))
    torch.testing.assert_close(loss, 0.25 * whole)
    assert torch.equal(terms_again, terms)
    for have, want in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(have, 0.25 * want)


def test_micro_batches_are_slices_of_the_batch() -> None:
    """The noise of a sample depends on its number, not on how the batch was cut."""
    model = make().double()
    x, rng = batch(torch.float64)
    objective = Objective(model)
    beta = torch.tensor(0.7, dtype=torch.float64)
    _, whole = objective(Inputs(x), rng, 0, beta)
    parts = [objective(Inputs(x[i : i + 2]), rng, i, beta)[1] for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-12, atol=1e-12)
    advanced = rng + torch.tensor([0, 4])
    torch.testing.assert_close(objective(Inputs(x[4:]), advanced, 0, beta)[1], parts[2])
