"""Parsers of Quick, Draw! files against a slow one made of json.loads with the same rules."""

from __future__ import annotations

import ctypes
import itertools
import json
import mmap
import random
import struct
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastvae.kernels import parse
from fastvae.kernels import parse_reasons as reasons
from fastvae.kernels.parse import (
    REASONS,
    Parsed,
    RawParsed,
    cut_at_newlines,
    join,
    parse_bin,
    parse_ndjson,
    parse_ndjson_raw,
)

GOOGLE = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "quickdraw"
HEAD = '{"word":"cat","countrycode":"VE","timestamp":"2017-03-02 23:25:10.07453 UTC",'
GOOD = HEAD + '"recognized":true,"key_id":"5201136883597312","drawing":[[[1,20,255],[0,7,99]]]}'


# The slow parser -----------------------------------------------------------------------------


class Literal(str):
    """A number as it is written."""


class Object(list[Any]):
    """Members of an object, in order, with repetitions."""


class BadLine(Exception):
    pass


def need(condition: bool) -> None:
    if not condition:
        raise BadLine


def depth(value: Any) -> int:
    inner = [v for _, v in value] if isinstance(value, Object) else value
    return 1 + max(map(depth, inner), default=0) if isinstance(value, list) else 0


def refuse(text: str) -> None:
    raise BadLine(text)


def exact(text: str) -> Decimal:
    """The number, or another as far beyond all limits where its exponent is too long."""
    mantissa, _, exponent = text.lower().partition("e")
    if not Decimal(mantissa):
        return Decimal(0)
    return Decimal(f"{mantissa}e{max(-(10**4), min(int(exponent or 0), 10**4))}")


def numbers(values: Any, raw: bool, most: str = "1e7") -> list[float]:
    need(type(values) is list and len(values) > 0)
    need(all(isinstance(value, Literal) for value in values))
    if raw:
        need(all(abs(exact(value)) <= Decimal(most) for value in values))
        return [float(value) for value in values]
    decimals = [exact(value) for value in values]
    need(all(0 <= value <= 255 and value == int(value) for value in decimals))
    return [int(value) for value in decimals]


def strokes_of(drawing: Any, raw: bool) -> list[list[list[float]]]:
    need(type(drawing) is list and len(drawing) > 0)
    strokes = []
    for stroke in drawing:
        need(type(stroke) is list and len(stroke) in (2, 3))
        x, y = numbers(stroke[0], raw), numbers(stroke[1], raw)
        need(len(x) == len(y))
        strokes.append([x, y])
        if len(stroke) == 3:
            need(type(stroke[2]) is list and depth(stroke[2]) <= 64)
            if raw:
                strokes[-1].append(numbers(stroke[2], True, "1e15"))
                need(len(strokes[-1][2]) == len(x))
    need(not raw or len({len(stroke) for stroke in strokes}) == 1)
    return strokes


def slow_record(line: bytes, raw: bool) -> tuple[int, int, str, Any]:
    try:
        record = json.loads(
            line.decode("utf-8"),
            parse_int=Literal,
            parse_float=Literal,
            parse_constant=refuse,
            object_pairs_hook=Object,
        )
    except ValueError as error:
        raise BadLine from error
    need(type(record) is Object)
    names = [name for name, _ in record]
    members = dict(record)
    for name in ("word", "key_id", "recognized", "drawing"):
        need(names.count(name) <= 1)
        need(name in names or name == "recognized")
    for name, value in record:
        need(name == "drawing" or depth(value) <= 64)
    word, key = members["word"], members["key_id"]
    need(type(word) is str)
    try:
        word.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadLine from error
    need(type(key) in (str, Literal) and key.isascii() and key.isdigit() and int(key) < 2**64)
    recognized = members.get("recognized", True)
    need(type(recognized) is bool)
    return int(key), int(recognized), word, strokes_of(members["drawing"], raw)


def slow(data: bytes, raw: bool = False) -> tuple[list[tuple[Any, ...]], list[tuple[int, int]]]:
    """Good records with the offset of their line, and (line, offset) of bad ones."""
    good, bad, offset = [], [], 0
    for number, line in enumerate(data.split(b"\n")):
        if line.strip(b" \t\r"):
            try:
                good.append((offset, *slow_record(line, raw)))
            except BadLine:
                bad.append((number, offset))
        offset += len(line) + 1
    return good, bad


