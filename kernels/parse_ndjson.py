"""Lines of Quick, Draw! ndjson, simplified or raw, to ragged arrays.

Five parts, each standing on those above it:

1. blocks of bytes: the few vector operations that a parser needs and Numba has not;
2. JSON byte by byte: what is a string, a number, a value;
3. records in any layout of JSON, and what is wrong with one;
4. simplified lines: Google's layout by heart (keys in its order, no white space, a key_id of 16
   digits), its fixed text compared eight bytes at a time and its numbers read 64 bytes at a time.
   Whatever differs in the least is left to part 3; the results are the same;
5. raw lines: coordinates in pixels of a device, and times.

Functions take the buffer, a place and the end of the line, never read outside, and return the place
behind what they read, or a negative reason (``-SYNTAX``; ``fastvae.kernels.parse.REASONS`` has the
texts). JSON is what RFC 8259 says, with values nested up to 64 deep: no NaN, no comments, no
control characters in strings, strings in UTF-8.

A raw number is (-1)^s m 10^e with up to 19 digits in m. Where m < 2^53 and |e| <= 22, m and the
power of ten are exact in float64 and one multiplication or division rounds once (Clinger, 1990).
The rest, which for Google's data is float32 written with 17 digits, goes through the 128 most
significant bits of the power (Lemire, "Number parsing at a gigabyte per second", 2021).
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from fastvae.kernels.strokes import Offsets

ir: Any = importlib.import_module("llvmlite.ir")  # it has no types

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.float64]
Int = Any
"""In compiled code: int64, or uint64 where bits matter."""

# 1. Blocks of bytes. Masks are uint64 with bit i for byte ``at + i``. Whoever calls makes sure that
# the bytes ``at .. at + 63`` (``numbers64``: from ``at - 3``) are there.

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


# 2. JSON byte by byte

NOT_OBJECT, SYNTAX, CUT, UTF8, DEEP, TRAILING = 1, 2, 3, 4, 5, 6
DEEPEST = 64  # bits of the word that remembers what is open

TAB, NEWLINE, RETURN, SPACE = 9, 10, 13, 32
QUOTE, COMMA, COLON, BACKSLASH = ord('"'), ord(","), ord(":"), ord("\\")
OPEN_LIST, CLOSE_LIST, OPEN_OBJECT, CLOSE_OBJECT = ord("["), ord("]"), ord("{"), ord("}")
MINUS, PLUS, POINT, ZERO, NINE = ord("-"), ord("+"), ord("."), ord("0"), ord("9")

TRUE, FALSE, NULL = (np.frombuffer(text, np.uint8) for text in (b"true", b"false", b"null"))
SHORT_ESCAPES = np.zeros(128, dtype=np.uint8)
for _letter, _meaning in zip(b'"\\/bfnrt', b'"\\/\b\f\n\r\t', strict=True):
    SHORT_ESCAPES[_letter] = _meaning

ONE, TEN, FULL = np.uint64(1), np.uint64(10), np.uint64(10**18)
HIGH_HALVES, SIXES, ZEROS = (np.uint64(0x0101010101010101 * n) for n in (0xF0, 6, ZERO))
PAIRS = np.uint64(0x000000FF000000FF)
PAIRS_LOW, PAIRS_HIGH = np.uint64(1000000 << 32 | 100), np.uint64(10000 << 32 | 1)

PLAIN, ESCAPED, SURROGATE = 0, 1, 2
"""What a string holds: plain bytes, escapes, or a surrogate without its other half."""


@inlined
def is_digit(byte: Int) -> bool:
    """True for 0 to 9."""
    return ZERO <= byte <= NINE


@inlined
def skip_space(data: Bytes, p: Int, end: Int) -> Int:
    """The first place from ``p`` that is no white space, or ``end``."""
    while p < end:
        byte = data[p]
        if byte > SPACE or byte not in (SPACE, TAB, RETURN, NEWLINE):
            break
        p += 1
    return p


@inlined
def wrong(data: Bytes, p: Int, end: Int, reason: Int) -> Int:
    """The reason for what stands at ``p``: that the line is cut where there is nothing more."""
    return -CUT if p >= end else -reason


@compiled
def sequence_length(data: Bytes, p: Int, end: Int) -> Int:
    """Bytes of the UTF-8 sequence of two to four bytes at ``p``; 0 where it is not one."""
    lead = data[p]
    low, high = 0x80, 0xBF
    if 0xC2 <= lead <= 0xDF:
        length = 2
    elif 0xE0 <= lead <= 0xEF:
        length = 3
        if lead == 0xE0:
            low = 0xA0
        elif lead == 0xED:
            high = 0x9F
    elif 0xF0 <= lead <= 0xF4:
        length = 4
        if lead == 0xF0:
            low = 0x90
        elif lead == 0xF4:
            high = 0x8F
    else:
        return 0
    if p + length > end or not low <= data[p + 1] <= high:
        return 0
    for i in range(2, length):
        if not 0x80 <= data[p + i] <= 0xBF:
            return 0
    return length


@compiled
def hex_unit(data: Bytes, p: Int, end: Int) -> Int:
    """The value of the four hexadecimal digits at ``p``, or -1."""
    if p + 4 > end:
        return -1
    value = np.int64(0)
    for i in range(p, p + 4):
        byte = np.int64(data[i])
        if is_digit(byte):
            byte -= ZERO
        elif 97 <= byte <= 102 or 65 <= byte <= 70:
            byte = (byte | 32) - 87
        else:
            return -1
        value = value * 16 + byte
    return value


@compiled
def scan_string(data: Bytes, p: Int, end: Int) -> tuple[Int, Int]:
    """Read a string whose opening quote is at ``p - 1``: the place of its closing quote, and
    PLAIN, ESCAPED or SURROGATE."""
    holds = PLAIN
    high = -1  # where the escape after a high surrogate must begin
    while p < end:
        byte = data[p]
        if byte == QUOTE:
            return p, (SURROGATE if high >= 0 else holds)
        if byte < 0x20:
            return -SYNTAX, holds
        if byte >= 0x80:
            length = sequence_length(data, p, end)
            if length == 0:
                return -UTF8, holds
            p += length
        elif byte != BACKSLASH:
            p += 1
        else:
            holds = max(holds, ESCAPED)
            if p + 1 >= end:
                break
            if data[p + 1] == 117:  # u
                unit = hex_unit(data, p + 2, end)
                if unit < 0:
                    return wrong(data, p + 5, end, SYNTAX), holds
                if high == p and 0xDC00 <= unit <= 0xDFFF:
                    high = -1  # a pair
                elif 0xDC00 <= unit <= 0xDFFF:
                    holds = SURROGATE
                elif 0xD800 <= unit <= 0xDBFF:
                    if high >= 0:
                        holds = SURROGATE
                    high = p + 6
                p += 6
            elif data[p + 1] < 128 and SHORT_ESCAPES[data[p + 1]]:
                p += 2
            else:
                return -SYNTAX, holds
        if 0 <= high < p:  # something else came after a high surrogate
            holds, high = SURROGATE, -1
    return -CUT, holds


@compiled
def next_unit(data: Bytes, p: Int) -> tuple[Int, Int]:
    """Place behind, and value of, the byte or escape at ``p`` of a string that was scanned."""
    byte = np.int64(data[p])
    if byte != BACKSLASH:
        return p + 1, byte
    if data[p + 1] == 117:
        return p + 6, hex_unit(data, p + 2, p + 6)
    return p + 2, np.int64(SHORT_ESCAPES[data[p + 1]])


@compiled
def text_is(data: Bytes, p: Int, end: Int, name: Bytes) -> bool:
    """True where the string between ``p`` and ``end`` says ``name``, which is ASCII."""
    i = 0
    while p < end:
        p, unit = next_unit(data, p)
        if i == len(name) or unit != name[i]:
            return False
        i += 1
    return i == len(name)


@compiled
def text_number(data: Bytes, p: Int, end: Int) -> tuple[bool, Int]:
    """The number that the digits between ``p`` and ``end`` write, if they are digits and it is
    below 2^64."""
    value = np.uint64(0)
    good = p < end
    while p < end:
        p, unit = next_unit(data, p)
        if not is_digit(unit):
            return False, value
        digit = np.uint64(unit - ZERO)
        if value > (np.uint64(0xFFFFFFFFFFFFFFFF) - digit) // np.uint64(10):
            return False, value
        value = value * np.uint64(10) + digit
    return good, value


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
def scan_key(data: Bytes, p: Int, end: Int) -> tuple[Int, Int, Int]:
    """Read ``"key" :`` and the white space behind: where the value begins, and the key's span."""
    if p >= end or data[p] != QUOTE:
        return wrong(data, p, end, SYNTAX), 0, 0
    first = p + 1
    last, _ = scan_string(data, first, end)
    if last < 0:
        return last, 0, 0
    p = skip_space(data, last + 1, end)
    if p >= end or data[p] != COLON:
        return wrong(data, p, end, SYNTAX), 0, 0
    return skip_space(data, p + 1, end), first, last


