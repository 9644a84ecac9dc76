"""Blocks of bytes: the few vector operations that a parser needs and Numba has not.

Masks are uint64 with bit i for byte ``at + i``. Nothing here looks at lengths: whoever calls makes
sure that the bytes ``at .. at + 63`` (``word_at``: to ``at + 7``; ``numbers64``: from ``at - 3``)
are there.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from fastvae.kernels.jit import njit

ir: Any = importlib.import_module("llvmlite.ir")  # it has no types

Bytes = NDArray[np.uint8]
Int = Any
"""In compiled code: int64, or uint64 where bits matter."""

OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
compiled: Any = njit(**OPTIONS)
"""For functions that are handed all their arrays: without counting references to arrays at each
call of a function, a parser of single bytes is more than twice as fast. They cannot allocate."""
inlined: Any = njit(**OPTIONS, forceinline=True)
"""The same for small ones that are called for each byte or number."""


def _vector(function: Callable[..., Any]) -> Any:
    """An intrinsic, whose typed form asks callers for an argument that only Numba gives."""
    return intrinsic(function)


LITTLE_ENDIAN = sys.byteorder == "little"
"""Bits of a mask and bytes of a word are in the order of memory only there."""

INT8 = ir.IntType(8)
INT64 = ir.IntType(64)
INT8_64 = ir.VectorType(INT8, 64)


def _is_bytes(array: Any) -> bool:
    return isinstance(array, types.Array) and array.dtype == types.uint8 and array.ndim == 1


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [at])


def _load(builder: Any, pointer: Any, kind: Any) -> Any:
    loaded = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    loaded.align = 1
    return loaded


def _store(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = 1


def _all(value: int, lanes: int = 64) -> Any:
    return ir.Constant(ir.VectorType(INT8, lanes), [value] * lanes)


def _mask(builder: Any, bits: Any) -> Any:
    return builder.bitcast(bits, INT64)


def _equal(builder: Any, block: Any, value: int) -> Any:
    return builder.icmp_unsigned("==", block, _all(value))


def _of_word(name: str) -> Any:
    """An intrinsic of LLVM from one 64-bit word to another."""

    def operation(typing: Any, word: Any) -> Any:
        if word != types.uint64:
            return None

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            if name == "cttz":
                return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))
            return builder.ctpop(arguments[0])

        return types.int64(types.uint64), generate

    operation.__name__ = name
    return _vector(operation)


first_bit = _of_word("cttz")
"""Number of the lowest 1 of a uint64; 64 where there is none."""
count_bits = _of_word("ctpop")
"""How many bits of a uint64 are 1."""


@_vector
def word_at(typing: Any, data: Any, at: Any) -> Any:
    """The 8 bytes from ``at`` as a uint64, the first one lowest."""
    if not _is_bytes(data) or at != types.int64:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _load(builder, _pointer(context, builder, data, *arguments), INT64)

    return types.uint64(data, at), generate


@_vector
def equal64(typing: Any, data: Any, a: Any, b: Any) -> Any:
    """Which of the 64 bytes from ``a`` equal those from ``b``."""
    if not _is_bytes(data) or a != types.int64 or b != types.int64:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, *places = arguments
        left, right = (
            _load(builder, _pointer(context, builder, data, array, at), INT8_64) for at in places
        )
        return _mask(builder, builder.icmp_unsigned("==", left, right))

    return types.uint64(data, a, b), generate


@_vector
def byte64(typing: Any, data: Any, at: Any, value: Any) -> Any:
    """Which of the 64 bytes from ``at`` are ``value``, a uint8."""
    if not _is_bytes(data) or at != types.int64 or value != types.uint8:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, place, wanted = arguments
        block = _load(builder, _pointer(context, builder, data, array, place), INT8_64)
        one = builder.insert_element(
            ir.Constant(INT8_64, ir.Undefined), wanted, ir.Constant(ir.IntType(32), 0)
        )
        first = ir.Constant(ir.VectorType(ir.IntType(32), 64), [0] * 64)
        everywhere = builder.shuffle_vector(one, one, first)
        return _mask(builder, builder.icmp_unsigned("==", block, everywhere))

    return types.uint64(data, at, value), generate


@_vector
def text_end64(typing: Any, data: Any, at: Any) -> Any:
    """Which of the 64 bytes are not plain text of a JSON string: quote, backslash, control
    characters, and anything that is not ASCII."""
    if not _is_bytes(data) or at != types.int64:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block = _load(builder, _pointer(context, builder, data, *arguments), INT8_64)
        odd = builder.icmp_signed("<", block, _all(0x20))  # bytes from 0x80 are negative
        odd = builder.or_(odd, _equal(builder, block, ord('"')))
        return _mask(builder, builder.or_(odd, _equal(builder, block, ord("\\"))))

    return types.uint64(data, at), generate


@_vector
def numbers64(typing: Any, data: Any, at: Any, values: Any) -> Any:
    """Read the numbers 0..255 that end in these 64 bytes, all of them at once.

    A number ends at a byte that is no digit and follows a digit. ``values`` (at least 64 uint8)
    gets at i the value of the number that ends at ``at + i``; elsewhere what it gets means nothing.

    Returns:
        ends: where numbers end.
        closed: which of these ends are ``]``.
        loose: bytes that are no digit and follow none.
        bad: ends of numbers above 255, with a leading zero, or with neither ``,`` nor ``]``
            behind them, and each fourth digit in a row.
    """
    if not (_is_bytes(data) and _is_bytes(values)) or at != types.int64:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, place, output = arguments
        zero, ten, two = _all(0), _all(10), _all(2)

        def before(back: int) -> Any:
            start = builder.sub(place, ir.Constant(INT64, back))
            return _load(builder, _pointer(context, builder, data, array, start), INT8_64)

        here = before(0)
        ones, tens, hundreds = (builder.sub(before(i), _all(ord("0"))) for i in (1, 2, 3))
        digit = builder.icmp_unsigned("<", builder.sub(here, _all(ord("0"))), ten)
        has_one = builder.icmp_unsigned("<", ones, ten)
        has_ten = builder.and_(has_one, builder.icmp_unsigned("<", tens, ten))
        has_hundred = builder.and_(has_ten, builder.icmp_unsigned("<", hundreds, ten))
        is_end = builder.and_(has_one, builder.not_(digit))

        x2 = builder.add(tens, tens)
        x8 = builder.add(builder.add(x2, x2), builder.add(x2, x2))
        below = builder.add(ones, builder.select(has_ten, builder.add(x8, x2), zero))
        high = builder.icmp_unsigned("==", hundreds, two)
        rest = builder.select(high, _all(200), _all(100))
        value = builder.add(below, builder.select(has_hundred, rest, zero))
        _store(builder, value, _pointer(context, builder, values, output, ir.Constant(INT64, 0)))

        # Of three digits the first is 1, or 2 with at most 55 behind it.
        most = builder.select(high, _all(55), _all(99))
        wrong = builder.icmp_unsigned(">", builder.sub(hundreds, _all(1)), _all(1))
        wrong = builder.and_(
            has_hundred, builder.or_(wrong, builder.icmp_unsigned(">", below, most))
        )
        lead = builder.icmp_unsigned("==", tens, zero)
        lead = builder.and_(builder.and_(has_ten, builder.not_(has_hundred)), lead)
        comma, bracket = _equal(builder, here, ord(",")), _equal(builder, here, ord("]"))
        stray = builder.not_(builder.or_(comma, bracket))
        long = builder.and_(digit, has_hundred)
        wrong = builder.or_(builder.or_(wrong, lead), stray)
        wrong = builder.or_(builder.and_(is_end, wrong), long)

        masks = [
            is_end,
            builder.and_(is_end, bracket),
            builder.not_(builder.or_(digit, has_one)),
            wrong,
        ]
        words = [_mask(builder, bits) for bits in masks]
        return cgutils.pack_array(builder, words)

    return types.UniTuple(types.uint64, 4)(data, at, values), generate


@_vector
def zip32(typing: Any, source: Any, a: Any, b: Any, target: Any, at: Any) -> Any:
    """Write ``source[a], source[b], source[a + 1], source[b + 1], ...``: 64 bytes from 2 x 32."""
    places = (a, b, at)
    if not (_is_bytes(source) and _is_bytes(target)) or any(i != types.int64 for i in places):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        origin, left, right, goal, place = arguments
        half = ir.VectorType(INT8, 32)
        x, y = (
            _load(builder, _pointer(context, builder, source, origin, i), half)
            for i in (left, right)
        )
        order = [i // 2 + 32 * (i % 2) for i in range(64)]
        mixed = builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), 64), order))
        _store(builder, mixed, _pointer(context, builder, target, goal, place))
        return context.get_dummy_value()

    return types.void(source, a, b, target, at), generate
