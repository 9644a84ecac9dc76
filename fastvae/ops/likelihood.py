"""Pixel likelihoods: negative log-likelihood per image, in nats."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvae.kernels import likelihood_op
from fastvae.ops import checks
from fastvae.ops.posterior import widen


def pack_bits(pixels: Tensor) -> Tensor:
    """Pack binary images eight pixels to a byte, in the order of ``numpy.packbits``.

    Shapes: pixels (T, ...), a pixel counts as 1 when it is not 0; returns (T, ceil(N / 8)) uint8,
    the first pixel in the highest bit, the last byte filled with 0.
    """
    checks.tensor("pack_bits", "pixels", pixels)
    checks.rows("pack_bits", "pixels", pixels)
    bits = (pixels.flatten(1) != 0).to(torch.uint8)
    bits = F.pad(bits, (0, -bits.shape[1] % 8)).unflatten(1, (-1, 8))
    places = torch.arange(7, -1, -1, device=bits.device, dtype=torch.uint8)
    return (bits << places).sum(dim=2, dtype=torch.uint8)


def bernoulli_nll(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    samples_per_target: int = 1,
    packed: bool = False,
) -> Tensor:
    """Bernoulli negative log-likelihood (cross-entropy) on logits: sum softplus(x) - x t.

    Args:
        target: floating point in [0, 1], uint8 (read as / 255), bool, or packed bits.
        weight: factor of each pixel of the target, or None.
        samples_per_target: K; rows r of logits belong to target row r // K (several posterior
            samples per image without repeating the images).
        packed: target holds ``pack_bits`` bytes.

    Shapes: logits (T * K, ...); target and weight (T, ...), or target (T, ceil(N / 8)) when packed.

    Returns:
        nll (T * K,) in nats.
    """
    return _pixel_nll("bernoulli", logits, None, target, weight, samples_per_target, packed=packed)


def continuous_bernoulli_nll(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    samples_per_target: int = 1,
) -> Tensor:
    """Continuous Bernoulli negative log-likelihood on logits, for grey values in [0, 1].

    The cross-entropy minus log C, C = x / tanh(x / 2) the normaliser (Loaiza-Ganem and Cunningham,
    "The continuous Bernoulli", 2019): a density, so nll may be negative. Not for binary targets,
    on which it has no lower bound. Shapes and arguments as ``bernoulli_nll``.
    """
    return _pixel_nll("continuous_bernoulli", logits, None, target, weight, samples_per_target)


def gaussian_nll(
    mean: Tensor,
    target: Tensor,
    logvar: Tensor | float = 0.0,
    *,
    weight: Tensor | None = None,
    samples_per_target: int = 1,
) -> Tensor:
    """Gaussian negative log-likelihood: sum 0.5 (log 2 pi + logvar + (mean - t)^2 exp(-logvar)).

    Args:
        logvar: log variance: a number (fixed), a tensor of one element (learned, one for all), or a
            tensor of the shape of ``mean`` (learned per pixel). 0 gives half the squared error and
            a constant.

    Shapes and the other arguments as ``bernoulli_nll``, with pixels in [0, 1].
    """
    return _pixel_nll("gaussian", mean, logvar, target, weight, samples_per_target)


def dlogistic_nll(
    params: Tensor,
    target: Tensor,
    *,
    n_mix: int = 1,
    weight: Tensor | None = None,
    samples_per_target: int = 1,
) -> Tensor:
    """Negative log-likelihood of 8-bit pixels under a discretised logistic or a mixture of them.

    Salimans et al., "PixelCNN++" (2017), section 2.1, with every channel independent. A pixel level
    k stands for k / 127.5 - 1 and takes the probability of the cell of width 2 / 255 around it;
    the first and last cell reach to infinity. log scales below -7 count as -7.

    Args:
        params: decoder output of (B, P * C, H, W), part by part along the channels: n_mix = 1 has
            P = 2, means and log scales; else P = 3 * n_mix: n_mix mixture logits, then n_mix means,
            then n_mix log scales, each of C channels.
        target: uint8 levels, or floating point in [0, 1] which is rounded to them.

    Shapes: params (T * K, P * C, ...), target and weight (T, C, ...); returns (T * K,) in nats.
    """
    checks.count("dlogistic_nll", "n_mix", n_mix, least=1)
    return _pixel_nll("dlogistic", params, None, target, weight, samples_per_target, mixtures=n_mix)


@dataclass(frozen=True)
class Rows:
    """Arguments of a pixel likelihood as matrices with one row per image."""

    params: Tensor
    second: Tensor | None
    target: Tensor
    weight: Tensor | None
    values: int
    """Image values per row."""


def _pixel_nll(
    kind: str,
    params: Tensor,
    second: Tensor | float | None,
    target: Tensor,
    weight: Tensor | None,
    samples: int,
    *,
    packed: bool = False,
    mixtures: int = 1,
) -> Tensor:
    op = f"{kind}_nll"
    rows = as_rows(op, kind, params, second, target, weight, samples, packed, mixtures)
    return likelihood_op.pixel_nll(
        rows.params,
        rows.second,
        rows.target,
        rows.weight,
        kind=kind,
        samples_per_target=samples,
        packed=packed,
        mixtures=mixtures,
    )


def as_rows(
    op: str,
    kind: str,
    params: Tensor,
    second: Tensor | float | None,
    target: Tensor,
    weight: Tensor | None,
    samples: int,
    packed: bool,
    mixtures: int,
) -> Rows:
    """Check the arguments and flatten them, in memory order where channels_last allows it."""
    name = "params" if kind == "dlogistic" else "mean" if kind == "gaussian" else "logits"
    checks.floating(op, **{name: params})
    checks.rows(op, name, params)
    if packed and kind != "bernoulli":
        raise ValueError(f"{op}: packed targets are for the bernoulli likelihood, not for {kind}")
    shape = _image_shape(op, params, kind, mixtures)
    checks.target(op, shape, target, samples, packed, params)
    checks.weight(op, weight, (shape[0] // samples, *shape[1:]), params)
    if kind == "gaussian":
        second = _variance(op, second, params)
    elif second is not None:
        raise ValueError(f"{op}: logvar is for the gaussian likelihood, not for {kind}")
    if kind == "dlogistic" and target.dtype == torch.bool:
        raise ValueError(f"{op}: target must be uint8 levels or floating point, got torch.bool")
    permuted = (
        params.dim() == 4
        and kind != "dlogistic"  # its parts lie behind each other in the row
        and not packed
        and not params.is_contiguous()
        and params.is_contiguous(memory_format=torch.channels_last)
    )

    def flat(x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1) if permuted else x.flatten(1)

    return Rows(
        params=flat(params),
        second=flat(second) if second is not None and second.shape == params.shape else second,
        target=target if packed else flat(target),
        weight=None if weight is None else flat(weight),
        values=math.prod(shape[1:]),
    )


def _image_shape(op: str, params: Tensor, kind: str, mixtures: int) -> tuple[int, ...]:
    """Shape of the images that ``params`` describe."""
    shape = tuple(params.shape)
    if kind != "dlogistic":
        return shape
    parts = 2 if mixtures == 1 else 3 * mixtures
    if shape[1] % parts:
        raise ValueError(
            f"{op}: params {shape} must have a multiple of {parts} channels for n_mix = {mixtures}"
        )
    return (shape[0], shape[1] // parts, *shape[2:])


def _variance(op: str, logvar: Tensor | float | None, mean: Tensor) -> Tensor:
    """The log variance as a tensor: per pixel, or of one element."""
    value = 0.0 if logvar is None else logvar
    if isinstance(value, Tensor) and (value.numel() != 1 or value.shape == mean.shape):
        checks.floating(op, mean=mean, logvar=value)
        checks.same_shape(op, mean=mean, logvar=value)
        checks.same_place(op, mean=mean, logvar=value)
        checks.finite_on_cpu(op, "logvar", value)
        return value
    checks.scalar(op, "logvar", value, mean)
    if isinstance(value, Tensor):
        return value.reshape(())
    return torch.full((), value, dtype=widen(mean.new_empty(0)).dtype, device=mean.device)