@compiled
def skip_word(data: Bytes, p: Int, end: Int, word: Bytes) -> Int:
    """Read true, false or null."""
    for byte in word:
        if p >= end or data[p] != byte:
            return wrong(data, p, end, SYNTAX)
        p += 1
    return p


@compiled
def skip_scalar(data: Bytes, p: Int, end: Int) -> Int:
    """Read a value that is no list and no object."""
    if p >= end:
        return -CUT
    byte = data[p]
    if byte == QUOTE:
        p, _ = scan_string(data, p + 1, end)
        return p + 1 if p >= 0 else p
    if byte == 116:  # t
        return skip_word(data, p, end, TRUE)
    if byte == 102:  # f
        return skip_word(data, p, end, FALSE)
    if byte == 110:  # n
        return skip_word(data, p, end, NULL)
    p, _, _, _ = scan_number(data, p + (byte == MINUS), end)
    return p


@compiled
def skip_value(data: Bytes, p: Int, end: Int) -> Int:
    """Read any value, without recursion: the lowest bit of ``objects`` is what is open now."""
    objects, depth = np.uint64(0), 0
    one = np.uint64(1)
    while True:
        byte = data[p] if p < end else np.uint8(0)
        if byte in (OPEN_LIST, OPEN_OBJECT):
            is_object = byte == OPEN_OBJECT
            if depth == DEEPEST:
                return -DEEP
            depth += 1
            objects = (objects << one) | np.uint64(is_object)
            p = skip_space(data, p + 1, end)
            if p >= end or data[p] != byte + 2:  # not closed at once
                if is_object:
                    p, _, _ = scan_key(data, p, end)
                    if p < 0:
                        return p
                continue
        else:
            p = skip_scalar(data, p, end)
            if p < 0 or depth == 0:
                return p
        while True:  # behind a value, or at the end of an empty list or object
            p = skip_space(data, p, end)
            if p >= end:
                return -CUT
            is_object = objects & one != 0
            if data[p] == (CLOSE_OBJECT if is_object else CLOSE_LIST):
                objects >>= one
                depth -= 1
                p += 1
                if depth == 0:
                    return p
            elif data[p] == COMMA:
                p = skip_space(data, p + 1, end)
                if is_object:
                    p, _, _ = scan_key(data, p, end)
                    if p < 0:
                        return p
                break
            else:
                return -SYNTAX


