"""What readers of simplified lines, raw lines and binary records share: where they are, the words
they have seen, and how a record is kept or refused."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastvae.kernels.byte_blocks import Bytes, Int, byte64, compiled, first_bit
from fastvae.kernels.parse_json import NEWLINE
from fastvae.kernels.parse_record import KEY, RECOGNIZED
from fastvae.kernels.strokes import Offsets

# How far a reader is, as int64; of drawings, strokes and points those that are not yet fetched.
AT, LINE, DRAWINGS, STROKES, POINTS, BAD, WORDS, PROGRESS = range(8)

SPARE = 256
"""Elements at the end of arrays that are written in blocks, besides those needed."""


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
