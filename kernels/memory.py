"""Memory by absolute address (int64), for Numba kernels: callers vouch that the bytes are there.

The functions with a ``builder`` write LLVM code, for use inside ``intrinsic``; compiled code calls
the others. (``jit.py`` hashes this file with the kernels, since it names ``njit``.)
"""

from __future__ import annotations

import importlib
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

ir: Any = importlib.import_module("llvmlite.ir")  # it has no types
vector: Any = intrinsic  # what it makes has not the signature that Numba tells mypy

BYTE, WORD = ir.IntType(8), ir.IntType(64)
_INT = ir.IntType(32)


def load(builder: Any, address: Any, kind: Any) -> Any:
    """A value of an LLVM type."""
    loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
    loaded.align = 1
    return loaded


def store(builder: Any, value: Any, address: Any) -> Any:
    """Write a value."""
    stored = builder.store(value, builder.inttoptr(address, value.type.as_pointer()))
    stored.align = 1
    return stored


def fetch(builder: Any, address: Any, near: bool = True) -> None:
    """Ask for the cache line, without waiting; an address where nothing is, is no error.

    near: into the innermost cache, else into the one behind it.
    """
    kind = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), _INT, _INT, _INT])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    how = [ir.Constant(_INT, x) for x in (0, 3 if near else 2, 1)]  # to read, to keep, data
    builder.call(prefetch, [builder.inttoptr(address, BYTE.as_pointer()), *how])


@vector
def fetch_line(typing: Any, address: Any) -> Any:
    """``fetch`` for compiled code."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        fetch(builder, values[0])
        return context.get_dummy_value()

    return types.void(types.int64), code


@vector
def copy(typing: Any, target: Any, source: Any, size: Any) -> Any:
    """memcpy."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        to, origin = (builder.inttoptr(value, BYTE.as_pointer()) for value in values[:2])
        cgutils.raw_memcpy(builder, to, origin, values[2], ir.Constant(WORD, 1))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), code


@vector
def byte_at(typing: Any, address: Any) -> Any:
    """The byte, a uint8."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return load(builder, values[0], BYTE)

    return types.uint8(types.int64), code


@vector
def put_float(typing: Any, address: Any, value: Any) -> Any:
    """Write a float32."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        store(builder, values[1], values[0])
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), code


def _unpack(count: int) -> Any:
    """Bits of ``count`` bytes at ``source``, highest first, as bytes 0 and 255 at ``target``."""

    def unpack(typing: Any, target: Any, source: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            lanes = 8 * count
            few, many = ir.VectorType(BYTE, count), ir.VectorType(BYTE, lanes)
            order = ir.Constant(ir.VectorType(_INT, lanes), [i // 8 for i in range(lanes)])
            loaded = load(builder, values[1], few)
            repeated = builder.shuffle_vector(loaded, ir.Constant(few, ir.Undefined), order)
            bits = ir.Constant(many, [128 >> i % 8 for i in range(lanes)])
            zero = ir.Constant(many, [0] * lanes)
            white = builder.icmp_unsigned("!=", builder.and_(repeated, bits), zero)
            store(builder, builder.sext(white, many), values[0])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), code

    return vector(unpack)


unpack64, unpack8 = _unpack(8), _unpack(1)