# 3. Records

DUPLICATE, NO_WORD, WORD_TYPE, WORD_TEXT, NO_KEY_ID, KEY_ID, RECOGNIZED_TYPE = range(7, 14)
NO_DRAWING, DRAWING_TYPE, EMPTY_DRAWING, EMPTY_STROKE, STROKE_SHAPE, LENGTHS = range(14, 20)
NOT_NUMBER, NOT_INTEGER, RANGE = range(20, 23)

# What is known of a record, as int64.
SEEN, WORD_FROM, WORD_TO, KEY, RECOGNIZED, STATE, SAME_WORD, PREFIX, HEAD = range(9)
AT_START, AT_DRAWING, AT_END = range(3)

# How far a reader is, as int64; of drawings, strokes and points those that are not yet fetched.
AT, LINE, DRAWINGS, STROKES, POINTS, BAD, WORDS, PROGRESS = range(8)

NAMES = tuple(
    np.frombuffer(name, np.uint8) for name in (b"word", b"key_id", b"recognized", b"drawing")
)
A_WORD, A_KEY, A_RECOGNIZED, A_DRAWING = range(4)


@compiled
def _scan_word(data: Bytes, p: Int, end: Int, head: Offsets) -> Int:
    if p >= end or data[p] != QUOTE:
        return wrong(data, p, end, WORD_TYPE)
    last, holds = scan_string(data, p + 1, end)
    if last < 0:
        return last
    if holds == SURROGATE:
        return -WORD_TEXT
    head[WORD_FROM], head[WORD_TO] = p + 1, last
    return last + 1


@compiled
def _scan_key_id(data: Bytes, p: Int, end: Int, head: Offsets) -> Int:
    if p < end and data[p] == QUOTE:
        first = p + 1
        last, _ = scan_string(data, first, end)
        if last < 0:
            return last
        p = last + 1
    elif p < end and is_digit(data[p]):
        first, last = p, skip_digits(data, p, end)
        p, _, _, _ = scan_number(data, p, end)
        if p < 0:
            return p
        if p != last:  # a fraction or an exponent
            return -KEY_ID
    else:
        return wrong(data, p, end, KEY_ID)
    good, number = text_number(data, first, last)
    if not good:
        return -KEY_ID
    head[KEY] = np.int64(number)
    return p


@compiled
def _scan_recognized(data: Bytes, p: Int, end: Int, head: Offsets) -> Int:
    if p < end and data[p] == TRUE[0]:
        return skip_word(data, p, end, TRUE)
    if p < end and data[p] == FALSE[0]:
        head[RECOGNIZED] = 0
        return skip_word(data, p, end, FALSE)
    return wrong(data, p, end, RECOGNIZED_TYPE)


