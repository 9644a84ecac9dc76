"""``sample_kl`` on a CPU: reference, explicit gradients, noise, layouts, and the op boundary."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from gaussian_cases import BOUNDS, FLAGS, FLOOR, Case, assert_as_precise, make_case
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from fastvae.kernels import gaussian, gaussian_op, paths, philox, philox_op

HALVES = [torch.float16, torch.bfloat16]


def run(case: Case, out_dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    return gaussian_op.sample_kl(*case.inputs, case.rng, out_dtype=out_dtype, **case.keywords)


def rng(seed: int = 3, counter: int = 0) -> Tensor:
    return torch.tensor([seed, counter])


def test_kl_equals_torch_distributions() -> None:
    m, v, n, k = (torch.randn(64, 20, dtype=torch.float64) * 2 for _ in range(4))
    q, p = Normal(m, (v / 2).exp()), Normal(n, (k / 2).exp())
    expected = kl_divergence(q, p)
    torch.testing.assert_close(gaussian.kl_gaussian(m, v, n, k), expected, rtol=1e-12, atol=1e-12)
    zero = torch.zeros_like(m)
    expected = kl_divergence(q, Normal(zero, zero + 1))
    got = gaussian.kl_gaussian(m, v, zero, zero)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gaussian.kl_standard_normal(m, v), got, rtol=1e-12, atol=1e-12)
    assert torch.equal(gaussian.kl_gaussian(m, v, m, v), zero)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_values_and_gradients_equal_autograd_of_the_reference(flags: dict[str, bool]) -> None:
    case = make_case(6, 20, **flags).to(torch.float64)
    got = case.backward(run(case))
    for a, b in zip(got, case.reference(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_lower_precision(flags: dict[str, bool], dtype: torch.dtype) -> None:
    case = make_case(6, 20, **flags)
    low, exact = case.to(dtype), case.to(torch.float64).reference()
    outputs = run(low, dtype)
    assert outputs[0].dtype == dtype
    assert outputs[1].dtype == outputs[2].dtype == torch.float32
    gradients = torch.autograd.grad(outputs, low.given, [x.detach() for x in outputs])
    assert [g.dtype for g in gradients] == [dtype] * len(low.given)
    got = low.backward(run(low, dtype))
    # Half the floor of the kernels: PyTorch rounds to nearest when it stores.
    assert_as_precise(got, low.to(torch.float32).reference(), exact, FLOOR[dtype] / 2)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_gradcheck(flags: dict[str, bool]) -> None:
    case = make_case(3, 5, **flags)
    if flags["clamped"]:  # no input next to a bound, where finite differences see both sides
        for x, bounds in zip(case.given[:2], (BOUNDS[:2], BOUNDS[2:]), strict=True):
            for bound in bounds:
                x[(x - bound).abs() < 1e-2] += 0.1
    case = case.to(torch.float64)

    def op(*given: Tensor) -> tuple[Tensor, ...]:
        inputs = (*given, None, None)[:4]
        return gaussian_op.sample_kl(*inputs, case.rng, out_dtype=torch.float64, **case.keywords)

    assert torch.autograd.gradcheck(op, tuple(case.given))


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("prior", [False, True])
def test_outputs_that_do_not_reach_the_loss(prior: bool, used: tuple[int, ...]) -> None:
    case = make_case(4, 7, prior=prior, log_std=True, clamped=True).to(torch.float64)
    got = torch.autograd.grad(sum(run(case)[i].square().sum() for i in used), case.given)
    eps = philox.philox_normal(*case.rng[:1].tolist(), torch.arange(4) + 2**33 + 3, 7).double()
    outputs = gaussian.sample_kl_reference(*case.inputs, eps, case.log_std, case.clamp)
    total = sum(outputs[i].square().sum() for i in used)
    expected = torch.autograd.grad(total, case.given, materialize_grads=True)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2, 3), (0, 3)])
def test_inputs_that_want_no_gradient(wanted: tuple[int, ...]) -> None:
    case = make_case(4, 7, prior=True, log_std=False, clamped=False).to(torch.float64)
    expected = case.backward(run(case))[3:]
    for i, x in enumerate(case.given):
        x.requires_grad_(i in wanted)
    z, kl_row, kl_dim = run(case)
    chosen = [case.given[i] for i in wanted]
    gradients = torch.autograd.grad((z, kl_row, kl_dim), chosen, case.weights)
    for i, g in zip(wanted, gradients, strict=True):
        torch.testing.assert_close(g, expected[i], rtol=1e-12, atol=1e-12)


def test_noise_is_philox_of_the_ordinal() -> None:
    zero = torch.zeros(6, 9)
    z, _, _ = gaussian_op.sample_kl(zero, zero, None, None, rng(2**50, 2**32), sample_offset=7)
    assert torch.equal(z, philox.philox_normal(2**50, torch.arange(6) + 2**32 + 7, 9))


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_batch_split_does_not_change_a_bit(batch: int) -> None:
    """Nor does it matter whether the offset or the counter says where a part begins."""
    mean, scale = torch.randn(16, 21), torch.randn(16, 21)
    z, kl_row, _ = gaussian_op.sample_kl(mean, scale, None, None, rng(3, 40))
    for start in range(0, 16, batch):
        part = slice(start, start + batch)
        offsets = ((rng(3, 40), start), (rng(3, 40 + start), 0), (rng(3, 50), start - 10))
        for state, offset in offsets:
            got = gaussian_op.sample_kl(
                mean[part], scale[part], None, None, state, sample_offset=offset
            )
            assert torch.equal(got[0], z[part])
            assert torch.equal(got[1], kl_row[part])


def test_clamps_stop_gradients_outside_and_keep_nan() -> None:
    mean = torch.tensor([[-9.0, -1.0, 0.0, 2.0, 9.0, math.nan]], requires_grad=True)
    scale = torch.zeros(1, 6, requires_grad=True)
    clamp = (-1.0, 2.0, 0.0, math.inf)
    z, kl_row, kl_dim = gaussian_op.sample_kl(mean, scale, None, None, rng(), clamp=clamp)
    assert torch.equal(kl_dim[:5], 0.5 * torch.tensor([1.0, 1.0, 0.0, 4.0, 4.0]))
    assert z[0, 5].isnan()
    assert kl_row.isnan()
    (z[:, :5].sum() + kl_dim[:5].sum()).backward()
    assert mean.grad is not None
    assert scale.grad is not None
    assert mean.grad[0, :5].tolist() == [0.0, 0.0, 1.0, 3.0, 0.0]
    assert scale.grad[0, :5].all()  # at the bound, which lets it pass


def test_bounds_are_compared_in_float32() -> None:
    """bfloat16 has no 0.3: the number next to it, 0.30078, is above the bound."""
    mean = torch.full((1, 1), 0.3, dtype=torch.bfloat16, requires_grad=True)
    scale = torch.zeros_like(mean)
    clamp = (-math.inf, 0.3, -math.inf, math.inf)
    _, kl_row, _ = gaussian_op.sample_kl(mean, scale, None, None, rng(), clamp=clamp)
    kl_row.sum().backward()
    assert kl_row.item() == pytest.approx(0.045, rel=1e-6)
    assert mean.grad == 0


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "chunk": lambda x: torch.cat((x, x), dim=1).chunk(2, dim=1)[1],
    "every second row": lambda x: x.repeat_interleave(2, dim=0)[::2],
    "transposed": lambda x: x.t().contiguous().t(),
    "shifted": lambda x: torch.cat((x[:, :1], x), dim=1)[:, 1:],
    "every second column": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    case = make_case(6, 20, prior=True, log_std=False, clamped=True).to(torch.float32)
    expected = case.backward(run(case, torch.float32))
    inputs = tuple(LAYOUTS[layout](x.detach()).requires_grad_() for x in case.given)
    strided = Case(inputs, case.rng, case.weights, clamp=case.clamp)
    outputs = run(strided, torch.float32)
    assert outputs[0].is_contiguous()
    for a, b in zip(strided.backward(outputs), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_a_prior_of_one_row_sums_its_gradient() -> None:
    case = make_case(6, 20, prior=True, log_std=False, clamped=False).to(torch.float64)
    mean_q, scale_q, mean_p, scale_p = case.given
    row = [x[:1].detach().requires_grad_() for x in (mean_p, scale_p)]
    got = gaussian_op.sample_kl(
        mean_q, scale_q, *(x.expand(6, 20) for x in row), rng(), out_dtype=torch.float64
    )[1]
    expected = gaussian.kl_gaussian(mean_q, scale_q, *row).sum(dim=1)
    for a, b in zip(
        torch.autograd.grad(got.sum(), row), torch.autograd.grad(expected.sum(), row), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0), (1, 1), (1, 20)])
@pytest.mark.parametrize("prior", [False, True])
def test_empty_and_single(shape: tuple[int, int], prior: bool) -> None:
    case = make_case(*shape, prior=prior, log_std=False, clamped=False).to(torch.float32)
    outputs = run(case, torch.float32)
    assert [tuple(x.shape) for x in outputs] == [shape, shape[:1], shape[1:]]
    for a, b in zip(case.backward(outputs), case.reference(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("flags", FLAGS[::2], ids=str)  # without clamps, which would hide it
def test_extremes_are_finite(flags: dict[str, bool]) -> None:
    edge = torch.tensor([-20.0, -1.0, 0.0, 1.0, 20.0])
    scale = (edge / (1 + flags["log_std"])).repeat_interleave(5)
    mean = (edge * 500).repeat(5)
    inputs = [mean[None], scale[None], mean.flip(0)[None], scale.roll(1)[None]]
    case = Case(
        (*inputs[:2], *(inputs[2:] if flags["prior"] else (None, None))),
        rng(),
        (torch.ones(1, 25), torch.ones(1), torch.ones(25)),
        log_std=flags["log_std"],
    )
    low, exact = case.to(torch.float32), case.to(torch.float64).reference()
    got = low.backward(run(low, torch.float32))
    assert all(x.isfinite().all() for x in got)
    assert_as_precise(got, low.reference(), exact, 1e-6)


def test_sums_are_fp32_under_autocast() -> None:
    mean, scale = torch.randn(4, 6), torch.randn(4, 6)
    expected = gaussian_op.sample_kl(mean.bfloat16(), scale.bfloat16(), None, None, rng())
    with torch.autocast("cpu", torch.bfloat16):
        got = gaussian_op.sample_kl(mean.bfloat16(), scale.bfloat16(), None, None, rng())
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("output", [0, 1, 2])
def test_double_backward_raises(output: int) -> None:
    """Also where the incoming gradient is a constant and the inputs alone have a graph."""
    case = make_case(3, 4, prior=True, log_std=False, clamped=False).to(torch.float64)
    given = case.given
    gradients = torch.autograd.grad(run(case)[output].sum(), given[:2], create_graph=True)
    for gradient in gradients:
        for x in given[:2]:
            loss = gradient.square().sum() + x.square().sum()
            with pytest.raises(RuntimeError, match="differentiate twice"):
                torch.autograd.grad(loss, x, retain_graph=True)
    scaled = (run(case)[output] * given[0].sum()).sum()
    (gradient,) = torch.autograd.grad(scaled, given[1], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_state_that_moves_on_before_the_backward_pass_raises() -> None:
    """The backward kernel would draw other noise than the forward one."""
    case = make_case(3, 4, prior=False, log_std=False, clamped=False).to(torch.float32)
    loss = run(case)[0].sum()
    case.rng[1] += 3
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(prior: bool, dtype: torch.dtype) -> None:
    case = make_case(3, 5, prior=prior, log_std=True, clamped=True)
    inputs = [None if x is None else x.to(dtype) for x in case.inputs]
    settings = (5, True, list(BOUNDS))
    forward = torch.ops.fastvae.sample_kl.default
    arguments = (*inputs, case.rng, *settings, torch.bfloat16)
    torch.library.opcheck(forward, arguments)
    noise = forward(*arguments)[3]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    gradients = [w.to(wide) for w in case.weights]
    for missing in range(4):
        given = [g if i != missing else None for i, g in enumerate(gradients)]
        torch.library.opcheck(
            torch.ops.fastvae.sample_kl_backward.default,
            (*given, *inputs, case.rng, noise, *settings),
        )
    torch.library.opcheck(torch.ops.fastvae.philox_normal.default, (5, torch.arange(4), 7))


@pytest.mark.parametrize("prior", [False, True])
def test_compiles_as_one_graph(prior: bool) -> None:
    case = make_case(6, 20, prior=prior, log_std=True, clamped=True).to(torch.float32)
    expected = case.backward(run(case, torch.float32))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(*inputs: Tensor | None) -> tuple[Tensor, ...]:
        z, kl_row, kl_dim = gaussian_op.sample_kl(*inputs, case.rng, **case.keywords)
        return z, kl_row, kl_dim

    for a, b in zip(case.backward(compiled(*case.inputs)), expected, strict=True):
        assert torch.equal(a, b)


def test_seeds_and_offsets_do_not_compile_again() -> None:
    graphs = 0

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    @torch.compile(fullgraph=True, backend=backend)
    def compiled(mean: Tensor, state: Tensor, seed: int, offset: int) -> tuple[Tensor, Tensor]:
        z, _, _ = gaussian_op.sample_kl(mean, mean, None, None, state, sample_offset=offset)
        return z, philox_op.philox_normal(seed, torch.arange(4), 3)

    mean = torch.zeros(2, 3)
    for seed, offset in ((7, 0), (2**62 + 1, 64), (5, 128), (2**40, 2**34)):
        z, eps = compiled(mean, rng(seed), seed, offset)
        assert torch.equal(z, philox.philox_normal(seed, torch.arange(2) + offset, 3))
        assert torch.equal(eps, philox.philox_normal(seed, torch.arange(4), 3))
    assert graphs <= 2  # one for the first numbers, one for any


@pytest.mark.slow
def test_the_compiled_path_equals_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With gradients and noise; several batches, seeds and offsets through the same code."""
    for rows, offset in ((6, 64), (5, 128)):
        case = make_case(rows, 20, prior=False, log_std=False, clamped=False).to(torch.float32)
        case = Case(case.inputs, case.rng + rows, case.weights, sample_offset=offset)
        results = []
        for path in ("eager", "compiled"):
            monkeypatch.setenv(paths.VARIABLE, path)
            results.append(case.backward(run(case, torch.float32)))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)
    zero = torch.zeros(6, 20)
    z, _, _ = gaussian_op.sample_kl(zero, zero, None, None, rng(8), sample_offset=3)
    assert torch.equal(z, philox.philox_normal(8, torch.arange(6) + 3, 20))
    seeds = (3, 2**62 + 9, 44)
    normals = [philox_op.philox_normal(seed, torch.arange(5), 6) for seed in seeds]
    for seed, eps in zip(seeds, normals, strict=True):
        assert torch.equal(eps, philox.philox_normal(seed, torch.arange(5), 6))
