"""``fastvae-data images`` from files to shards."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fastvae.data.format import read_manifest
from fastvae.data_tools import cli, images
from fastvae.data_tools.decode import ImageRecipe, decode
from fastvae.data_tools.image_layouts import ImageFile
from fastvae.data_tools.images import ImageMaker, colour
from fastvae.data_tools.worker_pool import Progress, run_tasks

REPO = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FASTVAE_SHARED_DATA") or REPO.parent / "shared" / "data")


def picture(seed: int, wide: int = 90, high: int = 70) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((wide, high), Image.Resampling.BICUBIC)


def save(path: Path, seed: int, **size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, **size).save(path)
    return path


def rows(folder: Path, split: str, field: str) -> NDArray[Any]:
    """All values of a field, as anybody would read them."""
    parts = []
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                if member.name.endswith(f".{field}.npy"):
                    stream = archive.extractfile(member)
                    assert stream is not None
                    parts.append(np.load(io.BytesIO(stream.read()), allow_pickle=False))
    return np.concatenate(parts)


def key(path: Path) -> int:
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def run(*words: str | Path, code: int = 0) -> None:
    assert cli.main(["images", *map(str, words), "--workers", "1"]) == code


def test_class_folders_become_labelled_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "pets"
    files = [save(source / name / f"{n}.jpg", n) for n, name in enumerate(["dog", "cat"] * 12)]
    run(source, "--size", "16", "24", "--val", "0.2", "--test", "0.2")
    out = tmp_path / "pets-shards"
    manifest = read_manifest(out)
    assert manifest.classes == ("cat", "dog")
    assert manifest.fields["image"].shape == (16, 24, 3)
    assert sum(manifest.count(split) for split in ("train", "val", "test")) == 24
    by_key = {key(path): path for path in files}
    recipe = ImageRecipe(size=(16, 24))
    for split in manifest.splits:
        for image, number, label in zip(
            *(rows(out, split, field) for field in ("image", "key", "label")), strict=True
        ):
            path = by_key.pop(int(number))
            assert np.array_equal(image, decode(path.read_bytes(), recipe))
            assert manifest.classes[label] == path.parent.name
            u = int(number) / 2**64
            assert split == ("test" if u < 0.2 else "val" if u < 0.4 else "train")
    assert not by_key
    about = manifest.preprocess
    assert (about["tool"], about["layout"], about["size"]) == ("images", "classes", [16, 24])
    printed = capsys.readouterr().out
    assert "24 images, layout classes, 2 classes (cat, dog)" in printed
    assert "--model.image-shape 3 16 24" in printed


def test_labels_can_be_left_out(tmp_path: Path) -> None:
    for n, name in enumerate(["dog", "cat"] * 3):
        save(tmp_path / "in" / name / f"{n}.png", n)
    run(tmp_path / "in", "--no-labels", "--out", tmp_path / "out", "--val", "0", "--test", "0")
    manifest = read_manifest(tmp_path / "out")
    assert set(manifest.fields) == {"image", "key"}
    assert manifest.classes == ()
    assert tuple(manifest.splits) == ("train",)


def test_coco_is_cropped_to_375_and_evaluated_on_val(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "coco"
    for n, part in enumerate(["train2017", "train2017", "test2017", "val2017"]):
        save(source / part / f"{n}.jpg", n, wide=500, high=400)
    short = save(source / "val2017" / "short.jpg", 9, wide=500, high=300)
    run(source)
    out = tmp_path / "coco-shards"
    manifest = read_manifest(out)
    assert {split: manifest.count(split) for split in manifest.splits} == {"train": 3, "val": 2}
    made = rows(out, "val", "image")[rows(out, "val", "key") == key(short)][0]
    assert np.array_equal(made, decode(short.read_bytes(), ImageRecipe(size=(64, 64), crop=375)))
    assert "no test split is made" in capsys.readouterr().out
    run(source, "--pad", "--out", tmp_path / "padded")
    made = rows(tmp_path / "padded", "val", "image")[rows(out, "val", "key") == key(short)][0]
    assert (made[:5] == 0).all()
    assert (made[8:-8] > 0).any()
    run(source, "--crop", "none", "--out", tmp_path / "whole")
    assert read_manifest(tmp_path / "whole").preprocess["crop"] is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"size": [64, 64], "crop": None, "fit": "crop", "background": [255, 255, 255]}),
        (["--for", "coco64"], {"size": [64, 64], "crop": 375, "pad": False}),
        (["--for", "faces128"], {"size": [128, 128], "fit": "letterbox", "background": [0, 0, 0]}),
        (["--for", "faces512"], {"size": [512, 512], "fit": "letterbox", "crop": None}),
        (
            ["--for", "faces128", "--fit", "crop", "--size", "20", "--background", "0000ff"],
            {"size": [20, 20], "fit": "crop", "background": [0, 0, 255]},
        ),
        (["--for", "coco64", "--crop", "none", "--channels", "1"], {"crop": None, "channels": 1}),
        (["--crop", "50", "--pad", "--resample", "lanczos"], {"crop": 50, "pad": True}),
        (["--fit", "letterbox", "--background", "red"], {"background": [255, 0, 0]}),
    ],
)
def test_options_have_precedence(
    tmp_path: Path,
    words: list[str],
    expected: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for n in range(3):
        save(tmp_path / "in" / f"{n}.png", n)
    run(tmp_path / "in", *words, "--out", tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    about = manifest.preprocess
    assert {name: about[name] for name in expected} == expected
    assert manifest.fields["image"].shape == (*about["size"], about["channels"])
    preset = words[1] if "--for" in words else "coco64"
    assert f"train: fastvae train {preset} " in capsys.readouterr().out


def test_zips_and_any_number_of_processes_give_the_same_bytes(tmp_path: Path) -> None:
    names = [save(tmp_path / "in" / f"{n:02}.png", n) for n in range(40)]
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in names:
            archive.write(path, path.name)
    options = ["--size", "8", "--shard-rows", "16"]
    run(tmp_path / "in", *options, "--out", tmp_path / "one")
    words = ["images", str(tmp_path / "in.zip"), *options, "--out", str(tmp_path / "two")]
    assert cli.main([*words, "--workers", "2"]) == 0
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two]
    assert len(one) > 3
    for left, right in zip(one, two, strict=True):
        assert left.read_bytes() == right.read_bytes(), left.name


# ---------------------------------------------------------------------------------- bad samples
def with_bad_files(folder: Path) -> Path:
    for n in range(6):
        save(folder / f"{n}.jpg", n)
    (folder / "7.jpg").write_bytes((folder / "1.jpg").read_bytes()[:500])
    (folder / "8.png").write_bytes(b"")
    (folder / "9.gif").write_text("<html>404</html>")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("b.png", (folder / "1.jpg").read_bytes() + b"more")
    raw = bytearray((folder / "a.zip").read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1  # says that it is encrypted
    (folder / "a.zip").write_bytes(raw)
    return folder


def test_a_bad_file_stops_the_job_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = with_bad_files(tmp_path / "in")
    run(source, "--val", "0", "--test", "0", code=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{source}/7.jpg: " in line
    assert "--on-bad-record skip" in line
    assert not (tmp_path / "in-shards").exists()


def test_bad_files_can_be_left_out_and_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = with_bad_files(tmp_path / "in")
    run(source, "--on-bad-record", "skip", "--val", "0", "--test", "0")
    out = tmp_path / "in-shards"
    assert read_manifest(out).count("train") == 6
    lines = [json.loads(line) for line in (out / "bad_samples.jsonl").read_text().splitlines()]
    reasons = {os.path.relpath(line["name"], source): line["reason"] for line in lines}
    assert set(reasons) == {"7.jpg", "8.png", "9.gif", "a.zip/b.png"}
    assert reasons["8.png"] == "empty file"
    assert reasons["9.gif"].startswith("not an image")
    assert reasons["a.zip/b.png"] == "encrypted"
    assert "4 samples left out" in capsys.readouterr().out


def test_names_that_are_no_text_go_through(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    for n in range(3):
        save(source / f"{n}.png", n)
    try:
        os.rename(source / "0.png", os.fsencode(str(source)) + b"/\xff.png")
    except OSError:
        pytest.skip("this file system wants UTF-8")
    with open(os.fsencode(str(source)) + b"/\xfe.png", "wb") as file:
        file.write(b"bad")
    options = ["--on-bad-record", "skip", "--val", "0", "--test", "0"]
    run(source, *options)
    assert read_manifest(tmp_path / "in-shards").count("train") == 3
    line = json.loads((tmp_path / "in-shards" / "bad_samples.jsonl").read_text())
    assert line["name"] == f"{source}/\\xfe.png"
    assert "\\xfe.png" in capsys.readouterr().out


# ---------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nowhere"], "no such file or folder: nowhere"),
        (["empty"], "no images in empty (ignored: 1 of another kind)"),
        (["in", "--size", "1", "2", "3"], "--size takes one number, or height and width; got 3"),
        (["in", "--size", "0"], "'0': expected an integer of 1 or more"),
        (["in", "--pad"], "--pad is for --crop N"),
        (["in", "--crop", "big"], "'big': expected an integer"),
        (["in", "--background", "nocolour"], "'nocolour': expected a colour"),
        (["in", "--val", "0.5", "--test", "0.5"], "nothing is left to train on"),
        (["in", "--val", "1"], "'1': expected a share from 0 to below 1"),
        (["in", "--layout", "coco"], "--layout coco: no folder or zip called train2017"),
        (["in", "--for", "coco"], "invalid choice: 'coco'"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for n in range(3):
        save(Path("in", f"{n}.png"), n)
    Path("empty").mkdir()
    Path("empty", "list.txt").touch()
    run(*words, code=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert {path.name for path in tmp_path.iterdir()} <= {"in", "empty"}


def test_a_target_that_is_there_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "in" / "a.png", 1)
    (tmp_path / "in-shards").mkdir()
    (tmp_path / "in-shards" / "mine.txt").touch()

    def never(*_: object) -> None:
        raise AssertionError("read the files first")

    monkeypatch.setattr(images, "content_keys", never)
    run(tmp_path / "in", code=2)
    assert "is there already" in capsys.readouterr().err


# ---------------------------------------------------------------------------------- the maker
def test_the_maker_is_a_pure_picklable_function(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", 3)
    sample = ImageFile(str(path), "", 7, 2**64 - 1)
    make = ImageMaker(recipe=ImageRecipe(size=(8, 8)), labels=True, decoder="Pillow 0")
    again = pickle.loads(pickle.dumps(make))
    assert again == make
    assert repr(again) == repr(make)
    assert repr(make) != repr(ImageMaker(recipe=make.recipe, labels=True, decoder="Pillow 1"))
    missing = ImageFile(str(tmp_path / "gone.png"), "", 0, 1)
    made, bad = again([sample, missing, sample])
    assert made["image"].shape == (2, 8, 8, 3)
    assert made["key"].tolist() == [2**64 - 1] * 2
    assert made["label"].tolist() == [7, 7]
    assert [b.reason.split(" (")[0] for b in bad] == ["cannot be read"]
    none, bad = make([missing])
    assert {name: len(values) for name, values in none.items()} == dict.fromkeys(none, 0)
    assert none["key"].dtype == np.uint64
    assert len(bad) == 1


def test_colours() -> None:
    assert colour("white") == (255, 255, 255)
    assert colour("102030") == colour("#102030") == (16, 32, 48)


def test_workers_do_not_import_torch() -> None:
    code = (
        "import sys, fastvae.data_tools.images, fastvae.data_tools.strips\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0


def test_real_photos_go_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = SHARED / "photos"
    if not photos.is_dir():
        pytest.skip("no shared data here (FASTVAE_SHARED_DATA)")
    run(photos, "--crop", "375", "--size", "32", "--layout", "flat", "--out", tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert sum(manifest.count(split) for split in manifest.splits) == 375
    assert manifest.bad == 0
    assert len(np.unique(rows(tmp_path / "out", "train", "key"))) == manifest.count("train")


# ---------------------------------------------------------------------------------- troubles
def test_sizes_that_no_memory_holds_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "in" / "a.png", 1)
    monkeypatch.setattr(images, "list_images", None)
    run(tmp_path / "in", "--size", "60000", code=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert "images of 60000x60000x3 are too large" in line


def test_too_little_memory_names_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none_left(*_: object) -> None:
        raise MemoryError

    save(tmp_path / "in" / "a.png", 1)
    save(tmp_path / "in" / "b.png", 2)
    monkeypatch.setattr(images, "decode", none_left)
    run(tmp_path / "in", "--val", "0", "--test", "0", "--on-bad-record", "skip", code=2)
    line = capsys.readouterr().err.splitlines()[-1]
    assert "in/a.png: not enough memory" in line


def test_pictures_of_packed_data_do_not_train(tmp_path: Path) -> None:
    for n in range(8):
        save(tmp_path / f"{n}.png", n)
    shares = ("--val", "0", "--test", "0", "--size", "8")
    run(tmp_path, *shares, "--out", tmp_path / "one")
    save(tmp_path / "one" / "preview.png", 99)
    run(tmp_path, *shares, "--out", tmp_path / "two")
    assert read_manifest(tmp_path / "two").count("train") == 8


def tool(*words: str | Path, **how: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "fastvae.data_tools", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"} | how.pop("env", {}),
        stderr=subprocess.PIPE,
        **how,
    )


def test_output_that_nobody_reads_is_no_success(tmp_path: Path) -> None:
    for n in range(4):
        save(tmp_path / "in" / f"{n}.png", n)
    reader, writer = os.pipe()
    os.close(reader)
    job = tool("images", tmp_path / "in", "--out", tmp_path / "out", stdout=writer)
    os.close(writer)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 141, said
    assert not said


def test_output_that_is_cut_off_after_the_work_is_no_failure(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = ("--out", tmp_path / "out", "--count", "5")
    job = tool("doodles", *words, stdout=writer, env={"PYTHONUNBUFFERED": ""})
    os.close(writer)
    _, said = job.communicate(timeout=60)
    assert (job.returncode, said) == (0, b"")


def test_names_reach_a_strict_terminal(tmp_path: Path) -> None:
    """Neither raw, nor as a traceback."""
    folder = save(tmp_path / "in" / "a.png", 1).parent
    odd = os.fsencode(tmp_path) + b"/\xff\x1b[31m"
    try:
        os.rename(folder, odd)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    env = {"PYTHONIOENCODING": "ascii:strict"}
    words = ("--val", "0", "--test", "0", "--size", "8", "--workers", "1")
    job = tool("images", os.fsdecode(odd), *words, stdout=subprocess.PIPE, env=env)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 0, said
    job = tool("images", os.fsdecode(odd) + "/no", stdout=subprocess.PIPE, env=env)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 2
    assert said.endswith(
        b"no such file or folder: " + os.fsencode(tmp_path) + b"/\\xff\\x1b[31m/no\n"
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(13, "Permission denied", "/x"), "cannot use /x: Permission denied"),
        (OSError(28, "No space left on device"), "cannot use the disk: No space left on device"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_errors_of_the_system_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    expected: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(images, "list_images", fail)
    run(tmp_path, "--out", tmp_path / "out", code=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_bugs_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(9, "bad descriptor")

    monkeypatch.setattr(images, "list_images", fail)
    with pytest.raises(OSError, match="bad descriptor"):
        cli.main(["images", str(tmp_path), "--out", str(tmp_path / "out")])


def interrupts_blocked(_: int, __: Progress) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize("aside", [False, True])
def test_workers_cannot_be_interrupted_while_they_start(aside: bool) -> None:
    """In any thread; and the parent can be, as before."""

    def start() -> tuple[list[bool], bool]:
        return list(run_tasks(interrupts_blocked, range(2), 2, 2)), interrupts_blocked(0, None)  # type: ignore[arg-type]

    if aside:
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(start).result()
    else:
        found = start()
    assert found == ([True, True], False)