def listed(parsed: Parsed | RawParsed) -> list[tuple[Any, ...]]:
    """The good records in the form of ``slow``."""
    records = []
    for d in range(len(parsed.key_id)):
        if isinstance(parsed, Parsed):
            strokes = [stroke.T.tolist() for stroke in parsed.strokes.strokes_of(d)]
        else:
            first, last = parsed.drawing_offset[d : d + 2]
            ends = parsed.stroke_offset[first : last + 1]
            axes = [parsed.x, parsed.y] + [parsed.t] * int(parsed.has_times[d])
            strokes = [[axis[a:b].tolist() for axis in axes] for a, b in itertools.pairwise(ends)]
        word = parsed.words[parsed.word[d]]
        head = (int(parsed.offset[d]), int(parsed.key_id[d]), int(parsed.recognized[d]), word)
        records.append((*head, strokes))
    return records


def bad_lines(parsed: Parsed | RawParsed) -> list[tuple[int, int]]:
    return [(int(line), int(offset)) for line, offset, _ in parsed.bad]


def check(data: bytes) -> None:
    """Both halves of the parser give what the slow one gives."""
    good, bad = slow(data)
    for fast in (True, False):
        parsed = parse_ndjson(data, fast=fast)
        parsed.strokes.check()
        assert bad_lines(parsed) == bad
        assert listed(parsed) == good
        assert len(set(parsed.words)) == len(parsed.words)
        assert set(parsed.bad["reason"].tolist()) <= set(REASONS)


# Lines ---------------------------------------------------------------------------------------


def record(rng: random.Random, raw: bool = False) -> dict[str, Any]:
    """A record like Google's, keys in Google's order."""
    drawing = []
    for _ in range(rng.choice((1, 2, 5))):
        count = rng.choice((1, 2, 3, 9, 33, 70))
        stroke: list[list[float]] = [[rng.randrange(256) for _ in range(count)] for _ in "xy"]
        if raw:
            width = float(np.float32(rng.uniform(0.1, 900)))
            stroke = [[float(np.float32(v * width)) for v in axis] for axis in stroke]
            stroke.append(sorted(rng.randrange(9000) for _ in range(count)))
        drawing.append(stroke)
    return {
        "word": rng.choice(("cat", "rhinoceros", "hot dog", "The Mona Lisa", 'a"b\\', "caf\u00e9")),
        "countrycode": rng.choice(("VE", "US", "")),
        "timestamp": f"2017-03-02 23:25:{rng.randrange(60):02d}.{rng.randrange(1000000)} UTC",
        "recognized": rng.random() < 0.9,
        "key_id": str(rng.randrange(10**15, 10**16)),
        "drawing": drawing,
    }


