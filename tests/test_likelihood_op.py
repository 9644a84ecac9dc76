"""Pixel likelihoods on the CPU: references against torch.distributions in float64, the explicit
forms against the references, and the operations at the boundary to autograd and torch.compile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from likelihood_cases import FLOOR, KINDS, VARIANTS, assert_as_precise, make_case, name_of
from torch import Tensor
from torch.distributions import Bernoulli, ContinuousBernoulli, Normal

from fastvae.kernels import dlogistic, likelihood, likelihood_op, paths

OPS = torch.ops.fastvae
variants = pytest.mark.parametrize("variant", VARIANTS, ids=name_of)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def draw(rng: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=rng, dtype=torch.float64)


def uniform(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=rng, dtype=torch.float64)


def run(case: object) -> Tensor:
    return likelihood_op.pixel_nll(*case.inputs, **case.keywords)


# References against torch.distributions


def test_bernoulli_reference(rng: torch.Generator) -> None:
    logits, target = draw(rng, 16, 64, scale=5), uniform(rng, 16, 64)
    distribution = Bernoulli(logits=logits, validate_args=False)
    expected = -distribution.log_prob(target).sum(dim=1)
    got = likelihood.bernoulli_nll(logits, target)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_continuous_bernoulli_reference(rng: torch.Generator) -> None:
    logits, target = draw(rng, 16, 64, scale=5), uniform(rng, 16, 64)
    expected = -ContinuousBernoulli(logits=logits, lims=(0.4999, 0.5001)).log_prob(target)
    got = likelihood.continuous_bernoulli_nll(logits, target)
    torch.testing.assert_close(got, expected.sum(dim=1), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("logit", [0.0, 1e-6, -5e-4, 9.9e-4, -1.1e-3, 0.3, -0.99, 1.01, 7.0, -30.0])
def test_continuous_bernoulli_integrates_to_one(logit: float) -> None:
    """Gauss-Legendre over the target, exact to rounding for so smooth a density; and its mean."""
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(60))
    target, weights = (nodes + 1) / 2, weights / 2
    logits = torch.full((60, 1), logit, dtype=torch.float64)
    density = (-likelihood.continuous_bernoulli_nll(logits, target[:, None])).exp()
    assert (density * weights).sum().item() == pytest.approx(1.0, abs=1e-12)
    _, mean, _ = likelihood.pixel_nll_grad(
        logits[:1], None, torch.zeros(1, 1), None, "continuous_bernoulli", 1, False, 1, 1.0
    )
    assert mean.item() == pytest.approx((density * weights * target).sum().item(), abs=1e-12)


def test_gaussian_reference(rng: torch.Generator) -> None:
    mean, logvar, target = draw(rng, 16, 64), draw(rng, 16, 64, scale=2), uniform(rng, 16, 64)
    expected = -Normal(mean, (0.5 * logvar).exp()).log_prob(target).sum(dim=1)
    got = likelihood.gaussian_nll(mean, logvar, target)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def logistic_probabilities(mean: float, log_scale: float) -> Tensor:
    """p of all 256 levels as differences of the logistic's distribution function, float64."""
    edges = (torch.arange(257, dtype=torch.float64) - 0.5) / 127.5 - 1.0
    scaled = (edges - mean) * math.exp(-log_scale)
    scaled[0], scaled[-1] = -math.inf, math.inf
    # On the upper side the function is near 1: there, differences of 1 - function.
    return torch.where(edges[1:] < mean, scaled.sigmoid().diff(), -(-scaled).sigmoid().diff())


