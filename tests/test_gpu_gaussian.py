"""The Gaussian kernels on a GPU: numerics, determinism, CUDA graphs, and no waiting for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from gaussian_cases import FLAGS, Case, assert_as_precise, make_case
from torch import Tensor

from fastvae.kernels import gaussian_op, paths, philox, philox_op

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
# A GPU rounds to nearest when it stores. Its exp(x) is 2^(x log2 e), and the rounding of that
# product costs |x| / 2^24 of the result: 1e-6 for the largest ratios of variances here.
FLOOR = {torch.float32: 2e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.VARIABLE, "triton")


@pytest.fixture
def no_waiting() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


def run(case: Case, out_dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return gaussian_op.sample_kl(*case.inputs, case.rng, out_dtype=out_dtype, **case.keywords)


def train_step(case: Case, out: list[Tensor]) -> None:
    """Forward and backward into buffers, and the counter moves on."""
    z, kl_row, kl_dim = run(case)
    weights = [w.to(x.dtype) for w, x in zip(case.weights, (z, kl_row, kl_dim), strict=True)]
    gradients = torch.autograd.grad((z, kl_row, kl_dim), case.given, weights)
    for buffer, value in zip(out, (z, kl_row, kl_dim, *gradients), strict=True):
        buffer.copy_(value.detach())
    case.rng[1:] += len(z)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 + 5, 2**63 - 1])
def test_normals_are_the_same_bits_as_on_a_cpu(seed: int) -> None:
    ordinal = torch.cat((torch.arange(3000), torch.arange(3000) + 2**32 - 1500))
    for columns in (1, 20, 256, 785):
        got = philox_op.philox_normal(seed, ordinal.cuda(), columns).cpu()
        expected = philox.philox_normal(seed, ordinal, columns)
        assert torch.equal(got.view(torch.int32), expected.view(torch.int32))


def test_sampled_noise_is_the_same_bits_as_on_a_cpu() -> None:
    zero, rng = torch.zeros(500, 21, device="cuda"), torch.tensor([2**50, 2**32], device="cuda")
    z, _, _ = gaussian_op.sample_kl(zero, zero, None, None, rng, sample_offset=7)
    assert torch.equal(z.cpu(), philox.philox_normal(2**50, torch.arange(500) + 2**32 + 7, 21))


@pytest.mark.parametrize("shape", [(512, 20), (128, 128), (33, 256), (3, 12_288), (1, 1)])
@pytest.mark.parametrize("dtype", list(FLOOR))
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_values_and_gradients(
    flags: dict[str, bool], dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    case = make_case(*shape, **flags)
    exact, own = case.to(torch.float64).reference(), case.to(dtype).reference()
    low = case.to(dtype, "cuda")
    assert_as_precise(low.backward(run(low, dtype)), own, exact, FLOOR[dtype])


def test_the_eager_form_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(64, 20, prior=True, log_std=False, clamped=True).to(torch.float32, "cuda")
    fused = case.backward(run(case))
    monkeypatch.setenv(paths.VARIABLE, "eager")
    for a, b in zip(fused, case.backward(run(case)), strict=True):
        torch.testing.assert_close(a, b, rtol=3e-6, atol=3e-6 * b.abs().max().item())


@pytest.mark.parametrize("shape", [(1000, 20), (64, 1000)])
def test_two_runs_are_equal_to_the_bit(shape: tuple[int, int]) -> None:
    case = make_case(*shape, prior=True, log_std=False, clamped=False).to(torch.float32, "cuda")
    first, second = (case.backward(run(case)) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("columns", [20, 300])
def test_batch_split_does_not_change_a_bit(columns: int) -> None:
    case = make_case(200, columns, prior=False, log_std=False, clamped=False)
    mean, scale = (x.float().cuda() for x in case.given)
    rng = torch.tensor([3, 40], device="cuda")
    z, kl_row, _ = gaussian_op.sample_kl(mean, scale, None, None, rng)
    for start, stop in ((0, 1), (1, 64), (137, 200)):
        part = slice(start, stop)
        got = gaussian_op.sample_kl(mean[part], scale[part], None, None, rng, sample_offset=start)
        assert torch.equal(got[0], z[part])
        assert torch.equal(got[1], kl_row[part])


def test_strided_halves_of_one_head() -> None:
    head = torch.randn(100, 256, device="cuda", requires_grad=True)
    rng = torch.tensor([3, 0], device="cuda")
    results = []
    for halves in (head.chunk(2, dim=1), [x.contiguous() for x in head.chunk(2, dim=1)]):
        z, kl_row, _ = gaussian_op.sample_kl(*halves, None, None, rng)
        results.append((z, *torch.autograd.grad(z.sum() + kl_row.mean(), head)))
    assert all(map(torch.equal, *results))


def test_a_graph_draws_fresh_noise_at_each_replay() -> None:
    """Captured forward, backward and counter: three replays equal three eager steps."""
    case = make_case(96, 20, prior=True, log_std=True, clamped=True).to(torch.float32, "cuda")
    start = case.rng.clone()
    shapes = ((96, 20), (96,), (20,), *[(96, 20)] * 4)
    out = [torch.empty(shape, device="cuda") for shape in shapes]
    expected = []
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles the kernels before the capture
        for _ in range(3):
            train_step(case, out)
            expected.append([x.clone() for x in out])
    torch.cuda.synchronize()
    case.rng.copy_(start)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train_step(case, out)
    case.rng.copy_(start)
    for step in range(3):
        graph.replay()
        torch.cuda.synchronize()
        assert all(map(torch.equal, out, expected[step]))
    assert not torch.equal(expected[0][0], expected[1][0])
    assert torch.equal(case.rng, start + torch.tensor([0, 3 * 96], device="cuda"))


@pytest.mark.parametrize("path", ["triton", "eager"])
@pytest.mark.usefixtures("no_waiting")
def test_the_host_never_waits(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv(paths.VARIABLE, path)
    case = make_case(96, 20, prior=True, log_std=True, clamped=True).to(torch.float32, "cuda")
    out = [torch.empty(s, device="cuda") for s in ((96, 20), (96,), (20,), *[(96, 20)] * 4)]
    ordinal = torch.arange(96, device="cuda")
    train_step(case, out)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    train_step(case, out)
    philox_op.philox_normal(5, ordinal, 20)
    torch.cuda.set_sync_debug_mode("default")


def test_offsets_beyond_32_bits() -> None:
    """Rows that lie 2^27 elements apart: the last begins at element 3 * 2^30."""
    rows, latents, stride = 25, 20, 2**27
    if torch.cuda.mem_get_info()[0] < 10 * 2**30:
        pytest.skip("needs 10 GiB of free GPU memory")
    storage = torch.empty(rows * stride, dtype=torch.bfloat16, device="cuda")
    far = storage.view(rows, stride)[:, :latents]
    near = torch.randn(rows, latents, device="cuda", dtype=torch.bfloat16)
    far.copy_(near)
    rng = torch.tensor([3, 0], device="cuda")
    got = gaussian_op.sample_kl(far, far, None, None, rng)
    expected = gaussian_op.sample_kl(near, near, None, None, rng)
    assert all(map(torch.equal, got, expected))
