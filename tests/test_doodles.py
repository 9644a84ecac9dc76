"""The generated data set: Google's form, any drawing by itself, and drawings that differ."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastvae.data.doodle_shapes import SHAPES
from fastvae.data.doodles import CATEGORIES, doodle, generate, write
from fastvae.data_tools import cli
from fastvae.errors import UserError

KEYS = ["word", "countrycode", "timestamp", "recognized", "key_id", "drawing"]


KNOWN: dict[str, Any] = {
    "head": {
        "word": "cat",
        "countrycode": "US",
        "timestamp": "2017-03-19 11:57:20.49846 UTC",
        "recognized": True,
        "key_id": "6708488053437517",
    },
    "lengths": [25, 8, 8, 7, 11, 9, 8, 9, 8],
    "second": [[84, 93, 98, 98, 92, 85, 81, 84], [105, 104, 110, 118, 123, 121, 115, 108]],
}


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    return list(generate(2000, seed=0))


@pytest.fixture(scope="module")
def drawings(lines: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def test_lines_have_googles_form(lines: list[bytes]) -> None:
    form = re.compile(
        rb'\{"word":"[a-z]+","countrycode":"[A-Z]{2}",'
        rb'"timestamp":"2017-0[1-3]-\d\d \d\d:\d\d:\d\d\.\d{5} UTC","recognized":(true|false),'
        rb'"key_id":"[4-6]\d{15}","drawing":\[(,?\[\[\d+(,\d+)*\],\[\d+(,\d+)*\]\])+\]\}\n'
    )
    for line in lines:
        assert form.fullmatch(line), line
        assert list(json.loads(line)) == KEYS


def test_strokes_and_points(drawings: list[dict[str, Any]]) -> None:
    for drawing in drawings:
        strokes = drawing["drawing"]
        assert 3 <= len(strokes) <= 9
        for x, y in strokes:
            assert len(x) == len(y)
            assert 5 <= len(x) <= 25
        xs, ys = (list(itertools.chain(*axis)) for axis in zip(*strokes, strict=True))
        assert min(xs) == min(ys) == 0
        assert max(*xs, *ys) == 255


def test_categories_in_turn(drawings: list[dict[str, Any]]) -> None:
    words = [drawing["word"] for drawing in drawings]
    assert words == list(itertools.islice(itertools.cycle(CATEGORIES), len(words)))
    assert len(CATEGORIES) == 10
    assert len(CATEGORIES) <= 16  # what a key has room for


def test_some_are_not_recognized_and_strokes_vary(drawings: list[dict[str, Any]]) -> None:
    missed = sum(not drawing["recognized"] for drawing in drawings)
    assert 0.015 < missed / len(drawings) < 0.05
    for word in CATEGORIES:
        counts = Counter(len(d["drawing"]) for d in drawings if d["word"] == word)
        assert len(counts) >= 3, word
        way = np.mean([d["drawing"][0][0][0] > d["drawing"][0][0][2] for d in drawings])
        assert 0.05 < way < 0.95
    assert len({json.dumps(d["drawing"]) for d in drawings}) == len(drawings)


def test_keys_are_unique() -> None:
    # Keys are made by steps that can be undone; drawings far apart and of all categories.
    numbers = [*range(300), *range(10**6, 10**6 + 300), 2**40]
    keys = {doodle(word, n).key_id for word in CATEGORIES for n in numbers}
    assert len(keys) == len(CATEGORIES) * len(numbers)
    assert {len(str(key)) for key in keys} == {16}


def test_any_drawing_by_itself(lines: list[bytes]) -> None:
    for i in (0, 7, 1999):
        assert doodle(CATEGORIES[i % 10], i // 10).line() == lines[i]
    assert list(generate(20)) == lines[:20]
    cats = list(generate(5, categories=["cat"]))
    place = CATEGORIES.index("cat")
    assert cats == lines[place : place + 50 : 10]
    assert list(generate(0)) == []


def test_seeds_differ(lines: list[bytes]) -> None:
    other = list(generate(50, seed=1))
    assert not set(other) & set(lines[:50])
    assert list(generate(50, seed=1)) == other
    for a, b in zip(other, lines, strict=False):
        assert json.loads(a)["drawing"] != json.loads(b)["drawing"]
        assert json.loads(a)["key_id"] != json.loads(b)["key_id"]


def test_known_drawing() -> None:
    """What a seed means does not change; other libraries' sine may move a point by one."""
    drawing = json.loads(doodle("cat", 0, seed=0).line())
    assert {key: drawing[key] for key in KEYS[:5]} == KNOWN["head"]
    assert [len(x) for x, _ in drawing["drawing"]] == KNOWN["lengths"]
    np.testing.assert_allclose(drawing["drawing"][1], KNOWN["second"], atol=1)


