"""The terminal loss: its value and gradients, what it may overwrite, and what it must refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from likelihood_cases import VARIANTS, Case, make_case, name_of
from torch import Tensor

from fastvae.kernels import elbo, paths

ROWS, LATENTS = 6, 4
PLAIN = [x for x in VARIANTS if x.get("samples", 1) == 1]
variants = pytest.mark.parametrize("variant", PLAIN, ids=name_of)
objectives = pytest.mark.parametrize(
    "objective",
    [
        {},
        {"beta": 0.25, "scale": 0.5},
        {"beta": torch.tensor(0.25)},
        {"free_bits": 0.6, "scale": 3.0},
        {"free_bits": 0.6, "beta": torch.tensor(2.0)},
    ],
    ids=["plain", "beta", "beta_tensor", "free_bits", "free_bits_beta_tensor"],
)


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def kl(dtype: torch.dtype, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """KL per row and per latent of one matrix; some latents are below 0.6 nats, some above."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.rand(rows, LATENTS, generator=generator).to(dtype) * torch.arange(LATENTS)
    return matrix.sum(1).requires_grad_(), matrix.sum(0).requires_grad_()


def loss_of(
    case: Case, kl_row: Tensor, kl_dim: Tensor, params: Tensor | None = None, **objective: Any
) -> tuple[Tensor, Tensor]:
    options = {"beta": 1.0, "free_bits": 0.0, "scale": 1.0, "inplace_grad": False, **objective}
    return elbo.elbo_loss(
        case.params if params is None else params,
        *case.inputs[1:],
        kl_row,
        kl_dim,
        kind=case.kind,
        packed=case.packed,
        mixtures=case.mixtures,
        **options,
    )


def reference(
    case: Case,
    kl_row: Tensor,
    kl_dim: Tensor,
    beta: Tensor | float = 1.0,
    free_bits: float = 0.0,
    scale: float = 1.0,
) -> Tensor:
    """The formula of the objective, by plain PyTorch."""
    floored = (kl_dim / len(kl_row)).clamp(min=free_bits).sum()
    term = floored if free_bits > 0.0 else kl_row.mean()
    return scale * (case.reference().mean() + beta * term)


def gradients(loss: Tensor, case: Case, *kl_terms: Tensor) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, [*case.given, *kl_terms], allow_unused=True))


def assert_close(got: list[Tensor | None], expected: list[Tensor | None], **tolerance: Any) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, **tolerance)


@variants
@objectives
def test_value_and_gradients(variant: dict[str, object], objective: dict[str, Any]) -> None:
    case = make_case(rows=ROWS, columns=20, **variant).to(torch.float64)
    terms = kl(torch.float64)
    loss, nll = loss_of(case, *terms, **objective)
    expected = reference(case, *terms, **objective)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(nll, case.reference().detach(), rtol=1e-12, atol=1e-12)
    assert not nll.requires_grad
    got = gradients(loss, case, *terms)
    assert_close(got, gradients(expected, case, *terms), rtol=1e-10, atol=1e-12)
    assert (got[-1] is None) == ("free_bits" not in objective)


