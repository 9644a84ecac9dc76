"""The likelihood kernels in Triton's interpreter, against float64.

Run by test_interpreter.py in a process with TRITON_INTERPRET=1 and FASTVAE_OPS=triton.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from likelihood_cases import FLOOR, KINDS, VARIANTS, Case, assert_as_precise, make_case, name_of

from fastvae import ops
from fastvae.kernels import elbo, launch, likelihood, likelihood_op, likelihood_triton

if os.environ.get("TRITON_INTERPRET") != "1" or os.environ.get("FASTVAE_OPS") != "triton":
    raise RuntimeError("needs TRITON_INTERPRET=1 and FASTVAE_OPS=triton, set before Triton loads")

OPS = torch.ops.fastvae


def run(case: Case) -> Tensor:
    return likelihood_op.pixel_nll(*case.inputs, **case.keywords)


def detached(case: Case) -> list[Tensor | None]:
    return [None if x is None else x.detach() for x in case.inputs]


def check(case: Case, dtype: torch.dtype) -> None:
    low, exact = case.to(dtype), case.to(torch.float64, exact=True)
    nll = run(low)
    assert nll.dtype == torch.float32
    got, own = low.backward(nll), low.backward(low.reference())
    assert_as_precise(got, own, exact.backward(exact.reference()), FLOOR[dtype])


@pytest.mark.parametrize("dtype", list(FLOOR))
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_values_and_gradients(variant: dict[str, object], dtype: torch.dtype) -> None:
    check(make_case(rows=6, columns=20, **variant), dtype)


@pytest.mark.parametrize("columns", [1, 784, 785, 12288])
@pytest.mark.parametrize("target", ["float", "uint8", "packed"])
def test_widths(target: str, columns: int) -> None:
    """Tails of tiles; from 2049 columns on a row has several programs."""
    check(make_case("bernoulli", 2, columns, target=target), torch.float32)


@pytest.mark.parametrize("columns", [1, 785, 4099])
@pytest.mark.parametrize("second", ["scalar", "pixel"])
def test_widths_of_gaussians(second: str, columns: int) -> None:
    case = make_case("gaussian", 4, columns, second=second, samples=2, weight="float")
    check(case, torch.float32)


@pytest.mark.parametrize("columns", [1, 785])
@pytest.mark.parametrize("mixtures", [1, 2])
def test_widths_of_logistics(mixtures: int, columns: int) -> None:
    check(make_case("dlogistic", 2, columns, target="uint8", mixtures=mixtures), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_one_pass_equals_two_to_the_bit(variant: dict[str, object], dtype: torch.dtype) -> None:
    case = make_case(rows=6, columns=33, **variant).to(dtype)
    inputs = detached(case)
    nll, grad, grad_second = OPS.pixel_nll_grad(*inputs, *case.options, 0.25)
    assert torch.equal(nll, OPS.pixel_nll(*inputs, *case.options))
    quarter = torch.full((6,), 0.25)
    expected, expected_second = OPS.pixel_nll_backward(quarter, *inputs, *case.options)
    assert torch.equal(grad, expected)
    assert torch.equal(grad_second, expected_second)
    for width in (0, 7):  # rows next to each other, and apart
        wider = torch.cat((inputs[0], inputs[0][:, :width]), dim=1)
        overwritten = wider[:, : inputs[0].shape[1]]
        nll_again, second_again = OPS.pixel_nll_grad_(overwritten, *inputs[1:], *case.options, 0.25)
        assert torch.equal(nll_again, nll)
        assert torch.equal(overwritten, grad)
        assert torch.equal(second_again, grad_second)
        assert torch.equal(wider[:, grad.shape[1] :], inputs[0][:, :width])


def test_results_look_like_those_of_pytorch() -> None:
    for variant in VARIANTS:
        case = make_case(rows=6, columns=9, **variant).to(torch.bfloat16)
        inputs = detached(case)
        got = likelihood_triton.pixel_nll_grad(*inputs, *case.options, 0.5)
        expected = likelihood.pixel_nll_grad(*inputs, *case.options, 0.5)
        for a, b in zip(got, expected, strict=True):
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_strided_inputs() -> None:
    """Halves of one layer's output; a transposed target; an expanded gradient."""
    head = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    mean, logvar = (x.detach() for x in head.chunk(2, dim=1))
    target = torch.rand(20, 6, generator=torch.Generator().manual_seed(1)).T
    case = Case("gaussian", mean, logvar, target, None, torch.ones(1).expand(6))
    inputs = (case.grad_row, *case.inputs, *case.options)
    dense = [x.contiguous() if isinstance(x, Tensor) else x for x in inputs]
    for a, b in zip(OPS.pixel_nll_backward(*inputs), OPS.pixel_nll_backward(*dense), strict=True):
        assert torch.equal(a, b)
    columns = head[:, ::2]
    nll, grad, _ = OPS.pixel_nll_grad(columns, None, target, None, "bernoulli", 1, False, 1, 1.0)
    expected = likelihood.pixel_nll_grad(columns, None, target, None, "bernoulli", 1, False, 1, 1.0)
    torch.testing.assert_close(nll, expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, expected[1], rtol=1e-6, atol=1e-7)
    OPS.pixel_nll_grad_(columns, None, target, None, "bernoulli", 1, False, 1, 1.0)
    assert torch.equal(columns, grad)


