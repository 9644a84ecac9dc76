"""The terminal loss of a VAE: likelihood, KL and their gradients in one pass over the pixels.

    loss = scale * (mean_r nll[r] + beta * K)
    K = mean_r kl_row[r], or with free bits F > 0:  sum_d max(kl_dim[d] / R, F)

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
        kl = _kl_term(kl_row, kl_dim, free_bits)
        return (nll.mean() + beta * kl) * scale, nll.detach()
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


def _kl_term(kl_row: Tensor, kl_dim: Tensor, free_bits: float) -> Tensor:
    if free_bits > 0.0:
        return (kl_dim / kl_row.shape[0]).clamp_min(free_bits).sum()
    return kl_row.mean()


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
        per_row = scale / max(params.shape[0], 1)
        if in_place:
            grad = params.detach()
            nll, grad_second = likelihood_op.pixel_nll_grad_in_place_op(
                grad, second, target, weight, *options, per_row
            )
            # Whoever saved params for a backward pass is told that it has changed.
            torch.autograd.graph.increment_version(params)
        else:
            nll, grad, grad_second = likelihood_op.pixel_nll_grad_op(
                params, second, target, weight, *options, per_row
            )
        loss = (nll.mean() + beta * _kl_term(kl_row, kl_dim, free_bits)) * scale
        beta_tensor = beta if isinstance(beta, Tensor) else None
        ctx.save_for_backward(grad, grad_second, second, kl_row, kl_dim, beta_tensor)
        ctx.beta = None if isinstance(beta, Tensor) else beta
        ctx.free_bits, ctx.per_row, ctx.used = free_bits, per_row, False
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _grad_nll: Tensor) -> tuple[Tensor | None, ...]:
        grad, grad_second, second, kl_row, kl_dim, beta = ctx.saved_tensors
        if torch.compiler.is_compiling():
            grad, grad_second = grad * grad_loss.to(grad.dtype), grad_second * grad_loss
        else:
            _only_once(ctx)
            likelihood_op.rescale_op(grad, grad_loss)
            if second is not None and ctx.needs_input_grad[1]:
                likelihood_op.rescale_op(grad_second, grad_loss)
        factor = grad_loss * (ctx.per_row * (ctx.beta if beta is None else beta))
        by_row = by_dim = None
        if ctx.free_bits > 0.0:
            kept = kl_dim / kl_row.shape[0] >= ctx.free_bits
            by_dim = (kept * factor).to(kl_dim.dtype)
        else:
            by_row = factor.to(kl_row.dtype).expand(kl_row.shape).contiguous()
        by_second = likelihood_op.gradient_of_second(grad_second, second)
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
