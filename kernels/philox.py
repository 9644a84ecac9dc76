"""Philox 4x32-10: random numbers as a pure function of (seed, ordinal, column).

Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a 128-bit
counter and a 64-bit key into four 32-bit words by ten rounds of multiply and xor. There is no
hidden state, so noise that is keyed by the *global* ordinal of a sample is the same for any number
of ranks, any micro-batch split and after any resume.

Counter layout: word 0 = column // 4, word 1 and 2 = low and high half of the ordinal, word 3 =
stream (0 for noise and pixels; others keep decisions about a whole sample apart from its pixels).
Key: low and high half of the seed. Column c reads word c % 4.

The normal transform uses only integer operations, conversions, additions, multiplications and
square roots, each rounded once in float32. IEEE 754 fixes the result of all of these, so PyTorch,
compiled C++ and Triton (with fused multiply-add switched off) give the same bits on any device;
``log``, ``sin`` and ``cos`` of the libraries would not.

Everything here is plain PyTorch on int64 tensors (any device): the reference that fused kernels
are held to.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # round multipliers
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # key increments (golden ratio, sqrt(3) - 1)
_MASK = 0xFFFFFFFF
_ROUNDS = 10


def derive_seed(seed: int, *labels: str | int) -> int:
    """Derive an independent 63-bit seed for one purpose, e.g. ``derive_seed(0, "posterior")``."""
    if any("/" in str(label) for label in labels):
        raise ValueError(f"labels of a seed cannot contain '/': {labels}")
    text = "/".join([str(seed), *map(str, labels)]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def _mul_hi_lo(a: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * m for uint32 values held in int64.

    The product may pass 2^63. PyTorch's own int64 wraps, the bits stay right, and the mask repairs
    the sign; to a C++ compiler that overflow is undefined, so what it compiles multiplies halves.
    """
    if torch.compiler.is_compiling():
        low = (a & 0xFFFF) * m
        high = (a >> 16) * m + (low >> 16)
        return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)
    p = a * m
    return (p >> 32) & _MASK, p & _MASK


def philox_words(seed: int | Tensor, ordinal: Tensor, columns: int, *, stream: int = 0) -> Tensor:
    """Uniform 32-bit words for each (ordinal, column).

    Args:
        seed: an int, or a () int64 tensor on the device of ``ordinal`` (read there, no wait).
        stream: counter word 3.

    Shapes: ordinal (R,) int64 >= 0; returns (R, columns) int64 holding uint32 values.
    """
    if columns < 0:
        raise ValueError(f"columns must be >= 0, got {columns}")
    groups = (columns + 3) // 4
    rows = ordinal.shape[0]
    dev = ordinal.device
    c0 = torch.arange(groups, device=dev, dtype=torch.int64).expand(rows, groups)
    c1 = (ordinal & _MASK)[:, None].expand(rows, groups)
    c2 = ((ordinal >> 32) & _MASK)[:, None].expand(rows, groups)
    c3 = torch.full((), stream, dtype=torch.int64, device=dev).expand(rows, groups)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(_ROUNDS):
        hi0, lo0 = _mul_hi_lo(c0, _M0)
        hi1, lo1 = _mul_hi_lo(c2, _M1)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1).reshape(rows, groups * 4)[:, :columns]


def philox_normal(seed: int | Tensor, ordinal: Tensor, columns: int) -> Tensor:
    """Standard normal noise keyed by (seed, ordinal, column), by the Box-Muller transform.

    Columns 2i and 2i + 1 are radius * (cos, sin) of one pair of words. |eps| < 6.77.

    Shapes: ordinal (R,) int64; returns (R, columns) float32.
    """
    words = philox_words(seed, ordinal, columns + columns % 2)
    first, second = words[:, 0::2], words[:, 1::2]
    radius = _radius(first)
    one, two = _unit_vector(second)
    pair = torch.stack((radius * one, radius * two), dim=-1)
    return pair.reshape(words.shape)[:, :columns].contiguous()


# Least-maximum-error polynomials (fitted in float64, rounded to float32), lowest power first.
# log(1 + f) / f on [sqrt(1/2) - 1, sqrt(2) - 1]: relative error 1.7e-7.
LOG_COEFFICIENTS = (
    0.9999999,
    -0.5000034,
    0.33335608,
    -0.2497156,
    0.19884235,
    -0.17212428,
    0.16338151,
    -0.10378718,
)
# sin(pi/4 * v) / v and cos(pi/4 * v) in v^2 on [0, 1]: errors 2.4e-9 and 2.8e-8.
SIN_COEFFICIENTS = (0.78539816, -0.080745436, 0.0024900071, -0.00003595451)
COS_COEFFICIENTS = (1.0, -0.30842426, 0.015849916, -0.0003188805)
MINUS_2_LN_2 = -1.3862944
SQRT_HALF_BITS = 0x3F3504F3  # float32 sqrt(1/2)


def _horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    total = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        total = total * x + coefficient
    return total


def _radius(words: Tensor) -> Tensor:
    """sqrt(-2 ln u), u = (word + 1/2) / 2^32 rounded to float32, in [2^-33, 1]."""
    u = words.to(torch.float32) * 2.0**-32 + 2.0**-33
    bits = u.view(torch.int32)
    exponent = (bits - SQRT_HALF_BITS) >> 23  # u = 2^exponent * (1 + f), 1 + f near 1
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0
    log = f * _horner(f, LOG_COEFFICIENTS)
    square = exponent.to(torch.float32) * MINUS_2_LN_2 - (log + log)
    # By way of float64: float32's sqrt of the MKL library is off by one bit for 1 number in 6.
    return square.double().sqrt().float()


def _unit_vector(words: Tensor) -> tuple[Tensor, Tensor]:
    """A point on the unit circle: 30 bits give an angle in [-pi/4, pi/4), two more the quadrant."""
    low = (words & 0x3FFFFFFF) << 2
    signed = low - ((low >> 31) << 32)  # the 32 bits read as two's complement
    v = signed.to(torch.float32) * 2.0**-31
    square = v * v
    sine, cosine = v * _horner(square, SIN_COEFFICIENTS), _horner(square, COS_COEFFICIENTS)
    swap, flip = ((words >> 30) & 1).bool(), (words >> 31).bool()
    one, two = torch.where(swap, sine, cosine), torch.where(swap, cosine, sine)
    return torch.where(flip, -one, one), torch.where(flip, -two, two)


def philox_bernoulli(seed: int | Tensor, ordinal: Tensor, pixels: Tensor) -> Tensor:
    """Draw bits with P(1) = pixel / 255, exact in integers (0 never, 255 always).

    Since 2^32 - 1 = 255 * 0x01010101, the bit is ``word < pixel * 0x01010101``.

    Shapes: ordinal (R,) int64; pixels (R, ...) uint8; returns (R, ...) bool.
    """
    flat = pixels.flatten(1).to(torch.int64)
    words = philox_words(seed, ordinal, flat.shape[1])
    bound = flat * 0x01010101 + (flat == 255)
    return (words < bound).reshape(pixels.shape)
