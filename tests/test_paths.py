"""Which implementation runs, and what is said when it cannot."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastvae import ops
from fastvae.kernels import paths

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("FASTVAE_OPS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    paths._triton_there.cache_clear()
    yield
    ops.prefer("auto")
    paths._triton_there.cache_clear()


def hide_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == "triton" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)


def test_defaults() -> None:
    assert paths.choose(CPU, torch.float32) == "eager"
    if importlib.util.find_spec("triton"):
        assert paths.choose(CUDA, torch.bfloat16) == "triton"
    ops.prefer("compiled")
    assert paths.choose(CPU, torch.float32) == "compiled"
    assert paths.choose(CPU, torch.float64) == "eager"


@pytest.mark.parametrize("forced", ["eager", "compiled"])
def test_the_variable_forces_a_path(monkeypatch: pytest.MonkeyPatch, forced: str) -> None:
    monkeypatch.setenv("FASTVAE_OPS", forced)
    assert paths.choose(CPU, torch.float32) == forced
    assert paths.choose(CUDA, torch.float32) == forced
    assert paths.choose(CPU, torch.float64) == "eager"


def test_an_unknown_path_names_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVAE_OPS", "fast")
    with pytest.raises(ValueError, match="FASTVAE_OPS=fast: expected one of auto, triton"):
        ops.bernoulli_nll(torch.zeros(2, 3), torch.zeros(2, 3))


def test_triton_on_a_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVAE_OPS", "triton")
    if importlib.util.find_spec("triton"):
        with pytest.raises(ValueError, match="on cpu: Triton needs a GPU"):
            ops.bernoulli_nll(torch.zeros(2, 3), torch.zeros(2, 3))
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert paths.choose(CPU, torch.float32) == "triton"
    hide_triton(monkeypatch)
    with pytest.raises(ValueError, match="pip install triton"):
        paths.choose(CPU, torch.float32)


def test_a_gpu_without_triton_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_triton(monkeypatch)
    with pytest.warns(RuntimeWarning, match="triton is not installed"):
        assert paths.choose(CUDA, torch.float32) == "eager"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert paths.choose(CUDA, torch.float32) == "eager"


def test_prefer_takes_known_paths_only() -> None:
    with pytest.raises(ValueError, match="'triton'"):
        ops.prefer("triton")


def test_a_cpu_never_imports_triton() -> None:
    """Importing it costs time, and macOS has none."""
    program = (
        "import sys, torch\n"
        "from fastvae import ops\n"
        "x = torch.zeros(2, 3, requires_grad=True)\n"
        "z, row, dim = ops.reparam_kl(x, x, ops.rng_state(0))\n"
        "ops.elbo_loss(z, torch.zeros(2, 3), row, dim).loss.backward()\n"
        "assert not any(name.split('.')[0] == 'triton' for name in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_paths_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 6, 5, generator=generator)
    weight = torch.randn(5, 40, generator=generator)
    target = torch.rand(6, 40, generator=generator)
    results = []
    for path in ("eager", "compiled"):
        monkeypatch.setenv("FASTVAE_OPS", path)
        m, v = mean.clone().requires_grad_(), logvar.clone().requires_grad_()
        z, row, dim = ops.reparam_kl(m, v, ops.rng_state(3))
        out = ops.elbo_loss(z @ weight, target, row, dim, beta=0.5, free_bits=0.1)
        out.loss.backward()
        assert m.grad is not None
        assert v.grad is not None
        results.append((z.detach(), out.loss.detach(), out.nll, m.grad, v.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)