def test_raw_drawings_are_the_same_ones_with_more_points() -> None:
    for word in CATEGORIES:
        for number in range(20):
            raw, simple = doodle(word, number, raw=True), doodle(word, number)
            assert (raw.key_id, raw.timestamp) == (simple.key_id, simple.timestamp)
            assert len(raw.strokes) == len(simple.strokes)
            points = np.array([p for x, y, _ in raw.strokes for p in zip(x, y, strict=True)])
            scale = 255.0 / np.ptp(points, axis=0).max()
            for (x, y, t), (u, v) in zip(raw.strokes, simple.strokes, strict=True):
                assert len(x) == len(y) == len(t) > 2 * len(u)
                dense = (np.array([x, y]).T - points.min(axis=0)) * scale
                sparse = np.array([u, v]).T
                # Every point of the simplified stroke lies near the raw one.
                apart = np.linalg.norm(dense[:, None] - sparse[None], axis=2).min(axis=0)
                assert apart.max() < 20


def test_times_of_raw_drawings() -> None:
    for line in generate(30, seed=3, raw=True):
        drawing = json.loads(line)
        assert list(drawing) == KEYS
        times = [t for _, _, times in drawing["drawing"] for t in times]
        assert times[0] == 0
        assert all(type(t) is int for t in times)
        assert all(a < b for a, b in itertools.pairwise(times))
        assert any(type(x) is float for xs, _, _ in drawing["drawing"] for x in xs)
        assert 500 < times[-1] < 60_000


def test_shapes_fill_the_frame_they_are_described_in() -> None:
    """A shape far outside would come out tiny beside its stray strokes."""
    for word in SHAPES:
        sizes = []
        for number in range(50):
            strokes = doodle(word, number, raw=True).strokes
            points = np.array([p for x, y, _ in strokes for p in zip(x, y, strict=True)])
            sizes.append(np.ptp(points, axis=0).max())
        assert 300 < np.median(sizes) < 1200, word


def test_write_one_file_per_category(tmp_path: Path, lines: list[bytes]) -> None:
    told: list[int] = []
    paths = write(tmp_path / "new" / "folder", 25, progress=told.append)
    assert [path.name for path in paths] == [f"{word}.ndjson" for word in CATEGORIES]
    assert sorted(paths) == sorted((tmp_path / "new" / "folder").iterdir())
    assert sum(told) == 25
    for place, path in enumerate(paths):
        assert path.read_bytes() == b"".join(lines[place:25:10])
    assert write(tmp_path, 3, categories=["sun", "cat", "sun"]) == [
        tmp_path / "sun.ndjson",
        tmp_path / "cat.ndjson",
    ]
    assert (tmp_path / "sun.ndjson").read_bytes().count(b"\n") == 2


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "star.ndjson").write_text("real drawings")
    with pytest.raises(UserError, match="already there"):
        write(tmp_path, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["star.ndjson"]


def test_a_file_has_its_name_when_it_is_complete(tmp_path: Path) -> None:
    def stop(drawings: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 20, progress=stop)
    assert list(tmp_path.glob("*.ndjson")) == []


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no doodles of 'cats'; nearest: cat"):
        next(generate(5, categories=["cats"]))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "file" / "sub", 5)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = cli.Command("fastvae.data_tools.doodles", "generate sketches")
    monkeypatch.setitem(cli.COMMANDS, "doodles", entry)


@pytest.mark.usefixtures("command")
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["doodles", "--out", str(tmp_path / "a"), "--count", "30", "--seed", "5"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[0] == str(tmp_path / "a" / "face.ndjson")
    assert re.fullmatch(r"30 drawings, [\d.]+kB, seed 5", out.splitlines()[-2])
    written = b"".join(
        (tmp_path / "a" / f"{word}.ndjson").read_bytes() for word in CATEGORIES
    ).splitlines(keepends=True)
    assert sorted(written) == sorted(generate(30, seed=5))
    assert cli.main(words) == 2
    assert "already there" in capsys.readouterr().err
    words = ["doodles", "--out", str(tmp_path / "b"), "--count", "2", "--raw", "--categories"]
    assert cli.main([*words, "cat"]) == 0
    assert (tmp_path / "b" / "cat.ndjson").read_bytes() == b"".join(
        generate(2, categories=["cat"], raw=True)
    )


@pytest.mark.usefixtures("command")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "give a folder with --out"),
        (["--out", "x", "--count", "0"], "'0': expected an integer of 1 or more"),
        (["--out", "x", "--seed", "-1"], "'-1': expected an integer of 0 or more"),
        (["--out", "x", "--categories", "dog"], "no doodles of 'dog'"),
    ],
)
def test_bad_words_are_one_line(
    words: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doodles", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert list(tmp_path.iterdir()) == []
