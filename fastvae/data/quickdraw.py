"""Quick, Draw!'s files in memory to drawings (https://github.com/googlecreativelab/quickdraw-dataset).

The parsing is compiled (``kernels/parse.py``); here its results become ``Drawings``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
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
    timed = time if lines.has_times.all() else None
    return _drawings(lines, strokes, lines.word, tuple(lines.words), timed), _bad(lines)


def from_bin(buffer: Buffer, word: str) -> tuple[Drawings, list[BadRecord]]:
    """Drawings of a binary file (N,) uint8, which does not say its category ``word``.

    A damaged record ends the reading: nothing says where the next one would begin.
    """
    parsed = parse.parse_bin(buffer)
    return _drawings(parsed, parsed.strokes, np.zeros_like(parsed.word), (word,)), _bad(parsed)


def looks_raw(buffer: Buffer) -> bool:
    """Whether the first good record of ndjson text has times or cannot be a simplified one."""
    for first, last in _first_lines(buffer):
        raw = parse.parse_ndjson_raw(buffer[first:last])
        if len(raw.key_id):
            simplified = parse.parse_ndjson(buffer[first:last])
            return bool(raw.has_times[0]) or not len(simplified.key_id)
    return False


def with_made_up_keys(strokes: Strokes, word: str, part: str) -> Drawings:
    """Drawings that came without keys: each gets the hash of its category, part and number."""
    names = (f"{word}/{part}/{number}".encode() for number in range(strokes.drawings))
    digests = b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in names)
    return Drawings(
        strokes=strokes,
        key_id=np.frombuffer(digests, dtype="<u8").astype(np.uint64),
        word=np.zeros(strokes.drawings, dtype=np.int32),
        recognized=np.ones(strokes.drawings, dtype=np.uint8),
        words=(word,),
    )


def _first_lines(buffer: Buffer, most: int = 100) -> Iterator[tuple[int, int]]:
    """Where the first lines begin and end."""
    start = 0
    for _ in range(most):
        if start >= len(buffer):
            return
        stop = start
        while stop < len(buffer):
            found = np.flatnonzero(buffer[stop : stop + 65536] == ord("\n"))
            stop += int(found[0]) + 1 if len(found) else 65536
            if len(found):
                break
        yield start, min(stop, len(buffer))
        start = stop


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
