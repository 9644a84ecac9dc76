"""Lines of raw ndjson to ragged arrays: coordinates in pixels of a device, and times in ms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastvae.kernels.byte_blocks import Bytes, Int, compiled
from fastvae.kernels.parse_json import CLOSE_LIST, next_item, open_list, skip_space
from fastvae.kernels.parse_lines import (
    AT,
    DRAWINGS,
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
from fastvae.kernels.parse_number import MINUS, is_digit, scan_number, to_float
from fastvae.kernels.parse_reasons import (
    DRAWING_TYPE,
    EMPTY_DRAWING,
    EMPTY_STROKE,
    FAR,
    LATE,
    LENGTHS,
    NOT_NUMBER,
    STROKE_SHAPE,
    SYNTAX,
    TIME_LENGTH,
    wrong,
)
from fastvae.kernels.parse_record import (
    AT_END,
    STATE,
    WORD_FROM,
    WORD_TO,
    close_record,
    open_record,
    scan_members,
)
from fastvae.kernels.strokes import Offsets

Numbers = NDArray[np.float64]

FARTHEST = 1e7
"""Coordinates beyond it, in pixels, are mistakes."""
LATEST = 1e15
"""Times beyond it, in ms, are mistakes; milliseconds since 1970 are allowed."""


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
