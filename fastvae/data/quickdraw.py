"""Quick, Draw!'s files in memory to drawings (https://github.com/googlecreativelab/quickdraw-dataset).

The parsing is compiled (``kernels/parse.py``); here its results become ``Drawings``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvae.data.drawings import Drawings
from fastvae.kernels import parse
from fastvae.kernels.simplify import simplify
from fastvae.kernels.strokes import Strokes

Buffer = NDArray[np.uint8]


class BadRecord(NamedTuple):
    """A record that was left out."""

    line: int
    """Its line (of ndjson) or number (of other files), from 1."""
    offset: int
    """Its first byte in what was parsed."""
    reason: str


def from_ndjson(buffer: Buffer, *, raw: bool = False) -> tuple[Drawings, list[BadRecord]]:
    """Drawings of ndjson text (N,) uint8, one record per line.

    Args:
        raw: coordinates are those of the screen, with timing: they are simplified by Quick, Draw!'s
            rule, and the times of the points that are left are kept (where all drawings have some).
    """
    if not raw:
        parsed = parse.parse_ndjson(buffer)
        return _drawings(parsed, parsed.strokes, parsed.word, tuple(parsed.words)), _bad(parsed)
    lines = parse.parse_ndjson_raw(buffer)
    strokes, time = simplify(lines)
    whole = _drawings(lines, strokes, lines.word, tuple(lines.words), _ascending(strokes, time))
    bad = _bad(lines)
    timed = lines.has_times > 0
    if timed.all():
        return whole, bad
    if not timed.any():
        return replace(whole, time=None), bad
    for offset in lines.offset[~timed]:
        line = int(np.count_nonzero(buffer[:offset] == ord("\n"))) + 1
        bad.append(BadRecord(line, int(offset), "no times, where other drawings have some"))
    return whole.select(np.flatnonzero(timed)), sorted(bad)


def from_bin(buffer: Buffer, word: str) -> tuple[Drawings, list[BadRecord]]:
    """Drawings of a binary file (N,) uint8, which does not say its category ``word``.

    A damaged record ends the reading: nothing says where the next one would begin.
    """
    parsed = parse.parse_bin(buffer)
    bad = _bad(parsed)
    if bad:
        lost = len(buffer) - bad[-1].offset
        reason = f"{bad[-1].reason}; the rest of the file, {lost:,} bytes, cannot be read"
        bad[-1] = bad[-1]._replace(reason=reason)
    return _drawings(parsed, parsed.strokes, np.zeros_like(parsed.word), (word,)), bad


def looks_raw(buffer: Buffer) -> bool:
    """Whether ndjson text holds raw drawings: the first good ones have times, or none of them could
    be a simplified one."""
    start, size = 0, 1 << 18
    while start < len(buffer):
        stop = start + size
        if stop < len(buffer):  # up to the end of a line; a longer one asks for more
            ends = np.flatnonzero(buffer[start:stop] == ord("\n"))
            if not len(ends):
                size *= 2
                continue
            stop = start + int(ends[-1]) + 1
        raw = parse.parse_ndjson_raw(buffer[start:stop])
        if len(raw.key_id):
            simplified = parse.parse_ndjson(buffer[start:stop])
            return bool(raw.has_times.any()) or not len(simplified.key_id)
        start = stop
    return False


def with_made_up_keys(strokes: Strokes, word: str, part: str, numbers: Iterable[int]) -> Drawings:
    """Drawings that came without keys: each gets the hash of its category, part and number."""
    names = (f"{word}/{part}/{number}".encode() for number in numbers)
    digests = b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in names)
    return Drawings(
        strokes=strokes,
        key_id=np.frombuffer(digests, dtype="<u8").astype(np.uint64),
        word=np.zeros(strokes.drawings, dtype=np.int32),
        recognized=np.ones(strokes.drawings, dtype=np.uint8),
        words=(word,),
    )


def _ascending(strokes: Strokes, time: NDArray[np.int32]) -> NDArray[np.int32]:
    """Times that never go back within a drawing: clocks of browsers do now and then."""
    ends = strokes.stroke_offset[strokes.drawing_offset]
    step = np.int64(2**33)  # keeps drawings apart: times are 32 bits
    which = np.repeat(np.arange(strokes.drawings, dtype=np.int64), np.diff(ends))
    running = np.maximum.accumulate(time + which * step) if len(time) else time.astype(np.int64)
    return (running - which * step).astype(np.int32)


def _drawings(
    records: parse.Records,
    strokes: Strokes,
    word: NDArray[np.int32],
    words: tuple[str, ...],
    time: NDArray[np.int32] | None = None,
) -> Drawings:
    return Drawings(
        strokes=strokes,
        key_id=records.key_id,
        word=word,
        recognized=records.recognized,
        words=words,
        time=time,
    )


def _bad(records: parse.Records) -> list[BadRecord]:
    return [
        BadRecord(int(line) + 1, int(offset), parse.REASONS[int(reason)])
        for line, offset, reason in records.bad
    ]
