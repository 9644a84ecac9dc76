"""What ``fastvae-data convert`` and its readers refuse, find and leave alone."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastvae.data.format import BLOCK, Field, read_manifest, tar_header, write_manifest
from fastvae.data.sample_tar import OutSample, write_sizes, write_tars
from fastvae.data.splits import identity
from fastvae.data.tar import Member, TarReader
from fastvae.data_tools import sample_sets
from fastvae.data_tools.sample_sets import open_sets
from fastvae.data_tools.shard_job import BuildOptions, Recipe, build
from fastvae.data_tools.whole_folder import whole_folder
from fastvae.errors import UserError
from tests.shard_cases import contents, pack
from tests.test_convert import error_of, run

Capture = pytest.CaptureFixture[str]


def tars(
    folder: Path,
    split: str = "train",
    *,
    count: int = 30,
    label: int | None = 1,
    side: int = 6,
    per_tar: int = 10,
    values: tuple[int, ...] = tuple(range(256)),
) -> Path:
    """Stock tars of random images."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(count)
    images = rng.choice(np.array(values, dtype=np.uint8), (count, side, side, 1))
    samples = (OutSample(f"{i:04d}", images[i], label) for i in range(count))
    write_tars(folder, split, samples, per_tar=per_tar)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "shards"
    pack(folder, train=60, val=20, test=10)
    return folder


# ---------------------------------------------------------------------------------- overwriting
def converted(source: Path, out: Path, target: str) -> Path:
    assert run("convert", source, "--to", target, "--out", out) == 0
    return out


@pytest.mark.parametrize("target", ["webdataset", "beton"])
def test_what_it_made_it_replaces(source: Path, tmp_path: Path, target: str) -> None:
    out = converted(source, tmp_path / "out", target)
    (out / "preview.png").write_bytes(b"")
    assert run("convert", source, "--to", target, "--out", out, "--overwrite") == 0
    assert not (out / "preview.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("webdataset", "train-000009.tar"),  # not in sizes.json
        ("webdataset", "photos.tar"),
        ("webdataset", "val-000000.tar/"),
        ("beton", "val-000001.beton"),  # without its description
        ("beton", "thesis.beton"),
        ("beton", "train-000001.beton.json"),
        ("beton", "train-000000.tar"),
    ],
)
def test_what_is_not_ours_stays(
    source: Path, tmp_path: Path, capsys: Capture, target: str, name: str
) -> None:
    out = converted(source, tmp_path / "out", target)
    if name.endswith("/"):
        (out / name).unlink()
        (out / name).mkdir()
    else:
        (out / name).write_bytes(b"mine")
    before = contents(out)
    said = error_of(capsys, "convert", source, "--to", target, "--out", out, "--overwrite")
    assert "--overwrite will not remove" in said
    assert name.strip("/") in said or "sizes.json" in said
    assert contents(out) == before


