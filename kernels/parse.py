"""Quick, Draw! files to ragged arrays: simplified and raw ndjson, and the binary form.

    parsed = parse_ndjson(np.memmap("cat.ndjson", np.uint8, "r"), threads=2)
    parsed.strokes, parsed.key_id, parsed.words[parsed.word[0]], parsed.bad

A bad record is left out and noted with its line, its place and a reason; it never costs another
record. Nothing here knows files: a buffer is a (N,) uint8 array (a read-only memory map will do) or
bytes. The kernels let go of Python's lock, so a caller may also cut the buffer itself
(``cut_at_newlines``), parse the pieces in threads of its own and ``join`` them.

What a record is:

- an object on one line, its keys in any order, with any white space of JSON; blank lines are passed
  over; lines end with LF or CR LF, the last one with or without. A byte order mark at the start of
  the buffer is passed over. Unknown keys may hold any JSON, up to 64 levels deep. The line is
  JSON and UTF-8 in every byte, and none of the four keys is there twice.
- ``word``: any string. ``key_id``: a string of digits, or an integer, below 2^64.
- ``recognized``: true or false. Other people's files may lack it: then it counts as true.
- ``drawing``: at least one stroke, each ``[[x, ...], [y, ...]]`` with as many x as y and at least
  one. A third list, of times, is allowed; only the raw parser looks into it.
- simplified coordinates are integers 0..255 in value, however written: 12, 12.0 and 1.2e1 are one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastvae.kernels import parse_lines as lines
from fastvae.kernels.byte_blocks import LITTLE_ENDIAN, Bytes
from fastvae.kernels.parse_bin import read_records
from fastvae.kernels.parse_ndjson import BLOCK, read_lines
from fastvae.kernels.parse_raw import read_raw_lines
from fastvae.kernels.parse_reasons import REASONS as REASONS
from fastvae.kernels.parse_record import HEAD
from fastvae.kernels.strokes import Offsets, Strokes

Buffer = NDArray[np.uint8] | bytes | bytearray | memoryview

BAD = np.dtype([("line", np.int64), ("offset", np.int64), ("reason", np.uint8)])
"""A bad record: its line (record, in binary files) from 0, its first byte, a key of REASONS."""

PIECE = 1 << 20
"""Bytes that are read before the results are fetched: what they give stays in the cache."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, eq=False)
class Records:
    """What is known of D drawings besides their strokes.

    Attributes:
        key_id: (D,) uint64.
        recognized: (D,) uint8, 0 or 1.
        word: (D,) int32, place in ``words``; -1 where there is none (binary files).
        words: the categories, each once, in the order in which they first come.
        offset: (D,) int64, byte at which the line or record begins in the buffer.
        lines: how many lines there were, good, bad and blank (binary files: records).
        bad: (B,) BAD, ascending.
    """

    key_id: NDArray[np.uint64]
    recognized: NDArray[np.uint8]
    word: NDArray[np.int32]
    words: list[str]
    offset: Offsets
    lines: int
    bad: NDArray[np.void]


@dataclass(frozen=True, eq=False)
class Parsed(Records):
    """Simplified drawings: ``strokes`` and what Records has."""

    strokes: Strokes


