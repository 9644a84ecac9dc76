"""``fastvae-data quickdraw``, ``inspect`` and ``preview``, as a user types them."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastvae.data.drawings import load
from fastvae.data_tools import pieces as pieces_module
from fastvae.data_tools.cli import main
from fastvae.data_tools.pieces import pieces
from fastvae.data_tools.stroke_packing import even_quotas

SPLITS = ("train", "val", "test")
LINE = [[[0, 100, 255], [0, 50, 200]], [[10, 20], [250, 255]]]


def record(word: str, key: int, drawing: Any = LINE, **changes: Any) -> dict[str, Any]:
    return {
        "word": word,
        "countrycode": "US",
        "timestamp": "2017-03-02 23:25:10.07453 UTC",
        "recognized": key % 10 != 0,
        "key_id": str(key),
        "drawing": drawing,
    } | changes


def drawing_of(key: int) -> list[list[list[int]]]:
    """A drawing that tells its key."""
    rng = np.random.default_rng(key)
    return [rng.integers(0, 256, (2, rng.integers(2, 9))).tolist() for _ in range(1 + key % 4)]


def write(path: Path, records: Sequence[dict[str, Any] | str], *, end: str = "\n") -> Path:
    lines = [r if isinstance(r, str) else json.dumps(r, separators=(",", ":")) for r in records]
    path.write_text("\n".join(lines) + end, encoding="utf-8")
    return path


def category(path: Path, word: str, count: int, first: int) -> Path:
    records = [record(word, k, drawing_of(k)) for k in range(first, first + count)]
    return write(path, records)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def fails(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a command that is refused."""
    code, _, err = run(capsys, *words)
    assert code == 2
    assert err.startswith("fastvae-data: error: ")
    assert err.count("\n") == 1
    return err