@pytest.mark.parametrize("kind", ["bernoulli", "continuous_bernoulli"])
def test_extreme_logits(kind: str) -> None:
    logits = torch.tensor([[1e4, -1e4, 1e4, -1e4, 0.0, 1e-5, -1e-3, 0.999, -1.001, 30.0]])
    target = torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.25, 0.5, 0.5, 0.5, 0.5, 1.0]])
    case = replace(make_case(kind, 10, 1), params=logits.T, target=target.T)
    check(replace(case, grad_row=torch.ones(10)), torch.float32)
    nll = OPS.pixel_nll(logits.T.contiguous(), None, target.T, None, *case.options)
    if kind == "bernoulli":
        assert nll[:4].tolist() == [0.0, 0.0, 1e4, 1e4]


@pytest.mark.parametrize("logvar", [-20.0, 20.0])
def test_extreme_variances(logvar: float) -> None:
    params = torch.tensor([[0.0, 0.5, 1.0, 30.0]])
    second, target = torch.full((1, 4), logvar), torch.full((1, 4), 0.5)
    check(Case("gaussian", params, second, target, None, torch.ones(1)), torch.float32)


@pytest.mark.parametrize("log_scale", [-1e4, -7.0, -6.9, 0.0, 20.0, 80.0])
def test_extreme_logistics(log_scale: float) -> None:
    means = torch.tensor([[-1e4, -1.0, 0.0, 1.0, 1e4]]).expand(3, 5)
    params = torch.cat((means, torch.full((3, 5), log_scale)), dim=1)
    level = torch.tensor([[0], [77], [255]], dtype=torch.uint8).expand(3, 5)
    options = (None, level, None, "dlogistic", 1, False, 1)
    got = OPS.pixel_nll_grad(params, *options, 1.0)
    exact = likelihood.pixel_nll_grad(params.double(), *options, 1.0)
    for a, b in zip(got, exact, strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=1e-6)


def test_not_a_number_is_kept() -> None:
    for kind in KINDS:
        target = "uint8" if kind == "dlogistic" else "float"
        case = make_case(kind, 2, 9, target=target)
        case.params[0, 3] = float("nan")
        nll, grad, _ = OPS.pixel_nll_grad(*case.inputs, *case.options, 1.0)
        assert nll.isnan().tolist() == [True, False]
        assert grad[0, 3].isnan()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (3, 0)])
def test_nothing(kind: str, rows: int, columns: int) -> None:
    target = "uint8" if kind == "dlogistic" else "float"
    case = make_case(kind, rows, columns, target=target).to(torch.float32)
    nll = run(case)
    assert torch.equal(nll, torch.zeros(rows))
    nll.sum().backward()
    assert case.params.grad is not None
    assert case.params.grad.shape == case.params.shape


def test_a_row_does_not_depend_on_its_batch() -> None:
    for kind, target in (("bernoulli", "float"), ("dlogistic", "uint8")):
        case = make_case(kind, 5, 300, target=target)
        whole = OPS.pixel_nll_grad(*case.inputs, *case.options, 1.0)
        part = [None if x is None else x[3:4] for x in case.inputs]
        alone = OPS.pixel_nll_grad(*part, *case.options, 1.0)
        assert torch.equal(alone[0], whole[0][3:4])
        assert torch.equal(alone[1], whole[1][3:4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 20), (2, 5000), (7,)])
