"""Noise, draws from diagonal Gaussian posteriors, and their KL divergence."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.kernels import gaussian, gaussian_op, philox, philox_op
from fastvae.kernels.rows import widen as widen
from fastvae.ops import checks

derive_seed = philox.derive_seed


def philox_words(seed: int, ordinal: Tensor, columns: int, *, stream: int = 0) -> Tensor:
    """Uniform 32-bit words for each (seed, ordinal, column, stream), Philox 4x32-10.

    Shapes: ordinal (R,) int64, 0 or more; returns (R, columns) int64 holding uint32 values.
    """
    _check_stream("philox_words", seed, ordinal, columns)
    return philox.philox_words(seed, ordinal, columns, stream=stream)


def philox_normal(seed: int, ordinal: Tensor, columns: int) -> Tensor:
    """Standard normals for each (seed, ordinal, column): the noise of ``reparam_kl``.

    Shapes: ordinal (R,) int64; returns (R, columns) float32, the same bits on every device.
    """
    _check_stream("philox_normal", seed, ordinal, columns)
    return philox_op.philox_normal(seed, ordinal, columns)


def philox_bernoulli(seed: int, ordinal: Tensor, pixels: Tensor) -> Tensor:
    """Bits with P(1) = pixel / 255 for each (seed, ordinal, pixel), exact in integers.

    Shapes: ordinal (R,) int64; pixels (R, ...) uint8; returns (R, ...) bool.
    """
    _check_stream("philox_bernoulli", seed, ordinal, 0)
    checks.tensor("philox_bernoulli", "pixels", pixels)
    if pixels.dtype != torch.uint8 or pixels.dim() < 2 or len(pixels) != len(ordinal):
        raise ValueError(
            f"philox_bernoulli: pixels must be uint8 ({len(ordinal)}, ...), got "
            f"{tuple(pixels.shape)} {pixels.dtype}"
        )
    return philox.philox_bernoulli(seed, ordinal, pixels)


def _check_stream(op: str, seed: int, ordinal: Tensor, columns: int) -> None:
    checks.count(op, "seed", seed, least=0)
    checks.count(op, "columns", columns, least=0)
    checks.tensor(op, "ordinal", ordinal)
    if ordinal.dtype != torch.int64 or ordinal.dim() != 1:
        raise ValueError(
            f"{op}: ordinal must be int64 (R,), got {tuple(ordinal.shape)} {ordinal.dtype}"
        )


def rng_state(seed: int, device: torch.device | str = "cpu", counter: int = 0) -> Tensor:
    """State of the noise: int64 (2,) = (seed, counter) on ``device``.

    Row r of a call draws the noise of sample number ``counter + sample_offset + r``. To move on,
    change the counter in place (``rng[1] += n``; inside a CUDA graph every replay then does so).
    """
    checks.count("rng_state", "seed", seed, least=0)
    checks.count("rng_state", "counter", counter, least=0, below=2**62)
    state = torch.tensor([seed, counter], dtype=torch.int64)
    if torch.device(device).type == "cuda":
        return state.pin_memory().to(device, non_blocking=True)  # without waiting for the GPU
    return state.to(device)


def reparam_kl(
    mean: Tensor,
    logvar: Tensor,
    rng: Tensor,
    *,
    sample_offset: int = 0,
    out_dtype: torch.dtype | None = None,
    log_std: bool = False,
    clamp_mean: tuple[float, float] | None = None,
    clamp_scale: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample z ~ N(mean, exp(logvar)) and KL(N(mean, exp(logvar)) || N(0, 1)), in one kernel.

    Noise is a pure function of (seed, sample number, latent): the same z for any number of ranks,
    any micro-batch split, after any resume. It is not stored for the backward pass on a GPU.

    Args:
        rng: state from ``rng_state``; must stay as it is until the backward pass, which draws the
            same noise again on a GPU.
        sample_offset: added to the state's counter: the number of row 0 among its samples.
        out_dtype: dtype of z; None gives float32 (float64 for float64 inputs).
        log_std: the second argument is the log of the standard deviation, not of the variance.
        clamp_mean, clamp_scale: bounds (low, high) put on mean and on logvar (or log std) first;
            no gradient passes where they bind.

    Shapes: mean and logvar (B, ...) of one floating point dtype.

    Returns:
        z (B, ...); kl_row (B,), nats, summed over latents; kl_dim (...), nats, summed over rows.

    Raises:
        ValueError: shapes, dtypes, devices or bounds do not fit.
    """
    return _sample_kl(
        "reparam_kl",
        {"mean": mean, "logvar": logvar},
        rng,
        sample_offset,
        out_dtype,
        log_std,
        clamp_mean,
        clamp_scale,
    )