def fails_after_output(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The last line on stderr of a command that ends with exit code 2."""
    code, _, err = run(capsys, *words)
    assert code == 2
    return err.splitlines()[-1]


def keys(folder: Path) -> dict[str, Counter[int]]:
    return {name: Counter(load(folder / name).key_id.tolist()) for name in SPLITS}


def test_pack_keeps_every_drawing_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        category(tmp_path / "dog.ndjson", "dog", 300, 1000),
        category(tmp_path / "hot dog.ndjson", "hot dog", 200, 5000),
    ]
    code, out, _ = run(capsys, "quickdraw", *files, "--out", tmp_path / "set", "--workers", 2)
    assert code == 0
    assert "500 drawings of 2 categories" in out
    met: Counter[int] = Counter()
    for name in SPLITS:
        drawings = load(tmp_path / "set" / name, verify=True)
        assert drawings.words == ("dog", "hot dog")
        met.update(drawings.key_id.tolist())
        for i, key in enumerate(drawings.key_id.tolist()):
            lists = [stroke.T.tolist() for stroke in drawings.strokes.strokes_of(i)]
            assert lists == drawing_of(key)
            assert drawings.words[drawings.word[i]] == ("dog" if key < 5000 else "hot dog")
            assert drawings.recognized[i] == (key % 10 != 0)
    assert met == Counter([*range(1000, 1300), *range(5000, 5200)])
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert sum(manifest["drawings"]["train"].values()) == len(load(tmp_path / "set" / "train"))
    assert {p.name for p in tmp_path.iterdir()} == {"dog.ndjson", "hot dog.ndjson", "set"}


def test_splits_depend_on_the_key_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (
        category(tmp_path / f"{name}.ndjson", name, 400, first)
        for name, first in (("cat", 0), ("fish", 400))
    )
    run(capsys, "quickdraw", a, b, "--out", tmp_path / "ab", "--val", 0.2, "--test", 0.1)
    run(capsys, "quickdraw", b, a, "--out", tmp_path / "ba", "--val", 0.2, "--test", 0.1)
    run(capsys, "quickdraw", a, "--out", tmp_path / "a", "--val", 0.2, "--test", 0.1)
    both, alone = keys(tmp_path / "ab"), keys(tmp_path / "a")
    assert both == keys(tmp_path / "ba")
    for name, share in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        assert set(alone[name]) == {k for k in both[name] if k < 400}
        assert abs(both[name].total() - 800 * share) < 5 * (800 * share * (1 - share)) ** 0.5


def test_small_pieces_and_many_workers_change_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [category(tmp_path / f"{w}.ndjson", w, 60, n) for n, w in enumerate(("a", "b", "c"))]
    run(capsys, "quickdraw", *files, "--out", tmp_path / "one", "--workers", 1)
    monkeypatch.setattr(pieces_module, "PIECE_BYTES", 700)
    assert sum(1 for _ in pieces(files, workers=3)) > 20
    run(capsys, "quickdraw", *files, "--out", tmp_path / "two", "--workers", 3)
    for path in (tmp_path / "one").rglob("*.*"):
        twin = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == twin.read_bytes(), path


def test_filters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [
        category(tmp_path / "dog.ndjson", "dog", 100, 0),
        category(tmp_path / "hot dog.ndjson", "hot dog", 100, 100),
    ]
    run(capsys, "quickdraw", *files, "--out", tmp_path / "set", "--categories", "dog")
    assert set().union(*keys(tmp_path / "set").values()) == set(range(100))
    run(capsys, "quickdraw", *files, "--out", tmp_path / "known", "--recognized")
    kept = set().union(*keys(tmp_path / "known").values())
    assert kept == {k for k in range(200) if k % 10}
    error = fails(
        capsys, "quickdraw", *files, "--out", tmp_path / "no", "--categories", "dog", "hotdog"
    )
    assert "no" in error
    assert "'hotdog'; nearest: hot dog" in error
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("limit", [90, 7, 1000])
def test_limit_is_even_and_random(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: int
) -> None:
    sizes = {"ant": 300, "bee": 10, "cow": 200}
    files = [
        category(tmp_path / f"{word}.ndjson", word, size, 1000 * place)
        for place, (word, size) in enumerate(sizes.items())
    ]
    run(capsys, "quickdraw", *files, "--out", tmp_path / "set", "--limit", limit)
    kept = set().union(*keys(tmp_path / "set").values())
    counts = Counter(k // 1000 for k in kept)
    expected = {90: {0: 40, 1: 10, 2: 40}, 7: {0: 3, 1: 2, 2: 2}, 1000: {0: 300, 1: 10, 2: 200}}
    assert counts == expected[limit]
    if limit == 90:
        of_ants = sorted(k for k in kept if k < 1000)
        assert of_ants != list(range(40))
        assert of_ants[-1] > 200
        run(capsys, "quickdraw", *files[::-1], "--out", tmp_path / "again", "--limit", limit)
        assert kept == set().union(*keys(tmp_path / "again").values())
        run(capsys, "quickdraw", *files, "--out", tmp_path / "s", "--limit", limit, "--seed", 1)
        assert kept != set().union(*keys(tmp_path / "s").values())


def test_limited_sets_are_split_like_any_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [category(tmp_path / f"{w}.ndjson", w, 3000, 5000 * n) for n, w in enumerate("ab")]
    twice = write(tmp_path / "c.ndjson", [record("c", k % 7, drawing_of(k)) for k in range(70)])
    words = ("--limit", 600, "--val", 0.2, "--test", 0.1)
    run(capsys, "quickdraw", *files, twice, "--out", tmp_path / "set", *words)
    kept = keys(tmp_path / "set")
    assert abs(kept["train"].total() - 420) < 60
    assert abs(kept["val"].total() - 120) < 50
    assert sum(kept[name].total() for name in SPLITS) == 600
    drawings = [load(tmp_path / "set" / name) for name in SPLITS]
    of_c = [k for d in drawings for k in d.key_id[d.word == d.words.index("c")].tolist()]
    assert sorted(of_c) == list(range(7))  # each key once


def test_one_bad_record_does_not_change_how_the_others_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, value in enumerate((-5, 300, 0.5)):
        odd = record("cat", 1, [[[value, 3], [4, 5]]])
        good = [record("cat", k, drawing_of(k)) for k in range(10, 30)]
        path = write(tmp_path / f"{number}.ndjson", [odd, *good])
        assert f"{path}:1: " in fails(capsys, "quickdraw", path, "--out", tmp_path / "x")
        out = tmp_path / f"set{number}"
        run(capsys, "quickdraw", path, "--out", out, "--on-bad-record", "skip")
        train = load(out / "train")
        for i, key in enumerate(train.key_id.tolist()):
            assert [s.T.tolist() for s in train.strokes.strokes_of(i)] == drawing_of(key)


def test_raw_records_without_times_are_bad_where_others_have_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timed = [[[10.5, 40, 90], [5, 6, 70], [0, 30, 20]]]
    without = [[[10.5, 40, 90], [5, 6, 70]]]
    records = [record("cat", k, without if k == 7 else timed) for k in range(20)]
    path = write(tmp_path / "cat.ndjson", records)
    assert f"{path}:8: no times" in fails(capsys, "quickdraw", path, "--out", tmp_path / "x")
    run(capsys, "quickdraw", path, "--out", tmp_path / "set", "--on-bad-record", "skip")
    assert set().union(*keys(tmp_path / "set").values()) == set(range(20)) - {7}
    train = load(tmp_path / "set" / "train")
    assert train.time is not None
    assert train.time.tolist()[:2] != [0, 0]
    assert (np.diff(train.time.reshape(len(train), -1), axis=1) >= 0).all()  # 30, 20 -> 30, 30
    alone = write(tmp_path / "dog.ndjson", [record("dog", k, without) for k in range(20)])
    assert run(capsys, "quickdraw", alone, "--out", tmp_path / "dog")[0] == 0
    assert load(tmp_path / "dog" / "train").time is None


def test_overwrite_removes_packed_sets_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = category(tmp_path / "cat.ndjson", "cat", 30, 0)
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "mine").write_text("x")
    fails(capsys, "quickdraw", path, "--out", folder, "--overwrite")
    assert (folder / "mine").exists()
    packed = tmp_path / "set"
    run(capsys, "quickdraw", path, "--out", packed)
    inside = category(packed / "dog.ndjson", "dog", 30, 50)
    assert "dog.ndjson" in fails(capsys, "quickdraw", inside, "--out", packed, "--overwrite")
    assert inside.exists()
    assert "is there already" in fails(capsys, "quickdraw", path, "--out", ".")
    abandoned = tmp_path / ".set.999999999.tmp"
    abandoned.mkdir()
    inside.unlink()
    assert run(capsys, "quickdraw", path, "--out", packed, "--overwrite")[0] == 0
    assert not abandoned.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"cat.ndjson", "web", "set"}


def test_file_names_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    category(tmp_path / "cat.ndjson", "cat", 40, 0).rename(tmp_path / "c\udcff at.ndjson")
    assert run(capsys, "quickdraw", tmp_path, "--out", tmp_path / "a set")[0] == 0
    manifest = json.loads((tmp_path / "a set" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["files"][0]["name"] == "c\\xff at.ndjson"


def test_inspect_finds_splits_that_do_not_belong_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [category(tmp_path / f"{w}.ndjson", w, 60, 100 * n) for n, w in enumerate("ab")]
    for name in ("one", "two"):
        run(capsys, "quickdraw", *files, "--out", tmp_path / name, "--val", 0.3)
        files.pop()
    (tmp_path / "one" / "val").rename(tmp_path / "one" / "test.old")
    assert "not a set of drawings" in fails_after_output(capsys, "inspect", tmp_path / "one")
    (tmp_path / "two" / "val").rename(tmp_path / "one" / "val")
    error = fails_after_output(capsys, "inspect", tmp_path / "one")
    assert "different tables of categories" in error


def test_preview_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "cat.ndjson", [record("cat\nand dog", 1, LINE)])
    assert run(capsys, "quickdraw", path, "--out", tmp_path / "set")[0] == 0
    held = next(name for name in SPLITS if len(load(tmp_path / "set" / name)))
    empty = next(name for name in SPLITS if name != held)
    assert "no drawing to show" in fails(capsys, "preview", tmp_path / "set", "--split", empty)
    assert run(capsys, "preview", tmp_path / "set", "--split", held)[0] == 0
    small = ("--split", held, "--side", 8, "--raster", "binary")
    assert "more than 10x10" in fails(capsys, "preview", tmp_path / "set", *small)


def test_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = category(tmp_path / "cat.ndjson", "cat", 30, 0)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastvae.data_tools.stroke_packing.split_fractions", stop)
    code, _, err = run(capsys, "quickdraw", path, "--out", tmp_path / "set")
    assert code == 130
    assert err == "fastvae-data: interrupted\n"
    assert {p.name for p in tmp_path.iterdir()} == {"cat.ndjson"}


def test_quotas() -> None:
    assert even_quotas({"a": 5, "b": 5}, 7) == {"a": 3, "b": 4}
    assert even_quotas({"a": 1, "b": 9, "c": 9}, 9) == {"a": 1, "b": 4, "c": 4}
    assert even_quotas({"a": 1}, 9) == {"a": 1}


RHINO = record("rhinoceros", 77, drawing_of(77))
BAD = {
    "cut line": json.dumps(record("cat", 1))[:-20],
    "not JSON": "hello",
    "wrong type": json.dumps(record("cat", 2, {"x": 1})),
    "negative": json.dumps(record("cat", 3, [[[0, -1], [3, 4]]])),
    "huge": json.dumps(record("cat", 4, [[[0, 10**30], [3, 4]]])),
    "empty drawing": json.dumps(record("cat", 5, [])),
    "lengths": json.dumps(record("cat", 6, [[[1, 2, 3], [1, 2]]])),
    "no key": json.dumps({"word": "cat", "drawing": LINE}),
    "key of letters": json.dumps(record("cat", 7, key_id="abc")),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_records_are_named_or_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    good = [record("cat", k, drawing_of(k)) for k in range(100, 140)]
    path = write(tmp_path / "cat.ndjson", [*good[:20], BAD[name], RHINO, *good[20:]], end="")
    error = fails(capsys, "quickdraw", path, "--out", tmp_path / "set")
    assert f"{path}:21: " in error
    assert "--on-bad-record skip" in error
    assert not (tmp_path / "set").exists()
    code, out, _ = run(
        capsys, "quickdraw", path, "--out", tmp_path / "set", "--on-bad-record", "skip"
    )
    assert code == 0
    assert "1 bad records skipped" in out
    assert set().union(*keys(tmp_path / "set").values()) == {77, *range(100, 140)}
    (line,) = (tmp_path / "set" / "bad_records.jsonl").read_text().splitlines()
    assert json.loads(line)["line"] == 21
    error = fails(capsys, "inspect", path)
    assert "1 bad records" in error


def test_bytes_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "cat.ndjson", [record("cat", 5, drawing_of(5))])
    path.write_bytes(path.read_bytes() + b'{"word":"c\xff\xfet","key_id":"9"}\n\x00\x01\xff\n')
    assert f"{path}:2: " in fails(capsys, "quickdraw", path, "--out", tmp_path / "set")


def test_million_strokes_and_dots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = '{"word":"cat","key_id":"1","recognized":true,"drawing":['
    many += ",".join(["[[1,2],[3,4]]"] * 1_000_000) + "]}"
    dots = record("cat", 2, [[[7], [9]], [[1], [2]]])
    path = write(tmp_path / "cat.ndjson", [many, dots])
    code, _, _ = run(capsys, "quickdraw", path, "--out", tmp_path / "set", "--val", 0.3)
    assert code == 0
    sets = [load(tmp_path / "set" / name) for name in SPLITS]
    assert sum(len(s.strokes.stroke_offset) - 1 for s in sets) == 1_000_002


def test_raw_drawings_keep_their_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = [100.5, 160.0, 220.25, 300.0]
    drawing = [[x, [10.0, 11.5, 300.0, 20.0], [0, 40, 90, 130]], [[100, 300], [5, 5], [500, 600]]]
    path = write(tmp_path / "cat.ndjson", [record("cat", k, drawing) for k in range(40)])
    code, _, _ = run(capsys, "quickdraw", path, "--out", tmp_path / "set", "--val", 0.2)
    assert code == 0
    train = load(tmp_path / "set" / "train")
    assert train.time is not None
    ends = train.strokes.stroke_offset[train.strokes.drawing_offset]
    assert train.time[ends[1] - 1] == 600
    assert train.strokes.points.max() == 255
    code, out, _ = run(capsys, "inspect", tmp_path / "set")
    assert "seconds per drawing: mean 0.6" in out
    mixed = write(tmp_path / "dog.ndjson", [record("dog", 1, LINE)])
    error = fails(capsys, "quickdraw", path, mixed, "--out", tmp_path / "mixed")
    assert "pack them apart" in error


def test_bin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = b""
    for key in range(50):
        strokes = drawing_of(key)
        body += struct.pack("<Q2sBIH", key, b"DE", 1, 1_488_000_000, len(strokes))
        for x, y in strokes:
            body += struct.pack(f"<H{len(x)}B{len(y)}B", len(x), *x, *y)
    path = tmp_path / "hot dog.bin"
    path.write_bytes(body)
    assert run(capsys, "quickdraw", path, "--out", tmp_path / "set")[0] == 0
    train = load(tmp_path / "set" / "train")
    assert train.words == ("hot dog",)
    for i, key in enumerate(train.key_id.tolist()):
        assert [s.T.tolist() for s in train.strokes.strokes_of(i)] == drawing_of(key)
    path.write_bytes(body[:-5])
    assert "hot dog.bin:50: " in fails(capsys, "quickdraw", path, "--out", tmp_path / "cut")


def test_files_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "set")
    assert "no such file" in fails(capsys, "quickdraw", tmp_path / "no.ndjson", *out)
    text = tmp_path / "a.txt"
    text.write_text("x")
    assert "a.txt: expected .ndjson" in fails(capsys, "quickdraw", text, *out)
    (tmp_path / "empty").mkdir()
    assert "holds no" in fails(capsys, "quickdraw", tmp_path / "empty", *out)
    np.save(tmp_path / "cat.npy", np.zeros((2, 784), dtype=np.uint8))
    assert "images, not strokes" in fails(capsys, "quickdraw", tmp_path / "cat.npy", *out)
    nothing = write(tmp_path / "nothing.ndjson", [], end="")
    assert "no drawing is left" in fails(capsys, "quickdraw", nothing, *out)
    good = category(tmp_path / "cat.ndjson", "cat", 30, 0)
    assert "given twice" in fails(capsys, "quickdraw", good, good, *out)
    assert "--val" in fails(capsys, "quickdraw", good, *out, "--val", "0.6", "--test", "0.5")
    assert "a share between" in fails(capsys, "quickdraw", good, *out, "--val", "2")
    assert "1 or more" in fails(capsys, "quickdraw", good, *out, "--limit", "0")
    assert run(capsys, "quickdraw", good, *out)[0] == 0
    assert "is there already" in fails(capsys, "quickdraw", good, *out)
    assert run(capsys, "quickdraw", good, *out, "--overwrite")[0] == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("x")
    error = fails(capsys, "quickdraw", good, "--out", tmp_path / "mine", "--overwrite")
    assert "will not remove" in error
    assert (tmp_path / "mine" / "thesis").exists()


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [
        category(tmp_path / "dog.ndjson", "dog", 120, 0),
        category(tmp_path / "cat.ndjson", "cat", 80, 500),
    ]
    run(capsys, "quickdraw", *files, "--out", tmp_path / "set")
    code, out, _ = run(capsys, "inspect", tmp_path / "set")
    assert code == 0
    assert "200 drawings of 2 categories, 90.0% recognized" in out
    assert "dog  120" in out
    assert "cat  80" in out
    assert "strokes per drawing: mean 2.5, least 1, median 2.5, 95% 4, most 4" in out
    code, out, _ = run(capsys, "inspect", *files)
    assert code == 0
    assert "200 drawings of 2 categories" in out
    path = tmp_path / "set" / "train" / "points.npy"
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    assert "points.npy does not have its checksum" in fails(capsys, "inspect", tmp_path / "set")


@pytest.mark.parametrize("partial", ["none", "strokes", "points", "box"])
def test_preview(tmp_path: Path, capsys: pytest.CaptureFixture[str], partial: str) -> None:
    files = [category(tmp_path / f"{w}.ndjson", w, 40, 0) for w in ("dog", "cat")]
    run(capsys, "quickdraw", *files, "--out", tmp_path / "set")
    code, out, _ = run(
        capsys, "preview", tmp_path / "set", "--partial", partial, "--count", 10, "--columns", 5
    )
    assert code == 0
    assert "10 of" in out
    sheet = np.asarray(Image.open(tmp_path / "set" / "preview.png"))
    pictures = 1 if partial == "none" else 2
    assert sheet.shape == (4 + 2 * (pictures * 100 + 18), 4 + 5 * 100)
    assert (sheet < 60).mean() > 0.01
    if pictures == 2:  # the upper picture has less ink
        rows = [sheet[4:100] < 128, sheet[104:200] < 128]
        assert 0 < rows[0].sum() < rows[1].sum()
    code, _, _ = run(capsys, "preview", files[0], "--out", tmp_path / "x" / "y.png")
    assert code == 0
    assert (tmp_path / "x" / "y.png").exists()
    error = fails(capsys, "preview", tmp_path / "set", "--categories", "dgo")
    assert "nearest: dog" in error