@pytest.mark.parametrize("factor", [1.0, 3.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@variants
def test_a_loss_that_is_scaled_afterwards(
    variant: dict[str, object], dtype: torch.dtype, factor: float
) -> None:
    case = make_case(rows=ROWS, columns=20, **variant)
    low, exact = case.to(dtype), case.to(torch.float64, exact=True)
    terms, wide = kl(torch.float32), kl(torch.float64)
    loss, _ = loss_of(low, *terms)
    got = gradients(loss * factor, low, *terms)
    expected = gradients(reference(exact, *wide) * factor, exact, *wide)
    for a, b, given in zip(got, expected, [*low.given, *terms], strict=True):
        if a is None or b is None:
            assert a is b
            continue
        assert (a.dtype, a.shape) == (given.dtype, given.shape)
        # Rounded once when written and once when rescaled.
        rounding = 4e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
        assert (a.double() - b).abs().max() <= rounding * b.abs().max()


def test_float16_gradients_do_not_underflow_before_they_are_scaled() -> None:
    """1e-7 of a gradient is nothing in float16; with a GradScaler's factor it is something."""
    params = torch.zeros(1, 4, dtype=torch.float16, requires_grad=True)
    target = torch.full((1, 4), 0.5 - 1e-4)
    zeros = torch.zeros(1)
    case = Case("bernoulli", params, None, target, None, zeros)
    loss, _ = loss_of(case, zeros, zeros, scale=1e-4)
    (loss * 2.0**16).backward()
    assert params.grad is not None
    expected = torch.full((1, 4), 1e-8 * 2.0**16)
    torch.testing.assert_close(params.grad.float(), expected, rtol=2e-3, atol=0)


@variants
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_in_place(variant: dict[str, object], dtype: torch.dtype) -> None:
    case = make_case(rows=ROWS, columns=20, **variant).to(dtype)
    terms = kl(torch.float32)
    expected = gradients(loss_of(case, *terms)[0], case, *terms)
    params = case.params * 1.0  # what a network would give: no leaf
    loss, _ = loss_of(case, *terms, params=params, inplace_grad=True)
    assert torch.equal(params, expected[0])
    (grad,) = torch.autograd.grad(loss, params, retain_graph=True)
    assert grad.data_ptr() == params.data_ptr()
    assert torch.equal(grad, expected[0])

    params = case.params * 1.0
    loss, _ = loss_of(case, *terms, params=params, inplace_grad=True)
    assert_close(gradients(loss, case, *terms), expected, rtol=0, atol=0)


def test_gradient_in_place_in_strided_rows() -> None:
    case = make_case("bernoulli", ROWS, 20).to(torch.float32)
    terms = kl(torch.float32)
    (expected, *_) = gradients(loss_of(case, *terms)[0], case, *terms)
    both = torch.cat((case.params, torch.ones(ROWS, 20)), dim=1)
    left, right = both.detach().split(20, dim=1)
    loss, _ = loss_of(case, *terms, params=both[:, :20], inplace_grad=True)
    # Not to the bit: PyTorch takes the ends of rows another way when rows lie apart.
    torch.testing.assert_close(left, expected, rtol=1e-6, atol=1e-8)
    assert torch.equal(right, torch.ones(ROWS, 20))
    (grad,) = torch.autograd.grad(loss, case.params)
    torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-8)


def test_who_has_saved_the_parameters_is_told_that_they_changed() -> None:
    case = make_case("bernoulli", ROWS, 20).to(torch.float32)
    terms = kl(torch.float32)
    saved = case.params.exp()  # keeps its result for its backward pass
    loss, _ = loss_of(case, *terms, params=saved, inplace_grad=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("in_place", [False, True])
def test_a_second_backward_is_refused(in_place: bool) -> None:
    case = make_case("bernoulli", ROWS, 20).to(torch.float32)
    loss, _ = loss_of(case, *kl(torch.float32), params=case.params * 1.0, inplace_grad=in_place)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward was called a second time"):
        loss.backward()


@pytest.mark.parametrize("in_place", [False, True])
def test_second_derivatives_are_refused(in_place: bool) -> None:
    case = make_case("bernoulli", ROWS, 20).to(torch.float32)
    loss, _ = loss_of(case, *kl(torch.float32), params=case.params * 1.0, inplace_grad=in_place)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(loss, case.params, create_graph=True)


@pytest.mark.parametrize("in_place", [False, True])
def test_without_gradients_nothing_is_written(in_place: bool) -> None:
    case = make_case("gaussian", ROWS, 20, second="scalar").to(torch.float32)
    terms = kl(torch.float32)
    before = case.params.detach().clone()
    expected, _ = loss_of(case, *terms)
    with torch.no_grad():
        loss, nll = loss_of(case, *terms, inplace_grad=in_place)
    assert torch.equal(loss, expected)
    assert not loss.requires_grad
    assert torch.equal(case.params, before)
    # A decoder that is frozen: the variance and the KL still learn.
    frozen = case.params.detach()
    loss, nll = loss_of(case, *terms, params=frozen, inplace_grad=in_place)
    got = torch.autograd.grad(loss, [case.second, terms[0]])
    want = torch.autograd.grad(reference(case, *terms), [case.second, terms[0]])
    assert_close(list(got), list(want), rtol=1e-5, atol=1e-6)
    assert torch.equal(frozen, before)
    assert not nll.requires_grad


def test_beta_gets_no_gradient() -> None:
    case = make_case("bernoulli", ROWS, 20).to(torch.float32)
    beta = torch.tensor(0.5)
    terms = kl(torch.float32)
    first, _ = loss_of(case, *terms, beta=beta)
    beta.fill_(2.0)
    second, _ = loss_of(case, *terms, beta=beta)
    torch.testing.assert_close(second - first, 1.5 * terms[0].mean())
    second.backward()
    assert beta.grad is None


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("free_bits", [0.0, 0.5])
def test_empty_and_single_batches(rows: int, free_bits: float) -> None:
    case = make_case("bernoulli", rows, 5).to(torch.float32)
    terms = kl(torch.float32, rows)
    loss, nll = loss_of(case, *terms, free_bits=free_bits)
    loss.backward()
    assert nll.shape == (rows,)
    assert torch.isfinite(loss)
    assert case.params.grad is not None
    assert case.params.grad.shape == (rows, 5)
    if rows == 0:
        assert loss.item() == 0.0


def test_micro_batches_add_up() -> None:
    """With scale = 1 / number of parts the gradients are those of the whole batch."""
    case = make_case("bernoulli", ROWS, 20).to(torch.float64)
    kl_row, kl_dim = kl(torch.float64)
    whole = gradients(loss_of(case, kl_row, kl_dim)[0], case, kl_row)
    for part in (slice(0, 3), slice(3, 6)):
        small = Case("bernoulli", case.params[part], None, case.target[part], None, kl_row)
        loss_of(small, kl_row[part], kl_dim, scale=0.5)[0].backward()
    assert_close([case.params.grad, kl_row.grad], whole, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("in_place", [False, True])
def test_compiles_as_one_graph(backend: str, in_place: bool) -> None:
    beta = torch.tensor(0.5)

    def step(x: Tensor, target: Tensor, kl_row: Tensor, kl_dim: Tensor) -> Tensor:
        case = Case("bernoulli", x * 2.0, None, target, None, kl_row)
        loss, nll = loss_of(case, kl_row, kl_dim, beta=beta, inplace_grad=in_place)
        return loss * 3.0 + nll.mean()

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for rows in (6, 5, 4):  # from the second on with a symbol for the batch size
        case = make_case("bernoulli", rows, 20).to(torch.float32)
        terms = kl(torch.float32, rows)
        results = []
        for function in (compiled, step):
            loss = function(case.params, case.target, *terms)
            results.append([loss, *torch.autograd.grad(loss, [case.params, terms[0]])])
        assert_close(results[0], results[1], rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.slow
@pytest.mark.parametrize("in_place", [False, True])
def test_the_compiled_path_equals_the_eager_one(
    monkeypatch: pytest.MonkeyPatch, in_place: bool
) -> None:
    for rows in (6, 5, 4, 1):
        case = make_case("bernoulli", rows, 785).to(torch.float32)
        terms = kl(torch.float32, rows)
        results = []
        for path in ("eager", "compiled"):
            monkeypatch.setenv(paths.VARIABLE, path)
            loss, nll = loss_of(case, *terms, params=case.params * 1.0, inplace_grad=in_place)
            results.append([loss, nll, *torch.autograd.grad(loss, [case.params, terms[0]])])
        assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)