def gaussian_sample_kl(
    mean_q: Tensor,
    logvar_q: Tensor,
    mean_p: Tensor,
    logvar_p: Tensor,
    rng: Tensor,
    *,
    sample_offset: int = 0,
    out_dtype: torch.dtype | None = None,
    log_std: bool = False,
    clamp_mean: tuple[float, float] | None = None,
    clamp_scale: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample z ~ q and KL(q || p) of diagonal Gaussians, with gradients to all four.

    As ``reparam_kl``, with a learned prior p. ``log_std`` holds for both, the bounds for q only.
    """
    tensors = {"mean_q": mean_q, "logvar_q": logvar_q, "mean_p": mean_p, "logvar_p": logvar_p}
    return _sample_kl(
        "gaussian_sample_kl",
        tensors,
        rng,
        sample_offset,
        out_dtype,
        log_std,
        clamp_mean,
        clamp_scale,
    )


def _sample_kl(
    op: str,
    tensors: dict[str, Tensor],
    rng: Tensor,
    sample_offset: int,
    out_dtype: torch.dtype | None,
    log_std: bool,
    clamp_mean: tuple[float, float] | None,
    clamp_scale: tuple[float, float] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    checks.floating(op, **tensors)
    checks.same_shape(op, **tensors)
    checks.same_place(op, **tensors)
    mean, scale, *prior = tensors.values()
    checks.rows(op, next(iter(tensors)), mean)
    checks.rng(op, rng, mean.device)
    checks.count(op, "sample_offset", sample_offset, least=0, below=2**62)
    if out_dtype is None:
        out_dtype = torch.float64 if mean.dtype == torch.float64 else torch.float32
    else:
        checks.float_dtype(op, "out_dtype", out_dtype)
    bounds = (
        *checks.interval(op, "clamp_mean", clamp_mean),
        *checks.interval(op, "clamp_scale", clamp_scale),
    )
    mean_p, scale_p = prior or (None, None)
    z, kl_row, kl_dim = gaussian_op.sample_kl(
        mean.flatten(1),
        scale.flatten(1),
        None if mean_p is None else mean_p.flatten(1),
        None if scale_p is None else scale_p.flatten(1),
        rng,
        sample_offset=sample_offset,
        log_std=log_std,
        clamp=bounds,
        out_dtype=out_dtype,
    )
    return z.view(mean.shape), kl_row, kl_dim.view(mean.shape[1:])


def reparameterize(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """z = mean + exp(logvar / 2) * eps in float32. Shapes: all (B, Z); returns (B, Z)."""
    checks.same_shape("reparameterize", mean=mean, logvar=logvar, eps=eps)
    return gaussian.reparameterize(widen(mean), widen(logvar), eps)


def kl_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) per latent, nats. Shapes: (B, Z); returns (B, Z)."""
    checks.same_shape("kl_standard_normal", mean=mean, logvar=logvar)
    return gaussian.kl_standard_normal(widen(mean), widen(logvar))


def gaussian_log_prob(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mean, exp(logvar)) per latent, nats. Shapes: broadcastable to z."""
    return gaussian.gaussian_log_prob(widen(z), widen(mean), widen(logvar))