def test_tars_without_their_list_stay(source: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tars(tmp_path / "out")
    before = contents(out)
    said = error_of(capsys, "convert", source, "--to", "beton", "--out", out, "--overwrite")
    assert "sizes.json does not list exactly the tars" in said
    assert contents(out) == before


def test_a_link_is_not_ours(source: Path, tmp_path: Path, capsys: Capture) -> None:
    out = converted(source, tmp_path / "out", "beton")
    (out / "preview.png").symlink_to(tmp_path / "elsewhere")
    said = error_of(capsys, "convert", source, "--to", "beton", "--out", out, "--overwrite")
    assert "preview.png" in said


@pytest.mark.parametrize("target", ["shards", "webdataset", "beton"])
def test_the_source_is_not_in_the_way(tmp_path: Path, capsys: Capture, target: str) -> None:
    folder = tars(tmp_path / "mine")
    write_sizes(folder, {f"train-{i:06d}.tar": 10 for i in range(3)})
    inner = Path(shutil.copytree(folder, folder / "inner"))
    before = contents(folder)
    words = ["--to", target, "--overwrite", "--out"]
    for given, out in (
        (inner, folder),
        (folder, folder / "new"),
        (folder, inner),
        (folder / "train-000000.tar", folder),
    ):
        assert "give another folder" in error_of(capsys, "convert", given, *words, out)
    building = Path(shutil.copytree(folder, tmp_path / ".new.converting"))
    assert "give another folder" in error_of(capsys, "convert", building, *words, tmp_path / "new")
    assert contents(folder) == contents(building) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_came_meanwhile_stays(source: Path, tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "out"
    other = converted(source, tmp_path / "other", "beton")
    before = contents(other)

    def convert() -> None:
        with whole_folder(out, overwrite=overwrite) as building:
            (building / "train.beton").write_bytes(b"new")
            other.rename(out)

    with pytest.raises(UserError, match="is there already"):
        convert()
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_one_at_a_time(source: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    with whole_folder(out, overwrite=False) as building:
        (building / "train.beton").write_bytes(b"first")
        for target in ("webdataset", "shards"):
            said = error_of(capsys, "convert", source, "--to", target, "--out", out)
            assert f"another process is at work on {out}:" in said
        assert (building / "train.beton").exists()
    assert contents(out) == {"train.beton": b"first"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# ---------------------------------------------------------------------------------- options
@pytest.mark.parametrize(
    ("target", "option"),
    [
        ("beton", "--workers 2"),
        ("beton", "--on-bad-record skip"),
        ("beton", "--shard-rows 10"),
        ("beton", "--bits"),
        ("beton", "--image png"),
        ("webdataset", "--workers 2"),
        ("webdataset", "--on-bad-record error"),
        ("webdataset", "--bits"),
        ("webdataset", "--quality 80"),
        ("shards", "--image png"),
        ("shards", "--quality 80"),
    ],
)
def test_options_that_do_nothing(
    source: Path, tmp_path: Path, capsys: Capture, target: str, option: str
) -> None:
    words = ["--to", target, "--out", tmp_path / "out", *option.split()]
    said = error_of(capsys, "convert", source, *words)
    assert said.startswith(f"fastvae-data: error: {option.split()[0]} is for --")
    assert list(tmp_path.iterdir()) == []


def test_shares_and_quality(source: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["convert", source, "--out", tmp_path / "out", "--to", "webdataset"]
    for share in ("--val", "--test"):
        assert "has splits of its own" in error_of(capsys, *words, share, 0.1)
    for quality in ("101", "0", "x"):
        said = error_of(capsys, *words, "--image", "jpg", "--quality", quality)
        assert "from 1 to 100" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["val-0.tar", "test-0.tar", "val.beton"])
def test_a_named_split_is_not_split(
    source: Path, tmp_path: Path, capsys: Capture, name: str
) -> None:
    if name.endswith(".tar"):
        (tars(tmp_path, per_tar=99) / "train-000000.tar").rename(tmp_path / name)
    else:
        converted(source, tmp_path / "b", "beton")
        shutil.copy(tmp_path / "b" / name, tmp_path / name)
    said = error_of(capsys, "convert", tmp_path / name, "--to", "shards")
    assert f"holds {name[:4].rstrip('.-')} and nothing to train on" in said


def test_bad_records_are_skipped(tmp_path: Path, capsys: Capture) -> None:
    folder = tars(tmp_path / "in", count=40, per_tar=40)
    path = folder / "train-000000.tar"
    raw = bytearray(path.read_bytes())
    at = raw.find(b"0007.png")
    raw[at + BLOCK : at + BLOCK + 8] = b"no image"
    path.write_bytes(raw)
    words = ["convert", folder, "--to", "shards", "--out", tmp_path / "out"]
    assert "0007.png cannot be decoded" in error_of(capsys, *words)
    for workers in (1, 2):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        skip = ["--on-bad-record", "skip", "--workers", workers, "--shard-rows", 10]
        assert run(*words, *skip) == 0
        assert sum(map(len, open_sets(tmp_path / "out").values())) == 39
        (line,) = (tmp_path / "out" / "bad_samples.jsonl").read_text().splitlines()
        assert json.loads(line)["name"] == "sample 7 of train"
    assert run("verify", tmp_path / "out") == 0


def test_bits(tmp_path: Path, capsys: Capture) -> None:
    black = tars(tmp_path / "black", values=(0, 255))
    grey = tars(tmp_path / "grey")
    for workers in (1, 2):
        words = ["--to", "shards", "--out", tmp_path / "out", "--bits", "--workers", workers]
        assert run("convert", black, *words, "--val", 0, "--test", 0, "--overwrite") == 0
        assert "other than 0 and 255: leave out --bits" in error_of(
            capsys, "convert", grey, *words, "--overwrite", "--shard-rows", 5
        )
    assert read_manifest(tmp_path / "out").fields["image"].bits
    both = [open_sets(path)["train"].rows(np.arange(30)) for path in (black, tmp_path / "out")]
    np.testing.assert_array_equal(both[0]["image"], both[1]["image"])


# ---------------------------------------------------------------------------------- reading
@pytest.mark.parametrize("text", ["{", "", '{"format": "other"}', "[]"])
def test_a_damaged_manifest_is_no_tars(
    source: Path, tmp_path: Path, capsys: Capture, text: str
) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "copy"))
    (folder / "manifest.json").write_text(text)
    words = ["convert", folder, "--to", "beton", "--out", tmp_path / "out"]
    for command in (words, ["verify", folder], ["inspect", folder], ["preview", folder]):
        said = error_of(capsys, *command)
        assert str(folder / "manifest.json") in said
        assert "damaged" in said or "does not describe" in said


@pytest.mark.parametrize("what", ["crc32", "offset", "header", "pack"])
def test_verify_compares_the_manifest(
    source: Path, tmp_path: Path, capsys: Capture, what: str
) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "copy"))
    manifest = read_manifest(folder)
    (shard,) = manifest.splits["val"]
    if what == "crc32":
        shard = replace(shard, crc32={**shard.crc32, "label": (shard.crc32["label"][0] ^ 1,)})
    elif what == "offset":
        shard = replace(shard, offset={**shard.offset, "label": shard.offset["key"]})
    fields = dict(manifest.fields)
    if what == "header":
        fields["image"] = Field(dtype="uint8", shape=(7, 5, 3))
    elif what == "pack":  # one more member, of which the manifest says nothing
        path = folder / shard.name
        raw = path.read_bytes()[: -2 * BLOCK] + tar_header(9, "label", 0) + bytes(2 * BLOCK)
        path.write_bytes(raw)
        shard = replace(shard, bytes=len(raw))
    splits = {**manifest.splits, "val": (shard,)}
    write_manifest(folder, replace(manifest, splits=splits, fields=fields))
    capsys.readouterr()
    assert run("verify", folder) == 2
    said = capsys.readouterr()
    expected = {
        "crc32": "000000.label.npy, bytes",
        "offset": "tar header of 000000.label.npy",
        "header": "000000.image.npy is another array",
        "pack": "more than the members that the manifest names",
    }
    assert expected[what] in said.out


