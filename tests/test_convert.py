"""``fastvae-data convert``, ``verify``, ``inspect`` and ``preview`` on packed images."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastvae.data.format import read_manifest, write_manifest
from fastvae.data.shards import ShardReader
from fastvae.data_tools import cli
from fastvae.data_tools.sample_sets import open_sets
from tests.ffcv_here import require_ffcv
from tests.shard_cases import CLASSES, FIELDS, contents, pack, rows_of

FORMS = ("shards", "webdataset", "beton")
SPLITS = ("train", "val", "test")
NAMES = {
    "shards": {"manifest.json", *(f"{name}-000000.tar" for name in SPLITS)},
    "webdataset": {"sizes.json", "classes.json", *(f"{name}-000000.tar" for name in SPLITS)},
    "beton": {f"{name}.beton{ending}" for name in SPLITS for ending in ("", ".json")},
}


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def error_of(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert run(*words) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("packed")
    pack(root / "shards")
    for form in FORMS[1:]:
        assert run("convert", root / "shards", "--to", form, "--out", root / form) == 0
    return {form: root / form for form in FORMS}


@pytest.mark.parametrize("target", FORMS)
@pytest.mark.parametrize("source", FORMS)
def test_between_all_forms_nothing_is_lost(
    packed: dict[str, Path], tmp_path: Path, source: str, target: str
) -> None:
    out = tmp_path / "out"
    assert run("convert", packed[source], "--to", target, "--out", out) == 0
    first = 0
    for name, count in (("train", 203), ("val", 31), ("test", 17)):
        part = open_sets(out)[name]
        assert (len(part), part.classes) == (count, CLASSES)
        rows = part.rows(np.arange(count))
        expected = rows_of(range(first, first + count))
        assert set(rows) == set(FIELDS)
        for field in FIELDS:
            np.testing.assert_array_equal(rows[field], expected[field])
        np.testing.assert_array_equal(part.labels(), expected["label"])
        first += count
    assert contents(out).keys() == NAMES[target]


@pytest.mark.parametrize("target", FORMS)
def test_the_same_bytes_each_time(packed: dict[str, Path], tmp_path: Path, target: str) -> None:
    for name, workers in (("a", 1), ("b", 2)):
        words = ["--to", target, "--out", tmp_path / name]
        words += ["--shard-rows", 64] * (target != "beton")
        words += ["--workers", workers] * (target == "shards")
        assert run("convert", packed["beton"], *words) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("form", FORMS)
def test_parts_of_a_set(packed: dict[str, Path], form: str) -> None:
    part = open_sets(packed[form])["train"]
    for wanted in ([0], [202], [3, 4, 5, 77, 120, 121], list(range(0, 203, 7))):
        rows = part.rows(np.array(wanted))
        np.testing.assert_array_equal(rows["image"], rows_of(wanted)["image"])


def test_stock_webdataset_reads_the_tars(packed: dict[str, Path]) -> None:
    import webdataset as wds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        urls = sorted(str(path) for path in packed["webdataset"].glob("train*.tar"))
        samples = list(wds.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    expected = rows_of(range(203))
    np.testing.assert_array_equal([s["png"] for s in samples], expected["image"])
    np.testing.assert_array_equal([s["cls"] for s in samples], expected["label"])


def test_ffcv_reads_the_beton(packed: dict[str, Path]) -> None:
    require_ffcv()
    from fastvae.data.sources.ffcv import threads_kept

    with threads_kept():
        from ffcv.loader import Loader, OrderOption

        loader = Loader(
            str(packed["beton"] / "train.beton"),
            batch_size=50,
            num_workers=1,
            order=OrderOption.SEQUENTIAL,
            drop_last=False,
        )
        batches = [[part.numpy().copy() for part in batch] for batch in loader]
    expected = rows_of(range(203))
    images = np.concatenate([next(p for p in b if p.ndim == 4) for b in batches])
    np.testing.assert_array_equal(images, expected["image"])


def test_a_source_without_splits_is_split_by_its_keys(
    packed: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copy(packed["beton"] / "train.beton", tmp_path / "mine.beton")
    words = ["--val", 0.2, "--test", 0.1]
    for target in FORMS:
        assert run("convert", tmp_path / "mine.beton", "--to", target, *words) == 0
    made = {"shards": "mine-shards", "webdataset": "mine-tars", "beton": "mine-beton"}
    keys = {}
    for form, name in made.items():
        sets = open_sets(tmp_path / name)
        keys[form] = {
            split: part.rows(np.arange(len(part)))["key"].tolist() for split, part in sets.items()
        }
        assert sum(map(len, keys[form].values())) == 203
        assert 15 < len(keys[form]["val"]) < 70
    assert keys["shards"] == keys["webdataset"] == keys["beton"]


def test_jpeg_is_smaller_and_close(packed: dict[str, Path], tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    from fastvae.data.sample_tar import OutSample, write_tars

    sizes = write_tars(tmp_path, "train", [OutSample("a", smooth[..., None])], image="jpg")
    assert sizes == {"train-000000.tar": 1}
    pixels = open_sets(tmp_path)["train"].rows(np.array([0]))["image"][0, ..., 0]
    assert np.abs(pixels.astype(int) - smooth).max() < 12
    assert run("convert", packed["shards"], "--to", "webdataset", "--image", "jpg",
               "--quality", 80, "--out", tmp_path / "jpg") == 0  # fmt: skip


def test_where_it_may_write(
    packed: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["convert", packed["shards"], "--out", out, "--to"]
    assert run(*words, "webdataset") == 0
    before = contents(out)
    for target in FORMS:
        assert "is there already" in error_of(capsys, *words, target)
    assert contents(out) == before
    assert run(*words, "beton", "--overwrite") == 0
    assert {path.name for path in out.iterdir()} >= {"train.beton", "train.beton.json"}
    (out / "thesis.txt").write_text("mine")
    assert "thesis.txt" in error_of(capsys, *words, "webdataset", "--overwrite")
    same = ["convert", packed["shards"], "--to", "shards", "--out", packed["shards"], "--overwrite"]
    assert "is the source" in error_of(capsys, *same)
    assert "strokes" in error_of(capsys, "convert", strokes_of(tmp_path), "--to", "shards")
    assert "no such file" in error_of(capsys, "convert", tmp_path / "no", "--to", "shards")
    assert "holds no packed data" in error_of(capsys, "convert", tmp_path, "--to", "shards")
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def strokes_of(tmp_path: Path) -> Path:
    folder = tmp_path / "strokes"
    if not folder.exists():
        run("doodles", "--out", tmp_path / "nd", "--count", 60)
        assert run("quickdraw", tmp_path / "nd", "--out", folder) == 0
    return folder


# ---------------------------------------------------------------------------------- verify
@pytest.mark.parametrize("form", FORMS)
def test_verify_what_is_right(
    packed: dict[str, Path], capsys: pytest.CaptureFixture[str], form: str
) -> None:
    assert run("verify", packed[form]) == 0
    assert "all right" in capsys.readouterr().out


def test_verify_strokes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = strokes_of(tmp_path)
    assert run("verify", folder) == 0
    path = folder / "train" / "points.npy"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert "1 thing damaged" in error_of(capsys, "verify", folder)


@pytest.mark.parametrize("where", ["image", "padding", "cut", "gone"])
def test_verify_names_every_damaged_shard(
    packed: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    folder = Path(shutil.copytree(packed["shards"], tmp_path / "copy"))
    shard = read_manifest(folder).splits["train"][2]
    for name in (shard.name, "val-000000.tar"):
        path = folder / name
        raw = bytearray(path.read_bytes())
        if where == "image":
            raw[shard.offset["image"][0] + 200] ^= 1
        elif where == "padding":
            raw[-1] ^= 1
        path.write_bytes(raw[:-1] if where == "cut" else raw)
        if where == "gone":
            path.unlink()
    capsys.readouterr()
    assert run("verify", folder) == 2
    said = capsys.readouterr()
    assert "2 things damaged" in said.err
    lines = [line for line in said.out.splitlines() if line.startswith("damaged: ")]
    expected = {
        "image": "does not have its checksum",
        "padding": "between the members",
        "cut": "bytes instead of",
        "gone": "is missing",
    }
    assert [str(folder / shard.name) in lines[0], "val-000000.tar" in lines[1]] == [True, True]
    assert all(expected[where] in line for line in lines)


def test_verify_notes_a_key_in_two_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    manifest = pack(folder, train=50, val=20, test=0)
    other = pack(tmp_path / "other", train=20, val=0, test=0)  # numbers of train, as another val
    (shard,) = other.splits["train"]
    shutil.copy(tmp_path / "other" / shard.name, folder / "val-000009.tar")
    splits = {**manifest.splits, "val": (replace(shard, name="val-000009.tar"),)}
    write_manifest(folder, replace(manifest, splits=splits))
    capsys.readouterr()
    assert run("verify", folder) == 0
    said = capsys.readouterr().out
    assert "note: 20 keys are in train and in val" in said
    assert "all right" in said


@pytest.mark.parametrize("form", ["webdataset", "beton"])
def test_verify_damaged_tars_and_betons(
    packed: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    folder = Path(shutil.copytree(packed[form], tmp_path / "copy"))
    path = next(folder.glob("train*.beton" if form == "beton" else "train*.tar"))
    raw = bytearray(path.read_bytes())
    raw[raw.find(b"IDAT") + 8 if form == "webdataset" else len(raw) // 2] ^= 0x55
    path.write_bytes(raw)
    capsys.readouterr()
    assert run("verify", folder) == 2
    assert path.name in capsys.readouterr().out


# ---------------------------------------------------------------------------------- looking
@pytest.mark.parametrize("form", FORMS)
def test_inspect(packed: dict[str, Path], capsys: pytest.CaptureFixture[str], form: str) -> None:
    assert run("inspect", packed[form]) == 0
    said = capsys.readouterr().out
    assert "images 5x7x3 uint8" in said
    assert "train: 203 samples" in said
    assert "val: 31 samples" in said
    assert "3 classes" in said
    assert "ice cream" in said
    pixels = rows_of(range(203))["image"] / 255
    assert f"mean {pixels.mean():.3f}, standard deviation {pixels.std():.3f}" in said


@pytest.mark.parametrize("form", FORMS)
def test_preview(packed: dict[str, Path], tmp_path: Path, form: str) -> None:
    words = ["preview", packed[form], "--count", 6, "--columns", 3, "--out", tmp_path / "a.png"]
    assert run(*words, "--split", "val", "--categories", "dog") == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "RGB"
        factor = 19  # 5 pixels become about 96
        assert picture.size == (3 * (7 * factor + 4) + 4, 2 * (5 * factor + 4 + 14) + 4)
        pixels = np.asarray(picture)[4 : 4 + 5 * factor : factor, 4 : 4 + 7 * factor : factor]
    dogs = [i for i in range(203, 234) if i % 3 == 1]
    assert any((pixels == rows_of([i])["image"][0]).all() for i in dogs)


def test_preview_of_what_is_not_there(
    packed: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(tmp_path / "few", val=0, test=0)
    assert "has no val split" in error_of(capsys, "preview", tmp_path / "few", "--split", "val")
    assert "no category 'cow'" in error_of(
        capsys, "preview", packed["shards"], "--categories", "cow"
    )


def test_readers_leave_what_they_read_alone(packed: dict[str, Path]) -> None:
    before = contents(packed["shards"])
    ShardReader(packed["shards"], "train").rows(np.arange(203))
    assert contents(packed["shards"]) == before