@compiled
def _member(data: Bytes, first: Int, last: Int) -> Int:
    """Which of NAMES stands between ``first`` and ``last``; -1 for another."""
    if text_is(data, first, last, NAMES[0]):
        return A_WORD
    if text_is(data, first, last, NAMES[1]):
        return A_KEY
    if text_is(data, first, last, NAMES[2]):
        return A_RECOGNIZED
    return A_DRAWING if text_is(data, first, last, NAMES[3]) else -1


@compiled
def open_record(head: Offsets) -> None:
    """Forget the record before."""
    head[:] = 0
    head[RECOGNIZED] = 1


@compiled
def scan_members(data: Bytes, p: Int, end: Int, head: Offsets) -> Int:
    """Read the members of a record, and stop where the value of "drawing" begins (AT_DRAWING), or
    behind the record (AT_END). Called again behind the drawing it goes on."""
    between = head[STATE] != AT_START
    if not between:
        if data[p] != OPEN_OBJECT:
            return -NOT_OBJECT
        p = skip_space(data, p + 1, end)
        if p < end and data[p] == CLOSE_OBJECT:
            head[STATE] = AT_END
            return p + 1
    while True:
        if between:
            p = skip_space(data, p, end)
            if p < end and data[p] == CLOSE_OBJECT:
                head[STATE] = AT_END
                return p + 1
            if p >= end or data[p] != COMMA:
                return wrong(data, p, end, SYNTAX)
            p = skip_space(data, p + 1, end)
        between = True
        p, first, last = scan_key(data, p, end)
        if p < 0:
            return p
        member = _member(data, first, last)
        if member >= 0:
            if head[SEEN] >> member & 1:
                return -DUPLICATE
            head[SEEN] |= 1 << member
        if member == A_DRAWING:
            head[STATE] = AT_DRAWING
            return p
        if member == A_WORD:
            p = _scan_word(data, p, end, head)
        elif member == A_KEY:
            p = _scan_key_id(data, p, end, head)
        elif member == A_RECOGNIZED:
            p = _scan_recognized(data, p, end, head)
        else:
            p = skip_value(data, p, end)
        if p < 0:
            return p


@compiled
def close_record(data: Bytes, p: Int, end: Int, head: Offsets) -> Int:
    """0 where a record that ends before ``p`` has all it needs and nothing is behind it."""
    if skip_space(data, p, end) < end:
        return -TRAILING
    if not head[SEEN] >> A_WORD & 1:
        return -NO_WORD
    if not head[SEEN] >> A_KEY & 1:
        return -NO_KEY_ID
    return 0 if head[SEEN] >> A_DRAWING & 1 else -NO_DRAWING


@compiled
def open_list(data: Bytes, p: Int, end: Int, reason: Int) -> Int:
    """Read ``[`` and the white space behind it."""
    if p >= end or data[p] != OPEN_LIST:
        return wrong(data, p, end, reason)
    return skip_space(data, p + 1, end)


@inlined
def next_item(data: Bytes, p: Int, end: Int, reason: Int) -> tuple[Int, bool]:
    """Read what is behind an item: ``,`` and white space, or ``]`` (then there is no other)."""
    p = skip_space(data, p, end)
    if p < end and data[p] == CLOSE_LIST:
        return p + 1, False
    if p < end and data[p] == COMMA:
        return skip_space(data, p + 1, end), True
    return wrong(data, p, end, reason), False


@inlined
def _small(m: Int, e: Int, more: bool) -> Int:
    """m * 10^e if that is an integer from 0 to 255, else a reason."""
    ten = np.uint64(10)
    if e == 0 and m <= 255:
        return np.int64(m)
    if m == 0:
        return 0
    while e < 0 and m % ten == 0 and not more:
        m //= ten
        e += 1
    if e < 0 or more:
        return -NOT_INTEGER if e < 0 else -RANGE
    while e > 0 and m <= 255:
        m *= ten
        e -= 1
    return np.int64(m) if m <= 255 else -RANGE


@compiled
def _coordinates(data: Bytes, p: Int, end: Int, points: Bytes, at: Int) -> tuple[Int, Int]:
    """Read a list of coordinates into every other byte from ``at``; how many."""
    p = open_list(data, p, end, STROKE_SHAPE)
    if p < 0:
        return p, 0
    if p < end and data[p] == CLOSE_LIST:
        return -EMPTY_STROKE, 0
    count = 0
    again = True
    while again:
        negative = p < end and data[p] == MINUS
        p += negative
        if p >= end or not is_digit(data[p]):
            return wrong(data, p, end, SYNTAX if negative else NOT_NUMBER), 0
        p, m, e, more = scan_number(data, p, end)
        if p < 0:
            return p, 0
        value = _small(m, e, more)
        if negative and value > 0:
            value = -RANGE
        if value < 0:
            return value, 0
        points[at + 2 * count] = value
        count += 1
        p, again = next_item(data, p, end, NOT_NUMBER)
    return p, count


