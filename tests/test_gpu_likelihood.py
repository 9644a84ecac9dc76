"""The likelihood kernels and the terminal loss on a GPU: numerics, determinism, CUDA graphs, and no
waiting for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from likelihood_cases import VARIANTS, Case, assert_as_precise, make_case, name_of
from torch import Tensor

from fastvae.kernels import elbo, likelihood, likelihood_op, paths

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
# A GPU rounds to nearest when it stores. Its exp(x) is 2^(x log2 e), and the rounding of that
# product costs |x| / 2^24 of the result: 1e-6 where a variance is far from 1.
FLOOR = {torch.float32: 2e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
OPS = torch.ops.fastvae
variants = pytest.mark.parametrize("variant", VARIANTS, ids=name_of)


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.VARIABLE, "triton")


@pytest.fixture
def no_waiting() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


def run(case: Case) -> Tensor:
    return likelihood_op.pixel_nll(*case.inputs, **case.keywords)


def loss_of(
    case: Case, params: Tensor, kl_row: Tensor, kl_dim: Tensor, beta: Tensor, in_place: bool
) -> tuple[Tensor, Tensor]:
    return elbo.elbo_loss(
        params,
        *case.inputs[1:],
        kl_row,
        kl_dim,
        kind=case.kind,
        packed=case.packed,
        mixtures=case.mixtures,
        beta=beta,
        free_bits=0.0,
        scale=0.5,
        inplace_grad=in_place,
    )


def terms(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """KL per row, KL per latent, beta."""
    kl_row = torch.rand(rows, device="cuda").requires_grad_()
    return kl_row, torch.rand(8, device="cuda"), torch.tensor(0.5, device="cuda")


@pytest.mark.parametrize("columns", [20, 784, 785, 12288])
@pytest.mark.parametrize("dtype", list(FLOOR))
@variants
def test_values_and_gradients(variant: dict[str, object], dtype: torch.dtype, columns: int) -> None:
    case = make_case(rows=6, columns=columns, **variant)
    exact, own = case.to(torch.float64, exact=True), case.to(dtype)
    low = case.to(dtype, "cuda")
    expected = exact.backward(exact.reference())
    assert_as_precise(low.backward(run(low)), own.backward(own.reference()), expected, FLOOR[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@variants
def test_two_runs_are_equal_to_the_bit(variant: dict[str, object], dtype: torch.dtype) -> None:
    """And so are one pass and two, in place or not."""
    case = make_case(rows=96, columns=4099, **variant).to(dtype, "cuda")
    inputs = [None if x is None else x.detach() for x in case.inputs]
    first = OPS.pixel_nll_grad(*inputs, *case.options, 0.25)
    for _ in range(5):
        second = OPS.pixel_nll_grad(*inputs, *case.options, 0.25)
        assert all(map(torch.equal, first, second))
        overwritten = inputs[0].clone()
        nll, grad_second = OPS.pixel_nll_grad_(overwritten, *inputs[1:], *case.options, 0.25)
        assert all(map(torch.equal, first, (nll, overwritten, grad_second)))
    quarter = torch.full((96,), 0.25, device="cuda")
    two = OPS.pixel_nll_backward(quarter, *inputs, *case.options)
    for a, b in zip(first[1:], two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6 if dtype == torch.float32 else 2**-7, atol=1e-7)


def test_few_wide_rows() -> None:
    case = make_case("bernoulli", 4, 786432, target="uint8").to(torch.float32, "cuda")
    nll = run(case)
    expected = likelihood.pixel_nll(case.params.detach().double(), *case.inputs[1:], *case.options)
    torch.testing.assert_close(nll.double(), expected, rtol=2e-6, atol=0)


@pytest.mark.slow
def test_more_than_two_to_the_31_elements() -> None:
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of GPU memory")
    rows, columns = 2**19 + 8, 4096
    logits = torch.zeros(rows, columns, dtype=torch.bfloat16, device="cuda")
    target = torch.zeros(1, columns, dtype=torch.uint8, device="cuda")
    logits[-8:] = torch.randn(8, columns, device="cuda")
    last = logits[-8:].clone()
    options = ("bernoulli", rows, False, 1)
    nll, grad, _ = OPS.pixel_nll_grad(logits, None, target, None, *options, 1.0)
    expected = OPS.pixel_nll_grad(last, None, target, None, "bernoulli", 8, False, 1, 1.0)
    assert torch.equal(nll[-8:], expected[0])
    assert torch.equal(grad[-8:], expected[1])


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_rescale(factor: float) -> None:
    grad = torch.randn(33, 5000, device="cuda", dtype=torch.bfloat16)
    expected = grad * factor
    OPS.rescale_(grad, torch.tensor(factor, device="cuda"))
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_elbo_loss(dtype: torch.dtype, in_place: bool) -> None:
    case = make_case("bernoulli", 64, 784, target="uint8")
    low, exact = case.to(dtype, "cuda"), case.to(torch.float64, exact=True)
    kl_row, kl_dim, beta = terms(64)
    loss, nll = loss_of(low, low.params * 1.0, kl_row, kl_dim, beta, in_place)
    got = torch.autograd.grad(loss * 3.0, [low.params, kl_row])
    reference = exact.reference()
    expected = 0.5 * (reference.mean() + 0.5 * kl_row.detach().cpu().double().mean())
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=2e-6, atol=0)
    torch.testing.assert_close(nll.cpu().double(), reference.detach(), rtol=2e-6, atol=0)
    (want,) = torch.autograd.grad(expected * 3.0, exact.params)
    error = (got[0].cpu().double() - want).abs().max()
    assert error <= 3 * FLOOR[dtype] * want.abs().max()
    torch.testing.assert_close(got[1], torch.full_like(got[1], 3.0 * 0.5 * 0.5 / 64))


@pytest.mark.parametrize("variant", [VARIANTS[i] for i in (0, 3, 8, 10, 14)], ids=name_of)
def test_graph_capture_and_replay(variant: dict[str, object]) -> None:
    case = make_case(rows=96, columns=785, **variant).to(torch.float32, "cuda")
    kl_row, kl_dim, beta = terms(96)

    def step() -> list[Tensor]:
        loss, nll = loss_of(case, case.params * 1.0, kl_row, kl_dim, beta, True)
        return [loss, nll, *torch.autograd.grad(loss, [*case.given, kl_row])]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles the kernels before the capture
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for value in (0.5, 2.0):
        with torch.no_grad():
            beta.fill_(value)
            case.params.add_(0.125)
        graph.replay()
        replayed = [x.detach().clone() for x in captured]
        assert all(map(torch.equal, replayed, step()))


@pytest.mark.parametrize("path", ["triton", "eager"])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.usefixtures("no_waiting")
def test_the_host_never_waits(monkeypatch: pytest.MonkeyPatch, path: str, in_place: bool) -> None:
    monkeypatch.setenv(paths.VARIABLE, path)
    kl_row, kl_dim, beta = terms(96)
    for variant in VARIANTS:
        if variant.get("samples", 1) != 1:
            continue
        case = make_case(rows=96, columns=785, **variant).to(torch.float32, "cuda")

        def step(case: Case = case) -> None:
            loss, _ = loss_of(case, case.params * 1.0, kl_row, kl_dim, beta, in_place)
            torch.autograd.grad(loss * 2.0, [*case.given, kl_row])
            torch.autograd.grad(run(case).sum(), case.given)

        step()  # compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        step()
        torch.cuda.set_sync_debug_mode("default")
