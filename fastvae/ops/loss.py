"""The training loss, whose gradient is written in the forward pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvae.kernels import elbo
from fastvae.ops import checks
from fastvae.ops.likelihood import as_rows

LIKELIHOODS = ("bernoulli", "continuous_bernoulli", "gaussian", "dlogistic")


@dataclass(frozen=True)
class ElboOut:
    """What ``elbo_loss`` returns."""

    loss: Tensor
    """() with gradient: scale * mean(nll + beta * kl), or with free bits in place of mean kl."""
    nll: Tensor
    """(B,) without gradient, nats per image."""
    kl: Tensor
    """(B,) without gradient, nats per image, unweighted."""
    values: int
    """Numbers per image, for bits per dimension."""

    @property
    def bpd(self) -> Tensor:
        """() bits per dimension of nll + kl, mean over the batch."""
        return (self.nll + self.kl).mean() / (math.log(2.0) * self.values)


def elbo_loss(
    logits: Tensor,
    target: Tensor,
    kl_row: Tensor,
    kl_dim: Tensor | None = None,
    *,
    likelihood: str = "bernoulli",
    logvar: Tensor | float | None = None,
    n_mix: int = 1,
    weight: Tensor | None = None,
    packed: bool = False,
    beta: float | Tensor = 1.0,
    free_bits: float = 0.0,
    scale: float = 1.0,
    inplace_grad: bool = False,
) -> ElboOut:
    """The negative ELBO as a terminal loss: the gradient is written in the forward pass.

        loss = scale * mean over the batch of (nll + beta * kl)

    That reads and writes each pixel 3 times in all instead of 5. ``backward`` multiplies the
    gradient by what it is given, and returns early on the device when that is 1; so put constant
    factors (1 / accumulation steps) into ``scale``. float16 logits take the ordinary two passes,
    since a GradScaler's factor must come before the gradient is rounded.

    Args:
        logits: the likelihood's parameters; for gaussian the mean, for dlogistic ``params``.
        target, weight, packed, logvar, n_mix: as in the function of that likelihood.
        kl_row: (B,) KL of each image, nats, e.g. from ``reparam_kl``.
        kl_dim: KL of each latent summed over the batch, nats; needed for ``free_bits``.
        likelihood: one of LIKELIHOODS.
        beta: weight of the KL term; a () tensor on the device can change without recompiling or
            capturing anew. It gets no gradient.
        free_bits: nats that each latent's batch-mean KL counts at least (Kingma et al. 2016,
            "Improved variational inference with inverse autoregressive flow", appendix C.8).
        inplace_grad: overwrite the logits with their gradient: saves their memory, no time. The
            logits must not be used afterwards, and cannot be a leaf.

    Raises:
        ValueError: an argument does not fit.
        RuntimeError: backward is called twice, or differentiated.
    """
    op = "elbo_loss"
    if likelihood not in LIKELIHOODS:
        raise ValueError(
            f"{op}: likelihood = {likelihood!r}: expected one of {', '.join(LIKELIHOODS)}"
        )
    checks.count(op, "n_mix", n_mix, least=1)
    rows = as_rows(op, likelihood, logits, logvar, target, weight, 1, packed, n_mix)
    _check_kl(op, logits, kl_row, kl_dim, free_bits)
    checks.scalar(op, "beta", beta, logits)
    checks.number(op, "scale", scale)
    if isinstance(beta, Tensor) and beta.requires_grad:
        raise ValueError(f"{op}: beta gets no gradient: pass beta.detach()")
    if inplace_grad:
        _check_overwritable(op, logits)
    loss, nll = elbo.elbo_loss(
        rows.params,
        rows.second,
        rows.target,
        rows.weight,
        kl_row,
        kl_row.new_empty(0) if kl_dim is None else kl_dim.flatten(),
        kind=likelihood,
        packed=packed,
        mixtures=n_mix,
        beta=beta,
        free_bits=float(free_bits),
        scale=float(scale),
        inplace_grad=inplace_grad,
    )
    return ElboOut(loss=loss, nll=nll, kl=kl_row.detach(), values=rows.values)


def _check_overwritable(op: str, logits: Tensor) -> None:
    base = logits if logits._base is None else logits._base
    if base.requires_grad and base.is_leaf:
        raise ValueError(f"{op}: inplace_grad would overwrite a leaf that requires a gradient")
    if logits.dtype == torch.float16:
        raise ValueError(f"{op}: inplace_grad is not for float16, whose gradient takes two passes")
    pairs = zip(logits.shape, logits.stride(), strict=True)
    if any(size > 1 and stride == 0 for size, stride in pairs):
        raise ValueError(f"{op}: inplace_grad needs logits of their own memory, not expanded ones")


def _check_kl(
    op: str, logits: Tensor, kl_row: Tensor, kl_dim: Tensor | None, free_bits: float
) -> None:
    checks.floating(op, kl_row=kl_row)
    if tuple(kl_row.shape) != (len(logits),):
        raise ValueError(f"{op}: kl_row {tuple(kl_row.shape)} must be ({len(logits)},)")
    if kl_dim is not None:
        checks.floating(op, kl_row=kl_row, kl_dim=kl_dim)
    checks.same_place(op, logits=logits, kl_row=kl_row, kl_dim=kl_dim)
    checks.number(op, "free_bits", free_bits, least=0.0)
    if free_bits > 0.0 and (kl_dim is None or kl_dim.numel() == 0):
        raise ValueError(f"{op}: free_bits = {free_bits} needs kl_dim, the KL of each latent")
