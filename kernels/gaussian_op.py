"""``sample_kl`` as an operation of torch.library, differentiable by its own backward kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastvae.kernels import gaussian
from fastvae.kernels.library import inlined, register
from fastvae.kernels.once import once_differentiable
from fastvae.kernels.paths import Implementations, choose

_INPUTS = "Tensor mean_q, Tensor scale_q, Tensor? mean_p, Tensor? scale_p, Tensor rng"
_FORWARD = Implementations(gaussian.sample_kl, "fastvae.kernels.gaussian_triton:sample_kl")
_BACKWARD = Implementations(
    gaussian.sample_kl_backward, "fastvae.kernels.gaussian_triton:sample_kl_backward"
)


def _run_forward(mean_q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor, Tensor]
    result = _FORWARD.pick(mean_q.device, mean_q.dtype)(mean_q, *rest)
    return result


def _run_backward(
    grad_z: Tensor | None,
    grad_row: Tensor | None,
    grad_dim: Tensor | None,
    mean_q: Tensor,
    *rest: Any,
) -> list[Tensor]:
    form = _BACKWARD.pick(mean_q.device, mean_q.dtype)
    gradients: list[Tensor] = form(grad_z, grad_row, grad_dim, mean_q, *rest)
    return gradients


def _fake_forward(
    mean_q: Tensor,
    scale_q: Tensor,
    mean_p: Tensor | None,
    scale_p: Tensor | None,
    rng: Tensor,
    sample_offset: int,
    log_std: bool,
    clamp: Sequence[float],
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, latents = mean_q.shape
    sums = torch.float64 if mean_q.dtype == torch.float64 else torch.float32
    redrawn = choose(mean_q.device, mean_q.dtype) == "triton"
    return (
        mean_q.new_empty((rows, latents), dtype=out_dtype),
        mean_q.new_empty((rows,), dtype=sums),
        mean_q.new_empty((latents,), dtype=sums),
        mean_q.new_empty((0,) if redrawn else (rows, latents), dtype=torch.float32),
    )


def _fake_backward(
    grad_z: Tensor | None,
    grad_row: Tensor | None,
    grad_dim: Tensor | None,
    mean_q: Tensor,
    scale_q: Tensor,
    mean_p: Tensor | None,
    scale_p: Tensor | None,
    *rest: Any,
) -> list[Tensor]:
    inputs = (mean_q, scale_q, mean_p, scale_p)
    return [x.new_empty(x.shape) for x in inputs if x is not None]


_forward_op = register(
    f"sample_kl({_INPUTS}, SymInt sample_offset, bool log_std, float[] clamp, "
    "ScalarType out_dtype) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_forward,
    _fake_forward,
)
_backward_op = register(
    f"sample_kl_backward(Tensor? grad_z, Tensor? grad_row, Tensor? grad_dim, {_INPUTS}, "
    "Tensor noise, SymInt sample_offset, bool log_std, float[] clamp) -> Tensor[]",
    _run_backward,
    _fake_backward,
)


_forward = inlined(_forward_op, gaussian.sample_kl)
_backward = inlined(_backward_op, gaussian.sample_kl_backward)


class _SampleKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mean_q: Tensor,
        scale_q: Tensor,
        mean_p: Tensor | None,
        scale_p: Tensor | None,
        rng: Tensor,
        sample_offset: int,
        log_std: bool,
        clamp: Sequence[float],
        out_dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.settings = (sample_offset, log_std, clamp)
        inputs = (mean_q, scale_q, mean_p, scale_p, rng)
        z, kl_row, kl_dim, noise = _forward(*inputs, *ctx.settings, out_dtype)
        ctx.save_for_backward(*inputs, noise)
        return z, kl_row, kl_dim

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        computed = _backward(*gradients, *ctx.saved_tensors, *ctx.settings)
        prior = computed[2:] or (None, None)
        return (computed[0], computed[1], *prior, None, None, None, None, None)


def sample_kl(
    mean_q: Tensor,
    scale_q: Tensor,
    mean_p: Tensor | None,
    scale_p: Tensor | None,
    rng: Tensor,
    *,
    sample_offset: int = 0,
    log_std: bool = False,
    clamp: Sequence[float] = gaussian.NO_CLAMP,
    out_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """z, KL per row and KL per latent (see ``gaussian.sample_kl``); once differentiable.

    ``rng`` must keep its value until the backward pass, which draws the noise again on a GPU;
    PyTorch raises if it has changed.
    """
    z, kl_row, kl_dim = _SampleKL.apply(
        mean_q, scale_q, mean_p, scale_p, rng, sample_offset, log_std, list(clamp), out_dtype
    )
    return z, kl_row, kl_dim