@compiled
def close_stroke(data: Bytes, p: Int, end: Int) -> Int:
    """Read the end of a stroke, with a list of times before it or without."""
    p, again = next_item(data, p, end, STROKE_SHAPE)
    if not again:
        return p
    if p >= end or data[p] != OPEN_LIST:
        return wrong(data, p, end, STROKE_SHAPE)
    p = skip_value(data, p, end)
    if p < 0:
        return p
    p = skip_space(data, p, end)
    if p >= end or data[p] != CLOSE_LIST:
        return wrong(data, p, end, STROKE_SHAPE)
    return p + 1


@compiled
def _drawing(
    data: Bytes, p: Int, end: Int, points: Bytes, point: Int, stroke_end: Offsets, stroke: Int
) -> tuple[Int, Int, Int]:
    """Read a drawing: the place behind it, and how many points and strokes there are now."""
    p = open_list(data, p, end, DRAWING_TYPE)
    if p >= 0 and p < end and data[p] == CLOSE_LIST:
        p = -EMPTY_DRAWING
    again = True
    while again and p >= 0:
        p = open_list(data, p, end, STROKE_SHAPE)
        if p < 0:
            break
        p, count = _coordinates(data, p, end, points, 2 * point)
        if p < 0:
            break
        p, again = next_item(data, p, end, STROKE_SHAPE)
        if p < 0:
            break
        if not again:
            p = -STROKE_SHAPE
            break
        p, other = _coordinates(data, p, end, points, 2 * point + 1)
        if p < 0:
            break
        if other != count:
            p = -LENGTHS
            break
        p = close_stroke(data, p, end)
        if p < 0:
            break
        point += count
        stroke_end[stroke] = point
        stroke += 1
        p, again = next_item(data, p, end, DRAWING_TYPE)
    return p, point, stroke


@compiled
def record(
    data: Bytes,
    p: Int,
    end: Int,
    head: Offsets,
    points: Bytes,
    point: Int,
    stroke_end: Offsets,
    stroke: Int,
) -> tuple[Int, Int, Int]:
    """Read any record: 0 or a reason, and how many points and strokes there are now."""
    open_record(head)
    while True:
        p = scan_members(data, p, end, head)
        if p < 0:
            return p, point, stroke
        if head[STATE] == AT_END:
            return close_record(data, p, end, head), point, stroke
        p, point, stroke = _drawing(data, p, end, points, point, stroke_end, stroke)
        if p < 0:
            return p, point, stroke


# 4. Simplified lines

BLOCK = 65  # numbers64 writes 64; first_bit(0) is 64
SPARE = 256
"""Elements at the end of arrays that are written in blocks, besides those needed."""


def _text(text: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(text, "little"))


# Fixed text of 15 bytes as its first 8 and its last 8.
WORD_START = _text(b'{"word":')
COUNTRY, COUNTRY_END = _text(b'","count'), _text(b'rycode":')  # and a quote
TIME, TIME_END = _text(b'","times'), _text(b'stamp":"')
RECOGNIZED_START, RECOGNIZED_END = _text(b'","recog'), _text(b'gnized":')
TRUE_KEY, FALSE_KEY, KEY_END = _text(b'true,"ke'), _text(b'false,"k'), _text(b'ey_id":"')
DRAWING, DRAWING_END = _text(b'","drawi'), _text(b'ing":[[[')

BYTE = np.uint64(255)
THREE_BYTES, FOUR_BYTES, FIVE_BYTES = (np.uint64(256**n - 1) for n in (3, 4, 5))
X_TO_Y, NEXT_STROKE, LAST_STROKE = _text(b"],["), _text(b"]],[["), _text(b"]]]}")


@compiled
def line_end(data: Bytes, p: Int) -> Int:
    """Where the line that ``p`` is in ends: its newline, or the end of the buffer."""
    while p + 64 <= len(data):
        found = byte64(data, p, np.uint8(NEWLINE))
        if found:
            return p + first_bit(found)
        p += 64
    while p < len(data) and data[p] != NEWLINE:
        p += 1
    return p


