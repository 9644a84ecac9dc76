"""JSON numbers: their spelling, their value as m * 10^e, and that as float64.

A number is (-1)^s m 10^e with up to 19 digits in m. Where m < 2^53 and |e| <= 22, m and the power
of ten are exact in float64 and one multiplication or division rounds once (Clinger, 1990). The
rest, which for Google's raw files is float32 written with 17 digits, goes through the 128 most
significant bits of the power (Lemire, "Number parsing at a gigabyte per second", 2021).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastvae.kernels.byte_blocks import LITTLE_ENDIAN, Bytes, Int, compiled, inlined, word_at
from fastvae.kernels.parse_reasons import SYNTAX, wrong

MINUS, PLUS, POINT, ZERO, NINE = ord("-"), ord("+"), ord("."), ord("0"), ord("9")

ONE, TEN, FULL = np.uint64(1), np.uint64(10), np.uint64(10**18)
HIGH_HALVES, SIXES, ZEROS = (np.uint64(0x0101010101010101 * n) for n in (0xF0, 6, ZERO))
PAIRS = np.uint64(0x000000FF000000FF)
PAIRS_LOW, PAIRS_HIGH = np.uint64(1000000 << 32 | 100), np.uint64(10000 << 32 | 1)

LOWEST, HIGHEST = -342, 308  # exponents where a number of 19 digits is neither 0 nor infinite


def _powers() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The 128 most significant bits of each power of ten, truncated, in two halves."""
    high, low = [], []
    for e in range(LOWEST, HIGHEST + 1):
        power = 10**e << 128 if e >= 0 else (1 << 1300) // 10**-e
        mantissa = power >> (power.bit_length() - 128)
        high.append(mantissa >> 64)
        low.append(mantissa & (2**64 - 1))
    return np.array(high, dtype=np.uint64), np.array(low, dtype=np.uint64)


POWERS_HIGH, POWERS_LOW = _powers()
EXACT = np.array([10.0**e for e in range(23)])

NINE_BITS, HALF = np.uint64(0x1FF), np.uint64(32)
TOP, LOW_HALF = np.uint64(1 << 63), np.uint64(0xFFFFFFFF)


@inlined
def is_digit(byte: Int) -> bool:
    """True for 0 to 9."""
    return ZERO <= byte <= NINE


@compiled
def skip_digits(data: Bytes, p: Int, end: Int) -> Int:
    """The first place from ``p`` that is no digit, or ``end``."""
    while p < end and is_digit(data[p]):
        p += 1
    return p


@inlined
def eight_digits(word: Int) -> bool:
    """True where the 8 bytes of a word are digits."""
    return (word & HIGH_HALVES) == ZEROS and ((word + SIXES) & HIGH_HALVES) == ZEROS


@inlined
def eight_digit_number(word: Int) -> Int:
    """The number that eight digits write: in pairs, then all four pairs at once."""
    word -= ZEROS
    word = word * TEN + (word >> np.uint64(8))
    low, high = word & PAIRS, (word >> np.uint64(16)) & PAIRS
    return (low * PAIRS_LOW + high * PAIRS_HIGH) >> np.uint64(32)


@inlined
def _read_digits(data: Bytes, p: Int, end: Int, m: Int) -> tuple[Int, Int]:
    """Put the digits from ``p`` behind ``m``, modulo 2^64."""
    if LITTLE_ENDIAN:
        while p + 8 <= end:
            word = word_at(data, p)
            if not eight_digits(word):
                break
            m = m * np.uint64(100000000) + eight_digit_number(word)
            p += 8
    while p < end and is_digit(data[p]):
        m = m * TEN + np.uint64(data[p] - ZERO)
        p += 1
    return p, m


@compiled
def _read_long(data: Bytes, p: Int, end: Int) -> tuple[Int, Int, bool]:
    """The first 19 significant digits of the number at ``p``, what its exponent gains by leaving
    out those behind, and whether one of these is not 0."""
    m, e, more, fraction = np.uint64(0), 0, False, 0
    while p < end and (is_digit(data[p]) or data[p] == POINT):
        byte = data[p]
        if byte == POINT:
            fraction = 1
        elif m < FULL:
            m = m * TEN + np.uint64(byte - ZERO)
            e -= fraction
        else:
            more |= byte != ZERO
            e += 1 - fraction
        p += 1
    return m, e, more


@inlined
def scan_number(data: Bytes, p: Int, end: Int) -> tuple[Int, Int, Int, bool]:
    """Read a JSON number without its sign: the place behind it, and m * 10^e.

    Returns:
        p: the place behind, or a reason.
        m: the first 19 significant digits as a uint64.
        e: the exponent; what is beyond 2^35 is left there, far from all that is of use.
        more: a digit other than 0 was left out of m.
    """
    m, e, more = np.uint64(0), 0, False
    first = p
    p, m = _read_digits(data, p, end, m)
    digits = p - first
    if digits == 0:
        return wrong(data, p, end, SYNTAX), m, e, more
    if digits > 1 and data[first] == ZERO:
        return -SYNTAX, m, e, more
    if p < end and data[p] == POINT:
        point = p + 1
        p, m = _read_digits(data, point, end, m)
        e = point - p
        digits -= e
        if e == 0:
            return wrong(data, p, end, SYNTAX), m, e, more
    if digits > 19:
        m, e, more = _read_long(data, first, end)
    if p < end and data[p] | 32 == 101:  # e or E
        p += 1
        down = p < end and data[p] == MINUS
        if down or (p < end and data[p] == PLUS):
            p += 1
        last, power = skip_digits(data, p, end), 0
        if last == p:
            return wrong(data, p, end, SYNTAX), m, e, more
        for i in range(p, last):
            power = power * 10 + data[i] - ZERO if power < 1 << 35 else power
        p = last
        e += -power if down else power
    return p, m, e, more


@compiled
def _product(a: Int, b: Int) -> tuple[Int, Int]:
    """The 128 bits of a * b, in two halves."""
    a1, a0, b1, b0 = a >> HALF, a & LOW_HALF, b >> HALF, b & LOW_HALF
    middle = a1 * b0 + (a0 * b0 >> HALF)
    other = a0 * b1 + (middle & LOW_HALF)
    return a1 * b1 + (middle >> HALF) + (other >> HALF), a * b


@compiled
def to_float(m: Int, e: Int) -> float:
    """m * 10^e, correctly rounded; below 1e-307 with up to one unit in the last place more."""
    if m == 0 or e < LOWEST:
        return 0.0
    if e > HIGHEST:
        return math.inf
    if m >> np.uint64(53) == 0 and -22 <= e <= 22:
        return m * EXACT[e] if e >= 0 else m / EXACT[-e]
    binary = (217706 * e >> 16) + 2  # floor(log2(10^e)) + 2
    while m & TOP == 0:
        m <<= ONE
        binary -= 1
    high, low = _product(m, POWERS_HIGH[e - LOWEST])
    if high & NINE_BITS == NINE_BITS and low + m < m:  # the bits left out may matter
        more, _ = _product(m, POWERS_LOW[e - LOWEST])
        low += more
        high += np.uint64(low < more)
    # ``high`` has 64 or 63 significant bits; keep 54 and round the last one away, to even: an
    # exact tie needs more than 19 digits unless the number is an integer.
    shift = np.uint64(9) + (high >> np.uint64(63))
    mantissa = high >> shift
    sticky = (high & ((ONE << shift) - ONE)) | low
    tie = sticky == 0 and mantissa & np.uint64(3) == 1
    if not tie:
        mantissa += mantissa & ONE
    return math.ldexp(np.float64(mantissa >> ONE), binary + np.int64(shift))