def test_rescale(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    grad = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = grad.clone()
    OPS.rescale_(grad, torch.tensor(1.0))
    assert torch.equal(grad, before)
    OPS.rescale_(grad, torch.tensor(0.5))  # exact in any dtype
    assert torch.equal(grad, before * 0.5)


def test_rescale_leaves_gaps_between_rows_alone() -> None:
    buffer = torch.ones(4, 10)
    OPS.rescale_(buffer[:, :6], torch.tensor(3.0))
    assert torch.equal(buffer, torch.tensor([3.0] * 6 + [1.0] * 4).expand(4, 10))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("free_bits", [0.0, 0.5])
def test_elbo_loss(in_place: bool, free_bits: float) -> None:
    case = make_case("gaussian", 6, 20).to(torch.float32)
    exact = case.to(torch.float64, exact=True)
    generator = torch.Generator().manual_seed(1)
    matrix = torch.rand(6, 4, generator=generator) * torch.arange(4)
    results = []
    for x in (case, exact):
        kl_row, kl_dim = (matrix.to(x.params.dtype).sum(i).requires_grad_() for i in (1, 0))
        loss, nll = elbo.elbo_loss(
            x.params * 1.0,
            *x.inputs[1:],
            kl_row,
            kl_dim,
            kind="gaussian",
            packed=False,
            mixtures=1,
            beta=torch.tensor(0.5),
            free_bits=free_bits,
            scale=2.0,
            inplace_grad=in_place and x is case,
        )
        term = kl_dim if free_bits else kl_row
        grads = torch.autograd.grad(loss * 3.0, [*x.given, term])
        results.append([loss.detach(), nll, *grads])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=2e-6)


def test_wide_rows_have_several_programs() -> None:
    """What test_widths relies on."""
    assert launch.LAUNCH["pixel"].tile(12288)[0] < 12288
    assert launch.LAUNCH["dlogistic"].tile(785)[0] < 785


def test_what_was_overwritten_cannot_be_used_for_a_backward_pass() -> None:
    """tanh keeps its output for its gradient; the loss has put another number there."""
    leaf = torch.zeros(2, 20, requires_grad=True)
    target, kl = torch.zeros(2, 20), torch.zeros(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ops.elbo_loss(leaf.tanh(), target, kl, inplace_grad=True).loss.backward()


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_in_place_gradients_of_transposed_logits(factor: float) -> None:
    target, kl = torch.rand(4, 33), torch.zeros(4)
    leaf = torch.randn(4, 33, requires_grad=True)
    transposed = leaf.t().contiguous().t() * 1.0
    (factor * ops.elbo_loss(transposed, target, kl, inplace_grad=True).loss).backward()
    expected = factor * (leaf.detach().sigmoid() - target) / 4
    torch.testing.assert_close(leaf.grad, expected)


@pytest.mark.parametrize("packed", [False, True])
def test_weights_with_strides_of_their_own(packed: bool) -> None:
    logits, bits = torch.randn(3, 40), torch.rand(3, 40) > 0.5
    weight = torch.rand(3, 100)[:, :40]
    target = ops.pack_bits(bits) if packed else bits.float()
    got = ops.bernoulli_nll(logits, target, weight=weight, packed=packed)
    element = torch.nn.functional.softplus(logits) - logits * bits
    torch.testing.assert_close(got, (element * weight).sum(dim=1))
    levels = torch.randint(0, 256, (3, 40), dtype=torch.uint8)
    params = torch.randn(3, 80)
    strided = ops.dlogistic_nll(params, levels, weight=weight)
    torch.testing.assert_close(
        strided, ops.dlogistic_nll(params, levels, weight=weight.contiguous())
    )


@pytest.mark.parametrize("n_mix", [1, 2])
def test_a_nan_target_gives_a_nan(n_mix: int) -> None:
    target = torch.rand(2, 5)
    target[1, 3] = torch.nan
    nll = ops.dlogistic_nll(torch.randn(2, 5 * (2 if n_mix == 1 else 6)), target, n_mix=n_mix)
    assert nll.isnan().tolist() == [False, True]