@pytest.mark.parametrize(("mean", "log_scale"), [(0.0, -2.0), (-0.93, -3.5), (0.4, 0.5), (1.3, 2)])
def test_dlogistic_reference(mean: float, log_scale: float) -> None:
    params = torch.tensor([mean, log_scale], dtype=torch.float64)[:, None].expand(256, 2, 1)
    got = likelihood.dlogistic_nll(params, torch.arange(256.0)[:, None])
    expected = -logistic_probabilities(mean, log_scale).log()
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_dlogistic_mixture_reference() -> None:
    weights, means, scales = [0.3, -1.0, 2.0], [-0.5, 0.1, 0.9], [-3.0, -1.0, -2.0]
    params = torch.tensor([weights, means, scales], dtype=torch.float64).reshape(9, 1)
    got = likelihood.dlogistic_nll(params.expand(256, 9, 1), torch.arange(256.0)[:, None])
    share = torch.tensor(weights, dtype=torch.float64).softmax(0)
    parts = zip(share, means, scales, strict=True)
    expected = sum(w * logistic_probabilities(m, s) for w, m, s in parts)
    torch.testing.assert_close(got, -expected.log(), rtol=1e-9, atol=1e-9)
    assert (-got).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("log_scale", [-40.0, -7.0, -6.9, -1.0, 3.0, 50.0])
def test_dlogistic_sums_to_one(log_scale: float) -> None:
    params = torch.tensor([0.21, log_scale], dtype=torch.float64)[:, None].expand(256, 2, 1)
    log_p = -likelihood.dlogistic_nll(params, torch.arange(256.0)[:, None])
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-10)


def test_packed_bits_are_those_of_numpy() -> None:
    bits = np.random.default_rng(0).integers(0, 2, (3, 21), dtype=np.uint8)
    packed = torch.from_numpy(np.packbits(bits, axis=1))
    assert torch.equal(likelihood.unpack_bits(packed, 21), torch.from_numpy(bits))


def test_float_targets_are_rounded_to_levels() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(dlogistic.levels(levels / 255, torch.float32), levels.float())


# Explicit forms and operations


@variants
@pytest.mark.parametrize("columns", [1, 20])
def test_operation_equals_the_reference_in_float64(
    variant: dict[str, object], columns: int
) -> None:
    case = make_case(rows=6, columns=columns, **variant).to(torch.float64)
    got, expected = case.backward(run(case)), case.backward(case.reference())
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@variants
def test_gradcheck(variant: dict[str, object]) -> None:
    case = make_case(rows=6, columns=5, **variant).to(torch.float64)

    def nll(*given: Tensor) -> Tensor:
        params, second = (*given, None)[:2]
        return run(replace(case, params=params, second=second))

    assert torch.autograd.gradcheck(nll, case.given)


