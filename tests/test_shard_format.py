"""The shard format: bytes, manifest, and the readers of other projects."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastvae.data import format as shards
from fastvae.data.format import Field, read_manifest, rows_per_pack, write_shard
from fastvae.errors import UserError
from tests.shard_cases import CLASSES, FIELDS, contents, pack, rows_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "numbers"
    pack(out)
    return out


def test_stock_webdataset_reads_the_shards(folder: Path) -> None:
    import webdataset as wds

    urls = sorted(str(path) for path in folder.glob("train-*.tar"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packs = list(wds.WebDataset(urls, shardshuffle=False).decode())
    assert [pack["__key__"] for pack in packs] == [f"{i:06d}" for i in range(len(packs))]
    expected = rows_of(range(203))
    for name in FIELDS:
        np.testing.assert_array_equal(
            np.concatenate([pack[f"{name}.npy"] for pack in packs]), expected[name]
        )


def test_tarfile_and_numpy_read_the_shards(folder: Path) -> None:
    parts: dict[str, list[np.ndarray]] = {name: [] for name in FIELDS}
    for path in sorted(folder.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                stem, name, ending = member.name.split(".")
                assert (len(stem), ending, member.mtime, member.uid) == (6, "npy", 0, 0)
                file = tar.extractfile(member)
                assert file is not None
                parts[name].append(np.load(io.BytesIO(file.read()), allow_pickle=False))
    expected = rows_of(range(203))
    for name in FIELDS:
        np.testing.assert_array_equal(np.concatenate(parts[name]), expected[name])


def test_gnu_tar_has_nothing_to_say(folder: Path) -> None:
    path = folder / "train-000000.tar"
    done = subprocess.run(["tar", "tf", str(path)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "000000.image.npy"


def test_numpy_maps_a_member_where_the_manifest_says(folder: Path) -> None:
    manifest = read_manifest(folder)
    first = 0
    for shard in manifest.splits["train"]:
        path = folder / shard.name
        raw = path.read_bytes()
        assert (len(raw), hashlib.sha256(raw).hexdigest()) == (shard.bytes, shard.sha256)
        for pack_number, rows in enumerate(shard.rows):
            expected = rows_of(range(first, first + rows))
            for name, about in FIELDS.items():
                at = shard.offset[name][pack_number]
                start = at + 128
                assert start % 64 == 0
                mapped = np.memmap(
                    path, about.dtype, mode="r", offset=start, shape=(rows, *about.shape)
                )
                np.testing.assert_array_equal(mapped, expected[name])
                member = raw[at : start + mapped.nbytes]
                assert zlib.crc32(member) == shard.crc32[name][pack_number]
                np.testing.assert_array_equal(np.load(io.BytesIO(member)), expected[name])
            first += rows
    assert first == 203


def test_the_manifest_says_what_there_is(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert [manifest.count(name) for name in ("train", "val", "test")] == [203, 31, 17]
    assert (manifest.classes, dict(manifest.fields)) == (CLASSES, FIELDS)
    assert manifest.nbytes("val") == 31 * (5 * 7 * 3 + 16)
    data = json.loads((folder / "manifest.json").read_text())
    assert data["counts"] == {"train": 203, "val": 31, "test": 17}
    assert data["preprocess"] == {"tool": "numbers"}
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        *(shard.name for part in manifest.splits.values() for shard in part),
    }


def test_fingerprints_tell_contents_apart(tmp_path: Path, folder: Path) -> None:
    one = read_manifest(folder)
    pack(tmp_path / "more", train=204)
    pack(tmp_path / "same")
    assert read_manifest(tmp_path / "same").fingerprint("train") == one.fingerprint("train")
    assert read_manifest(tmp_path / "more").fingerprint("train") != one.fingerprint("train")
    assert one.fingerprint("val") != one.fingerprint("train")


def test_packed_bits_are_those_of_numpy(tmp_path: Path) -> None:
    about = Field(dtype="uint8", shape=(5, 3, 1), bits=True)
    grey = np.random.default_rng(0).integers(0, 256, (9, 5, 3, 1), dtype=np.uint8)
    stored = about.to_stored(grey)
    assert (about.stored_shape, about.row_bytes) == ((2,), 2)
    np.testing.assert_array_equal(stored, np.packbits(grey.reshape(9, 15) >= 128, axis=1))
    assert (about.to_stored(np.where(grey >= 128, 255, 0).astype(np.uint8)) == stored).all()


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((28, 28, 1), 1024), ((64, 64, 3), 256), ((512, 512, 3), 16), ((1, 1, 1), 1024)],
)
def test_packs_are_of_about_4_mib(shape: tuple[int, ...], rows: int) -> None:
    assert rows_per_pack({"image": Field(dtype="uint8", shape=shape)}) == rows


@pytest.mark.parametrize("pack", [0, 77, 999_999, 1_234_567])
@pytest.mark.parametrize("name", ["image", "x" * 32])
@pytest.mark.parametrize("size", [0, 1, 511, 802_944, 8**11 - 1])
def test_headers_are_those_of_tarfile(pack: int, name: str, size: int) -> None:
    about = tarfile.TarInfo(shards.member_name(pack, name))
    about.size, about.mode = size, 0o644
    assert shards.tar_header(pack, name, size) == about.tobuf(format=tarfile.USTAR_FORMAT)


def test_a_member_that_is_too_large_for_a_tar() -> None:
    with pytest.raises(ValueError, match="too many"):
        shards.tar_header(0, "image", 8**11)


def test_an_interrupted_shard_leaves_nothing(tmp_path: Path) -> None:
    def packs() -> Any:
        yield rows_of(range(3))
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_shard(tmp_path / "train-000000.tar", FIELDS, packs(), 0)
    assert list(tmp_path.iterdir()) == []


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    rows = rows_of(range(3))
    for bad in (
        {**rows, "image": rows["image"][:, :4]},
        {**rows, "image": rows["image"].astype(np.int64)},
        {**rows, "label": rows["label"][:2]},
        {k: v for k, v in rows.items() if k != "key"},
    ):
        with pytest.raises(ValueError, match=r"expected|different"):
            write_shard(tmp_path / "train-000000.tar", FIELDS, [bad], 0)


# ---------------------------------------------------------------------------------- damage
def damaged(folder: Path, target: Path, change: Any) -> str:
    """The error about a manifest that ``change`` has been at."""
    data = json.loads((folder / "manifest.json").read_text())
    change(data)
    target.mkdir()
    (target / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(UserError) as error:
        read_manifest(target)
    said = str(error.value)
    assert "\n" not in said
    assert str(target / "manifest.json") in said
    return said


EMPTY: dict[str, list[int]] = {name: [] for name in FIELDS}


def first_shard(data: dict[str, Any]) -> dict[str, Any]:
    shard: dict[str, Any] = data["splits"]["train"][0]
    return shard


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("fields"),
        lambda d: d.update(fields=3),
        lambda d: d["fields"]["image"].update(dtype="object"),
        lambda d: d["fields"]["image"].update(shape=[5, 7]),
        lambda d: d["fields"]["image"].update(shape=[5, 7, -3]),
        lambda d: d["fields"]["image"].update(shape=[50, 70, 30]),
        lambda d: d["fields"]["label"].update(shape=[2]),
        lambda d: d["fields"].pop("image"),
        lambda d: d["splits"].update(more=[]),
        lambda d: d["splits"]["val"].append(first_shard(d)),
        lambda d: first_shard(d).update(name="../../etc/passwd.tar"),
        lambda d: first_shard(d).update(name="/absolute.tar"),
        lambda d: first_shard(d).update(bytes=10),
        lambda d: first_shard(d).update(bytes="many"),
        lambda d: first_shard(d).update(bytes=True),
        lambda d: first_shard(d).update(sha256="short"),
        lambda d: first_shard(d).update(first_pack=-1),
        lambda d: first_shard(d)["rows"].append(4),
        lambda d: first_shard(d).update(rows=[10**12]),
        lambda d: first_shard(d)["offset"]["image"].__setitem__(0, 2**70),
        lambda d: first_shard(d)["offset"]["image"].__setitem__(0, 513),
        lambda d: first_shard(d)["offset"]["image"].__setitem__(0, 0),
        lambda d: first_shard(d)["crc32"].pop("label"),
        lambda d: d["fields"]["image"].update(shape=[5.0, 7, 3]),
        lambda d: d["fields"]["image"].update(shape=[True, 7, 3]),
        lambda d: d["fields"]["image"].update(bits=0),
        lambda d: d["fields"].update({"x" * 150: {"dtype": "uint8", "shape": [], "bits": False}}),
        lambda d: d["fields"].update(
            condition={"dtype": "uint8", "shape": [4, 4, 1], "bits": False}
        ),
        lambda d: d.update(splits={}),
        lambda d: d["splits"].update(val=[]),
        lambda d: first_shard(d).update(bytes=0, rows=[], offset=EMPTY, crc32=EMPTY),
        lambda d: d["counts"].update(train=7),
        lambda d: d["fingerprints"].update(val="0" * 32),
        lambda d: d["classes"].reverse(),
        lambda d: d.update(classes=["\ud800"]),
        lambda d: d.update(classes="abc"),
        lambda d: d.update(classes=[1]),
    ],
)
def test_a_damaged_manifest_is_named(folder: Path, tmp_path: Path, change: Any) -> None:
    assert "is damaged" in damaged(folder, tmp_path / "other", change)


def test_other_formats_and_versions_are_named(folder: Path, tmp_path: Path) -> None:
    assert "does not describe shards" in damaged(
        folder, tmp_path / "a", lambda d: d.update(format="x")
    )
    assert "version 99" in damaged(folder, tmp_path / "b", lambda d: d.update(version=99))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_manifest_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "manifest.json"))):
        read_manifest(tmp_path)


def test_folders_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no shards"):
        read_manifest(tmp_path)
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"convert"):
        read_manifest(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        read_manifest(tmp_path / "x.tar")


def test_writing_needs_no_torch() -> None:
    """Worker processes of importers start in a moment."""
    code = (
        "import sys, fastvae.data.format, fastvae.data_tools.shard_job, fastvae.data_tools.idx\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert done.stdout.strip() == "False"


def test_the_same_manifest_gives_the_same_bytes(tmp_path: Path) -> None:
    pack(tmp_path / "a")
    pack(tmp_path / "b", workers=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert shards.is_shards(tmp_path / "a")
    assert not shards.is_shards(tmp_path)


@pytest.mark.parametrize(
    ("text", "taken"),
    [(b"", True), (bytes(300), True), (b'{"format": "fastvae strokes"}', False), (b"{}", False)],
)
def test_a_damaged_manifest_is_still_one(tmp_path: Path, text: bytes, taken: bool) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    assert shards.is_shards(tmp_path) == taken