@dataclass(frozen=True, eq=False)
class RawParsed(Records):
    """Raw drawings; offsets as in Strokes.

    Attributes:
        x, y: (P,) float64, pixels of some device. Correctly rounded where a number has up to 19
            digits (Google's have 17), else within one unit in the last place.
        t: (P,) float64, ms as in the file; 0 where there are none.
        has_times: (D,) uint8, 1 where the drawing has times.
        stroke_offset: (S + 1,) int64.
        drawing_offset: (D + 1,) int64.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    t: NDArray[np.float64]
    has_times: NDArray[np.uint8]
    stroke_offset: Offsets
    drawing_offset: Offsets


AnyParsed = TypeVar("AnyParsed", Parsed, RawParsed)


def parse_ndjson(buffer: Buffer, *, threads: int = 1, fast: bool = True) -> Parsed:
    """Parse simplified ndjson; the module's docstring says what a record is.

    Args:
        threads: pieces that are parsed at the same time. The result is the same for any number.
        fast: False reads every line by the exact half of the parser. The result is the same.
    """
    data = _bytes(buffer)
    return join(_in_threads(lambda a, b: _simplified(data, a, b, fast), data, threads))


def parse_ndjson_raw(buffer: Buffer, *, threads: int = 1) -> RawParsed:
    """Parse raw ndjson: coordinates up to +-1e7 pixels, with times for all points or for none.

    A simplified file is read too (its drawings have no times).
    """
    data = _bytes(buffer)
    return join(_in_threads(lambda a, b: _raw(data, a, b), data, threads))


def parse_bin(buffer: Buffer) -> Parsed:
    """Parse the binary form, which has no words.

    Records have nothing between them, so where one cannot be right (lengths beyond the end of the
    file, ``recognized`` neither 0 nor 1, zeros) all before it is returned, with that one as the
    last of ``bad``, and the rest cannot be read. An empty drawing or stroke is only left out.
    """
    return _binary(_bytes(buffer))


def cut_at_newlines(buffer: Buffer, parts: int) -> list[tuple[int, int]]:
    """Spans (first byte, one after the last) of about equal size that each end behind a newline or
    with the buffer; at most ``parts`` of them, none empty."""
    data = _bytes(buffer)
    if parts < 1:
        raise ValueError(f"parts must be at least 1, got {parts}")
    spans, first = [], 0
    for i in range(1, parts + 1):
        aim = len(data) * i // parts
        if aim > first:
            last = min(int(lines.line_end(data, aim - 1)) + 1, len(data))
            spans.append((first, last))
            first = last
    return spans


def join(parts: Sequence[AnyParsed]) -> AnyParsed:
    """The pieces of one buffer as one, in order: lines are counted on, words numbered anew.

    ``offset`` and ``bad["offset"]`` stay as they are: a caller that cut the buffer adds the start
    of each piece to them.
    """
    if len(parts) == 1:
        return parts[0]
    numbers: dict[str, int] = {}
    word, bad, count = [], [], 0
    for part in parts:
        new: list[int] = [numbers.setdefault(text, len(numbers)) for text in part.words]
        # The last element is what -1, no word, picks.
        word.append(np.array([*new, -1], dtype=np.int32)[part.word])
        bad.append(part.bad.copy())
        bad[-1]["line"] += count
        count += part.lines
    joined: dict[str, Any] = {
        "word": np.concatenate(word),
        "words": list(numbers),
        "lines": count,
        "bad": np.concatenate(bad),
    }
    names = ["key_id", "recognized", "offset"]
    first = parts[0]
    if isinstance(first, RawParsed):
        names += ["x", "y", "t", "has_times"]
        joined |= {name: _join_offsets(parts, name) for name in ENDS}
    else:
        sets = [part.strokes for part in parts if isinstance(part, Parsed)]
        points = np.concatenate([one.points for one in sets])
        joined["strokes"] = Strokes(points, *(_join_offsets(sets, name) for name in ENDS))
    joined |= {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return type(first)(**joined)


def _join_offsets(sets: Sequence[Any], name: str) -> Offsets:
    parts: list[Offsets] = [getattr(one, name) for one in sets]
    before = np.cumsum([0, *(part[-1] for part in parts[:-1])], dtype=np.int64)
    moved = [part[1:] + start for part, start in zip(parts, before, strict=True)]
    return np.concatenate([np.zeros(1, dtype=np.int64), *moved])


def _bytes(buffer: Buffer) -> Bytes:
    """The buffer as a read-only array, so that the kernels are compiled for one type only."""
    if not isinstance(buffer, np.ndarray):
        data = np.frombuffer(buffer, dtype=np.uint8)
    elif buffer.dtype != np.uint8 or buffer.ndim != 1 or not buffer.flags.c_contiguous:
        raise ValueError(f"buffer must be (N,) uint8, got {buffer.shape} {buffer.dtype}")
    else:
        data = buffer.view(np.ndarray)
    data = data.view()
    data.flags.writeable = False
    return data


def _in_threads(parse: Callable[[int, int], Any], data: Bytes, threads: int) -> list[Any]:
    """What ``parse`` makes of each of ``threads`` spans of lines."""
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    spans = cut_at_newlines(data, threads) or [(0, 0)]
    if bytes(data[:3]) == BYTE_ORDER_MARK:
        spans[0] = (3, spans[0][1])
    if len(spans) == 1:
        return [parse(*spans[0])]
    with ThreadPoolExecutor(len(spans)) as pool:
        return list(pool.map(lambda span: parse(*span), spans))


class _Column(NamedTuple):
    """An array of results: ``each`` elements for one of what ``counter`` counts."""

    dtype: type[np.generic]
    counter: int
    smallest: int
    """One of these needs at least so many bytes of the file."""
    each: int = 1
    is_end: bool = False
    """Counts on from piece to piece."""


POINT, STROKE, DRAWING = 2, 8, 32
"""A point has at least four bytes, and its x alone two; a stroke ten; a record 43."""
ENDS = {
    "stroke_offset": _Column(np.int64, lines.STROKES, STROKE, is_end=True),
    "drawing_offset": _Column(np.int64, lines.DRAWINGS, DRAWING, is_end=True),
}
HEADS = {
    "key_id": _Column(np.uint64, lines.DRAWINGS, DRAWING),
    "recognized": _Column(np.uint8, lines.DRAWINGS, DRAWING),
}
WORD = {"word": _Column(np.int32, lines.DRAWINGS, DRAWING)}
OFFSET = {"offset": _Column(np.int64, lines.DRAWINGS, DRAWING)}
PAIRS = {"points": _Column(np.uint8, lines.POINTS, POINT, each=2)}
NUMBERS = {name: _Column(np.float64, lines.POINTS, POINT) for name in ("x", "y", "t")}
TIMED = {"has_times": _Column(np.uint8, lines.DRAWINGS, DRAWING)}

SIMPLIFIED = ENDS | HEADS | WORD | OFFSET | PAIRS
RAW = ENDS | HEADS | WORD | OFFSET | NUMBERS | TIMED
BINARY = ENDS | HEADS | OFFSET | PAIRS


class _Growing:
    """An array that is filled from the front."""

    def __init__(self, column: _Column) -> None:
        self.column = column
        self.length = 1 if column.is_end else 0  # offsets begin with 0
        self.array = np.zeros(self.length, dtype=column.dtype)

    def add(self, part: NDArray[Any], read: float) -> None:
        """Copy ``part`` behind what there is; by now the share ``read`` of the input was read."""
        length = self.length + len(part)
        if length > len(self.array):
            larger = np.empty(int(length * max(1.03 / read, 1.0)) + 16, dtype=self.column.dtype)
            larger[: self.length] = self.array[: self.length]
            self.array = larger
        before = self.array[self.length - 1] if self.column.is_end else 0
        np.add(part, before, out=self.array[self.length : length], dtype=self.column.dtype)
        self.length = length

    def result(self) -> NDArray[Any]:
        """What there is; the few elements behind it stay allocated."""
        return self.array[: self.length]


class _Reader:
    """Runs a kernel over a span of a buffer, piece by piece, and collects what it writes."""

    def __init__(self, data: Bytes, first: int, last: int, columns: dict[str, _Column]) -> None:
        self.data, self.first, self.last, self.columns = data, first, last, columns
        self.progress = np.zeros(lines.PROGRESS, dtype=np.int64)
        self.progress[lines.AT] = first
        self.bad = np.empty((1024, 3), dtype=np.int64)
        self.found = {name: _Growing(column) for name, column in columns.items()}
        self.found_bad = [np.empty(0, dtype=BAD)]
        self.size = 0
        self.arrays: list[NDArray[Any]] = []

    def make_room(self, size: int) -> None:
        """Have arrays for all that ``size`` bytes can hold."""
        if size > self.size:
            self.size = size
            self.arrays = [
                np.empty(column.each * (size // column.smallest + 1) + lines.SPARE, column.dtype)
                for column in self.columns.values()
            ]

    def run(self, kernel: Callable[..., None], stop: int, *arguments: Any) -> None:
        """Call the kernel once and fetch what it found."""
        kernel(self.data, stop, self.progress, self.bad, *self.arrays, *arguments)
        progress = self.progress
        read = (progress[lines.AT] - self.first) / max(1, self.last - self.first)
        for found, array in zip(self.found.values(), self.arrays, strict=True):
            column = found.column
            found.add(array[: column.each * progress[column.counter]], max(read, 1e-3))
        bad = np.empty(progress[lines.BAD], dtype=BAD)
        for i, name in enumerate(BAD.names or ()):
            bad[name] = self.bad[: len(bad), i]
        self.found_bad.append(bad)
        progress[[lines.DRAWINGS, lines.STROKES, lines.POINTS, lines.BAD]] = 0

    def fields(self) -> dict[str, Any]:
        """All that was found, as fields of Records and the offsets."""
        fields: dict[str, Any] = {name: found.result() for name, found in self.found.items()}
        fields["bad"] = np.concatenate(self.found_bad)
        fields["lines"] = int(self.progress[lines.LINE])
        return fields


class _LineReader(_Reader):
    """A reader of ndjson."""

    def __init__(self, data: Bytes, first: int, last: int, columns: dict[str, _Column]) -> None:
        super().__init__(data, first, last, columns)
        self.words = np.empty((512, 2), dtype=np.int64)
        self.table = np.zeros(2048, dtype=np.int32)
        self.head = np.zeros(HEAD, dtype=np.int64)

    def read(self, kernel: Callable[..., None], more: Callable[[], tuple[Any, ...]]) -> None:
        """Read all lines. ``more`` gives the arguments behind the words."""
        progress, stop = self.progress, 0
        while progress[lines.AT] < self.last:
            at = int(progress[lines.AT])
            if stop <= at:
                aim = min(at + PIECE, self.last)
                stop = min(int(lines.line_end(self.data, aim - 1)) + 1, self.last)
                self.make_room(stop - at)
            if progress[lines.WORDS] == len(self.words):
                self.more_words()
            self.run(kernel, stop, self.words, self.table, self.head, *more())

    def more_words(self) -> None:
        """Have room for four times as many words."""
        words = np.empty((4 * len(self.words), 2), dtype=np.int64)
        table = np.zeros(4 * len(self.table), dtype=np.int32)
        lines.more_words(self.data, self.words, len(self.words), words, table)
        self.words, self.table = words, table

    def fields(self) -> dict[str, Any]:
        """With ``words``: what they say, and ``word`` numbered anew where two say the same."""
        fields = super().fields()
        numbers: dict[str, int] = {}
        spans = self.words[: self.progress[lines.WORDS]].tolist()
        texts = (bytes(self.data[first:last]).decode() for first, last in spans)
        new = [numbers.setdefault(json.loads(f'"{text}"'), len(numbers)) for text in texts]
        if len(numbers) < len(new):
            fields["word"] = np.array(new, dtype=np.int32)[fields["word"]]
        return fields | {"words": list(numbers)}


def _strokes(fields: dict[str, Any]) -> Strokes:
    """Take the strokes out of the fields."""
    names = ("points", "stroke_offset", "drawing_offset")
    points, *offsets = (fields.pop(name) for name in names)
    return Strokes(points.reshape(-1, 2), *offsets)


def _simplified(data: Bytes, first: int, last: int, fast: bool) -> Parsed:
    reader = _LineReader(data, first, last, SIMPLIFIED)
    block, values = np.zeros(BLOCK, dtype=np.uint8), np.empty(0, dtype=np.uint8)

    def more() -> tuple[Any, ...]:
        nonlocal values
        if len(values) < reader.size + lines.SPARE:
            values = np.empty(reader.size + lines.SPARE, dtype=np.uint8)
        return block, values, fast and LITTLE_ENDIAN

    reader.read(read_lines, more)
    fields = reader.fields()
    return Parsed(strokes=_strokes(fields), **fields)


def _raw(data: Bytes, first: int, last: int) -> RawParsed:
    reader = _LineReader(data, first, last, RAW)
    reader.read(read_raw_lines, tuple)
    return RawParsed(**reader.fields())


def _binary(data: Bytes) -> Parsed:
    reader = _Reader(data, 0, len(data), BINARY)
    progress, size = reader.progress, PIECE
    while progress[lines.AT] < len(data):
        at = int(progress[lines.AT])
        reader.make_room(size)
        stop = min(at + max(1, PIECE // 2), len(data))  # the other half for the last record
        reader.run(read_records, stop, lines.SPARE, LITTLE_ENDIAN)
        if progress[lines.AT] == at:  # not a single record fits
            size *= 4
    fields = reader.fields()
    word = np.full(len(fields["key_id"]), -1, dtype=np.int32)
    return Parsed(strokes=_strokes(fields), word=word, words=[], **fields)
