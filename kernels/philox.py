"""Philox 4x32-10: random numbers as a pure function of (seed, ordinal, column).

Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a 128-bit
counter and a 64-bit key into four 32-bit words by ten rounds of multiply and xor. There is no
hidden state, so noise that is keyed by the *global* ordinal of a sample is the same for any number
of ranks, any micro-batch split and after any resume.

Counter layout: word 0 = column // 4, word 1 and 2 = low and high half of the ordinal, word 3 = 0.
Key: low and high half of the seed. Column c reads word c % 4.

Everything here is plain PyTorch on int64 tensors (any device): the reference that fused kernels
are held to.
"""

from __future__ import annotations

import hashlib
import math

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

    The product may pass 2^63; int64 wraps, the bits stay right, and the mask repairs the sign.
    """
    p = a * m
    return (p >> 32) & _MASK, p & _MASK


def philox_words(seed: int, ordinal: Tensor, columns: int) -> Tensor:
    """Uniform 32-bit words for each (ordinal, column).

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
    c3 = torch.zeros((), dtype=torch.int64, device=dev).expand(rows, groups)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(_ROUNDS):
        hi0, lo0 = _mul_hi_lo(c0, _M0)
        hi1, lo1 = _mul_hi_lo(c2, _M1)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1).reshape(rows, groups * 4)[:, :columns]


def philox_normal(seed: int, ordinal: Tensor, columns: int) -> Tensor:
    """Standard normal noise keyed by (seed, ordinal, column), by the Box-Muller transform.

    Computed in float64 and rounded to float32: vectorised and scalar float32 log/sin differ in the
    last bit, which would make the noise depend on the batch shape. 24-bit uniforms centred in their
    cell bound |eps| by sqrt(-2 ln 2^-25) = 5.89.

    Shapes: ordinal (R,) int64; returns (R, columns) float32.
    """
    words = philox_words(seed, ordinal, columns + columns % 2)
    u = ((words >> 8).to(torch.float64) + 0.5) * 2.0**-24  # in (0, 1)
    radius = torch.sqrt(-2.0 * torch.log(u[:, 0::2]))
    angle = (2.0 * math.pi) * u[:, 1::2]
    pair = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return pair.reshape(words.shape)[:, :columns].to(torch.float32)


def philox_bernoulli(seed: int, ordinal: Tensor, pixels: Tensor) -> Tensor:
    """Draw bits with P(1) = pixel / 255, exact in integers (0 never, 255 always).

    Since 2^32 - 1 = 255 * 0x01010101, the bit is ``word < pixel * 0x01010101``.

    Shapes: ordinal (R,) int64; pixels (R, ...) uint8; returns (R, ...) bool.
    """
    flat = pixels.flatten(1).to(torch.int64)
    words = philox_words(seed, ordinal, flat.shape[1])
    bound = flat * 0x01010101 + (flat == 255)
    return (words < bound).reshape(pixels.shape)
