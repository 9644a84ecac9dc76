"""One simplified record in any layout of JSON, and the members of a raw one: the exact half.

Functions return the place behind what they read, or a negative reason.
"""

from __future__ import annotations

import numpy as np

from fastvae.kernels.byte_blocks import Bytes, Int, compiled, inlined
from fastvae.kernels.parse_json import (
    CLOSE_LIST,
    CLOSE_OBJECT,
    COMMA,
    FALSE,
    OPEN_LIST,
    OPEN_OBJECT,
    QUOTE,
    SURROGATE,
    TRUE,
    next_item,
    open_list,
    scan_key,
    scan_string,
    skip_space,
    skip_value,
    skip_word,
    text_is,
    text_number,
)
from fastvae.kernels.parse_number import MINUS, is_digit, scan_number, skip_digits
from fastvae.kernels.parse_reasons import (
    DRAWING_TYPE,
    DUPLICATE,
    EMPTY_DRAWING,
    EMPTY_STROKE,
    KEY_ID,
    LENGTHS,
    NO_DRAWING,
    NO_KEY_ID,
    NO_WORD,
    NOT_INTEGER,
    NOT_NUMBER,
    NOT_OBJECT,
    RANGE,
    RECOGNIZED_TYPE,
    STROKE_SHAPE,
    SYNTAX,
    TRAILING,
    WORD_TEXT,
    WORD_TYPE,
    wrong,
)
from fastvae.kernels.strokes import Offsets

# What is known of a record, as int64.
SEEN, WORD_FROM, WORD_TO, KEY, RECOGNIZED, STATE, SAME_WORD, PREFIX, HEAD = range(9)
AT_START, AT_DRAWING, AT_END = range(3)

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
