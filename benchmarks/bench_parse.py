"""Parsers of Quick, Draw! files against what people write instead, on one thread.

    make bench BENCH=benchmarks/bench_parse.py

The lines are Google's (300 categories, 25 lines each, repeated) where they are beside the checkout,
else made up with about as many strokes and points. Libraries that make Python objects drop each
line's objects at once, which is the best for them: keeping them costs more than parsing. Ours keeps
everything, in arrays. Rates are in ``extra_info``: records per second of CPU time, and the ratio as
the median over rounds in which the two took turns, with the 20th and 80th percentile.
"""

from __future__ import annotations

import json
import random
import statistics
import struct
import tarfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.measure import Run, ratios, side_by_side
from fastvae.kernels.parse import parse_bin, parse_ndjson, parse_ndjson_raw
from fastvae.kernels.simplify import simplify

GOOGLE = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "quickdraw"
REPEAT = 5
ROUNDS = 7


def made_up(count: int) -> list[bytes]:
    """Lines with 5 strokes of 8.5 points on average."""
    rng = random.Random(0)
    lines = []
    for i in range(count):
        sizes = [rng.randint(2, 15) for _ in range(rng.randint(1, 9))]
        record = {
            "word": f"word {i // 25}",
            "countrycode": "US",
            "timestamp": "2017-03-02 23:25:10.07453 UTC",
            "recognized": True,
            "key_id": str(rng.randrange(10**15, 10**16)),
            "drawing": [[[rng.randrange(256) for _ in range(n)] for _ in "xy"] for n in sizes],
        }
        lines.append(json.dumps(record, separators=(",", ":")).encode())
    return lines


@lru_cache(maxsize=1)
def simplified_lines() -> list[bytes]:
    """Lines of simplified ndjson, without their newlines."""
    archive = GOOGLE / "simplified_300x25.tar.xz"
    if not archive.exists():
        return made_up(7500) * REPEAT
    lines = []
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            stream = tar.extractfile(member) if member.isfile() else None
            if stream is not None and member.name.endswith(".ndjson"):
                lines += stream.read().splitlines()
    return lines * REPEAT


def raw_lines() -> list[bytes]:
    """Lines of raw ndjson, without their newlines."""
    paths = sorted((GOOGLE / "raw").glob("*.ndjson"))
    if not paths:
        pytest.skip("Google's raw files are not here")
    return [line for path in paths for line in path.read_bytes().splitlines()] * 10


def array_of(lines: list[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"\n".join(lines) + b"\n", np.uint8)


def binary_file(lines: list[bytes]) -> bytes:
    """The same drawings in the binary form."""
    packed = []
    for line in lines:
        record = json.loads(line)
        drawing = record["drawing"]
        key, recognized = int(record["key_id"]), record["recognized"]
        packed.append(struct.pack("<Q2sbIH", key, b"US", recognized, 0, len(drawing)))
        for x, y in drawing:
            packed.append(struct.pack("<H", len(x)) + bytes(x) + bytes(y))
    return b"".join(packed)


def compare(
    benchmark: BenchmarkFixture,
    ours: Run,
    peer: Run,
    records: int,
    size: int,
    unit: str,
    peer_records: int | None = None,
) -> None:
    """Let the two take turns; write down rates and their ratio."""
    seconds = side_by_side({"peer": lambda: peer, "ours": lambda: ours}, ROUNDS, warmup=1)
    mine, theirs = (statistics.median(seconds[name]) for name in ("ours", "peer"))
    share = records / (peer_records or records)
    faster = ratios([s * share for s in seconds["peer"]], seconds["ours"])
    benchmark.extra_info.update(
        ratio_p50=faster.p50,
        ratio_p20=faster.p20,
        ratio_p80=faster.p80,
        ours_per_s=records / mine,
        peer_per_s=(peer_records or records) / theirs,
        gb_per_s=size / mine / 1e9,
        unit=unit,
    )
    benchmark.pedantic(ours, rounds=3, warmup_rounds=1)


def loader(name: str) -> Callable[[bytes], object]:
    """``loads`` of a library; of msgspec the decoder that looks for the drawing only."""
    if name == "json":
        return json.loads
    library = pytest.importorskip(name, reason=f"{name} is not installed")
    if name == "orjson":
        loads: Callable[[bytes], object] = library.loads
        return loads
    fields = [("key_id", str), ("recognized", bool), ("drawing", list[list[list[int]]])]
    decoder = library.json.Decoder(library.defstruct("Record", fields))
    decode: Callable[[bytes], object] = decoder.decode
    return decode


def run_all(load: Callable[[bytes], object], lines: list[bytes]) -> Run:
    def run() -> None:
        for line in lines:
            load(line)

    return run


@pytest.mark.parametrize("peer", ["orjson", "msgspec", "json"])
@pytest.mark.parametrize("half", ["fast", "exact"])
def test_simplified(benchmark: BenchmarkFixture, half: str, peer: str) -> None:
    lines = simplified_lines()
    data, load = array_of(lines), loader(peer)
    some = lines[: len(lines) // REPEAT]
    benchmark.group = f"simplified ndjson, {half} half"
    compare(
        benchmark,
        lambda: parse_ndjson(data, fast=half == "fast"),
        run_all(load, some),
        len(lines),
        len(data),
        "lines",
        len(some),
    )


@pytest.mark.parametrize("peer", ["orjson", "msgspec", "json"])
def test_raw(benchmark: BenchmarkFixture, peer: str) -> None:
    lines = raw_lines()
    if peer == "msgspec":
        pytest.skip("its decoder above wants integers")
    data, load = array_of(lines), loader(peer)
    benchmark.group = "raw ndjson"
    run = run_all(load, lines)
    compare(benchmark, lambda: parse_ndjson_raw(data), run, len(lines), len(data), "lines")


def walk(data: bytes) -> int:
    """The binary form by struct and numpy.frombuffer, drawing by drawing."""
    at = points = 0
    while at < len(data):
        *_, strokes = struct.unpack_from("<Q2sbIH", data, at)
        at += 17
        for _ in range(strokes):
            (count,) = struct.unpack_from("<H", data, at)
            both = np.frombuffer(data, np.uint8, 2 * count, at + 2)
            points += both.size // 2
            at += 2 + 2 * count
    return points


@pytest.mark.parametrize("peer", ["struct", "copy"])
def test_binary(benchmark: BenchmarkFixture, peer: str) -> None:
    lines = simplified_lines()
    some = lines[: len(lines) // REPEAT]
    packed = binary_file(some)
    data = np.frombuffer(packed * (8 * REPEAT), np.uint8)
    records = len(some) * 8 * REPEAT
    benchmark.group = "binary"
    if peer == "copy":
        target = np.empty_like(data)
        copy = partial(np.copyto, target, data)
        compare(benchmark, lambda: parse_bin(data), copy, records, len(data), "drawings")
    else:
        compare(
            benchmark,
            lambda: parse_bin(data),
            lambda: walk(packed),
            records,
            len(data),
            "drawings",
            len(some),
        )


def test_simplify(benchmark: BenchmarkFixture) -> None:
    """Against parsing the same drawings with orjson, which any other simplifier needs first."""
    lines = raw_lines()
    raw = parse_ndjson_raw(array_of(lines))
    benchmark.group = "simplify"
    run = run_all(loader("orjson"), lines)
    size = sum(map(len, lines))
    compare(benchmark, lambda: simplify(raw), run, len(lines), size, "drawings")