@compiled
def _fast_head(data: Bytes, p: Int, head: Offsets, known: Int, prefix: Int) -> Int:
    """Read a record up to the first number of its drawing: the place of that, or -1.

    Args:
        known: a line whose first ``prefix`` bytes are ``{"word":"...","countrycode":"``; most
            often they are those of this line too. No such line where ``prefix`` is 0.
    """
    if p + 512 > len(data) or word_at(data, p) != WORD_START:
        return -1
    same = prefix > 0 and not ~equal64(data, known, p) & ((ONE << np.uint64(prefix)) - ONE)
    head[SAME_WORD] = same
    if not same:
        prefix = 9 + first_bit(text_end64(data, p + 9))  # with the word, up to its closing quote
        q = p + prefix
        prefix += 17
        if prefix > 63 or data[p + 8] != QUOTE or data[q + 16] != QUOTE:
            return -1
        if word_at(data, q) != COUNTRY or word_at(data, q + 8) != COUNTRY_END:
            return -1
    head[PREFIX], head[WORD_FROM], head[WORD_TO] = prefix, p + 9, p + prefix - 17
    q = p + prefix
    special = text_end64(data, q)
    country = first_bit(special)
    if country > 40 or word_at(data, q + country) != TIME:
        return -1
    if word_at(data, q + country + 7) != TIME_END:
        return -1
    q += first_bit(special & ~((ONE << np.uint64(country + 15)) - ONE))  # the timestamp's end
    if word_at(data, q) != RECOGNIZED_START or word_at(data, q + 7) != RECOGNIZED_END:
        return -1
    start = word_at(data, q + 15)
    recognized = start == TRUE_KEY
    if not recognized and start != FALSE_KEY:
        return -1
    q += 22 if recognized else 23
    high, low = word_at(data, q + 8), word_at(data, q + 16)
    if word_at(data, q) != KEY_END or not (eight_digits(high) and eight_digits(low)):
        return -1
    if word_at(data, q + 24) != DRAWING or word_at(data, q + 31) != DRAWING_END:
        return -1
    key = eight_digit_number(high) * np.uint64(100000000) + eight_digit_number(low)
    head[KEY], head[RECOGNIZED] = np.int64(key), recognized
    return q + 39


@compiled
def _digit_in(word: Int, place: Int) -> bool:
    return ((word >> np.uint64(8 * place)) & BYTE) - np.uint64(48) < TEN


@compiled
def _fast_drawing(
    data: Bytes,
    p: Int,
    points: Bytes,
    point: Int,
    stroke_end: Offsets,
    stroke: Int,
    block: Bytes,
    values: Bytes,
) -> tuple[Int, Int, Int]:
    """Read a drawing from its first number, and the end of the line: the next line (or -1), and
    how many points and strokes there are now.

    What makes the check complete: each end of a number is followed by ``,`` or ``]`` (``bad``);
    what follows a ``]`` is compared in full; and bytes that are no digit and follow none
    (``loose``) are exactly as many as these comparisons have seen.
    """
    ahead = 0  # numbers of this drawing in ``values``
    x, y = 0, -1  # where this stroke's lists begin there; y = -1 inside the first one
    loose_seen = loose_due = 0
    while p + 72 <= len(data):
        ends, closed, loose, bad = numbers64(data, p, block)
        rest, count = ends, ahead
        while rest:
            for i in range(8):  # past the last one it writes what the next block overwrites
                values[count + i] = block[first_bit(rest)]
                rest &= rest - ONE
            count += 8
        while closed:
            at = first_bit(closed)
            through = closed ^ (closed - ONE)  # the bits up to ``at``
            total = ahead + count_bits(ends & through)
            word = word_at(data, p + at)
            if y < 0:
                if (word & THREE_BYTES) != X_TO_Y or not _digit_in(word, 3):
                    return -1, point, stroke
                y = total
                loose_due += 2
            else:
                if total - y != y - x:
                    return -1, point, stroke
                for i in range(0, y - x, 32):
                    zip32(values, x + i, y + i, points, 2 * (point + i))
                point += y - x
                stroke_end[stroke] = point
                stroke += 1
                if (word & FIVE_BYTES) == NEXT_STROKE and _digit_in(word, 5):
                    x, y = total, -1
                    loose_due += 4
                elif (word & FOUR_BYTES) == LAST_STROKE:
                    loose_seen += count_bits(loose & through)
                    good = not bad & through and loose_seen == loose_due
                    after = p + at + 4
                    after += data[after] == RETURN
                    if not good or data[after] != NEWLINE:
                        return -1, point, stroke
                    return after + 1, point, stroke
                else:
                    return -1, point, stroke
            closed &= closed - ONE
        if bad:
            break
        loose_seen += count_bits(loose)
        ahead += count_bits(ends)
        p += 64
    return -1, point, stroke


@compiled
def word_number(
    data: Bytes, first: Int, last: Int, table: NDArray[np.int32], words: Offsets, known: Int
) -> Int:
    """Which of the ``known`` words is written between ``first`` and ``last``; ``known`` where it is
    a new one, which is then added. Spelling is compared, not meaning: escapes come later.

    Args:
        table: a hash table of numbers + 1; its size is a power of 2, and it is never full.
        words: (W, 2), where in the buffer each word is written.
    """
    mixed = np.uint64(0xCBF29CE484222325)
    for i in range(first, last):
        mixed = (mixed ^ np.uint64(data[i])) * np.uint64(0x100000001B3)
    mixed ^= mixed >> np.uint64(29)
    last_slot = len(table) - 1
    slot = np.int64(mixed) & last_slot
    while table[slot]:
        number = np.int64(table[slot]) - 1
        from_, to = words[number, 0], words[number, 1]
        if to - from_ == last - first:
            i = 0
            while i < last - first and data[from_ + i] == data[first + i]:
                i += 1
            if i == last - first:
                return number
        slot = (slot + 1) & last_slot
    table[slot] = known + 1
    words[known, 0], words[known, 1] = first, last
    return known