def canonical(data: dict[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()


def any_layout(rng: random.Random, data: dict[str, Any]) -> bytes:
    """The same record in another layout."""
    items = [*data.items(), ("more", {"recognized": [1, {"a": 'x"\\\u2028'}], "e": [], "o": {}})]
    rng.shuffle(items)
    separators = (rng.choice((", ", ",", " ,\t")), rng.choice((": ", ":", " :  ")))
    ascii_only = rng.random() < 0.5
    return json.dumps(dict(items), separators=separators, ensure_ascii=ascii_only).encode()


def damaged(rng: random.Random, line: bytes) -> bytes:
    """The line cut, or with bytes flipped, put in, left out or moved."""
    a = rng.randrange(len(line))
    b = min(len(line), a + rng.choice((1, 1, 2, 5, 30)))
    kind = rng.randrange(6)
    if kind == 0:
        return line[:a]
    if kind == 1:
        return line[:a] + bytes([line[a] ^ 1 << rng.randrange(8)]) + line[a + 1 :]
    if kind == 2:
        return line[:a] + line[b:]
    if kind == 3:
        return line[:b] + line[a:]
    pieces = (b",", b"]", b"[", b'"', b"\\", b"}", b" ", b"-", b"0", b"1e1", b".5", b"\r", b"null")
    pieces += (
        b"\xff",
        b"\xc3\xa9",
        b"\\u00e9",
        b"\\ud83d\\ude00",
        b"\\ud800",
        b"\n",
        b"256",
        b"],[",
    )
    where = a if kind == 4 else line.index(b"drawing") + rng.randrange(40)
    return line[:where] + rng.choice(pieces) + line[where:]


def lines(rng: random.Random, count: int) -> list[bytes]:
    made = []
    for _ in range(count):
        data = record(rng)
        line = canonical(data) if rng.random() < 0.75 else any_layout(rng, data)
        made.append(damaged(rng, line) if rng.random() < 0.6 else line)
    return made


@pytest.mark.parametrize("seed", range(6))
def test_damaged_lines(seed: int) -> None:
    rng = random.Random(seed)
    made = lines(rng, 400)
    check(rng.choice((b"\n", b"\r\n")).join(made) + rng.choice((b"", b"\n", b"\n\n \n")))


@pytest.mark.parametrize("raw", [False, True])
def test_every_cut_of_a_file(raw: bool) -> None:
    rng = random.Random(7)
    data = b"\n".join(canonical(record(rng, raw)) for _ in range(4))
    run = parse_ndjson_raw if raw else parse_ndjson
    for length in range(0, len(data), 7):
        # What is behind the end must not matter, least of all where it is what was cut off.
        behind = np.frombuffer(data + b"\n" * 600, np.uint8)
        parsed = run(behind[:length])
        good, bad = slow(data[:length], raw)
        assert (listed(parsed), bad_lines(parsed)) == (good, bad)


def test_cuts_of_a_long_line() -> None:
    """The fast half reads 64 bytes at a time, and must not see what was cut off."""
    axis = ",".join(str(i) for i in range(256))
    data = GOOD.replace(DRAWING, f"[[[{axis}],[{axis}]]]").encode()
    behind = np.frombuffer(data + b"\n" * 600, np.uint8)
    for length in range(len(data) - 150, len(data)):
        parsed = parse_ndjson(behind[:length])
        assert (len(parsed.key_id), parsed.bad["reason"].tolist()) == (0, [reasons.CUT])
    assert len(parse_ndjson(behind[: len(data)]).key_id) == 1


def test_damaged_raw_lines() -> None:
    rng = random.Random(3)
    made = []
    for _ in range(500):
        line = (canonical if rng.random() < 0.5 else json_line)(record(rng, rng.random() < 0.9))
        made.append(damaged(rng, line) if rng.random() < 0.5 else line)
    data = b"\n".join(made)
    parsed = parse_ndjson_raw(data)
    assert (listed(parsed), bad_lines(parsed)) == slow(data, raw=True)


def json_line(data: dict[str, Any]) -> bytes:
    return json.dumps(data).encode()


DRAWING, TIMES = "[[[1,20,255],[0,7,99]]]", "[[[1,2],[3,4],[5,6]],[[1],[2]]]"
CHANGED = [
    # what is replaced, by what, the reason; None for a line that stays good
    ('"cat"', '"rhinoceros"', None),
    ('"cat"', '""', None),
    ('"cat"', '"\\u0063at"', None),
    ('"word"', '"\\u0077ord"', None),
    ('"cat"', '"\\ud83d\\ude00"', None),
    ('"cat"', '"\\ud83d"', reasons.WORD_TEXT),
    ('"cat"', '"\\ude00\\ud83d"', reasons.WORD_TEXT),
    ('"cat"', "7", reasons.WORD_TYPE),
    ('"cat"', '"c\tat"', reasons.SYNTAX),
    ('"cat"', '"c\\at"', reasons.SYNTAX),
    ('"cat"', '"c\\u12g4"', reasons.SYNTAX),
    ('"word"', '"Word"', reasons.NO_WORD),
    ('"key_id"', '"key"', reasons.NO_KEY_ID),
    ('"5201136883597312"', '"18446744073709551615"', None),
    ('"5201136883597312"', '"18446744073709551616"', reasons.KEY_ID),
    ('"5201136883597312"', "18446744073709551615", None),
    ('"5201136883597312"', "18446744073709551616", reasons.KEY_ID),
    ('"5201136883597312"', '"0000000000000000000000000007"', None),
    ('"5201136883597312"', "007", reasons.SYNTAX),
    ('"5201136883597312"', "7.0", reasons.KEY_ID),
    ('"5201136883597312"', "-7", reasons.KEY_ID),
    ('"5201136883597312"', "null", reasons.KEY_ID),
    ('"5201136883597312"', '""', reasons.KEY_ID),
    ('"5201136883597312"', '"520113688359731x"', reasons.KEY_ID),
    ("true", "false", None),
    ("true", "1", reasons.RECOGNIZED_TYPE),
    ("true", "tru", reasons.SYNTAX),
    ('"recognized":true,', "", None),
    ('"countrycode":"VE",', '"a":[[[]],{}],"b":{"c":{"d":[1,-2.5e+3]}},', None),
    ('"VE"', "[" * 64 + "]" * 64, None),
    ('"VE"', "[" * 65 + "]" * 65, reasons.DEEP),
    ('"VE"', "NaN", reasons.SYNTAX),
    ('"VE"', "[1,]", reasons.SYNTAX),
    ('"VE"', "{1:2}", reasons.SYNTAX),
    ('"VE"', "[}", reasons.SYNTAX),
    ('"VE"', '"VE","word":"dog"', reasons.DUPLICATE),
    ('"VE"', '"VE","countrycode":"US"', None),
    ('"drawing"', '"drawings"', reasons.NO_DRAWING),
    (DRAWING, "null", reasons.DRAWING_TYPE),
    (DRAWING, "[]", reasons.EMPTY_DRAWING),
    (DRAWING, "[[[],[]]]", reasons.EMPTY_STROKE),
    (DRAWING, "[[]]", reasons.STROKE_SHAPE),
    (DRAWING, "[[[1]]]", reasons.STROKE_SHAPE),
    (DRAWING, "[[[1],[2],[3],[4]]]", reasons.STROKE_SHAPE),
    (DRAWING, "[[[1],[2],3]]", reasons.STROKE_SHAPE),
    (DRAWING, "[[[1],[2],[]]]", None),
    (DRAWING, "[[[1],[2]],]", reasons.STROKE_SHAPE),
    (DRAWING, TIMES, None),
    ("[0,7,99]", "[0,7]", reasons.LENGTHS),
    ("255", "12.0", None),
    ("255", "1e1", None),
    ("255", "2.55E+2", None),
    ("255", "2550e-1", None),
    ("255", "-0", None),
    ("255", "0e999999999999999999999999", None),
    ("255", "1" + "0" * 400 + "e-400", None),
    ("255", "1.00000000000000000000000000001", reasons.NOT_INTEGER),
    ("255", "1e-400", reasons.NOT_INTEGER),
    ("255", "1e99999999999999999999", reasons.RANGE),
    ("255", "256", reasons.RANGE),
    ("255", "-1", reasons.RANGE),
    ("255", "1000", reasons.RANGE),
    ("255", "0.5", reasons.NOT_INTEGER),
    ("255", "null", reasons.NOT_NUMBER),
    ("255", '"5"', reasons.NOT_NUMBER),
    ("255", "", reasons.NOT_NUMBER),
    ("255", "05", reasons.SYNTAX),
    ("255", "5.", reasons.SYNTAX),
    ("255", "5e", reasons.SYNTAX),
    ("255", "+5", reasons.NOT_NUMBER),
    ("]]]}", "]]]", reasons.CUT),
    ("]]]}", "]]]} {}", reasons.TRAILING),
    ("]]]}", "]]]},", reasons.TRAILING),
    (GOOD, "[]", reasons.NOT_OBJECT),
    (GOOD, "{}", reasons.NO_WORD),
    (GOOD, "nonsense", reasons.NOT_OBJECT),
]


@pytest.mark.parametrize(("old", "new", "reason"), CHANGED)
def test_one_change(old: str, new: str, reason: int | None) -> None:
    """Between good lines, so that the fast half sees it, and alone at the end of the buffer."""
    line = GOOD.replace(old, new, 1)
    assert line != GOOD
    data = "\n".join([GOOD, line, GOOD, line]).encode()
    check(data)
    check(line.encode())
    found = parse_ndjson(data).bad["reason"].tolist()
    assert found == ([] if reason is None else [reason] * 2)
    check("\n".join([GOOD, line] + [GOOD] * 9).encode())


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (b"\xc3\xa9", True),
        (b"\xf0\x9f\x98\x80", True),
        (b"\xff", False),
        (b"\xc0\x80", False),
        (b"\xed\xa0\x80", False),
        (b"\xe2\x82", False),
        (b"\xf4\x90\x80\x80", False),
    ],
)
def test_utf8_in_a_word(text: bytes, good: bool) -> None:
    data = b"\n".join([GOOD.encode().replace(b"cat", text)] * 3)
    check(data)
    assert parse_ndjson(data).bad["reason"].tolist() == ([] if good else [reasons.UTF8] * 3)


