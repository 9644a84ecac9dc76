"""The terminal loss of a VAE: likelihood, KL and their gradients in one pass over the pixels.

    loss = scale / R * (sum_r nll[r] + beta * K)
    K = sum_r kl_row[r], or with free bits F > 0:  sum_d max(kl_dim[d], R F)

(Kingma et al., "Improved variational inference with inverse autoregressive flow", 2016, appendix
C.8.) Nothing follows a loss but its own backward pass, so the gradient by the pixel parameters is
written while the pixels are read: 3 accesses per pixel instead of 5. The backward pass multiplies
it by the gradient of the loss, which is 1 but for a caller who scales the loss afterwards; a 1 is
found out on the device, without waiting for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastvae.kernels import likelihood_op
from fastvae.kernels.rows import widen


def elbo_loss(
    params: Tensor,
    second: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    kl_row: Tensor,
    kl_dim: Tensor,
    *,
    kind: str,
    packed: bool,
    mixtures: int,
    beta: Tensor | float,
    free_bits: float,
    scale: float,
    inplace_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The loss (), and nll (R,) without gradient; nats.

    Args:
        params, second, target, weight, kind, packed, mixtures: as in ``likelihood.py``, one row
            per target.
        kl_row, kl_dim: (R,) and (Z,), KL summed over latents and over rows. Which of the two gets
            a gradient depends on free_bits.
        beta: number, or () tensor on the device; gets no gradient.
        inplace_grad: params may be overwritten with its gradient. Under torch.compile, for float16
            and where nothing needs a gradient this is not done.

    float16 takes two passes: the factor of a GradScaler has to come before the gradient is rounded
    to float16, not after.
    """
    if not torch.is_grad_enabled() or not params.requires_grad or params.dtype == torch.float16:
        nll = likelihood_op.pixel_nll(
            params, second, target, weight, kind=kind, packed=packed, mixtures=mixtures
        )
        per_row = _per_row(scale, nll)
        kl = _kl_term(kl_row, kl_dim, free_bits)
        return nll.sum() * per_row + kl * _times(beta, per_row, kl), nll.detach()
    options = (kind, 1, packed, mixtures)
    loss, nll = _ElboLoss.apply(
        params,
        second,
        target,
        weight,
        kl_row,
        kl_dim,
        beta,
        options,
        free_bits,
        scale,
        inplace_grad and not torch.compiler.is_compiling(),
    )
    return loss, nll


def _per_row(scale: float, rows: Tensor) -> float:
    return scale / max(rows.shape[0], 1)  # a batch of nothing has loss 0


def _kl_term(kl_row: Tensor, kl_dim: Tensor, free_bits: float) -> Tensor:
    """K of the module's formula, in float32 or float64."""
    if free_bits > 0.0:
        return widen(kl_dim).clamp_min(free_bits * kl_row.shape[0]).sum()
    return widen(kl_row).sum()


def _times(beta: Tensor | float, per_row: float, kl: Tensor) -> Tensor | float:
    """The factor of K, in its dtype: a float32 beta would round it in float64."""
    return (beta.to(kl.dtype).reshape(()) if isinstance(beta, Tensor) else beta) * per_row


class _ElboLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        params: Tensor,
        second: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        kl_row: Tensor,
        kl_dim: Tensor,
        beta: Tensor | float,
        options: tuple[str, int, bool, int],
        free_bits: float,
        scale: float,
        in_place: bool,
    ) -> tuple[Tensor, Tensor]:
        per_row = _per_row(scale, params)
        if in_place:
            grad = params.detach()
            nll, grad_second = likelihood_op.pixel_nll_grad_in_place_op(
                grad, second, target, weight, *options, per_row
            )
            # Whoever saved params for a backward pass is told that it has changed.
            torch.autograd.graph.increment_version(params)
        else:
            nll, grad, grad_second = likelihood_op.pixel_nll_grad_visible(
                params, second, target, weight, *options, per_row
            )
        kl = _kl_term(kl_row, kl_dim, free_bits)
        by_kl = _times(beta, per_row, kl)
        loss = nll.sum() * per_row + kl * by_kl
        is_tensor = isinstance(by_kl, Tensor)
        ctx.save_for_backward(
            grad, grad_second, second, kl_row, kl_dim, by_kl if is_tensor else None
        )
        ctx.by_kl = None if is_tensor else by_kl
        ctx.free_bits, ctx.used = free_bits, False
        ctx.mark_non_differentiable(nll)
        ctx.set_materialize_grads(False)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _grad_nll: None) -> tuple[Tensor | None, ...]:
        if not torch.compiler.is_compiling():
            _only_once(ctx)  # before PyTorch notices that a saved tensor has changed
        grad, grad_second, second, kl_row, kl_dim, by_kl = ctx.saved_tensors
        if torch.compiler.is_compiling():
            grad, grad_second = grad * grad_loss.to(grad.dtype), grad_second * grad_loss
        else:
            likelihood_op.rescale_op(grad, grad_loss)
            if ctx.needs_input_grad[1]:
                likelihood_op.rescale_op(grad_second, grad_loss)
        factor = grad_loss * (ctx.by_kl if by_kl is None else by_kl)
        by_second = by_row = by_dim = None
        if ctx.needs_input_grad[1]:
            by_second = likelihood_op.gradient_of_second(grad_second, second)
        if ctx.free_bits > 0.0:
            kept = widen(kl_dim) >= ctx.free_bits * kl_row.shape[0]
            by_dim = (kept * factor).to(kl_dim.dtype)
        else:
            by_row = factor.to(kl_row.dtype).expand(kl_row.shape)
        return grad, by_second, None, None, by_row, by_dim, None, None, None, None, None


def _only_once(ctx: Any) -> None:
    """The gradient is given away and rescaled in place: there is no second one, nor a second
    derivative, for params are not kept."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "elbo_loss has first derivatives only: backward was called with create_graph=True; use "
            "the likelihoods and plain PyTorch for it"
        )
    if ctx.used:
        raise RuntimeError(
            "elbo_loss: backward was called a second time (retain_graph=True); the gradient is "
            "written once, in the forward pass. Add the losses up and call backward once, or "
            "use the likelihoods without elbo_loss"
        )
    ctx.used = True
