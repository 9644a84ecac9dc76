"""``fastvae-data idx``: MNIST and its relatives to shards."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fastvae.config import Config, DataConfig, replace
from fastvae.data.datasets import load_splits
from fastvae.data.format import read_manifest
from fastvae.data.idx import read_idx
from fastvae.data.shards import ShardReader
from fastvae.data_tools import cli
from fastvae.errors import UserError
from tests.shard_cases import contents

SHARED = Path(os.environ.get("FASTVAE_SHARED_DATA") or Path(__file__).parents[2] / "shared/data")


def write_idx(path: Path, values: np.ndarray) -> None:
    head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    data = head + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_set(folder: Path, prefix: str = "", end: str = ".gz", test: str = "t10k") -> None:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 300), (test, 40)):
        images = rng.integers(0, 256, (count, 6, 5))
        write_idx(folder / f"{prefix}{part}-images-idx3-ubyte{end}", images)
        write_idx(folder / f"{prefix}{part}-labels-idx1-ubyte{end}", rng.integers(0, 4, count))


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def error_of(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert run(*words) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said


def test_one_command_without_options(tmp_path: Path) -> None:
    write_set(tmp_path / "mnist")
    assert run("idx", tmp_path / "mnist") == 0
    out = tmp_path / "mnist-shards"
    manifest = read_manifest(out)
    assert manifest.count("test") == 40
    assert manifest.count("train") + manifest.count("val") == 300
    assert 2 <= manifest.count("val") <= 30
    assert manifest.classes == ("0", "1", "2", "3")
    assert manifest.fields["image"].shape == (6, 5, 1)


def test_splits_and_pixels_are_those_of_the_files(tmp_path: Path) -> None:
    """The same split as training from the idx files themselves."""
    write_set(tmp_path / "mnist")
    run("idx", tmp_path / "mnist")
    data = DataConfig(dataset="mnist", root=str(tmp_path / "mnist"), val_fraction=0.04)
    files = load_splits(replace(Config(), data=Config().data).__class__(data=data))
    for name in ("train", "val", "test"):
        reader = ShardReader(tmp_path / "mnist-shards", name)
        rows = reader.rows(np.arange(len(reader)))
        images, labels = files[name].resident  # type: ignore[misc]
        np.testing.assert_array_equal(rows["image"][..., 0], images[:, 0].numpy())
        np.testing.assert_array_equal(rows["label"], labels.numpy())  # type: ignore[union-attr]


def test_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    write_set(tmp_path / "mnist", end="")
    for workers in (1, 2):
        run("idx", tmp_path / "mnist", "--out", tmp_path / str(workers), "--workers", workers,
            "--shard-rows", 50)  # fmt: skip
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert len(contents(tmp_path / "1")) > 6


def test_prefixes_and_test_files_of_emnist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(tmp_path / "emnist", prefix="emnist-letters-", test="test")
    said = error_of(capsys, "idx", tmp_path / "emnist")
    assert "--prefix" in said
    assert "emnist-letters-train-images" in said
    assert run("idx", tmp_path / "emnist", "--prefix", "emnist-letters-") == 0
    assert read_manifest(tmp_path / "emnist-shards").count("test") == 40


def test_one_file_of_images_is_split_by_hash(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    write_idx(tmp_path / "images.gz", rng.integers(0, 256, (200, 4, 4, 3)))
    assert run("idx", tmp_path / "images.gz", "--out", tmp_path / "out", "--val", 0.2) == 0
    manifest = read_manifest(tmp_path / "out")
    assert "label" not in manifest.fields
    assert manifest.fields["image"].shape == (4, 4, 3)
    assert sum(manifest.count(name) for name in manifest.splits) == 200
    assert manifest.count("val") > 20


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has no train-images" in error_of(capsys, "idx", tmp_path)
    write_set(tmp_path / "m")
    (tmp_path / "m" / "t10k-labels-idx1-ubyte.gz").unlink()
    assert "t10k-labels" in error_of(capsys, "idx", tmp_path / "m")
    write_set(tmp_path / "m")
    write_idx(tmp_path / "m" / "train-labels-idx1-ubyte.gz", np.zeros(299))
    assert "do not belong together" in error_of(capsys, "idx", tmp_path / "m")
    write_set(tmp_path / "m")
    path = tmp_path / "m" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:500])
    assert str(path) in error_of(capsys, "idx", tmp_path / "m")
    write_idx(path, np.zeros((300, 6)))
    assert "expected images" in error_of(capsys, "idx", tmp_path / "m")
    write_set(tmp_path / "m")
    write_idx(tmp_path / "m" / "t10k-images-idx3-ubyte.gz", np.zeros((40, 7, 5)))
    assert "t10k-images" in error_of(capsys, "idx", tmp_path / "m")
    assert "no such file" in error_of(capsys, "idx", tmp_path / "nothing.gz")
    assert not [path for path in tmp_path.iterdir() if "shards" in path.name]


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="no shared data here")
def test_mnist_itself(tmp_path: Path) -> None:
    assert run("idx", SHARED / "mnist", "--out", tmp_path / "out") == 0
    manifest = read_manifest(tmp_path / "out")
    assert [manifest.count(name) for name in ("train", "val", "test")] == [57584, 2416, 10000]
    reader = ShardReader(tmp_path / "out", "test")
    assert reader.rows(np.arange(3))["label"].tolist() == [7, 2, 1]


def test_test_images_do_not_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path / "m")
    images = np.random.default_rng(3).integers(0, 256, (300, 6, 5))
    write_idx(tmp_path / "m" / "train-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "m" / "t10k-images-idx3-ubyte.gz", np.repeat(images[:20], 2, axis=0))
    assert run("idx", tmp_path / "m") == 0
    assert "20 training images are also among the test images: left out" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "m-shards")
    assert manifest.count("train") + manifest.count("val") == 280
    assert manifest.count("test") == 40
    keys = {}
    for name in manifest.splits:
        reader = ShardReader(tmp_path / "m-shards", name)
        keys[name] = set(reader.rows(np.arange(len(reader)))["key"].tolist())
    assert not keys["test"] & (keys["train"] | keys["val"])


def test_options_that_would_change_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(tmp_path / "m")
    one = tmp_path / "m" / "train-images-idx3-ubyte.gz"
    assert "--labels is for one file" in error_of(capsys, "idx", tmp_path / "m", "--labels", one)
    assert "--prefix is for a folder" in error_of(capsys, "idx", one, "--prefix", "x-")
    assert "--test: the test split is" in error_of(capsys, "idx", tmp_path / "m", "--test", 0.2)
    shares = ("--val", 0.6, "--test", 0.6)
    assert "nothing is left to train on" in error_of(capsys, "idx", one, *shares)
    assert run("idx", tmp_path / "m", "--val", 0.95) == 0  # the default of --test does not count


def test_no_more_is_unpacked_than_the_header_says(tmp_path: Path) -> None:
    head = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 4, 4)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(head + bytes(64 << 20), 1))
    tracemalloc.start()
    with pytest.raises(UserError, match="cut short or too long"):
        read_idx(tmp_path / "bomb.gz")
    (tmp_path / "zeros.gz").write_bytes(gzip.compress(bytes(64 << 20), 1))
    tracemalloc.clear_traces()
    tracemalloc.reset_peak()
    for name in ("bomb.gz", "zeros.gz"):
        with pytest.raises(UserError):
            read_idx(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_pipes_are_not_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.gz")
    assert "no regular file" in error_of(capsys, "idx", tmp_path / "pipe.gz")
    with pytest.raises(UserError, match="no regular file"):
        read_idx(tmp_path / "pipe.gz")