@pytest.mark.parametrize(
    "data", [b"", b"\n", b" \r\n\t\n", b"\xef\xbb\xbf", b"{", b'"', b"\\", b"\x00"]
)
def test_next_to_nothing(data: bytes) -> None:
    for parsed in (parse_ndjson(data), parse_ndjson_raw(data)):
        assert len(parsed.key_id) == 0
        assert len(parsed.bad) == (len(data) == 1 and data != b"\n")
        assert parsed.lines == {b"": 0, b" \r\n\t\n": 2, b"\xef\xbb\xbf": 0}.get(data, 1)


def test_byte_order_mark() -> None:
    parsed = parse_ndjson(b"\xef\xbb\xbf" + GOOD.encode() + b"\n" + GOOD.encode())
    assert parsed.offset.tolist() == [3, 3 + len(GOOD) + 1]


def test_words_are_numbered_by_what_they_say() -> None:
    words = ["dog", "hot dog", "caf\u00e9", "caf\\u00e9", "dog", 'a\\"b'] + [
        f"w{i}" for i in range(2000)
    ]
    data = "\n".join(GOOD.replace("cat", word) for word in words).encode()
    parsed = parse_ndjson(data)
    said = [json.loads(f'"{word}"') for word in words]
    assert [parsed.words[i] for i in parsed.word] == said
    assert parsed.words == list(dict.fromkeys(said))


