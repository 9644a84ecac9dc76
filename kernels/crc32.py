"""CRC-32 as zlib computes it (IEEE), at the speed of memory: a checksum for every first epoch.

Bytes are polynomials over the field of two elements, the first bit of a message its highest power,
and the CRC is what is left of the message when it is divided by P. Sixteen bytes that stand D bits
before others may be taken times x^D mod P and added to those: two multiplications without carries
(``pclmulqdq``, on x86 since 2010). Four such sums run side by side, 64 bytes a step. The 16 bytes
that are left in the end, and those that did not fill a step, are zlib's.

Where the processor has no such instruction, all of it is zlib's.
"""

from __future__ import annotations

import importlib
import zlib
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numpy.typing import NDArray

from fastvae.kernels.jit import njit
from fastvae.kernels.memory import BYTE, WORD, fetch, ir, load, vector

_settings: Any = importlib.import_module("numba.core.config")
_llvm: Any = importlib.import_module("llvmlite.binding")

Buffer = NDArray[Any] | bytes | bytearray | memoryview

_P = 0x104C11DB7  # x^32 + x^26 + ... + 1
_STEP = 64  # bytes
_SHORT = 1 << 14  # bytes below which zlib is as fast, since it is called faster
# Bytes to look ahead, in two stages; the processor itself does not look beyond the page it is in.
_FAR, _NEAR = 8192, 1024
_PAIR = ir.VectorType(WORD, 2)


def crc32(buffer: Buffer) -> int:
    """CRC-32 of all bytes of a contiguous buffer, equal to ``zlib.crc32``."""
    view = memoryview(buffer)  # type: ignore[arg-type]  # an array is one from Python 3.12 on
    if not FOLDS or view.nbytes < _SHORT:
        return zlib.crc32(view)
    view = view.cast("B")
    steps = len(view) // _STEP
    address = np.frombuffer(view, dtype=np.uint8).ctypes.data
    first, second = _fold(address, steps)
    left = first.to_bytes(8, "little") + second.to_bytes(8, "little")
    # zlib inverts its state before and after: begun with all ones, it starts from zero.
    return zlib.crc32(view[_STEP * steps :], zlib.crc32(left, 0xFFFFFFFF))


def _features() -> list[str]:
    """What Numba compiles for: this processor, unless its settings say otherwise."""
    asked = _settings.CPU_FEATURES
    text = _llvm.get_host_cpu_features().flatten() if asked is None else asked
    return str(text).split(",")


FOLDS = "+pclmul" in _features()
"""Whether the fast form runs here."""


def _factors(bits: int) -> Any:
    """What 16 bytes are multiplied by to be moved ``bits`` bits: for the first 8 and the last 8.

    Bytes hold bits in the opposite order, lowest power last: so do the factors, and the product of
    two such is one power too high, which a factor of x^-1, the shift, takes back.
    """
    powers = []
    for power in (bits + 32, bits - 32):
        rest = 1
        for _ in range(power):
            rest = (rest << 1) ^ (_P if rest >> 31 else 0)
        powers.append(int(f"{rest:032b}"[::-1], 2) << 1)
    return ir.Constant(_PAIR, powers)


@vector
def _fold64(typing: Any, address: Any, steps: Any) -> Any:
    """16 bytes with the remainder of the 64 * steps (1 or more) bytes at an absolute address, the
    state at the beginning (all ones) included; as two little-endian words."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        start, count = values
        kind = ir.FunctionType(_PAIR, [_PAIR, _PAIR, BYTE])
        multiply = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.pclmulqdq")

        def moved(sum_: Any, factors: Any, onto: Any) -> Any:
            for halves in (0x00, 0x11):  # first by first, second by second
                part = builder.call(multiply, [sum_, factors, ir.Constant(BYTE, halves)])
                onto = builder.xor(onto, part)
            return onto

        def place(step: Any, offset: int) -> Any:
            at = builder.add(start, builder.mul(step, ir.Constant(WORD, _STEP)))
            return builder.add(at, ir.Constant(WORD, offset))

        one, zero = ir.Constant(WORD, 1), ir.Constant(WORD, 0)
        sums = [
            cgutils.alloca_once_value(builder, load(builder, place(zero, 16 * lane), _PAIR))
            for lane in range(4)
        ]
        state = ir.Constant(_PAIR, [0xFFFFFFFF, 0])
        builder.store(builder.xor(builder.load(sums[0]), state), sums[0])
        step_factors = _factors(8 * _STEP)
        with cgutils.for_range(builder, builder.sub(count, one)) as loop:
            step = builder.add(loop.index, one)
            fetch(builder, place(step, _FAR), near=False)
            fetch(builder, place(step, _NEAR))
            for lane, kept in enumerate(sums):
                here = load(builder, place(step, 16 * lane), _PAIR)
                builder.store(moved(builder.load(kept), step_factors, here), kept)
        total = builder.load(sums[0])
        for kept in sums[1:]:
            total = moved(total, _factors(128), builder.load(kept))
        words = [builder.extract_element(total, ir.Constant(ir.IntType(32), i)) for i in (0, 1)]
        return cgutils.pack_array(builder, words)

    return types.UniTuple(types.uint64, 2)(types.int64, types.int64), code


@njit(cache=True, nogil=True)
def _fold(address: int, steps: int) -> Any:
    return _fold64(address, steps)
