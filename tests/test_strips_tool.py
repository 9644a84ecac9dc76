"""``fastvae-data strips`` from files to shards."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fastvae.data.format import read_manifest
from fastvae.data_tools import cli, strips
from fastvae.data_tools.panels import Panel
from fastvae.data_tools.strips import StripFile, StripMaker

REPO = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FASTVAE_SHARED_DATA") or REPO.parent / "shared" / "data")
INSIDES = ((250, 240, 230), (120, 200, 130), (60, 70, 220), (200, 40, 90))


def draw(path: Path, count: int = 3, *, frames: bool = True, wide: int = 200) -> Path:
    """A strip of framed panels, each of one colour with a cross in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (count * (wide + 10) + 10, 220), (255, 255, 255))
    pen = ImageDraw.Draw(image)
    for number in range(count):
        left = 10 + number * (wide + 10)
        box = (left, 10, left + wide - 1, 209)
        pen.rectangle(box, fill=INSIDES[number], outline=(0, 0, 0) if frames else None, width=2)
        pen.line((left + wide // 2, 60, left + wide // 2, 150), fill=(0, 0, 0), width=5)
    pen.point((0, 0), fill=(len(path.name), path.name.encode()[0], 0))  # no copies
    image.save(path)
    return path


def rows(folder: Path, field: str = "image") -> NDArray[Any]:
    """All values of a field, training first, as anybody would read them."""
    parts = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                if member.name.endswith(f".{field}.npy"):
                    stream = archive.extractfile(member)
                    assert stream is not None
                    parts.append(np.load(io.BytesIO(stream.read()), allow_pickle=False))
    return np.concatenate(parts)


def run(*words: str | Path, code: int = 0) -> None:
    options = ["--val", "0", "--test", "0", "--workers", "1"]
    assert cli.main(["strips", *map(str, words), *options]) == code


def test_panels_lie_side_by_side_without_frames(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abc":
        draw(tmp_path / "in" / f"{name}.png")
    run(tmp_path / "in")
    out = tmp_path / "in-shards"
    manifest = read_manifest(out)
    assert manifest.fields["image"].shape == (176, 600, 3)
    assert manifest.preprocess["panels"] == 3
    assert manifest.preprocess["panel_size"] == [176, 200]
    assert manifest.preprocess["cut"] == "gutters"
    for image in rows(out):
        for number in range(3):
            panel = image[:, 200 * number : 200 * (number + 1)]
            for edge in (panel[0], panel[-1], panel[:, 0], panel[:, -1]):
                assert (edge == INSIDES[number]).all()
            assert (panel[88, 98:102] < 20).all()
    printed = capsys.readouterr().out
    assert "3 of 3 cut at gutters\n" in printed
    assert "train: fastvae train strips " in printed


def test_fixed_cuts_are_equal_parts_of_the_whole(tmp_path: Path) -> None:
    path = draw(tmp_path / "in" / "a.png")
    run(tmp_path / "in", "--cut", "fixed", "--panel-size", "22", "20", "--channels", "1")
    grey = Image.open(path).convert("L")
    wide = grey.size[0]
    (image,) = rows(tmp_path / "in-shards")
    assert image.shape == (22, 60, 1)
    for number in range(3):
        part = grey.crop((round(wide * number / 3), 0, round(wide * (number + 1) / 3), 220))
        expected = np.asarray(part.resize((20, 22), Image.Resampling.BILINEAR))
        assert np.array_equal(image[:, 20 * number : 20 * (number + 1), 0], expected)


def test_other_numbers_of_panels(tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png", 4)
    run(tmp_path / "in", "--panels", "4", "--panel-size", "32")
    (image,) = rows(tmp_path / "in-shards")
    assert image.shape == (32, 128, 3)
    for number in range(4):
        assert (image[:, 32 * number] == INSIDES[number]).all()


def mixed(folder: Path) -> Path:
    draw(folder / "good.png")
    draw(folder / "four.png", 4, wide=150)
    noise = np.random.default_rng(0).integers(0, 256, (176, 600), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    Image.fromarray(noise[:, :200]).save(folder / "high.png")
    return folder


def test_strips_without_clear_gutters_are_cut_evenly_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = mixed(tmp_path / "in")
    run(source)
    printed = capsys.readouterr().out
    assert "1 of 4 cut at gutters, 3 without clear ones into equal parts: " in printed
    assert f"{source}/four.png, {source}/high.png, {source}/noise.png\n" in printed
    assert len(rows(tmp_path / "in-shards")) == 4


def test_strict_takes_them_for_bad_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = mixed(tmp_path / "in")
    (source / "broken.png").write_bytes(b"no image")
    run(source, "--strict", code=2)
    assert "--on-bad-record skip" in capsys.readouterr().err
    run(source, "--strict", "--on-bad-record", "skip")
    lines = (tmp_path / "in-shards" / "bad_samples.jsonl").read_text().splitlines()
    reasons = {Path(line["name"]).name: line["reason"] for line in map(json.loads, lines)}
    assert reasons["four.png"] == reasons["noise.png"] == "no clear gutters between 3 panels"
    assert "200x176, 1.1 times as wide as high, is no strip of 3 panels" in reasons["high.png"]
    assert reasons["broken.png"].startswith("not an image")
    assert len(rows(tmp_path / "in-shards")) == 1
    run(source, "--strict", "--cut", "fixed", "--on-bad-record", "skip", "--out", tmp_path / "two")
    assert len(rows(tmp_path / "two")) == 3


def test_proportions_of_other_panel_counts(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    draw(folder / "a.png", 2)
    run(folder, "--panels", "2", "--strict")
    draw(folder / "b.png", 4)
    run(folder, "--panels", "2", "--strict", "--on-bad-record", "skip", "--overwrite")
    assert read_manifest(tmp_path / "in-shards").bad == 1


def test_palette_alpha_and_orientation(tmp_path: Path) -> None:
    plain = Image.open(draw(tmp_path / "in" / "a.png"))
    plain.quantize(16).save(tmp_path / "in" / "b.gif")
    clear = plain.convert("RGBA")
    pixels = np.array(clear)
    pixels[(pixels[..., :3] == 255).all(-1), 3] = 0
    Image.fromarray(pixels).save(tmp_path / "in" / "c.png")
    exif = Image.Exif()
    exif[0x0112] = 8
    turned = plain.transpose(Image.Transpose.ROTATE_270)
    turned.save(tmp_path / "in" / "d.png", exif=exif)
    run(tmp_path / "in", "--panel-size", "40")
    made = rows(tmp_path / "in-shards")
    assert len(made) == 4
    for image in made[1:]:
        assert np.abs(image.astype(int) - made[0]).max() <= 2


def test_splits_by_folder_and_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(6):
        draw(tmp_path / "in" / ("train" if n < 4 else "val") / f"{n}.png")
    monkeypatch.setattr(strips, "_BLOCK", 2)
    run(tmp_path / "in", "--panel-size", "16", "--out", tmp_path / "one")
    words = ["strips", str(tmp_path / "in"), "--panel-size", "16", "--val", "0", "--test", "0"]
    assert cli.main([*words, "--workers", "2", "--out", str(tmp_path / "two")]) == 0
    manifest = read_manifest(tmp_path / "two")
    assert {name: manifest.count(name) for name in manifest.splits} == {"train": 4, "val": 2}
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--panels", "0"], "'0': expected an integer of 1 or more"),
        (["--panel-size", "1", "2", "3"], "--panel-size takes one number, or height and width"),
        (["--layout", "classes"], "invalid choice: 'classes'"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    draw(tmp_path / "in" / "a.png")
    run(tmp_path / "in", *words, code=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_the_maker_is_a_pure_picklable_function(tmp_path: Path) -> None:
    path = draw(tmp_path / "a.png")
    make = StripMaker(
        count=3,
        size=(8, 9),
        channels=3,
        resample="box",
        background=(255, 255, 255),
        decoder="Pillow 0",
    )
    again = pickle.loads(pickle.dumps(make))
    assert repr(again) == repr(make)
    sample = StripFile(str(path), "", 5, (Panel(12, 12, 208, 208),) * 3, "")
    assert eval(repr(sample)) == sample, "what a sample depends on is in its repr"
    made, bad = again([sample, sample._replace(problem="odd"), sample])
    assert made["image"].shape == (2, 8, 27, 3)
    assert [b.reason for b in bad] == ["odd"]
    narrow = tmp_path / "narrow.png"
    Image.new("L", (2, 50)).save(narrow)
    _, bad = make([sample._replace(path=str(narrow), panels=())])
    assert [b.reason for b in bad] == ["only 2 pixels wide"]


def test_real_strips_go_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (SHARED / "strips").is_dir():
        pytest.skip("no shared data here (FASTVAE_SHARED_DATA)")
    run(SHARED / "strips", "--panel-size", "44", "50", "--channels", "1", "--out", tmp_path / "out")
    assert "71 of 72 cut at gutters, 1 without" in capsys.readouterr().out
    assert read_manifest(tmp_path / "out").count("train") == 72


def test_panels_that_are_too_large_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "in" / "a.png")
    run(tmp_path / "in", "--panel-size", "20000", code=2)
    assert "too large" in capsys.readouterr().err


def test_a_folder_without_a_name_needs_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    run("/", code=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert "give a folder with --out" in line
