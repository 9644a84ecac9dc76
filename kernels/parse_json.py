"""JSON byte by byte: strings, values of any kind, members and items.

Functions take the buffer, a place and the end of the line, never read outside, and return the place
behind what they read, or a negative reason. JSON is what RFC 8259 says, with values nested up to
64 deep: no NaN, no comments, no control characters in strings, strings in UTF-8.
"""

from __future__ import annotations

import numpy as np

from fastvae.kernels.byte_blocks import Bytes, Int, compiled, inlined
from fastvae.kernels.parse_number import MINUS, ZERO, is_digit, scan_number
from fastvae.kernels.parse_reasons import CUT, DEEP, SYNTAX, UTF8, wrong

DEEPEST = 64  # bits of the word that remembers what is open

TAB, NEWLINE, RETURN, SPACE = 9, 10, 13, 32
QUOTE, COMMA, COLON, BACKSLASH = ord('"'), ord(","), ord(":"), ord("\\")
OPEN_LIST, CLOSE_LIST, OPEN_OBJECT, CLOSE_OBJECT = ord("["), ord("]"), ord("{"), ord("}")

TRUE, FALSE, NULL = (np.frombuffer(text, np.uint8) for text in (b"true", b"false", b"null"))
SHORT_ESCAPES = np.zeros(128, dtype=np.uint8)
for _letter, _meaning in zip(b'"\\/bfnrt', b'"\\/\b\f\n\r\t', strict=True):
    SHORT_ESCAPES[_letter] = _meaning

PLAIN, ESCAPED, SURROGATE = 0, 1, 2
"""What a string holds: plain bytes, escapes, or a surrogate without its other half."""


@inlined
def skip_space(data: Bytes, p: Int, end: Int) -> Int:
    """The first place from ``p`` that is no white space, or ``end``."""
    while p < end:
        byte = data[p]
        if byte > SPACE or byte not in (SPACE, TAB, RETURN, NEWLINE):
            break
        p += 1
    return p


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
