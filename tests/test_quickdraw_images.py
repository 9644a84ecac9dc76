"""``fastvae-data quickdraw --as images|bits``: drawings to shards of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastvae.config import StrokesConfig
from fastvae.data.doodles import write
from fastvae.data.drawings import load
from fastvae.data.format import read_manifest
from fastvae.data.shards import ShardReader
from fastvae.data.sources.strokes import StrokesSource
from fastvae.data_tools import cli
from tests.shard_cases import contents


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doodles") / "files"
    write(folder, 150, 0, None, raw=False)
    return folder


@pytest.fixture(scope="module")
def strokes(files: Path) -> Path:
    assert run("quickdraw", files) == 0
    return files.with_name("files-strokes")


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def everything(folder: Path, split: str = "train") -> dict[str, np.ndarray]:
    reader = ShardReader(folder, split)
    return reader.rows(np.arange(len(reader)))


@pytest.mark.parametrize("partial", ["none", "strokes"])
@pytest.mark.parametrize("form", ["images", "bits"])
def test_images_are_those_of_training(
    files: Path, strokes: Path, tmp_path: Path, form: str, partial: str
) -> None:
    out = tmp_path / "out"
    words = ["--as", form, "--side", 20, "--partial", partial, "--workers", 1]
    assert run("quickdraw", files, "--out", out, *words) == 0
    drawings = load(strokes / "train")
    source = StrokesSource(drawings, StrokesConfig(partial=partial), 20, seed=0)  # type: ignore[arg-type]
    drawn = source.gather(torch.arange(len(drawings)))
    rows = everything(out)
    np.testing.assert_array_equal(rows["key"], drawings.key_id)
    np.testing.assert_array_equal(rows["label"], drawings.word)
    assert read_manifest(out).classes == drawings.words
    for name, images in (("image", drawn.images), ("condition", drawn.condition)):
        if images is None:
            assert name not in rows
            continue
        expected = images.permute(0, 2, 3, 1).numpy()
        if form == "bits":
            expected = np.where(expected >= 128, 255, 0)
        np.testing.assert_array_equal(rows[name], expected)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_from_files_and_from_packed_strokes(files: Path, strokes: Path, tmp_path: Path) -> None:
    for name, source in (("files", files), ("strokes", strokes)):
        assert run("quickdraw", source, "--out", tmp_path / name, "--as", "images") == 0
    one, other = contents(tmp_path / "files"), contents(tmp_path / "strokes")
    assert one == other


def test_default_names(files: Path) -> None:
    assert run("quickdraw", files, "--as", "bits", "--side", 8, "--workers", 1) == 0
    manifest = read_manifest(files.with_name("files-shards"))
    assert manifest.fields["image"].bits
    assert manifest.fields["image"].row_bytes == 8
    assert sum(manifest.count(name) for name in manifest.splits) == 150


def test_bad_input(
    files: Path, strokes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*words: object) -> str:
        assert run("quickdraw", *words) == 2
        said = capsys.readouterr().err.strip()
        assert "\n" not in said
        return said

    assert "timing" in error(files, "--as", "images", "--partial", "time", "--out", tmp_path / "a")
    assert "more than 10x10" in error(
        files, "--as", "images", "--raster", "binary", "--side", 10, "--out", tmp_path / "a"
    )
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("")
    assert "is there already" in error(files, "--as", "images", "--out", tmp_path / "b")
    assert "strokes" in error(strokes, "--out", tmp_path / "c")  # a folder of strokes, as strokes


@pytest.mark.parametrize(
    "words",
    [
        ("--limit", 3), ("--categories", "cat"), ("--recognized",), ("--val", 0.05),
        ("--test", 0.05), ("--kind", "auto"), ("--seed", 0), ("--on-bad-record", "error"),
    ],
)  # fmt: skip
def test_options_of_packing_are_refused_for_packed_strokes(
    strokes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[object, ...]
) -> None:
    """Even with the value that is the default: it may not be what the strokes were packed with."""
    assert run("quickdraw", strokes, "--as", "bits", "--out", tmp_path / "out", *words) == 2
    assert f"{words[0]} is for files of drawings" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [("--side", 28), ("--raster", "fast"), ("--partial", "none")])
def test_options_of_drawing_are_refused_for_strokes(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[object, ...]
) -> None:
    assert run("quickdraw", files, "--out", tmp_path / "out", *words) == 2
    assert f"{words[0]} is for --as images or bits" in capsys.readouterr().err


def test_the_current_folder_as_target(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for form in ("images", "strokes"):
        (tmp_path / form).mkdir()
        monkeypatch.chdir(tmp_path / form)
        words = ["--side", 8] if form == "images" else []
        assert run("quickdraw", files, "--as", form, "--out", ".", *words, "--workers", 1) == 0
        monkeypatch.chdir(tmp_path)
        assert (tmp_path / form / "manifest.json").is_file()