@pytest.mark.parametrize("dtype", list(FLOOR))
@variants
def test_operation_is_as_precise_as_torch(variant: dict[str, object], dtype: torch.dtype) -> None:
    case = make_case(rows=6, columns=785, **variant)
    low, exact = case.to(dtype), case.to(torch.float64, exact=True)
    nll = run(low)
    assert nll.dtype == torch.float32
    expected = exact.backward(exact.reference())
    assert_as_precise(low.backward(nll), low.backward(low.reference()), expected, FLOOR[dtype])
    for x, grad in zip(low.given, torch.autograd.grad(run(low).sum(), low.given), strict=True):
        assert (grad.dtype, grad.shape) == (x.dtype, x.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@variants
def test_one_pass_equals_two(variant: dict[str, object], dtype: torch.dtype) -> None:
    case = make_case(rows=6, columns=20, **variant).to(dtype)
    inputs = [None if x is None else x.detach() for x in case.inputs]
    nll, grad, grad_second = OPS.pixel_nll_grad(*inputs, *case.options, 0.25)
    assert torch.equal(nll, OPS.pixel_nll(*inputs, *case.options))
    quarter = torch.full((6,), 0.25, dtype=nll.dtype)
    expected, expected_second = OPS.pixel_nll_backward(quarter, *inputs, *case.options)
    assert torch.equal(grad, expected)
    assert torch.equal(grad_second, expected_second)
    overwritten = inputs[0].clone()
    nll_again, second_again = OPS.pixel_nll_grad_(overwritten, *inputs[1:], *case.options, 0.25)
    assert torch.equal(nll_again, nll)
    assert torch.equal(overwritten, grad)
    assert torch.equal(second_again, grad_second)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.slow
@pytest.mark.parametrize("variant", [VARIANTS[i] for i in (0, 4, 7, 9, 10, 14)], ids=name_of)
def test_compiled_path(variant: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """The C++ that inductor makes of the explicit forms; bernoulli has a form of its own there."""
    case = replace(make_case(rows=6, columns=785, **variant), grad_row=torch.full((6,), 0.5))
    low, exact = case.to(torch.float32), case.to(torch.float64, exact=True)
    expected = exact.backward(exact.reference())
    own = low.backward(low.reference())
    monkeypatch.setenv(paths.VARIABLE, "compiled")
    assert_as_precise(low.backward(run(low)), own, expected, 1e-6)
    inputs = [None if x is None else x.detach() for x in low.inputs]
    nll, grad, _ = OPS.pixel_nll_grad(*inputs, *low.options, 0.5)
    assert_as_precise((nll, grad), own, expected, 1e-6)
    overwritten = inputs[0].clone()
    OPS.pixel_nll_grad_(overwritten, *inputs[1:], *low.options, 0.5)
    assert torch.equal(overwritten, grad)


def test_fused_bernoulli_form_on_all_magnitudes() -> None:
    """Its logarithm by a polynomial holds relative precision, also where e^-|x| is tiny."""
    size = torch.logspace(-8, 4, 4000)
    x = torch.cat((size, -size, torch.zeros(1)))
    t = torch.where(torch.arange(len(x)) % 2 == 0, (x > 0).float(), 0.5)
    nll, grad, _ = likelihood._bernoulli_fused(x, t, True, True)
    wide, wide_t = x.double(), t.double()
    exact = wide.clamp_min(0) - wide * wide_t + (-wide.abs()).exp().log1p()
    kept = exact > 1e-30
    error = (nll.double() - exact).abs() / exact
    assert error[kept].max() < 2e-6  # of it 1e-6 from the rounding of e^-|x|
    assert (grad.double() - (wide.sigmoid() - wide_t)).abs().max() < 2e-7


def test_strided_rows(rng: torch.Generator) -> None:
    """A Gaussian whose mean and variance are halves of one layer's output."""
    head = draw(rng, 6, 40).requires_grad_()
    mean, logvar = head.chunk(2, dim=1)
    target = uniform(rng, 6, 20)
    nll = likelihood_op.pixel_nll(mean, logvar, target, None, kind="gaussian")
    expected = likelihood.gaussian_nll(mean, logvar, target)
    torch.testing.assert_close(nll, expected)
    (got,), (want,) = (torch.autograd.grad(x.sum(), head) for x in (nll, expected))
    torch.testing.assert_close(got, want)
    nll = likelihood_op.pixel_nll(head[:, ::2], None, target, None, kind="bernoulli")
    torch.testing.assert_close(nll, likelihood.bernoulli_nll(head[:, ::2], target))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_variance_for_all_keeps_its_shape(rng: torch.Generator, shape: tuple[int, ...]) -> None:
    mean, target = draw(rng, 3, 4), uniform(rng, 3, 4)
    logvar = torch.zeros(shape, requires_grad=True)
    likelihood_op.pixel_nll(mean, logvar, target, None, kind="gaussian").sum().backward()
    assert logvar.grad is not None
    assert (logvar.grad.shape, logvar.grad.dtype) == (shape, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *FLOOR])
@pytest.mark.parametrize("kind", ["bernoulli", "continuous_bernoulli"])
def test_extreme_logits(kind: str, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4], [-1e4], [1e4], [-1e4]], dtype=dtype, requires_grad=True)
    target = torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    nll = likelihood_op.pixel_nll(logits, None, target, None, kind=kind)
    nll.sum().backward()
    size = logits[0].item()
    expected, slope = torch.tensor([0.0, 0.0, size, size]), torch.tensor([0.0, 0.0, 1.0, -1.0])
    if kind == "continuous_bernoulli":  # its normaliser is |x| there
        expected = expected - math.log(size)
        slope = slope + torch.tensor([-1.0, 1.0, -1.0, 1.0]) / size
    assert logits.grad is not None
    torch.testing.assert_close(nll.float(), expected.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.grad.flatten().float(), slope, rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("logvar", [-20.0, 20.0])
def test_extreme_variances(logvar: float) -> None:
    mean = torch.tensor([[0.0, 0.5, 1.0, 30.0]])
    second = torch.full((1, 4), logvar)
    inputs = (mean, second, torch.full((1, 4), 0.5), None, "gaussian", 1, False, 1)
    wide = [x.double() if isinstance(x, Tensor) else x for x in inputs]
    got = likelihood.pixel_nll_grad(*inputs, 1.0)
    for a, b in zip(got, likelihood.pixel_nll_grad(*wide, 1.0), strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=0)


@pytest.mark.parametrize("mean", [-1e4, -1.0, 0.0, 1.0, 1e4])
@pytest.mark.parametrize("log_scale", [-1e4, -7.0, 0.0, 20.0, 80.0])
def test_extreme_logistics(mean: float, log_scale: float) -> None:
    params = torch.tensor([mean, log_scale])[:, None].expand(3, 2, 1).reshape(3, 2)
    level = torch.tensor([[0], [77], [255]], dtype=torch.uint8)
    inputs = (None, level, None, "dlogistic", 1, False, 1)
    got = likelihood.pixel_nll_grad(params, *inputs, 1.0)
    exact = likelihood.pixel_nll_grad(params.double(), *inputs, 1.0)
    for a, b in zip(got, exact, strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=1e-6)
    if log_scale < dlogistic.MIN_LOG_SCALE:
        assert torch.equal(got[1][:, 1], torch.zeros(3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (1, 5), (1, 1)])
def test_empty_and_single_batches(kind: str, rows: int, columns: int) -> None:
    target = "uint8" if kind == "dlogistic" else "float"
    case = make_case(kind, rows, columns, target=target).to(torch.float32)
    nll = run(case)
    assert nll.shape == (rows,)
    nll.sum().backward()
    assert case.params.grad is not None
    assert case.params.grad.shape == case.params.shape


def test_a_row_does_not_depend_on_its_batch() -> None:
    case = make_case("bernoulli", 6, 785)
    whole = run(case)
    for row in range(6):
        one = slice(row, row + 1)
        alone = run(replace(case, params=case.params[one], target=case.target[one]))
        assert torch.equal(alone, whole[one])


# Boundary


@variants
def test_opcheck(variant: dict[str, object]) -> None:
    case = make_case(rows=6, columns=9, **variant)
    arguments = (*case.inputs, *case.options)
    torch.library.opcheck(OPS.pixel_nll.default, arguments)
    torch.library.opcheck(OPS.pixel_nll_backward.default, (case.grad_row, *arguments))
    torch.library.opcheck(OPS.pixel_nll_grad.default, (*arguments, 0.5))
    torch.library.opcheck(OPS.pixel_nll_grad_.default, (*arguments, 0.5))


def test_opcheck_rescale() -> None:
    torch.library.opcheck(OPS.rescale_.default, (torch.rand(3, 4), torch.tensor(0.5)))


def test_rescale_skips_one() -> None:
    grad = torch.rand(3, 4)
    expected = grad * 0.5
    OPS.rescale_(grad, torch.tensor(1.0))
    assert torch.equal(grad * 0.5, expected)
    OPS.rescale_(grad, torch.tensor(0.5))
    assert torch.equal(grad, expected)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("kind", KINDS)
def test_compiles_as_one_graph(kind: str) -> None:
    target = "uint8" if kind == "dlogistic" else "float"
    case = make_case(kind, 6, 9, target=target, samples=2).to(torch.float32)
    expected = case.backward(run(case))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(params: Tensor, second: Tensor | None) -> Tensor:
        return run(replace(case, params=params, second=second))

    # A compiler sees the formulas themselves, which for bernoulli are others than PyTorch's calls.
    for a, b in zip(case.backward(compiled(case.params, case.second)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_are_refused(kind: str) -> None:
    target = "uint8" if kind == "dlogistic" else "float"
    case = make_case(kind, 4, 5, target=target).to(torch.float32)
    (grad, *_) = torch.autograd.grad(run(case).sum(), case.given, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.sum().backward()


def test_autocast_does_not_lower_the_precision() -> None:
    case = make_case("bernoulli", 4, 33)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run(case), likelihood.pixel_nll(*case.inputs, *case.options))
