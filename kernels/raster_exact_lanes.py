"""Sixteen integers side by side, for ``raster_exact_scan.py``: LLVM's portable vectors in Numba.

``Lanes`` is a Numba type that lives inside compiled functions only; LLVM splits the vectors that a
processor does not have. Its elements have the dtype of the array that a vector is loaded from, made
for or stored to (``like`` below), so that one source serves 16 and 32 bits. Offsets count elements;
nothing here looks at bounds. Comparisons give -1 or 0 per lane.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from numba import extending, types
from numba.core import cgutils
from numba.extending import models, register_model

ir: Any = import_module("llvmlite.ir")  # has no types
intrinsic: Any = extending.intrinsic  # what it makes has not the signature that Numba tells mypy

COUNT = 16
I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
BYTES, WORDS = ir.VectorType(I8, COUNT), ir.VectorType(I32, COUNT)
DOUBLES = ir.VectorType(ir.DoubleType(), COUNT)


class Lanes(types.Type):
    """COUNT integers of a Numba dtype."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")

    @property
    def vector(self) -> Any:
        """The type in LLVM."""
        return ir.VectorType(ir.IntType(self.dtype.bitwidth), COUNT)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Any) -> None:
        super().__init__(manager, lanes, lanes.vector)


def _address(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(data, [offset])


def _vector_at(context: Any, builder: Any, kind: Any, array: Any, offset: Any, vector: Any) -> Any:
    at = _address(context, builder, kind, array, offset)
    return builder.bitcast(at, vector.as_pointer())


def _constant(vector: Any, value: int | list[int] | list[float]) -> Any:
    return ir.Constant(vector, value if isinstance(value, list) else [value] * COUNT)


def _order(numbers: list[int]) -> Any:
    return _constant(WORDS, numbers)


def _spread(builder: Any, scalar: Any, vector: Any) -> Any:
    none = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(none, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, none, _order([0] * COUNT))


@intrinsic
def load(typing: Any, array: Any, offset: Any) -> Any:
    """array[offset : offset + 16]."""
    lanes = Lanes(array.dtype)

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = _vector_at(context, builder, array, args[0], args[1], lanes.vector)
        return builder.load(at, align=array.dtype.bitwidth // 8)

    return lanes(array, types.intp), make


@intrinsic
def store(typing: Any, array: Any, offset: Any, value: Any) -> Any:
    """array[offset : offset + 16] = value."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = _vector_at(context, builder, array, args[0], args[1], value.vector)
        builder.store(args[2], at, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), make


@intrinsic
def load_bytes(typing: Any, array: Any, offset: Any) -> Any:
    """16 uint8 of an array as int32."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = _vector_at(context, builder, array, args[0], args[1], BYTES)
        return builder.zext(builder.load(at, align=1), WORDS)

    return Lanes(types.int32)(array, types.intp), make


@intrinsic
def store_bytes(typing: Any, array: Any, offset: Any, value: Any) -> Any:
    """The low bytes of ``value`` to 16 uint8 of an array."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = _vector_at(context, builder, array, args[0], args[1], BYTES)
        builder.store(builder.trunc(args[2], BYTES), at, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), make


@intrinsic
def peek(typing: Any, array: Any, offset: Any) -> Any:
    """array[offset] of an array of one dimension, negative offsets not minded."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, array, args[0], args[1]))

    return array.dtype(array, types.intp), make


@intrinsic
def poke(typing: Any, array: Any, offset: Any, value: Any) -> Any:
    """array[offset] = value, negative offsets not minded."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _address(context, builder, array, args[0], args[1]))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), make


@intrinsic
def copy(typing: Any, to: Any, to_offset: Any, array: Any, offset: Any, count: Any) -> Any:
    """to[to_offset : to_offset + count] = array[offset : offset + count], both uint8."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target = _address(context, builder, to, args[0], args[1])
        source = _address(context, builder, array, args[2], args[3])
        cgutils.raw_memcpy(builder, target, source, args[4], 1)
        return context.get_dummy_value()

    return types.void(to, types.intp, array, types.intp, types.intp), make


@intrinsic
def clear(typing: Any, array: Any, offset: Any, count: Any) -> Any:
    """array[offset : offset + count] = 0, uint8."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = _address(context, builder, array, args[0], args[1])
        cgutils.memset(builder, at, args[2], 0)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), make


@intrinsic
def splat(typing: Any, like: Any, value: Any) -> Any:
    """The low bits of an integer in every lane."""
    lanes = Lanes(like.dtype)

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _spread(builder, builder.trunc(args[1], lanes.vector.element), lanes.vector)

    return lanes(like, types.int64), make


@intrinsic
def numbers(typing: Any, like: Any) -> Any:
    """Lane k is k."""
    lanes = Lanes(like.dtype)

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _constant(lanes.vector, list(range(COUNT)))

    return lanes(like), make


@intrinsic
def ramp(typing: Any, like: Any, start: Any, step: Any) -> Any:
    """Lane k is start + k step, computed in float64, without its fraction."""
    lanes = Lanes(like.dtype)

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers = _constant(DOUBLES, [float(k) for k in range(COUNT)])
        kind = ir.FunctionType(DOUBLES, [DOUBLES] * 3)
        fused = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{COUNT}f64")
        begin, slope = (_spread(builder, arg, DOUBLES) for arg in args[1:])
        whole = builder.fptosi(builder.call(fused, [slope, numbers, begin]), WORDS)
        return builder.trunc(whole, lanes.vector) if lanes.vector != WORDS else whole

    return lanes(like, types.float64, types.float64), make


@intrinsic
def lines(typing: Any, xs: Any, ys: Any, at: Any, a: Any, b: Any, extra: Any, to: Any) -> Any:
    """The lines through points at + k and at + k + 1 of xs, ys (int32, 256 to a px) to the places
    to + k of a, b and extra (float64): see ``raster_exact_scan.py``. 15 lines of samples a row."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def numbers(kind: Any, array: Any, offset: Any) -> Any:
            place = _vector_at(context, builder, kind, array, offset, WORDS)
            return builder.sitofp(builder.load(place, align=4), DOUBLES)

        def put(kind: Any, array: Any, value: Any) -> None:
            place = _vector_at(context, builder, kind, array, args[6], DOUBLES)
            builder.store(value, place, align=8)

        def number(value: float) -> Any:
            return _constant(DOUBLES, [value] * COUNT)

        after = builder.add(args[2], ir.Constant(args[2].type, 1))
        x, y = numbers(xs, args[0], args[2]), numbers(ys, args[1], args[2])
        dx = builder.fsub(numbers(xs, args[0], after), x)
        dy = builder.fsub(numbers(ys, args[1], after), y)
        part = builder.fdiv(number(1.0), builder.fmul(dy, number(15.0)))
        slope = builder.fmul(dx, part)
        quarter = builder.fmul(part, number(0.25))
        negative = builder.fcmp_ordered("<", quarter, number(0.0))
        least = builder.select(negative, builder.fneg(quarter), quarter)
        from_y = builder.fsub(number(128.0), builder.fmul(y, number(15.0)))
        begin = builder.fadd(builder.fadd(x, number(0.5)), least)
        put(a, args[3], builder.fadd(begin, builder.fmul(from_y, slope)))
        put(b, args[4], builder.fmul(slope, number(256.0)))
        put(extra, args[5], least)
        return context.get_dummy_value()

    return types.void(xs, ys, types.intp, a, b, extra, types.intp), make


def _binary(combine: Callable[[Any, Any, Any], Any]) -> Any:
    """An operation on two vectors of one type."""

    def operation(typing: Any, a: Any, b: Any) -> Any:
        def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return combine(builder, args[0], args[1])

        return a(a, a), make

    return intrinsic(operation)


def _less(builder: Any, a: Any, b: Any) -> Any:
    return builder.icmp_unsigned("<", a, b)


add = _binary(lambda builder, a, b: builder.add(a, b))
sub = _binary(lambda builder, a, b: builder.sub(a, b))
mul = _binary(lambda builder, a, b: builder.mul(a, b))
both = _binary(lambda builder, a, b: builder.and_(a, b))
either = _binary(lambda builder, a, b: builder.or_(a, b))
without = _binary(lambda builder, a, b: builder.and_(a, builder.not_(b)))
left = _binary(lambda builder, a, b: builder.shl(a, b))
right = _binary(lambda builder, a, b: builder.lshr(a, b))
shift = _binary(lambda builder, a, b: builder.ashr(a, b))  # to the right, of signed numbers
# of unsigned numbers; less_by is max(a - b, 0)
low = _binary(lambda builder, a, b: builder.select(_less(builder, a, b), a, b))
high = _binary(lambda builder, a, b: builder.select(_less(builder, a, b), b, a))
below = _binary(lambda builder, a, b: builder.sext(_less(builder, a, b), a.type))
less_by = _binary(
    lambda builder, a, b: builder.select(
        _less(builder, a, b), _constant(a.type, 0), builder.sub(a, b)
    )
)


def _is_set(builder: Any, value: Any) -> Any:
    return builder.icmp_signed("!=", value, _constant(value.type, 0))


@intrinsic
def is_set(typing: Any, value: Any) -> Any:
    """Lanes that are not 0."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sext(_is_set(builder, args[0]), value.vector)

    return value(value), make


@intrinsic
def where(typing: Any, mask: Any, a: Any, b: Any) -> Any:
    """a in lanes where mask is not 0, b in the others."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(_is_set(builder, args[0]), args[1], args[2])

    return a(mask, a, a), make


@intrinsic
def any_set(typing: Any, value: Any) -> Any:
    """Whether any lane is not 0."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(_is_set(builder, args[0]), ir.IntType(COUNT))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(value), make


@intrinsic
def reverse(typing: Any, value: Any) -> Any:
    """Lane k is lane 15 - k."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.shuffle_vector(args[0], args[0], _order(list(range(COUNT))[::-1]))

    return value(value), make


@intrinsic
def sums(typing: Any, value: Any) -> Any:
    """Lane k is the sum of lanes 0..k."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total, zero = args[0], _constant(value.vector, 0)
        for by in (1, 2, 4, 8):
            order = _order([COUNT] * by + list(range(COUNT - by)))
            total = builder.add(total, builder.shuffle_vector(total, zero, order))
        return total

    return value(value), make


@intrinsic
def last(typing: Any, value: Any) -> Any:
    """Lane 15, signed."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sext(builder.extract_element(args[0], ir.Constant(I32, COUNT - 1)), I64)

    return types.int64(value), make


@intrinsic
def widened(typing: Any, value: Any) -> Any:
    """Unsigned lanes as int32."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(args[0], WORDS) if value.vector != WORDS else args[0]

    return Lanes(types.int32)(value), make


def _reduction(name: str) -> Any:
    """The least or greatest of 15 lanes, unsigned; lane 15 must not count."""

    def operation(typing: Any, value: Any) -> Any:
        def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            element = value.vector.element
            kind = ir.FunctionType(element, [value.vector])
            full = f"llvm.vector.reduce.{name}.v{COUNT}i{element.width}"
            function = cgutils.get_or_insert_function(builder.module, kind, full)
            # lane 0 again in the place of lane 15
            order = _order([*range(COUNT - 1), 0])
            fifteen = builder.shuffle_vector(args[0], args[0], order)
            return builder.zext(builder.call(function, [fifteen]), I64)

        return types.int64(value), make

    return intrinsic(operation)


least = _reduction("umin")
greatest = _reduction("umax")