def test_splits_that_are_not_alike(source: Path, tmp_path: Path, capsys: Capture) -> None:
    for name, options, what in (
        ("labels", {"label": None}, "val has image 6x6x1, key"),
        ("shapes", {"side": 7}, "val has image 7x7x1"),
    ):
        folder = tars(tars(tmp_path / name), "val", **options)
        for command in ("inspect", "preview"):
            assert what in error_of(capsys, command, folder)
        assert what in error_of(capsys, "convert", folder, "--to", "beton")
        capsys.readouterr()
        assert run("verify", folder) == 2  # each tar is sound, and not like the first
        assert "val-000000.tar" in capsys.readouterr().out
    out = converted(source, tmp_path / "out", "beton")
    about = json.loads((out / "val.beton.json").read_text())
    about["classes"] = ["a", "b", "c"]
    (out / "val.beton.json").write_text(json.dumps(about))
    assert "the 3 classes of train are not those of val" in error_of(capsys, "inspect", out)


def test_a_tar_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, read = 300, 0

    class Counted(TarReader):
        def __iter__(self) -> Iterator[Member]:
            nonlocal read
            for member in super().__iter__():
                read += 1
                yield member

    folder = tars(tmp_path / "in", count=count, per_tar=200)
    monkeypatch.setattr(sample_sets, "TarReader", Counted)
    part = open_sets(folder)["train"]
    whole = part.rows(np.arange(count))
    read = 0
    for start in range(0, count, 10):
        rows = part.rows(np.arange(start, start + 10))
        for name, values in rows.items():
            np.testing.assert_array_equal(values, whole[name][start : start + 10])
    assert read <= 3 * count + 10  # png, cls and json of each, not of all before it again
    for index in ([299], [0], [5, 9, 250], [10, 199, 200], [199]):
        np.testing.assert_array_equal(part.rows(np.array(index))["key"], whole["key"][index])


# ---------------------------------------------------------------------------------- looking
def test_labels_of_any_size(tmp_path: Path, capsys: Capture) -> None:
    folder = tars(tmp_path / "in", count=5, label=10**15)
    tars(folder, "val", count=4, label=-3)
    begin = time.perf_counter()
    assert run("inspect", folder) == 0
    assert time.perf_counter() - begin < 5
    said = capsys.readouterr().out
    assert "labels: 1 classes\n           5  1000000000000000" in said
    assert "4 samples of val have no label (below 0)" in said


def test_a_preview_lies_where_it_harms_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tars(tmp_path / "in")
    (folder / "preview.png").write_bytes(b"mine")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert run("preview", folder / "train-000001.tar", "--count", 3) == 0
    assert (folder / "preview.png").read_bytes() == b"mine"
    assert os.listdir(here) == ["train-000001-preview.png"]
    assert run("preview", folder, "--count", 3) == 0
    with Image.open(folder / "preview.png") as picture:
        assert picture.mode == "L"


def test_images_of_two_channels(tmp_path: Path, capsys: Capture) -> None:
    images = np.zeros((9, 4, 4, 2), dtype=np.uint8)

    def make(samples: list[int]) -> tuple[dict[str, np.ndarray], list[object]]:
        return {"image": images[samples], "key": identity(images[samples])}, []

    fields = {
        "image": Field(dtype="uint8", shape=(4, 4, 2)),
        "key": Field(dtype="uint64", shape=()),
    }
    recipe = Recipe(fields=fields, make=make, preprocess={})
    build(tmp_path / "two", {"train": list(range(9))}, recipe, BuildOptions(out=tmp_path / "two"))
    assert "images of 2 channels" in error_of(capsys, "preview", tmp_path / "two")
    assert "images of 2 channels" in error_of(
        capsys, "convert", tmp_path / "two", "--to", "webdataset"
    )
