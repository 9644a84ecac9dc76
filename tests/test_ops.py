"""The losses against torch.distributions in double precision, and where precision is at stake."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from fastvae import ops
from fastvae.kernels.launch import Launch

HALVES = [torch.float16, torch.bfloat16]
EMPTY = [(0, 5), (1, 5), (1, 1), (7, 3)]


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(rng: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=rng, dtype=torch.float64)


def test_kl_equals_torch_distributions(rng: torch.Generator) -> None:
    mean, logvar = normal(rng, 64, 20, scale=3), normal(rng, 64, 20, scale=2)
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0))
    got = ops.kl_standard_normal(mean, logvar)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert got.dtype == torch.float64
    assert got.shape == (64, 20)


def test_log_prob_equals_torch_distributions(rng: torch.Generator) -> None:
    z, mean, logvar = normal(rng, 64, 20), normal(rng, 64, 20), normal(rng, 64, 20, scale=2)
    expected = Normal(mean, (logvar / 2).exp()).log_prob(z)
    got = ops.gaussian_log_prob(z, mean, logvar)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_log_prob_broadcasts_importance_samples(rng: torch.Generator) -> None:
    """(K, B, Z) samples under (B, Z) parameters, and under the standard normal."""
    z, mean, logvar = normal(rng, 9, 4, 5), normal(rng, 4, 5), normal(rng, 4, 5)
    expected = Normal(mean, (logvar / 2).exp()).log_prob(z)
    torch.testing.assert_close(ops.gaussian_log_prob(z, mean, logvar), expected)
    zero = torch.zeros((), dtype=torch.float64)
    expected = Normal(0.0, 1.0).log_prob(z)
    torch.testing.assert_close(ops.gaussian_log_prob(z, zero, zero), expected)


@pytest.mark.parametrize("targets", ["bits", "grey"])
def test_bernoulli_equals_torch_distributions(rng: torch.Generator, targets: str) -> None:
    logits = normal(rng, 16, 1, 8, 8, scale=5)
    target = torch.rand(16, 1, 8, 8, generator=rng, dtype=torch.float64)
    if targets == "bits":
        target = target.round()
    distribution = Bernoulli(logits=logits, validate_args=False)
    expected = -distribution.log_prob(target).flatten(1).sum(1)
    got = ops.bernoulli_nll(logits, target)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert got.shape == (16,)


def test_reparameterized_samples_have_the_given_moments() -> None:
    mean = torch.tensor([-2.0, 0.0, 5.0]).expand(200_000, 3)
    logvar = torch.tensor([-3.0, 0.0, 2.0]).expand(200_000, 3)
    z = ops.reparameterize(mean, logvar, ops.philox_normal(0, torch.arange(200_000), 3)).double()
    std = (0.5 * logvar[0]).double().exp()
    assert torch.all((z.mean(0) - mean[0]).abs() < 4.5 * std / math.sqrt(len(z)))
    assert torch.all((z.std(0) / std - 1).abs() < 4.5 / math.sqrt(2 * len(z)))


def test_single_sample_kl_averages_to_the_analytic_one() -> None:
    """log q - log p over samples of q: the three formulas agree with one another."""
    mean, logvar = torch.tensor([[0.7, -1.2]]), torch.tensor([[-0.8, 0.4]])
    eps = ops.philox_normal(1, torch.arange(200_000), 2)
    mean_all, logvar_all = mean.expand_as(eps), logvar.expand_as(eps)
    z = ops.reparameterize(mean_all, logvar_all, eps)
    zero = torch.zeros(())
    ratio = ops.gaussian_log_prob(z, mean, logvar) - ops.gaussian_log_prob(z, zero, zero)
    error = ratio.std(0) / math.sqrt(len(z))
    assert torch.all((ratio.mean(0) - ops.kl_standard_normal(mean, logvar)[0]).abs() < 4.5 * error)


def test_values_are_in_nats() -> None:
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    assert ops.kl_standard_normal(zero, zero).item() == 0.0
    assert ops.kl_standard_normal(one, zero).item() == 0.5
    expected = -0.5 * math.log(2 * math.pi)
    assert ops.gaussian_log_prob(zero, zero, zero).item() == pytest.approx(expected)
    assert ops.bernoulli_nll(torch.zeros(1, 10), torch.ones(1, 10)).item() == pytest.approx(
        10 * math.log(2)
    )


def test_bernoulli_sums_over_pixels_and_not_over_the_batch() -> None:
    logits, target = torch.zeros(3, 1, 28, 28), torch.zeros(3, 1, 28, 28)
    expected = torch.full((3,), 784 * math.log(2))
    torch.testing.assert_close(ops.bernoulli_nll(logits, target), expected)
    logits[1] = -50.0
    assert ops.bernoulli_nll(logits, target).argmin() == 1


@pytest.mark.parametrize(
    ("function", "count"),
    [(ops.reparameterize, 3), (ops.kl_standard_normal, 2), (ops.gaussian_log_prob, 3)],
)
def test_gradients(rng: torch.Generator, function: Callable[..., Tensor], count: int) -> None:
    inputs = [normal(rng, 3, 4).requires_grad_() for _ in range(count)]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_bernoulli_gradients(rng: torch.Generator) -> None:
    logits = normal(rng, 3, 1, 2, 2).requires_grad_()
    target = torch.rand(3, 1, 2, 2, generator=rng, dtype=torch.float64)
    assert torch.autograd.gradcheck(ops.bernoulli_nll, (logits, target))
    (grad,) = torch.autograd.grad(ops.bernoulli_nll(logits, target).sum(), logits)
    torch.testing.assert_close(grad, logits.sigmoid() - target)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_widened_first(rng: torch.Generator, dtype: torch.dtype) -> None:
    """The result is that of the float32 computation on the rounded inputs, bit for bit."""
    a, b, c = (normal(rng, 8, 20).to(dtype) for _ in range(3))
    target = torch.rand(8, 20, generator=rng).round()
    cases: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (ops.reparameterize, (a, b, c)),
        (ops.kl_standard_normal, (a, b)),
        (ops.gaussian_log_prob, (a, b, c)),
        (ops.bernoulli_nll, (a, target)),
    ]
    for function, inputs in cases:
        got = function(*inputs)
        assert got.dtype == torch.float32
        assert torch.equal(got, function(*(x.float() for x in inputs)))


def test_sums_over_many_pixels_keep_float32_precision(rng: torch.Generator) -> None:
    """3 x 256 x 256 half-precision logits: summed in half precision this would be infinite."""
    logits = normal(rng, 2, 3, 256, 256).half()
    target = torch.rand(2, 3, 256, 256, generator=rng)
    expected = ops.bernoulli_nll(logits.double(), target.double())
    assert expected.min() > 65504  # the largest float16
    got = ops.bernoulli_nll(logits, target)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=0)


def test_autocast_does_not_lower_the_precision(rng: torch.Generator) -> None:
    x32, x64 = normal(rng, 4, 6).float(), normal(rng, 4, 6)
    target = torch.rand(4, 6, generator=rng)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for x in (x32, x64):
            for got in (
                ops.bernoulli_nll(x, target),
                ops.kl_standard_normal(x, x),
                ops.reparameterize(x, x, x),
                ops.gaussian_log_prob(x, x, x),
            ):
                assert got.dtype == x.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
def test_extreme_logits(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4], [-1e4], [1e4], [-1e4]], dtype=dtype, requires_grad=True)
    target = torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    nll = ops.bernoulli_nll(logits, target)
    size = logits[0].item()  # 1e4 as the dtype holds it
    assert nll.tolist() == [0.0, 0.0, size, size]
    nll.sum().backward()
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == [0.0, 0.0, 1.0, -1.0]


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("logvar", [-20.0, 20.0])
def test_extreme_log_variances(dtype: torch.dtype, logvar: float) -> None:
    """exp(20) does not fit into float16; the widened computation holds it, gradients too."""
    mean = torch.tensor([[0.0, 3.0, -3.0]], dtype=dtype, requires_grad=True)
    lv = torch.full((1, 3), logvar, dtype=dtype, requires_grad=True)
    kl = ops.kl_standard_normal(mean, lv)
    m, v = mean.detach().double(), lv.detach().double()
    torch.testing.assert_close(kl.double(), ops.kl_standard_normal(m, v), rtol=1e-6, atol=0)
    z = torch.ones(1, 3, dtype=dtype)
    log_prob = ops.gaussian_log_prob(z, mean, lv)
    expected = ops.gaussian_log_prob(z.double(), m, v)
    torch.testing.assert_close(log_prob.double(), expected, rtol=1e-6, atol=0)
    sample = ops.reparameterize(mean, lv, torch.ones(1, 3))
    torch.testing.assert_close(sample.double(), m + math.exp(logvar / 2), rtol=1e-6, atol=0)
    kl.sum().backward()
    assert mean.grad is not None
    assert torch.equal(mean.grad, mean.detach())
    if dtype != torch.float16:
        assert lv.grad is not None
        assert torch.isfinite(lv.grad).all()


def test_small_kl_is_as_accurate_as_float32_allows() -> None:
    mean, logvar = torch.linspace(-0.5, 0.5, 101), torch.linspace(0.5, -0.5, 101)
    expected = ops.kl_standard_normal(mean.double(), logvar.double())
    got = ops.kl_standard_normal(mean, logvar).double()
    assert (got - expected).abs().max() < 2e-7


@pytest.mark.parametrize("shape", EMPTY)
def test_empty_and_single_batches(shape: tuple[int, int]) -> None:
    x = torch.zeros(shape)
    assert ops.kl_standard_normal(x, x).shape == shape
    assert ops.reparameterize(x, x, x).shape == shape
    assert ops.gaussian_log_prob(x, x, x).shape == shape
    assert ops.bernoulli_nll(x, x).shape == shape[:1]
    image = torch.zeros(shape[0], 1, 4, 4)
    assert ops.bernoulli_nll(image, image).shape == shape[:1]


def test_a_row_does_not_depend_on_its_batch(rng: torch.Generator) -> None:
    logits, target = normal(rng, 6, 1, 8, 8).float(), torch.rand(6, 1, 8, 8, generator=rng)
    whole = ops.bernoulli_nll(logits, target)
    for row in range(6):
        alone = ops.bernoulli_nll(logits[row : row + 1], target[row : row + 1])
        torch.testing.assert_close(alone, whole[row : row + 1], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("logits", "target"),
    [((4, 1, 8, 8), (4, 8, 8)), ((4, 1, 8, 8), (4, 64)), ((4, 9), (1, 9)), ((4, 9), (4, 1))],
)
def test_shapes_must_be_equal(logits: tuple[int, ...], target: tuple[int, ...]) -> None:
    """A target that would broadcast is a mistake: it would be counted many times."""
    with pytest.raises(ValueError, match="must have the same shape") as error:
        ops.bernoulli_nll(torch.zeros(logits), torch.zeros(target))
    assert str(logits) in str(error.value)
    assert str(target) in str(error.value)


def test_bits_and_bytes_as_targets() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    expected = ops.bernoulli_nll(logits, torch.tensor([[1.0, 0.0, 1.0]]))
    bits = torch.tensor([[True, False, True]])
    assert torch.equal(ops.bernoulli_nll(logits, bits), expected)
    assert torch.equal(ops.bernoulli_nll(logits, bits.to(torch.uint8) * 255), expected)
    assert torch.equal(ops.bernoulli_nll(logits, ops.pack_bits(bits), packed=True), expected)
    grey = torch.tensor([[51, 102, 255]], dtype=torch.uint8)
    as_float = ops.bernoulli_nll(logits, grey / 255.0)
    torch.testing.assert_close(ops.bernoulli_nll(logits, grey), as_float)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 784])
def test_packed_bits_are_those_of_numpy(rng: torch.Generator, size: int) -> None:
    bits = torch.rand(3, size, generator=rng) > 0.5
    expected = np.packbits(bits.numpy(), axis=1)
    for pixels in (bits, bits.float(), bits.to(torch.uint8) * 255):
        assert np.array_equal(ops.pack_bits(pixels).numpy(), expected)


@pytest.mark.parametrize("samples", [1, 3])
def test_samples_per_target_repeat_the_target(rng: torch.Generator, samples: int) -> None:
    logits = normal(rng, 4 * samples, 1, 5, 5).requires_grad_()
    target = torch.rand(4, 1, 5, 5, generator=rng, dtype=torch.float64)
    weight = torch.rand(4, 1, 5, 5, generator=rng, dtype=torch.float64)
    got = ops.bernoulli_nll(logits, target, weight=weight, samples_per_target=samples)
    elements = F.binary_cross_entropy_with_logits(
        logits, target.repeat_interleave(samples, 0), reduction="none"
    )
    expected = (elements * weight.repeat_interleave(samples, 0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(got, expected)
    (have,) = torch.autograd.grad(got.square().sum(), logits)
    (want,) = torch.autograd.grad(expected.square().sum(), logits)
    torch.testing.assert_close(have, want)


def test_channels_last_is_read_as_it_lies(rng: torch.Generator) -> None:
    """Same sums, and a gradient in the layout of the logits."""
    shape = (3, 3, 8, 6)
    logits = normal(rng, *shape).float()
    target = torch.rand(shape, generator=rng)
    laid_out = logits.contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = ops.bernoulli_nll(logits, target)
    for layout in (torch.channels_last, torch.contiguous_format):
        got = ops.bernoulli_nll(laid_out, target.contiguous(memory_format=layout))
        torch.testing.assert_close(got, expected)
        (grad,) = torch.autograd.grad(got.sum(), laid_out)
        assert grad.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(grad, logits.sigmoid() - target)


def test_reparam_kl_of_images_of_latents(rng: torch.Generator) -> None:
    """Latents of any shape: noise is numbered along the flattened latents."""
    mean, logvar = normal(rng, 4, 3, 5, 5), normal(rng, 4, 3, 5, 5)
    state = ops.rng_state(7, counter=10)
    z, kl_row, kl_dim = ops.reparam_kl(mean, logvar, state, sample_offset=5)
    eps = ops.philox_normal(7, 15 + torch.arange(4), 75).double().view(mean.shape)
    torch.testing.assert_close(z, ops.reparameterize(mean, logvar, eps))
    kl = ops.kl_standard_normal(mean, logvar)
    torch.testing.assert_close(kl_row, kl.sum(dim=(1, 2, 3)))
    torch.testing.assert_close(kl_dim, kl.sum(dim=0))


def test_bits_per_dimension(rng: torch.Generator) -> None:
    logits = normal(rng, 4, 1, 5, 5).float()
    out = ops.elbo_loss(logits, torch.rand(4, 1, 5, 5, generator=rng), torch.ones(4))
    expected = (out.nll.mean() + 1.0) / (25 * math.log(2))
    torch.testing.assert_close(out.bpd, expected)
    torch.testing.assert_close(out.loss, out.nll.mean() + 1.0)


def test_widen() -> None:
    for dtype in (*HALVES, torch.float32, torch.uint8):
        assert ops.widen(torch.ones(2, dtype=dtype)).dtype == torch.float32
    x = torch.ones(2, dtype=torch.float64)
    assert ops.widen(x) is x


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 1, 1, 1)])
def test_one_learned_variance_in_any_shape(rng: torch.Generator, shape: tuple[int, ...]) -> None:
    mean, target = normal(rng, 3, 1, 4, 4), torch.rand(3, 1, 4, 4, generator=rng).double()
    logvar = torch.full(shape, -1.0, dtype=torch.float64, requires_grad=True)
    got = ops.gaussian_nll(mean, target, logvar)
    expected = -Normal(mean, math.exp(-0.5)).log_prob(target).sum(dim=(1, 2, 3))
    torch.testing.assert_close(got, expected)
    got.sum().backward()
    assert logvar.grad is not None
    assert logvar.grad.shape == shape


def test_a_nan_of_the_network_reaches_the_loss() -> None:
    """Training skips such a step; an error would end it."""
    mean = torch.zeros(2, 3, requires_grad=True)
    logvar = torch.full((2, 3), math.nan, requires_grad=True)
    assert ops.gaussian_nll(mean, torch.zeros(2, 3), logvar).isnan().all()


def test_a_beta_of_one_element_leaves_the_loss_a_scalar() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    for beta in (torch.ones(()), torch.ones(1), torch.ones(1, 1)):
        assert ops.elbo_loss(x, torch.zeros(2, 3), torch.ones(2), beta=beta).loss.shape == ()


def test_half_precision_kl_is_summed_in_float32() -> None:
    x, kl = torch.zeros(256, 3, requires_grad=True), torch.full((256,), 1.01).bfloat16()
    loss = ops.elbo_loss(x, torch.zeros(256, 3), kl, beta=torch.tensor(0.3)).loss
    expected = 3 * math.log(2) + 0.3 * kl[0].item()
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_float64_stays_float64_when_compiled(rng: torch.Generator) -> None:
    torch._dynamo.reset()
    x, target = normal(rng, 3, 9), torch.rand(3, 9, generator=rng)
    compiled = torch.compile(lambda x: ops.bernoulli_nll(x, target), fullgraph=True)
    torch.testing.assert_close(compiled(x), ops.bernoulli_nll(x, target), rtol=1e-13, atol=1e-13)


def test_free_bits_pass_the_gradient_at_the_bound() -> None:
    """As torch.clamp does."""
    x, kl_dim = torch.zeros(2, 3, requires_grad=True), torch.tensor([0.4, 0.5, 1.0])
    kl_dim = (2.0 * kl_dim).requires_grad_()
    ops.elbo_loss(x, torch.zeros(2, 3), torch.zeros(2), kl_dim, free_bits=0.5).loss.backward()
    assert kl_dim.grad is not None
    assert kl_dim.grad.tolist() == [0.0, 0.5, 0.5]


def test_compiled_gradient_of_a_learned_variance_is_scaled(rng: torch.Generator) -> None:
    torch._dynamo.reset()
    mean, target = normal(rng, 3, 9), torch.rand(3, 9, generator=rng).double()
    gradients = []
    for function in (ops.elbo_loss, torch.compile(ops.elbo_loss, fullgraph=True)):
        m = mean.clone().requires_grad_()
        logvar = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
        out = function(m, target, torch.zeros(3).double(), likelihood="gaussian", logvar=logvar)
        (2.0 * out.loss).backward()
        gradients.append((m.grad, logvar.grad))
    for plain, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, plain)


def test_a_huge_variance_without_kl_has_a_gradient() -> None:
    mean, logvar = torch.zeros(2, 3, requires_grad=True), torch.full((2, 3), 100.0)
    logvar.requires_grad_()
    z, _, _ = ops.reparam_kl(mean, logvar, ops.rng_state(0))
    z.sum().backward()
    assert logvar.grad is not None
    assert torch.isfinite(logvar.grad).all()


def test_too_wide_for_a_grid() -> None:
    launch = Launch(elements=256, block=256, warps=4)
    assert launch.tile(65535 * 256) == (256, 1)
    with pytest.raises(ValueError, match=r"16776961 elements are too wide.*at most 16776960"):
        launch.tile(65535 * 256 + 1)