@compiled
def accept(
    progress: Offsets,
    head: Offsets,
    number: Int,
    point: Int,
    stroke: Int,
    drawing_end: Offsets,
    key_id: NDArray[np.uint64],
    recognized: Bytes,
    word: NDArray[np.int32],
    offset: Offsets,
) -> None:
    """Keep the record that was read last, with all its points and strokes."""
    d = progress[DRAWINGS]
    key_id[d], recognized[d] = np.uint64(head[KEY]), head[RECOGNIZED]
    word[d], offset[d] = number, progress[AT]
    drawing_end[d] = stroke
    progress[DRAWINGS], progress[STROKES], progress[POINTS] = d + 1, stroke, point
    progress[WORDS] += number == progress[WORDS]


@compiled
def refuse(progress: Offsets, bad: Offsets, reason: Int) -> None:
    """Note that the line that was read last is bad."""
    b = progress[BAD]
    bad[b, 0], bad[b, 1], bad[b, 2] = progress[LINE], progress[AT], -reason
    progress[BAD] = b + 1


@compiled
def more_words(
    data: Bytes, words: Offsets, known: Int, new_words: Offsets, new_table: NDArray[np.int32]
) -> None:
    """Put the known words into larger arrays."""
    for i in range(known):
        word_number(data, words[i, 0], words[i, 1], new_table, new_words, i)


@compiled
def room(progress: Offsets, stop: Int, bad: Offsets, words: Offsets) -> bool:
    """True while there is something to read and space to note a bad record or a new word."""
    return progress[AT] < stop and progress[BAD] < len(bad) and progress[WORDS] < len(words)


@compiled
def read_lines(
    data: Bytes,
    stop: Int,
    progress: Offsets,
    bad: Offsets,
    stroke_end: Offsets,
    drawing_end: Offsets,
    key_id: NDArray[np.uint64],
    recognized: Bytes,
    word: NDArray[np.int32],
    offset: Offsets,
    points: Bytes,
    words: Offsets,
    table: NDArray[np.int32],
    head: Offsets,
    block: Bytes,
    values: Bytes,
    fast: bool,
) -> None:
    """Read the lines that begin before ``stop``, as long as there is room.

    Args:
        progress: where to begin, how much there is already, and afterwards the same.
        bad: (B, 3) line, byte, reason.
        stroke_end, drawing_end: offsets without the 0 at their beginning.
        words, table: see ``word_number``.
        head, block, values: (HEAD,), (BLOCK,) and (P + SPARE,), working memory.
        fast: try what is known by heart first.
    """
    known, prefix, known_number = 0, 0, 0
    while room(progress, stop, bad, words):
        p, point, stroke = progress[AT], progress[POINTS], progress[STROKES]
        after = _fast_head(data, p, head, known, prefix) if fast else -1
        if after >= 0:
            after, point, stroke = _fast_drawing(
                data, after, points, point, stroke_end, stroke, block, values
            )
        by_heart = after >= 0
        reason, blank = 0, False
        if not by_heart:
            end = line_end(data, p)
            after = min(end + 1, len(data))
            first = skip_space(data, p, end)
            blank = first == end
            if not blank:
                point, stroke = progress[POINTS], progress[STROKES]
                reason, point, stroke = record(
                    data, first, end, head, points, point, stroke_end, stroke
                )
        if reason < 0:
            refuse(progress, bad, reason)
        elif not blank:
            number = known_number
            if not by_heart or not head[SAME_WORD]:
                first, last = head[WORD_FROM], head[WORD_TO]
                number = word_number(data, first, last, table, words, progress[WORDS])
            if by_heart:
                known, prefix, known_number = p, head[PREFIX], number
            accept(
                progress,
                head,
                number,
                point,
                stroke,
                drawing_end,
                key_id,
                recognized,
                word,
                offset,
            )
        progress[AT] = after
        progress[LINE] += 1


# 5. Raw lines

FAR, LATE, TIME_LENGTH = range(23, 26)
FARTHEST = 1e7
"""Coordinates beyond it, in pixels, are mistakes."""
LATEST = 1e15
"""Times beyond it, in ms, are mistakes; milliseconds since 1970 are allowed."""

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


