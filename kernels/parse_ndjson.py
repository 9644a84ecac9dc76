"""Lines of simplified ndjson to ragged arrays.

Google's layout is known by heart (keys in its order, no white space, a key_id of 16 digits): its
fixed text is compared eight bytes at a time and its numbers are read 64 bytes at a time. Whatever
differs in the least is left to ``parse_record``; the results are the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastvae.kernels.byte_blocks import (
    Bytes,
    Int,
    compiled,
    count_bits,
    equal64,
    first_bit,
    numbers64,
    text_end64,
    word_at,
    zip32,
)
from fastvae.kernels.parse_json import NEWLINE, QUOTE, RETURN, skip_space
from fastvae.kernels.parse_lines import (
    AT,
    LINE,
    POINTS,
    STROKES,
    WORDS,
    accept,
    line_end,
    refuse,
    room,
    word_number,
)
from fastvae.kernels.parse_number import ONE, TEN, eight_digit_number, eight_digits
from fastvae.kernels.parse_record import (
    KEY,
    PREFIX,
    RECOGNIZED,
    SAME_WORD,
    WORD_FROM,
    WORD_TO,
    record,
)
from fastvae.kernels.strokes import Offsets

BLOCK = 65  # numbers64 writes 64; first_bit(0) is 64


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
    stop: Int,
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
    (``loose``) are exactly as many as these comparisons have seen. Newlines are among them, so that
    until the end of a drawing is found it may be that of another line; no block begins behind
    ``stop``, and what is in front of it and in one block more has room in the arrays.
    """
    ahead = 0  # numbers of this drawing in ``values``
    x, y = 0, -1  # where this stroke's lists begin there; y = -1 inside the first one
    loose_seen = loose_due = 0
    while p < stop and p + 72 <= len(data):
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
    """Read the lines that begin before ``stop``, where a line ends, as long as there is room.

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
                data, after, stop, points, point, stroke_end, stroke, block, values
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
