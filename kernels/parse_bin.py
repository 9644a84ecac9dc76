"""Quick, Draw!'s binary files to ragged arrays.

A record, little-endian and without padding: uint64 key_id, 2 bytes country, int8 recognized,
uint32 Unix time, uint16 strokes; then per stroke uint16 points, the x and the y, a byte each.
Records have no marks between them: where one is broken, nothing says where the next one begins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastvae.kernels.byte_blocks import Bytes, Int, compiled, word_at, zip32
from fastvae.kernels.parse_lines import AT, BAD, DRAWINGS, LINE, POINTS, STROKES
from fastvae.kernels.parse_reasons import (
    BIN_CUT,
    BIN_RECOGNIZED,
    BIN_ZEROS,
    EMPTY_DRAWING,
    EMPTY_STROKE,
)
from fastvae.kernels.strokes import Offsets

HEADER = 17
NO_ROOM = 1


@compiled
def _two_bytes(data: Bytes, p: Int) -> Int:
    return np.int64(data[p]) | np.int64(data[p + 1]) << 8


@compiled
def _key(data: Bytes, p: Int, blocks: bool) -> Int:
    if blocks:
        return word_at(data, p)
    key = np.uint64(0)
    for i in range(8):
        key |= np.uint64(data[p + i]) << np.uint64(8 * i)
    return key


@compiled
def _pair(data: Bytes, x: Int, count: Int, points: Bytes, at: Int, blocks: bool) -> None:
    """Write ``count`` points: x from ``x`` on, y behind them."""
    y = x + count
    done = 0
    if blocks:
        while done < count and y + done + 32 <= len(data):
            zip32(data, x + done, y + done, points, at + 2 * done)
            done += 32
    for i in range(done, count):
        points[at + 2 * i], points[at + 2 * i + 1] = data[x + i], data[y + i]


@compiled
def _strokes(
    data: Bytes,
    p: Int,
    strokes: Int,
    points: Bytes,
    point: Int,
    stroke_end: Offsets,
    stroke: Int,
    spare: Int,
    blocks: bool,
) -> tuple[Int, Int, Int, Int]:
    """Read strokes: the place behind them, how many points and strokes there are now, and 0,
    NO_ROOM or a reason (with both BIN_CUT and NO_ROOM the place means nothing)."""
    reason = 0
    for _ in range(strokes):
        if p + 2 > len(data):
            return p, point, stroke, -BIN_CUT
        count = _two_bytes(data, p)
        p += 2
        if p + 2 * count > len(data):
            return p, point, stroke, -BIN_CUT
        if 2 * (point + count) + spare > len(points) or stroke == len(stroke_end):
            return p, point, stroke, NO_ROOM
        _pair(data, p, count, points, 2 * point, blocks)
        if count == 0:
            reason = -EMPTY_STROKE
        point += count
        stroke_end[stroke] = point
        stroke += 1
        p += 2 * count
    return p, point, stroke, reason


@compiled
def read_records(
    data: Bytes,
    stop: Int,
    progress: Offsets,
    bad: Offsets,
    stroke_end: Offsets,
    drawing_end: Offsets,
    key_id: NDArray[np.uint64],
    recognized: Bytes,
    offset: Offsets,
    points: Bytes,
    spare: Int,
    blocks: bool,
) -> None:
    """Read the records that begin before ``stop``, as long as there is room: where nothing was
    read, there is none for a single record.

    A drawing without strokes or a stroke without points is refused and the next record read; what
    cannot be a record ends it all. Arguments as those of ``parse_ndjson.read_lines``.
    """
    while progress[AT] < stop and progress[BAD] < len(bad):
        first, d = progress[AT], progress[DRAWINGS]
        point, stroke, after = progress[POINTS], progress[STROKES], len(data)
        key, reason = np.uint64(0), 0
        if first + HEADER > len(data):
            reason = -BIN_CUT
        elif data[first + 10] > 1:
            reason = -BIN_RECOGNIZED
        else:
            key, strokes = _key(data, first, blocks), _two_bytes(data, first + 15)
            after, point, stroke, reason = _strokes(
                data, first + HEADER, strokes, points, point, stroke_end, stroke, spare, blocks
            )
            if strokes == 0:
                reason = -EMPTY_DRAWING if key else -BIN_ZEROS
            if reason == NO_ROOM or d == len(drawing_end):
                return
            if reason == -BIN_CUT or reason == -BIN_ZEROS:
                after = len(data)
        if reason == 0:
            key_id[d], recognized[d], offset[d] = key, data[first + 10], first
            drawing_end[d] = stroke
            progress[DRAWINGS], progress[STROKES], progress[POINTS] = d + 1, stroke, point
        else:
            b = progress[BAD]
            bad[b, 0], bad[b, 1], bad[b, 2] = progress[LINE], first, -reason
            progress[BAD] = b + 1
        progress[AT] = after
        progress[LINE] += 1