@pytest.mark.parametrize("piece", [1, 1000, 20000])
@pytest.mark.parametrize("threads", [1, 3])
def test_pieces_and_threads_change_nothing(
    piece: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"\n".join(lines(random.Random(5), 300))
    raw = b"\n".join(canonical(record(random.Random(i), raw=True)) for i in range(60))
    whole, whole_raw = parse_ndjson(data), parse_ndjson_raw(raw)
    monkeypatch.setattr(parse, "PIECE", piece)
    parts = parse_ndjson(data, threads=threads)
    assert listed(parts) == listed(whole)
    assert parts.bad.tolist() == whole.bad.tolist()
    assert (parts.words, parts.lines) == (whole.words, whole.lines)
    assert listed(parse_ndjson_raw(raw, threads=threads)) == listed(whole_raw)


def test_cut_and_join() -> None:
    data = b"\n".join(lines(random.Random(6), 200))
    whole = parse_ndjson(data)
    for parts in (1, 2, 7, 5000):
        spans = cut_at_newlines(data, parts)
        assert len(spans) <= parts
        assert b"".join(data[a:b] for a, b in spans) == data
        assert all(data[b - 1 : b] == b"\n" for _, b in spans[:-1])
        joined = join([parse_ndjson(data[a:b]) for a, b in spans])
        assert [row[1:] for row in listed(joined)] == [row[1:] for row in listed(whole)]
        assert joined.bad["line"].tolist() == whole.bad["line"].tolist()
    assert cut_at_newlines(b"", 3) == []
    with pytest.raises(ValueError, match="parts"):
        cut_at_newlines(data, 0)


def test_many_bad_lines() -> None:
    data = (b"x\n" * 5000) + GOOD.encode() + b"\n" + b"{}\n" * 3000
    parsed = parse_ndjson(data)
    assert (len(parsed.bad), len(parsed.key_id), parsed.lines) == (8000, 1, 8001)
    assert bad_lines(parsed) == slow(data)[1]


def test_a_million_strokes_in_a_record() -> None:
    strokes = ",".join(["[[1,2],[3,4]]"] * 10**6)
    for change in ("", " "):  # for both halves
        line = GOOD.replace(DRAWING, f"[{strokes}]").replace('"cat",', f'"cat",{change}')
        parsed = parse_ndjson("\n".join([GOOD, line, GOOD] + [GOOD] * 9).encode())
        assert np.diff(parsed.strokes.drawing_offset).tolist() == [1, 10**6] + [1] * 10
        assert len(parsed.bad) == 0
    stroke = ",".join(["7"] * 10**6)
    parsed = parse_ndjson(GOOD.replace(DRAWING, f"[[[{stroke}],[{stroke}]]]").encode())
    assert parsed.strokes.points.shape == (10**6, 2)


def test_read_only_map_and_wrong_buffers(tmp_path: Path) -> None:
    path = tmp_path / "cat.ndjson"
    path.write_text(GOOD + "\n")
    data = np.memmap(path, np.uint8, "r")
    assert parse_ndjson(data).words == ["cat"]
    for wrong in (np.zeros(4), np.zeros((2, 2), np.uint8), np.zeros(8, np.uint8)[::2]):
        with pytest.raises(ValueError, match="buffer"):
            parse_ndjson(wrong)
    with pytest.raises(ValueError, match="threads"):
        parse_ndjson(data, threads=0)


@pytest.mark.skipif(not GOOGLE.is_dir(), reason="Google's files are not here")
def test_google_files() -> None:
    for path in sorted((GOOGLE / "simplified").glob("*.ndjson")):
        check(path.read_bytes())
    for path in sorted((GOOGLE / "raw").glob("*.ndjson")):
        data = path.read_bytes()
        parsed = parse_ndjson_raw(data)
        assert (listed(parsed), bad_lines(parsed)) == slow(data, raw=True)
        assert parsed.has_times.all()
        assert len(parsed.key_id) > 5


# Raw -----------------------------------------------------------------------------------------


def number_line(values: list[str]) -> str:
    return GOOD.replace(DRAWING, f"[[[{','.join(values)}],[{','.join(['0'] * len(values))}]]]")


def test_floats_are_correctly_rounded() -> None:
    rng = random.Random(0)
    values = [repr(rng.uniform(-1e7, 1e7)) for _ in range(3000)]
    values += [repr(float(np.float32(rng.uniform(0, 2000)))) for _ in range(3000)]
    values += [repr(10 ** rng.uniform(-290, 7)) for _ in range(3000)]
    values += [f"{rng.randrange(10**19)}e-{rng.randrange(12, 300)}" for _ in range(6000)]
    values += ["0", "-0.0", "1e7", "-1e7", "1e-400", "0e999", "5e-1", "9007199254740993e-12"]
    parsed = parse_ndjson_raw(number_line(values).encode())
    assert len(parsed.bad) == 0
    assert parsed.x.tolist() == [float(value) for value in values]


def test_floats_of_many_digits_are_within_one_unit() -> None:
    rng = random.Random(1)
    values = [f"{rng.randrange(10**6)}.{rng.randrange(10**40):040d}" for _ in range(2000)]
    parsed = parse_ndjson_raw(number_line(values).encode())
    exact = np.array([float(value) for value in values])
    assert (np.abs(parsed.x - exact) <= np.spacing(exact)).all()


@pytest.mark.parametrize(
    ("drawing", "reason"),
    [
        ("[[[1.5,2],[3,4e2],[5,6]]]", None),
        ("[[[1,2],[3,4]]]", None),
        ("[[[10000000.1],[3]]]", reasons.FAR),
        ("[[[1],[-1e999]]]", reasons.FAR),
        ("[[[1],[2],[1e16]]]", reasons.LATE),
        ("[[[1],[2],[3,4]]]", reasons.TIME_LENGTH),
        (TIMES, reasons.TIME_LENGTH),
        ("[[[1],[2],[null]]]", reasons.NOT_NUMBER),
        ("[[[1],[2],[]]]", reasons.EMPTY_STROKE),
        ("[[[1],[2],[3],[4]]]", reasons.STROKE_SHAPE),
        ("[[[1,2],[3]]]", reasons.LENGTHS),
        ("[]", reasons.EMPTY_DRAWING),
        ("[[[1]]]", reasons.STROKE_SHAPE),
    ],
)
def test_raw_drawings(drawing: str, reason: int | None) -> None:
    data = "\n".join([GOOD, GOOD.replace(DRAWING, drawing), GOOD]).encode()
    parsed = parse_ndjson_raw(data)
    assert parsed.bad["reason"].tolist() == ([] if reason is None else [reason])
    assert (listed(parsed), bad_lines(parsed)) == slow(data, raw=True)
    assert (parsed.t[:3] == 0).all()


# Binary --------------------------------------------------------------------------------------


def binary_record(key: int, recognized: int, strokes: list[list[list[int]]]) -> bytes:
    head = struct.pack("<Q2sbIH", key, b"VE", recognized, 1488497110, len(strokes))
    packed = [struct.pack("<H", len(x)) + bytes(x) + bytes(y) for x, y in strokes]
    return head + b"".join(packed)


def some_records(count: int) -> tuple[list[tuple[int, int, Any]], list[bytes]]:
    rng = random.Random(11)
    made = [record(rng) for _ in range(count)]
    rows = [(int(r["key_id"]), int(r["recognized"]), r["drawing"]) for r in made]
    return rows, [binary_record(*row) for row in rows]


def binary_rows(parsed: Parsed) -> list[tuple[int, int, Any]]:
    return [
        (int(key), int(recognized), [stroke.T.tolist() for stroke in parsed.strokes.strokes_of(d)])
        for d, (key, recognized) in enumerate(zip(parsed.key_id, parsed.recognized, strict=True))
    ]


@pytest.mark.parametrize("piece", [1, 5000, 1 << 20])
def test_binary(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse, "PIECE", piece)
    rows, packed = some_records(300)
    parsed = parse_bin(b"".join(packed))
    assert binary_rows(parsed) == rows
    assert parsed.offset.tolist() == [0, *itertools.accumulate(map(len, packed[:-1]))]
    assert (parsed.word.tolist(), parsed.words, parsed.lines) == ([-1] * 300, [], 300)
    assert len(parsed.bad) == 0


def test_every_cut_of_a_binary_file() -> None:
    rows, packed = some_records(6)
    data, ends = b"".join(packed), [0, *itertools.accumulate(map(len, packed))]
    for length in range(len(data)):
        behind = np.frombuffer(data, np.uint8)
        parsed = parse_bin(behind[:length])
        whole = sum(end <= length for end in ends) - 1
        assert binary_rows(parsed) == rows[:whole]
        expected = [] if length in ends else [(whole, ends[whole], reasons.BIN_CUT)]
        assert parsed.bad.tolist() == expected


def test_broken_binary_records() -> None:
    rows, packed = some_records(3)
    start = len(packed[0])
    nothing, gap = binary_record(7, 1, []), binary_record(8, 0, [[[], []], [[1], [2]]])
    for broken, reason in ((nothing, reasons.EMPTY_DRAWING), (gap, reasons.EMPTY_STROKE)):
        parsed = parse_bin(packed[0] + broken + packed[1])
        assert binary_rows(parsed) == rows[:2]
        assert parsed.bad.tolist() == [(1, start, reason)]
    strange = binary_record(9, 2, [[[1], [2]]])
    for broken, reason in ((strange, reasons.BIN_RECOGNIZED), (b"\0" * 500, reasons.BIN_ZEROS)):
        parsed = parse_bin(packed[0] + broken + packed[1])
        assert binary_rows(parsed) == rows[:1]
        assert parsed.bad.tolist() == [(1, start, reason)]
    assert len(parse_bin(b"").key_id) == 0


def test_binary_noise() -> None:
    rng = np.random.default_rng(0)
    _, packed = some_records(20)
    data = np.frombuffer(b"".join(packed), np.uint8)
    for _ in range(300):
        noisy = data.copy()
        noisy[rng.integers(0, len(data), 5)] = rng.integers(0, 256, 5)
        parsed = parse_bin(noisy)
        parsed.strokes.check()
        assert parsed.lines == len(parsed.key_id) + len(parsed.bad)


# Attacks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> NDArray[np.uint8]:
    """64 pages of memory in front of one that cannot be touched: whoever reads on is killed."""
    if sys.platform == "win32":
        pytest.skip("no mprotect")
    size = 64 * mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, size + mmap.PAGESIZE), np.uint8)
    guard = ctypes.c_void_p(memory.ctypes.data + size)
    assert ctypes.CDLL(None).mprotect(guard, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    return memory[:size]


def at_the_end(guarded: NDArray[np.uint8], data: bytes) -> NDArray[np.uint8]:
    place = guarded[len(guarded) - len(data) :]
    place[:] = np.frombuffer(data, np.uint8)
    return place


@pytest.mark.parametrize("raw", [False, True])
def test_nothing_is_read_behind_the_buffer(raw: bool, guarded: NDArray[np.uint8]) -> None:
    rng = random.Random(12)
    axis = ",".join(str(i) for i in range(256))
    line = GOOD.replace(DRAWING, f"[[[{axis}],[{axis}]]]").encode()
    long, escaped = 8 * (line + b"\n"), GOOD.replace("cat", "\\ud83d\\ude00").encode()
    made = [long[: len(long) - cut] for cut in range(0, 1500, 13)]
    made += [escaped[:length] for length in range(len(escaped))]
    made += [b"\n".join(canonical(record(rng, raw)) for _ in range(5)) for _ in range(20)]
    made += [damaged(rng, canonical(record(rng, raw))) for _ in range(100)]
    made += [text * 700 for text in (b"{", b"[", b'"', b"\\", b"1", b" ", b"\xc3", b"\0")]
    for data in made:
        good, bad = slow(data, raw)
        for fast in (False,) if raw else (False, True):
            place = at_the_end(guarded, data)
            parsed = parse_ndjson_raw(place) if raw else parse_ndjson(place, fast=fast)
            assert (listed(parsed), bad_lines(parsed)) == (good, bad)


def test_nothing_is_read_behind_a_binary_file(guarded: NDArray[np.uint8]) -> None:
    rows, packed = some_records(6)
    data, ends = b"".join(packed), [*itertools.accumulate(map(len, packed))]
    # Lengths that promise more than there is, at every distance from the end.
    promise = binary_record(7, 1, [[[1], [2]]])[:15]
    endings = [
        b"\xff",
        b"\xff\xff",
        b"\xff\xff" * 2,
        b"\xff\xff" * 40,
        b"\1\0\xff\xff" + b"a" * 131069,
    ]
    made = [data[:length] for length in range(len(data))]
    made += [data + promise + ending for ending in endings]
    for one in made:
        parsed = parse_bin(at_the_end(guarded, one))
        whole = sum(end <= len(one) for end in ends)
        assert binary_rows(parsed) == rows[:whole]
        assert len(parsed.bad) == (len(one) not in (0, *ends))
    kept = promise + b"\1\0\xff\xff" + b"a" * 131070
    assert parse_bin(at_the_end(guarded, kept)).strokes.points.shape == (65535, 2)


@pytest.mark.parametrize("piece", [1, 1 << 20])
@pytest.mark.parametrize(
    "more", ["2,\n", "2],[3,4]],[[1,\n", "11," * 20 + "1],[7," + "11," * 20 + "1]],[[7,"]
)
def test_numbers_on_the_lines_behind(
    more: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that go on like the drawing of the one before: there is room for its own line only."""
    monkeypatch.setattr(parse, "PIECE", piece)
    start = GOOD[: GOOD.index(DRAWING)] + "[[[1,\n"
    data = (f"{GOOD}\n" + start + more * 2000 + f"\n{GOOD}\n" + start + more * 2000).encode()
    check(data)


def shortened(value: object) -> str:
    """The name of a test with a value of a million characters."""
    return repr(value)[:20]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"VE"', "[" * 10**5 + "]" * 10**5, reasons.DEEP),
        ('"VE"', '{"a":' * 10**5 + "1" + "}" * 10**5, reasons.DEEP),
        (DRAWING, "[" * 10**5 + "]" * 10**5, reasons.NOT_NUMBER),
        (DRAWING, "[[[1],[2]," + "[" * 10**5, reasons.DEEP),
        ("255", "1" * 10**6, reasons.RANGE),
        ("255", "1e" + "9" * 10**6, reasons.RANGE),
        ("255", "0." + "0" * 10**6 + "1", reasons.NOT_INTEGER),
        ("255", "1" + "0" * 10**6 + "e-1000000", None),
        ("255", "1e308", reasons.RANGE),
        ("255", "NaN", reasons.NOT_NUMBER),
        ("255", "-Infinity", reasons.SYNTAX),
        ("20", "2\x000", reasons.SYNTAX),
        ("cat", "c\x00t", reasons.SYNTAX),
        ("cat", "c" * 10**6, None),
        ("VE", "\\ud800", None),
        (GOOD, "\x00" * 10**6, reasons.NOT_OBJECT),
        (GOOD, '{"' + "a" * 10**6, reasons.CUT),
    ],
    ids=shortened,
)
def test_large_and_strange(old: str, new: str, reason: int | None) -> None:
    data = "\n".join([GOOD, GOOD.replace(old, new, 1), GOOD]).encode()
    expected = [] if reason is None else [reason]
    for fast in (True, False):
        assert parse_ndjson(data, fast=fast).bad["reason"].tolist() == expected
    assert len(parse_ndjson_raw(data).bad) <= 1


@pytest.mark.parametrize(
    ("drawing", "reason"),
    [
        ("[[[1e308],[1]]]", reasons.FAR),
        ("[[[1],[-1e308]]]", reasons.FAR),
        ("[[[NaN],[1]]]", reasons.NOT_NUMBER),
        ("[[[1],[Infinity]]]", reasons.NOT_NUMBER),
        ("[[[1,2],[3,4],[-5,-1e3]]]", None),
        (f"[[[{'1.2345678901234567,' * 10**6}1],[{'2,' * 10**6}2]]]", None),
    ],
    ids=shortened,
)
def test_strange_raw_drawings(drawing: str, reason: int | None) -> None:
    parsed = parse_ndjson_raw(GOOD.replace(DRAWING, drawing).encode())
    assert parsed.bad["reason"].tolist() == ([] if reason is None else [reason])


def test_every_reason_has_a_text() -> None:
    """The codes are consecutive, so that a new one without a text is seen."""
    assert sorted(REASONS) == list(range(1, max(reasons.TIME_LENGTH, reasons.BIN_ZEROS) + 1))
    assert len(set(REASONS.values())) == len(REASONS)
