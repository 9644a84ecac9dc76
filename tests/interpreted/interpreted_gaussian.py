"""The Gaussian kernels and the normals in Triton's interpreter, against float64 and PyTorch.

Run by test_interpreter.py in a process with TRITON_INTERPRET=1 and FASTVAE_OPS=triton.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gaussian_cases import FLAGS, FLOOR, Case, assert_as_precise, make_case
from torch import Tensor

from fastvae import ops
from fastvae.kernels import gaussian, gaussian_op, gaussian_triton, philox, philox_op, philox_triton

if os.environ.get("TRITON_INTERPRET") != "1" or os.environ.get("FASTVAE_OPS") != "triton":
    raise RuntimeError("needs TRITON_INTERPRET=1 and FASTVAE_OPS=triton, set before Triton loads")


def run(case: Case, out_dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return gaussian_op.sample_kl(*case.inputs, case.rng, out_dtype=out_dtype, **case.keywords)


def rng(seed: int = 3, counter: int = 0) -> Tensor:
    return torch.tensor([seed, counter])


@pytest.mark.parametrize("columns", [1, 3, 4, 20, 257])
@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 + 5, 2**63 - 1])
def test_normals_are_the_same_bits(seed: int, columns: int) -> None:
    ordinal = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32, 2**40 + 7, 2**62])
    got = philox_triton.philox_normal(seed, ordinal, columns)
    expected = philox.philox_normal(seed, ordinal, columns)
    assert torch.equal(got.view(torch.int32), expected.view(torch.int32))


def test_many_normals_are_the_same_bits() -> None:
    ordinal = torch.arange(2000) + 2**33
    got = philox_op.philox_normal(11, ordinal, 64)
    assert torch.equal(got, philox.philox_normal(11, ordinal, 64))


def test_normals_of_nothing() -> None:
    assert philox_triton.philox_normal(0, torch.arange(0), 4).shape == (0, 4)
    assert philox_triton.philox_normal(0, torch.arange(3), 0).shape == (3, 0)


@pytest.mark.parametrize("dtype", list(FLOOR))
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_values_and_gradients(flags: dict[str, bool], dtype: torch.dtype) -> None:
    case = make_case(7, 20, **flags)
    low, exact = case.to(dtype), case.to(torch.float64).reference()
    outputs = run(low, dtype)
    assert [x.dtype for x in outputs] == [dtype, torch.float32, torch.float32]
    assert_as_precise(low.backward(outputs), low.reference(), exact, FLOOR[dtype])


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("columns", [1, 20, 255, 784, 785])
def test_tails(rows: int, columns: int) -> None:
    case = make_case(rows, columns, prior=True, log_std=False, clamped=True)
    low, exact = case.to(torch.float32), case.to(torch.float64).reference()
    assert_as_precise(low.backward(run(low)), low.reference(), exact, 1e-6)


def test_wide_rows() -> None:
    case = make_case(2, 12_288, prior=False, log_std=True, clamped=False)
    low, exact = case.to(torch.float32), case.to(torch.float64).reference()
    assert_as_precise(low.backward(run(low)), low.reference(), exact, 1e-6)


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("prior", [False, True])
def test_outputs_that_do_not_reach_the_loss(prior: bool, used: tuple[int, ...]) -> None:
    """With gradients as PyTorch makes them: ``sum`` and ``mean`` expand a single number."""
    case = make_case(5, 20, prior=prior, log_std=True, clamped=True)
    low, exact = case.to(torch.float32), case.to(torch.float64)
    got = torch.autograd.grad(sum(run(low)[i].sum() for i in used), low.given)
    ordinal = torch.arange(5) + int(case.rng[1]) + case.sample_offset
    eps = philox.philox_normal(int(case.rng[0]), ordinal, 20).double()
    outputs = gaussian.sample_kl_reference(*exact.inputs, eps, case.log_std, case.clamp)
    total = sum(outputs[i].sum() for i in used)
    expected = torch.autograd.grad(total, exact.given, materialize_grads=True)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=1e-6 * b.abs().max().item())


@pytest.mark.parametrize("layout", ["chunk", "transposed", "second column", "one row"])
def test_layouts(layout: str) -> None:
    make = {
        "chunk": lambda x: torch.cat((x, x), dim=1).chunk(2, dim=1)[1],
        "transposed": lambda x: x.t().contiguous().t(),
        "second column": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
        "one row": lambda x: x[:1].expand(6, 20),
    }[layout]
    case = make_case(6, 20, prior=True, log_std=False, clamped=False).to(torch.float32)
    inputs = [make(x.detach()).requires_grad_() for x in case.given]
    strided = Case(tuple(inputs), case.rng, case.weights)
    plain = Case(
        tuple(x.detach().contiguous().requires_grad_() for x in inputs), case.rng, case.weights
    )
    for a, b in zip(strided.backward(run(strided)), plain.backward(run(plain)), strict=True):
        assert torch.equal(a, b)


def test_each_input_has_its_own_stride() -> None:
    case = make_case(6, 20, prior=True, log_std=False, clamped=False).to(torch.float32)
    padded = [torch.cat((x, x[:, : 3 + i]), dim=1)[:, :20] for i, x in enumerate(case.given)]
    assert len({x.stride(0) for x in padded}) == 4
    strided = Case(tuple(x.detach().requires_grad_() for x in padded), case.rng, case.weights)
    assert all(map(torch.equal, strided.backward(run(strided)), case.backward(run(case))))


def test_a_strided_gradient_of_z() -> None:
    case = make_case(6, 20, prior=False, log_std=False, clamped=False).to(torch.float32)
    weight = case.weights[0].float()
    expected = torch.autograd.grad(run(case)[0], case.given, weight)
    for strided in (weight.t().contiguous().t(), torch.cat((weight, weight), 1)[:, 20:]):
        got = torch.autograd.grad(run(case)[0], case.given, strided)
        assert all(map(torch.equal, got, expected))


def test_mixed_dtypes() -> None:
    case = make_case(5, 20, prior=True, log_std=False, clamped=False)
    kinds = (torch.bfloat16, torch.float32, torch.float32, torch.float16)
    inputs = [x.to(k).requires_grad_() for x, k in zip(case.given, kinds, strict=True)]
    mixed = Case(tuple(inputs), case.rng, case.weights)
    got, exact = mixed.backward(run(mixed)), case.to(torch.float64).reference()
    assert_as_precise(got[:3], got[:3], exact[:3], 1e-6)
    gradients = torch.autograd.grad(run(mixed)[1].sum(), inputs)
    assert tuple(g.dtype for g in gradients) == kinds


@pytest.mark.parametrize("columns", [20, 300])
def test_batch_split_does_not_change_a_bit(columns: int) -> None:
    """Rows alone, in another place of a tile, or in another tile: the same noise and sums."""
    case = make_case(40, columns, prior=False, log_std=False, clamped=False).to(torch.float32)
    mean, scale = (x.detach() for x in case.given)
    z, kl_row, _ = gaussian_op.sample_kl(mean, scale, None, None, rng(7, 40))
    for start, stop in ((0, 1), (1, 8), (33, 40)):
        for state, offset in ((rng(7, 40), start), (rng(7, 40 + start), 0)):
            got = gaussian_op.sample_kl(
                mean[start:stop], scale[start:stop], None, None, state, sample_offset=offset
            )
            assert torch.equal(got[0], z[start:stop])
            assert torch.equal(got[1], kl_row[start:stop])


def test_noise_is_the_same_in_both_directions_and_in_pytorch() -> None:
    zero = torch.zeros(6, 21)
    arguments = (zero, zero, None, None, rng(2**50, 2**32), 7, False, gaussian.NO_CLAMP)
    z, _, _, kept = gaussian_triton.sample_kl(*arguments, torch.float32)
    eps = philox.philox_normal(2**50, torch.arange(6) + 2**32 + 7, 21)
    assert torch.equal(z, eps)
    assert kept.shape == (0,)
    one = torch.ones(6, 21)
    _, g_scale = gaussian_triton.sample_kl_backward(
        one, None, None, *arguments[:5], kept, *arguments[5:]
    )
    assert torch.equal(g_scale, 0.5 * eps)


def test_launchers_and_explicit_forms_agree() -> None:
    """The same arguments, and the same results but for the noise."""
    case = make_case(5, 20, prior=True, log_std=True, clamped=True)
    inputs = [x.float() for x in case.given]
    settings = (3, True, case.clamp)
    got = gaussian_triton.sample_kl(*inputs, case.rng, *settings, torch.float32)
    expected = gaussian.sample_kl(*inputs, case.rng, *settings, torch.float32)
    weights = [w.float() for w in case.weights]
    back = [
        form.sample_kl_backward(*weights, *inputs, case.rng, noise, *settings)
        for form, noise in ((gaussian_triton, got[3]), (gaussian, expected[3]))
    ]
    pairs = (*zip(got[:3], expected[:3], strict=True), *zip(*back, strict=True))
    for a, b in pairs:
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


def test_clamps_stop_gradients_outside_and_keep_nan() -> None:
    mean = torch.tensor([[-9.0, -1.0, 0.0, 2.0, 9.0, float("nan")]], requires_grad=True)
    scale = torch.zeros(1, 6, requires_grad=True)
    clamp = (-1.0, 2.0, 0.0, float("inf"))
    z, kl_row, kl_dim = gaussian_op.sample_kl(mean, scale, None, None, rng(), clamp=clamp)
    assert torch.equal(kl_dim[:5], 0.5 * torch.tensor([1.0, 1.0, 0.0, 4.0, 4.0]))
    assert z[0, 5].isnan()
    assert kl_row.isnan()
    (z[:, :5].sum() + kl_dim[:5].sum()).backward()
    assert mean.grad[0, :5].tolist() == [0.0, 0.0, 1.0, 3.0, 0.0]
    assert scale.grad[0, :5].all()  # at the bound, which lets it pass


@pytest.mark.parametrize("log_std", [False, True])
@pytest.mark.parametrize("prior", [False, True])
def test_extremes_are_finite(prior: bool, log_std: bool) -> None:
    edge = torch.tensor([-20.0, -1.0, 0.0, 1.0, 20.0])
    scale = (edge / (1 + log_std)).repeat_interleave(5)
    mean = (edge * 500).repeat(5)
    inputs = [mean[None], scale[None], mean.flip(0)[None], scale.roll(1)[None]]
    weights = (torch.ones(1, 25), torch.ones(1), torch.ones(25))
    given = (*inputs[:2], *(inputs[2:] if prior else (None, None)))
    case = Case(given, rng(), weights, log_std=log_std)
    low, exact = case.to(torch.float32), case.to(torch.float64).reference()
    got = low.backward(run(low))
    assert all(x.isfinite().all() for x in got)
    assert_as_precise(got, low.reference(), exact, 1e-6)


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0), (1, 1)])
def test_empty_and_single(shape: tuple[int, int]) -> None:
    case = make_case(*shape, prior=True, log_std=False, clamped=False).to(torch.float32)
    outputs = run(case)
    assert [tuple(x.shape) for x in outputs] == [shape, shape[:1], shape[1:]]
    for a, b in zip(case.backward(outputs), case.reference(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_two_runs_are_equal_to_the_bit() -> None:
    case = make_case(40, 300, prior=True, log_std=False, clamped=False).to(torch.float32)
    first, second = (case.backward(run(case)) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_op_boundary() -> None:
    """Fake kernels tell of the noise that is not kept, and the graph stays whole."""
    case = make_case(3, 5, prior=True, log_std=False, clamped=False).to(torch.float32)
    inputs = [x.detach() for x in case.given]
    arguments = (*inputs, case.rng, 5, False, list(case.clamp))
    torch.library.opcheck(torch.ops.fastvae.sample_kl.default, (*arguments, torch.bfloat16))
    gradients = [w.float() for w in case.weights]
    noise = torch.empty(0)
    torch.library.opcheck(
        torch.ops.fastvae.sample_kl_backward.default,
        (*gradients, *arguments[:5], noise, *arguments[5:]),
    )

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(*given: Tensor) -> tuple[Tensor, ...]:
        return gaussian_op.sample_kl(*given, case.rng, **case.keywords)

    expected = case.backward(run(case))
    assert all(map(torch.equal, case.backward(compiled(*case.given)), expected))


def test_lanes_beyond_the_last_latent_do_not_count() -> None:
    """With a clamp that excludes 0, what a masked load returns has a KL of its own."""
    mean, logvar = torch.randn(3, 21), torch.randn(3, 21)
    bounds = {"clamp_mean": (2.0, 3.0), "clamp_scale": (-7.0, -1.0)}
    _, kl_row, kl_dim = ops.reparam_kl(mean, logvar, ops.rng_state(0), **bounds)
    kl = ops.kl_standard_normal(mean.clamp(2.0, 3.0), logvar.clamp(-7.0, -1.0))
    torch.testing.assert_close(kl_row, kl.sum(dim=1))
    torch.testing.assert_close(kl_dim, kl.sum(dim=0))


def test_a_huge_variance_without_kl_has_a_gradient() -> None:
    for prior in (False, True):
        inputs = [torch.full((2, 5), v, requires_grad=True) for v in (0.0, 100.0, 0.0, 0.0)]
        rng = ops.rng_state(0)
        if prior:
            z, _, _ = ops.gaussian_sample_kl(*inputs, rng)
        else:
            z, _, _ = ops.reparam_kl(*inputs[:2], rng)
        z.sum().backward()
        assert all(torch.isfinite(x.grad).all() for x in inputs[: 4 if prior else 2])
