"""Reading shards: bit-exact rows in any order, and damage that is named or left out."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastvae.data.format import Field, read_manifest
from fastvae.data.shards import ShardReader
from fastvae.data_tools.shard_job import BuildOptions, Recipe, build
from fastvae.errors import UserError
from tests.shard_cases import FIELDS, pack, rows_of

N = 203


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "numbers"
    pack(out)
    return out


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "numbers"))


@pytest.mark.parametrize("on_damage", ["raise", "skip"])
def test_rows_are_bit_exact_in_any_order(whole: Path, on_damage: str) -> None:
    reader = ShardReader(whole, "train", on_damage=on_damage)  # type: ignore[arg-type]
    assert len(reader) == N
    expected = rows_of(range(N))
    rng = np.random.default_rng(0)
    for index in (np.arange(N), rng.permutation(N), rng.integers(0, N, 500), np.array([202, 0, 0])):
        rows = reader.rows(index)
        for name in FIELDS:
            np.testing.assert_array_equal(rows[name], expected[name][index])
            assert rows[name].dtype == expected[name].dtype
    assert reader.rows(np.empty(0, dtype=np.int64))["image"].shape == (0, 5, 7, 3)
    assert (reader.quarantined, reader.lost) == ([], 0)


@pytest.mark.parametrize("index", [[N], [-1], [0, 10**12], [-(10**12)]])
def test_indices_outside_are_refused(whole: Path, index: list[int]) -> None:
    reader = ShardReader(whole, "train")
    with pytest.raises(IndexError):
        reader.rows(np.array(index, dtype=np.int64))


def test_nothing_is_read_after_closing(whole: Path) -> None:
    reader = ShardReader(whole, "train")
    reader.rows(np.array([3]))
    reader.close()
    with pytest.raises(IndexError):
        reader.rows(np.array([3]))


class BitsMaker:
    """Images of 0 and 255."""

    def __repr__(self) -> str:
        return "BitsMaker()"

    def __call__(self, samples: range) -> tuple[dict[str, np.ndarray], list[object]]:
        return {"image": np.where(rows_of(samples)["image"] > 127, 255, 0).astype(np.uint8)}, []


def test_packed_bits_come_back_as_0_and_255(tmp_path: Path) -> None:
    field = Field(dtype="uint8", shape=(5, 7, 3), bits=True)
    recipe = Recipe(fields={"image": field}, make=BitsMaker(), preprocess={})  # type: ignore[arg-type]
    build(tmp_path / "bits", {"train": range(90)}, recipe, BuildOptions(out=tmp_path / "bits"))
    reader = ShardReader(tmp_path / "bits", "train")
    index = np.array([89, 0, 17, 17])
    expected = np.where(rows_of(index)["image"] > 127, 255, 0)
    np.testing.assert_array_equal(reader.rows(index)["image"], expected)


# ---------------------------------------------------------------------------------- damage
def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x10
    path.write_bytes(raw)


def image_at(folder: Path, shard: int = 1) -> int:
    return read_manifest(folder).splits["train"][shard].offset["image"][0]


def truncate(folder: Path) -> None:
    path = folder / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:-3000])


def lengthen(folder: Path) -> None:
    path = folder / "train-000001.tar"
    path.write_bytes(path.read_bytes() + b"\0" * 512)


def empty(folder: Path) -> None:
    (folder / "train-000001.tar").write_bytes(b"")


def flip_pixel(folder: Path) -> None:
    flip(folder / "train-000001.tar", image_at(folder) + 128 + 77)


def flip_label(folder: Path) -> None:
    at = read_manifest(folder).splits["train"][1].offset["label"][0]
    flip(folder / "train-000001.tar", at + 128)


def flip_npy_header(folder: Path) -> None:
    flip(folder / "train-000001.tar", image_at(folder) + 20)


def garbage_header(folder: Path) -> None:
    path = folder / "train-000001.tar"
    raw = bytearray(path.read_bytes())
    at = image_at(folder) - 512
    raw[at : at + 512] = np.random.default_rng(0).bytes(512)
    path.write_bytes(raw)


def remove(folder: Path) -> None:
    (folder / "train-000001.tar").unlink()


def swap(folder: Path) -> None:
    one, other = folder / "train-000001.tar", folder / "train-000002.tar"
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)


def fifo_instead(folder: Path) -> None:
    remove(folder)
    os.mkfifo(folder / "train-000001.tar")


def folder_instead(folder: Path) -> None:
    remove(folder)
    (folder / "train-000001.tar").mkdir()


# What is done, what the error says, and how many of the 203 samples are left under "skip".
DAMAGE: dict[Callable[[Path], None], tuple[str, int]] = {
    truncate: ("cut short", N - 40),
    lengthen: ("too long", N - 40),
    empty: ("cut short", N - 40),
    flip_pixel: ("image.npy, bytes", N - 40),
    flip_label: ("label.npy, bytes", N - 40),
    flip_npy_header: ("image.npy, bytes", N - 40),
    garbage_header: ("tar header of 000001.image.npy", N - 40),
    remove: ("is missing", N - 40),
    swap: ("tar header", N - 80),
    fifo_instead: ("is no regular file", N - 40),
    folder_instead: ("train-000001.tar", N - 40),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    said, _ = DAMAGE[damage]
    with pytest.raises(UserError, match=said) as error:
        ShardReader(folder, "train").rows(np.arange(N))
    assert "train-000001.tar" in str(error.value)
    assert "--data.on-damage skip" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_left_out_and_counted(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    _, left = DAMAGE[damage]
    one, other = (ShardReader(folder, "train", on_damage="skip") for _ in range(2))
    assert (len(one), one.lost) == (left, N - left)
    assert len(one.quarantined) == (N - left) // 40
    assert (one.fingerprint, one.quarantined) == (other.fingerprint, other.quarantined)
    assert one.fingerprint != read_manifest(folder).fingerprint("train")
    gone = 80 if damage is swap else 40
    kept = np.array([i for i in range(N) if not 40 <= i < 40 + gone])
    np.testing.assert_array_equal(one.rows(np.arange(left))["image"], rows_of(kept)["image"])


def test_only_what_is_touched_is_verified(folder: Path) -> None:
    flip_pixel(folder)
    reader = ShardReader(folder, "train")
    index = np.array([0, 39, 80, 202])
    np.testing.assert_array_equal(reader.rows(index)["image"], rows_of(index)["image"])
    for _ in range(2):  # the damaged pack stays damaged
        with pytest.raises(UserError, match=r"000001\.image\.npy"):
            reader.rows(np.array([0, 41]))
    assert len(ShardReader(folder, "train", verify=False).rows(np.arange(N))["image"]) == N


def test_a_file_that_is_cut_short_meanwhile(folder: Path) -> None:
    """Reading it would end the process."""
    reader = ShardReader(folder, "train")
    reader.check_sizes()
    os.truncate(folder / "train-000002.tar", 600)
    with pytest.raises(UserError, match=r"train-000002\.tar was cut short while it was read"):
        reader.check_sizes()


def test_fields_that_are_not_wanted(whole: Path) -> None:
    reader = ShardReader(whole, "train", leave_out=("label",))
    assert set(reader.rows(np.arange(3))) == {"image", "key"}


def test_packs_are_verified_once(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastvae.data import shards

    checked: list[int] = []
    original = shards.check_member

    def count(*args: object) -> str:
        checked.append(1)
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "check_member", count)
    reader = ShardReader(whole, "train")
    for _ in range(3):
        reader.rows(np.arange(N))
    assert len(checked) == 6 * len(FIELDS)


def test_swapped_packs_within_a_shard_are_named(tmp_path: Path) -> None:
    """A manifest whose packs were put into another order."""
    pack(tmp_path / "a", train=2100, shard_rows=2100)
    path = tmp_path / "a" / "manifest.json"
    data = json.loads(path.read_text())
    shard = data["splits"]["train"][0]
    for table in (shard["offset"], shard["crc32"]):
        for numbers in table.values():
            numbers[0], numbers[1] = numbers[1], numbers[0]
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"tar header of 000000\.image\.npy"):
        ShardReader(tmp_path / "a", "train").rows(np.arange(2100))


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    pack(tmp_path / "many", train=150, val=0, test=0, shard_rows=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    if hard != resource.RLIM_INFINITY and hard < opened + 400:
        pytest.skip("the hard limit of open files is low here")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 60, hard))
        reader = ShardReader(tmp_path / "many", "train")
        assert len(reader.rows(np.arange(150))["image"]) == 150
        reader.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