@compiled
def _numbers(
    data: Bytes, p: Int, end: Int, out: Numbers, at: Int, most: float, reason: Int
) -> tuple[Int, Int]:
    """Read a list of numbers up to +-``most`` into ``out`` from ``at``; how many."""
    p = open_list(data, p, end, STROKE_SHAPE)
    if p < 0:
        return p, 0
    if p < end and data[p] == CLOSE_LIST:
        return -EMPTY_STROKE, 0
    count = 0
    again = True
    while again:
        negative = p < end and data[p] == MINUS
        p += negative
        if p >= end or not is_digit(data[p]):
            return wrong(data, p, end, SYNTAX if negative else NOT_NUMBER), 0
        p, m, e, _ = scan_number(data, p, end)
        if p < 0:
            return p, 0
        value = to_float(m, e)
        if value > most:
            return -reason, 0
        out[at + count] = -value if negative else value
        count += 1
        p, again = next_item(data, p, end, NOT_NUMBER)
    return p, count


@compiled
def _stroke(
    data: Bytes, p: Int, end: Int, x: Numbers, y: Numbers, t: Numbers, point: Int
) -> tuple[Int, Int, bool]:
    """Read a stroke: the place behind it, how many points, and whether there are times."""
    p = open_list(data, p, end, STROKE_SHAPE)
    if p < 0:
        return p, 0, False
    p, count = _numbers(data, p, end, x, point, FARTHEST, FAR)
    if p < 0:
        return p, 0, False
    p, again = next_item(data, p, end, STROKE_SHAPE)
    if p < 0 or not again:
        return p if p < 0 else -STROKE_SHAPE, 0, False
    p, other = _numbers(data, p, end, y, point, FARTHEST, FAR)
    if p < 0 or other != count:
        return p if p < 0 else -LENGTHS, 0, False
    p, timed = next_item(data, p, end, STROKE_SHAPE)
    if p < 0 or not timed:
        t[point : point + count] = 0.0
        return p, count, False
    p, other = _numbers(data, p, end, t, point, LATEST, LATE)
    if p < 0 or other != count:
        return p if p < 0 else -TIME_LENGTH, 0, False
    p, again = next_item(data, p, end, STROKE_SHAPE)
    return p if p < 0 or not again else -STROKE_SHAPE, count, True


@compiled
def _raw_drawing(
    data: Bytes,
    p: Int,
    end: Int,
    x: Numbers,
    y: Numbers,
    t: Numbers,
    point: Int,
    stroke_end: Offsets,
    stroke: Int,
) -> tuple[Int, Int, Int, bool]:
    """Read a drawing: the place behind it, how many points and strokes there are now, and whether
    they have times: all of them or none."""
    p = open_list(data, p, end, DRAWING_TYPE)
    if p >= 0 and p < end and data[p] == CLOSE_LIST:
        p = -EMPTY_DRAWING
    first, has_times, again = True, False, True
    while again and p >= 0:
        p, count, timed = _stroke(data, p, end, x, y, t, point)
        if p < 0:
            break
        if not first and timed != has_times:
            p = -TIME_LENGTH
            break
        first, has_times = False, timed
        point += count
        stroke_end[stroke] = point
        stroke += 1
        p, again = next_item(data, p, end, DRAWING_TYPE)
    return p, point, stroke, has_times


@compiled
def read_raw_lines(
    data: Bytes,
    stop: Int,
    progress: Offsets,
    bad: Offsets,
    stroke_end: Offsets,
    drawing_end: Offsets,
    key_id: NDArray[np.uint64],
    recognized: Bytes,
    word: NDArray[np.int32],
    offset: Offsets,
    x: Numbers,
    y: Numbers,
    t: Numbers,
    has_times: Bytes,
    words: Offsets,
    table: NDArray[np.int32],
    head: Offsets,
) -> None:
    """Read the lines that begin before ``stop``, as ``read_lines`` does."""
    while room(progress, stop, bad, words):
        end = line_end(data, progress[AT])
        p = skip_space(data, progress[AT], end)
        if p < end:
            point, stroke, timed = progress[POINTS], progress[STROKES], False
            open_record(head)
            p = scan_members(data, p, end, head)
            if p >= 0 and head[STATE] != AT_END:
                p, point, stroke, timed = _raw_drawing(
                    data, p, end, x, y, t, point, stroke_end, stroke
                )
                if p >= 0:
                    p = scan_members(data, p, end, head)
            if p >= 0:
                p = close_record(data, p, end, head)
            if p < 0:
                refuse(progress, bad, p)
            else:
                first, last = head[WORD_FROM], head[WORD_TO]
                number = word_number(data, first, last, table, words, progress[WORDS])
                has_times[progress[DRAWINGS]] = timed
                accept(
                    progress,
                    head,
                    number,
                    point,
                    stroke,
                    drawing_end,
                    key_id,
                    recognized,
                    word,
                    offset,
                )
        progress[AT] = min(end + 1, len(data))
        progress[LINE] += 1
