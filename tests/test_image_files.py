"""Finding images in folders and zips, what their folders mean, and copies."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fastvae.data_tools import image_files
from fastvae.data_tools.decode import Undecodable
from fastvae.data_tools.image_files import (
    Listing,
    content_keys,
    full_name,
    list_images,
    read,
)
from fastvae.data_tools.image_layouts import ImageSet, arrange, describe, divide
from fastvae.data_tools.names import shown
from fastvae.errors import UserError


def fill(folder: Path, *names: str) -> Path:
    """Files whose content is their name (nothing here is decoded)."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return folder


def zipped(path: Path, *names: str, method: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names:
            archive.writestr(name, f"{name} in a zip" * 5)
    return path


def names(listing: Listing) -> list[str]:
    return ["/".join(entry.parts) for entry in listing.entries]


def sorted_out(
    *sources: Path,
    layout: str = "auto",
    val: float = 0.2,
    test: float = 0.2,
    labels: bool = True,
    keep_duplicates: bool = False,
) -> tuple[str, tuple[str, ...], dict[str, dict[str, int]], ImageSet]:
    """Layout, classes, and {split: {name of file: label}}."""
    listing = list_images(sources)
    arranged = arrange(listing, layout, labels=labels)
    images = divide(
        listing,
        arranged,
        content_keys(listing.entries, 2),
        val=val,
        test=test,
        keep_duplicates=keep_duplicates,
    )
    files = {
        split: {os.path.basename(file.member or file.path): file.label for file in part}
        for split, part in images.splits.items()
    }
    return arranged.layout, arranged.classes, files, images


# ---------------------------------------------------------------------------------- finding
def test_folders_are_searched_in_order_and_other_files_counted(tmp_path: Path) -> None:
    fill(
        tmp_path,
        *("b.JPG", "a/z.png", "a/b/c.webp", "a-.jpeg", "notes.txt", ".hidden.png", "noext"),
        *(".git/x.png", "__MACOSX/a.jpg", "a/._c.jpg", "a/Thumbs.db"),
    )
    listing = list_images([tmp_path])
    assert names(listing) == ["a/b/c.webp", "a/z.png", "a-.jpeg", "b.JPG"]
    assert listing.ignored == Counter(
        {"of another kind": 3, "hidden": 2, "hidden, a folder": 1, "of macOS, a folder": 1}
    )


def test_zips_are_folders(tmp_path: Path) -> None:
    archive = zipped(
        tmp_path / "photos.zip",
        *("d/b.jpg", "a.png", "d/", "d/._b.jpg", "__MACOSX/d/b.jpg", "readme.md", "./c.gif"),
        *("../../etc/x.png", ".git/y.png", "win\\e.jpg"),
    )
    listing = list_images([archive])
    assert names(listing) == ["a.png", "c.gif", "d/b.jpg", "etc/x.png", "win/e.jpg"]
    assert listing.ignored == Counter({"of another kind": 1, "hidden": 2, "of macOS": 1})
    assert read(listing.entries[2].path, listing.entries[2].member) == b"d/b.jpg in a zip" * 5
    assert sorted(os.listdir(tmp_path)) == ["photos.zip"], "something was unpacked"


def test_zips_in_a_folder_and_beside_what_they_hold(tmp_path: Path) -> None:
    zipped(tmp_path / "in" / "one.zip", "a.png")
    zipped(tmp_path / "in" / "two.zip", "b.png")
    fill(tmp_path / "in", "two/b.png", "c.png")
    listing = list_images([tmp_path / "in"])
    assert names(listing) == ["c.png", "one/a.png", "two/b.png"]
    assert listing.entries[2].member == ""
    assert listing.ignored == Counter({"unzipped already": 1})


def test_several_sources_and_single_images(tmp_path: Path) -> None:
    fill(tmp_path, "x/b.png", "y/a.png", "z.bmp")
    zipped(tmp_path / "w.zip", "c.png")
    listing = list_images([tmp_path / n for n in ("y", "w.zip", "x", "z.bmp")])
    assert names(listing) == ["a.png", "c.png", "b.png", "z.bmp"]
    assert [entry.source for entry in listing.entries] == [0, 1, 2, 3]


def test_links_cannot_lead_in_circles(tmp_path: Path) -> None:
    fill(tmp_path / "in", "a.png", "sub/b.png")
    fill(tmp_path, "elsewhere/c.png")
    for link, target in (
        ("loop", "."),
        ("sub/up", ".."),
        ("0-first", "sub"),
        ("out", "../elsewhere"),
        ("gone.png", "nowhere.png"),
        ("file.png", "a.png"),
    ):
        (tmp_path / "in" / link).symlink_to(target)
    os.mkfifo(tmp_path / "in" / "pipe.png")
    listing = list_images([tmp_path / "in"])
    assert names(listing) == ["a.png", "file.png", "out/c.png", "sub/b.png"]
    assert listing.ignored == Counter({"broken or special": 2})


def test_links_in_zips_are_no_images(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("a.png", "x")
    assert names(list_images([tmp_path / "a.zip"])) == ["a.png"]


def test_names_need_not_be_text(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    odd = os.fsdecode(os.fsencode(str(tmp_path / "in")) + b"/\xff\xe9.png")
    try:
        Path(odd).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system wants UTF-8")
    fill(tmp_path, "in/new\nline.png")
    listing = list_images([tmp_path / "in"])
    assert len(listing.entries) == 2
    for entry in listing.entries:
        text = full_name(entry.path, entry.member)
        assert text.isprintable()
        assert json.loads(json.dumps(text)) == text
        text.encode()
        assert pickle.loads(pickle.dumps(entry)) == entry
        assert read(entry.path, entry.member)
    assert shown("a\udcff") == "a\\xff"
    _, _, files, images = sorted_out(tmp_path / "in", val=0, test=0)
    assert len(files["train"]) == 2
    assert pickle.loads(pickle.dumps(images.splits)) == images.splits


def test_class_names_can_be_written_down(tmp_path: Path) -> None:
    fill(tmp_path, "b/1.png", "a/2.png")
    try:
        os.rename(tmp_path / "a", os.fsencode(str(tmp_path)) + b"/\xfe")
    except OSError:
        pytest.skip("this file system wants UTF-8")
    _, classes, _, _ = sorted_out(tmp_path)
    assert classes == ("\\xfe", "b")
    "".join(classes).encode()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda d: d / "nothing", "no such file or folder"),
        (lambda d: fill(d, "a.txt") / "a.txt", "neither a folder, nor a .zip, nor an image"),
        (lambda d: fill(d, "b.txt", ".x.png"), "no images in .* .ignored: 1 hidden, 1 of another"),
        (lambda d: fill(d, "bad.zip") / "bad.zip", "cannot be read as a zip"),
        (lambda d: fill(d / "e", "in/bad.zip"), "cannot be read as a zip"),
        (lambda d: zipped(d / "empty.zip"), "no images in"),
    ],
)
def test_errors_name_the_thing(tmp_path: Path, make: object, expected: str) -> None:
    assert callable(make)
    with pytest.raises(UserError, match=expected) as caught:
        list_images([make(tmp_path)])
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------- reading
def member_offset(path: Path, name: str) -> int:
    """Where the data of a stored member begins."""
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(name).header_offset
    head = path.read_bytes()[start : start + 30]
    return start + 30 + sum(struct.unpack("<HH", head[26:30]))


def test_damaged_encrypted_and_absurd_members_are_undecodable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(name: str, at: int, value: bytes) -> str:
        path = zipped(tmp_path / name, "a.png")
        raw = bytearray(path.read_bytes())
        raw[at : at + len(value)] = value
        path.write_bytes(raw)
        return str(path)

    central = zipped(tmp_path / "t.zip", "a.png").read_bytes().index(b"PK\1\2")
    offset = member_offset(tmp_path / "t.zip", "a.png")
    for path, reason in (
        (damaged("flipped.zip", offset + 3, b"\xff"), "damaged in its zip"),
        (damaged("header.zip", 0, b"xxxx"), "damaged in its zip"),
        (damaged("method.zip", central + 10, b"\x63\0"), "damaged in its zip"),
        (damaged("secret.zip", central + 8, b"\1\0"), "encrypted"),
        (damaged("huge.zip", central + 24, b"\xff\xff\xff\x7f"), "too large"),
        (damaged("more.zip", central + 20, b"\xff\xff\xff\0\xff\xff\xff\0"), "damaged in its zip"),
    ):
        with pytest.raises(Undecodable, match=reason):
            read(path, "a.png")
    with pytest.raises(Undecodable, match="damaged in its zip"):
        read(str(tmp_path / "t.zip"), "other.png")
    with pytest.raises(Undecodable, match="cannot be read"):
        read(str(tmp_path / "nowhere.png"), "")
    monkeypatch.setattr(image_files, "LARGEST", 3)
    fill(tmp_path, "x.png")
    with pytest.raises(Undecodable, match="too large"):
        read(str(tmp_path / "x.png"), "")


def test_a_bomb_gives_no_more_than_it_declares(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(5 << 20))
    raw = bytearray(path.read_bytes())
    central = raw.index(b"PK\1\2")
    raw[central + 24 : central + 28] = struct.pack("<I", 1000)
    path.write_bytes(raw)
    with pytest.raises(Undecodable):  # 1000 bytes, whose checksum is another
        read(str(path), "a.png")


def test_a_zip_that_changes_is_opened_again(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", "a.png")
    assert read(str(path), "a.png").startswith(b"a.png")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", "new and longer than before")
    assert read(str(path), "a.png") == b"new and longer than before"


# ---------------------------------------------------------------------------------- identity
def test_keys_are_hashes_of_content(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{number}.png" for number in range(150)))
    zipped(tmp_path / "more.zip", "a.png", method=zipfile.ZIP_DEFLATED)
    listing = list_images([tmp_path])
    keys = content_keys(listing.entries)
    for entry, key in zip(listing.entries, keys, strict=True):
        digest = hashlib.blake2b(read(entry.path, entry.member), digest_size=8).digest()
        assert int(key) == int.from_bytes(digest, "little")
    assert np.array_equal(content_keys(listing.entries, 1), keys)


def test_unreadable_files_have_keys_too(tmp_path: Path) -> None:
    first, second = (zipped(tmp_path / f"{n}.zip", "a.png") for n in "ab")
    for path in (first, second):
        raw = bytearray(path.read_bytes())
        raw[member_offset(path, "a.png")] ^= 255
        path.write_bytes(raw)
    listing = list_images([first, second])
    keys = content_keys(listing.entries)
    assert len(set(keys.tolist())) == 2, "they would be taken for copies of each other"


# ---------------------------------------------------------------------------------- layouts
def test_flat(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{n}.png" for n in range(200)), "deep/er/x.png")
    layout, classes, files, images = sorted_out(tmp_path, val=0.1, test=0.3)
    assert (layout, classes) == ("flat", ())
    assert sum(map(len, files.values())) == 201
    assert 8 <= len(files["val"]) <= 35
    assert 40 <= len(files["test"]) <= 80
    assert set().union(*(set(part.values()) for part in files.values())) == {0}
    fill(tmp_path, "0/later.png", "999.png")
    again = sorted_out(tmp_path, val=0.1, test=0.3)[2]
    for split, part in files.items():
        assert set(part) <= set(again[split]), "a file that was added moved another one"
    for file in images.splits["test"]:
        assert file.key / 2**64 < 0.3


def test_classes(tmp_path: Path) -> None:
    fill(tmp_path, "dog/1.png", "dog/sub/2.png", "cat/3.png", "ape/4.png")
    layout, classes, files, _ = sorted_out(tmp_path, val=0, test=0)
    assert (layout, classes) == ("classes", ("ape", "cat", "dog"))
    assert files == {"train": {"1.png": 2, "2.png": 2, "3.png": 1, "4.png": 0}}
    assert sorted_out(tmp_path, labels=False)[1] == ()
    assert sorted_out(tmp_path, layout="flat")[:2] == ("flat", ())


def test_a_folder_that_holds_all_is_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, "food/images/dog/1.png", "food/images/cat/3.png", "food/meta/a.txt")
    assert sorted_out(tmp_path)[:2] == ("classes", ("cat", "dog"))
    fill(tmp_path, "food/other/stray.png")
    assert sorted_out(tmp_path / "food" / "images" / "cat")[0] == "flat"


def test_an_image_beside_the_classes_is_left_out_only_when_asked(tmp_path: Path) -> None:
    fill(tmp_path, "dog/1.png", "cat/3.png", "sheet.png")
    assert sorted_out(tmp_path)[0] == "flat"
    layout, _, files, images = sorted_out(tmp_path, layout="classes", val=0, test=0)
    assert layout == "classes"
    assert "sheet.png" not in files["train"]
    assert any("1 images lie outside" in note for note in images.notes)


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_splits_with_classes(tmp_path: Path, val: str) -> None:
    fill(tmp_path, "train/dog/1.png", "train/cat/2.png", f"{val}/dog/3.png", "test/cat/4.png")
    layout, classes, files, images = sorted_out(tmp_path)
    assert (layout, classes) == ("splits", ("cat", "dog"))
    assert files == {"train": {"1.png": 1, "2.png": 0}, "val": {"3.png": 1}, "test": {"4.png": 0}}
    assert images.notes == []


def test_splits_without_classes(tmp_path: Path) -> None:
    fill(tmp_path, "images/train/1.png", "images/val/3.png", "labels/train/1.txt")
    layout, classes, files, images = sorted_out(tmp_path)
    assert (layout, classes) == ("splits", ())
    assert files == {"train": {"1.png": 0}, "val": {"3.png": 0}}
    assert any("no test split" in note for note in images.notes)
    fill(tmp_path / "yolo", "train/images/1.png", "valid/images/2.png", "test/images/3.png")
    assert sorted_out(tmp_path / "yolo")[:2] == ("splits", ())


def test_validation_is_cut_off_where_only_train_and_test_are_given(tmp_path: Path) -> None:
    fill(tmp_path, *(f"train/{n}.png" for n in range(100)), "test/a.png", "test/b.png")
    _, _, files, images = sorted_out(tmp_path, val=0.3, test=0.5)
    assert set(files["test"]) == {"a.png", "b.png"}
    assert 15 <= len(files["val"]) <= 45
    assert len(files["val"]) + len(files["train"]) == 100
    assert any("no folder for validation" in note for note in images.notes)


def test_splits_as_several_sources(tmp_path: Path) -> None:
    fill(tmp_path, "train/1.png", "val/3.png")
    assert sorted_out(tmp_path / "train", tmp_path / "val")[2] == {
        "train": {"1.png": 0},
        "val": {"3.png": 0},
    }
    fill(tmp_path, "cats/a.png", "dogs/b.png")
    cats, dogs = tmp_path / "cats", tmp_path / "dogs"
    assert sorted_out(cats, dogs)[0] == "flat"
    assert sorted_out(cats, dogs, layout="classes")[1] == ("cats", "dogs")


@pytest.mark.parametrize("form", ["folders", "zips", "zips as sources", "below images"])
def test_coco(tmp_path: Path, form: str) -> None:
    parts = {"train2017": ["1.jpg", "2.jpg"], "test2017": ["3.jpg"], "val2017": ["4.jpg"]}
    for name, members in parts.items():
        if form.startswith("zips"):
            zipped(tmp_path / f"{name}.zip", *(f"{name}/{member}" for member in members))
        else:
            middle = "images" if form == "below images" else ""
            fill(tmp_path / middle, *(f"{name}/{member}" for member in members))
    fill(tmp_path, "annotations/captions.json")
    sources = sorted(tmp_path.glob("*.zip")) if form == "zips as sources" else [tmp_path]
    layout, classes, files, images = sorted_out(*sources)
    assert (layout, classes) == ("coco", ())
    assert set(files["train"]) == {os.path.basename(name) for name in ("1.jpg", "2.jpg", "3.jpg")}
    assert set(files["val"]) == {"4.jpg"}
    assert "test" not in files
    assert any("no test split is made" in note for note in images.notes)


def test_coco_for_evaluation_alone_is_split_by_hash(tmp_path: Path) -> None:
    fill(tmp_path, *(f"val2017/{n}.jpg" for n in range(60)))
    layout, _, files, images = sorted_out(tmp_path)
    assert layout == "coco"
    assert set(files) == {"train", "val", "test"}
    assert any("val2017" in note for note in images.notes)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [("coco", "train2017"), ("splits", "called train"), ("classes", "two folders")],
)
def test_a_layout_that_does_not_fit_is_named(tmp_path: Path, layout: str, expected: str) -> None:
    fill(tmp_path, "a.png", "val/b.png")
    with pytest.raises(UserError, match=expected):
        sorted_out(tmp_path, layout=layout)


def test_description_says_what_folders_are_taken_for(tmp_path: Path) -> None:
    fill(tmp_path, "train/dog/1.png", "train/cat/2.png", "val/dog/3.png")
    listing = list_images([tmp_path])
    line = describe(listing, arrange(listing, "auto"), "auto")
    assert line.startswith("3 images, layout splits (2 train, 1 val), 2 classes (cat, dog)")
    assert "--layout" in line


# ---------------------------------------------------------------------------------- copies
def copies(folder: Path, **content: str) -> Path:
    for name, text in content.items():
        path = folder / name.replace("__", "/").replace("_png", ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_of_copies_the_first_is_kept(tmp_path: Path) -> None:
    copies(tmp_path, c_png="x", a_png="y", b_png="x", d__e_png="x")
    _, _, files, images = sorted_out(tmp_path, val=0, test=0)
    assert set(files["train"]) == {"a.png", "b.png"}
    assert "2 exact copies left out" in images.notes[0]
    assert f"{tmp_path}/c.png = {tmp_path}/b.png" in images.notes[1]
    kept = sorted_out(tmp_path, val=0, test=0, keep_duplicates=True)
    assert len(kept[2]["train"]) == 4
    assert not kept[3].notes


def test_copies_in_two_splits_stay_out_of_training(tmp_path: Path) -> None:
    copies(
        tmp_path,
        **{"train__1_png": "x", "train__2_png": "y", "train__3_png": "z", "train__4_png": "own"},
        **{"val__5_png": "x", "val__6_png": "y", "test__7_png": "y", "test__8_png": "t"},
    )
    _, _, files, images = sorted_out(tmp_path)
    assert files == {
        "train": {"3.png": 0, "4.png": 0},
        "val": {"5.png": 0},
        "test": {"7.png": 0, "8.png": 0},
    }
    assert "3 exact copies left out, 3 of them in another split" in images.notes[0]


def test_copies_with_another_label_are_told(tmp_path: Path) -> None:
    copies(tmp_path, cat__1_png="x", dog__2_png="x", dog__3_png="y")
    _, _, files, images = sorted_out(tmp_path, val=0, test=0)
    assert files == {"train": {"1.png": 0, "3.png": 1}}
    assert "1 exact copy left out, 1 with another label" in images.notes[0]


def test_copies_in_a_zip_and_beside_it(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.png", "same")
    copies(tmp_path, b_png="same")
    (tmp_path / "z.zip").write_bytes(stream.getvalue())
    _, _, files, _ = sorted_out(tmp_path, val=0, test=0)
    assert files == {"train": {"b.png": 0}}


# ---------------------------------------------------------------------------------- troubles
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM])
@pytest.mark.parametrize("member", ["", "a.png"])
def test_troubles_of_the_disk_stop_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, member: str
) -> None:
    """They are not the file's: it must not be listed as bad and left out for ever."""
    path = zipped(tmp_path / "a.zip", "a.png") if member else fill(tmp_path, "b.png") / "b.png"

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(zipfile.ZipFile, "read", fail)
    monkeypatch.setattr("builtins.open", fail)
    if member:
        monkeypatch.setattr(image_files, "_open_zip", lambda path: zipfile.ZipFile(io.FileIO(path)))
    with pytest.raises(UserError) as caught:
        read(str(path), member)
    said = str(caught.value)
    assert said.startswith(f"cannot read {full_name(str(path), member)}: {os.strerror(code)}; run")


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ELOOP])
def test_troubles_of_a_file_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    fill(tmp_path, "b.png")
    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(Undecodable, match="cannot be read"):
        read(str(tmp_path / "b.png"), "")


def test_too_little_memory_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    fill(tmp_path, "b.png")
    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(MemoryError):
        read(str(tmp_path / "b.png"), "")


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    """To read one would wait for ever."""
    fill(tmp_path / "in", "a.png")
    for name in ("in/b.png", "in/c.zip", "d.png", "e.zip"):
        os.mkfifo(tmp_path / name)
    assert names(list_images([tmp_path / "in"])) == ["a.png"]
    for name in ("d.png", "e.zip"):
        with pytest.raises(UserError, match="neither a folder nor a regular file"):
            list_images([tmp_path / name])
        with pytest.raises(Undecodable, match="no regular file"):
            read(str(tmp_path / name), "a.png" * (name == "e.zip"))


def test_missing_is_not_said_where_permission_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refuse)
        with pytest.raises(UserError) as caught:
            list_images([tmp_path])
    assert str(caught.value) == f"cannot read {tmp_path}: Permission denied"


@pytest.mark.parametrize("kind", ["shards", "strokes"])
def test_pictures_of_packed_data_are_not_listed(tmp_path: Path, kind: str) -> None:
    fill(tmp_path, "a.png", "b/c.png", "b/manifest.json", "out/preview.png", "out/train/d.png")
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({"format": f"fastvae {kind}"}))
    listing = list_images([tmp_path])
    assert names(listing) == ["a.png", "b/c.png"]
    assert listing.ignored["packed data set, a folder"] == 1


def test_members_without_a_name_are_passed_over(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", "b.png")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo("x"), "data")
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\1\2")
    raw[at + 28 : at + 30] = b"\0\0"  # the length of its name ...
    raw[at + 32 : at + 34] = b"\1\0"  # ... given to the comment
    path.write_bytes(raw)
    assert "" in zipfile.ZipFile(path).namelist()
    assert names(list_images([path])) == ["b.png"]


@pytest.mark.parametrize("error", [IndexError("x"), struct.error("x"), EOFError("x")])
def test_whatever_zipfile_raises_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(path: str) -> None:
        raise error

    path = zipped(tmp_path / "a.zip", "b.png")
    monkeypatch.setattr(image_files, "_open_zip", fail)
    with pytest.raises(UserError, match="cannot be read as a zip"):
        list_images([path])


def test_names_cannot_steer_a_terminal() -> None:
    assert shown("\x1b[31m\a\x7f\x9b\t\n\u2028 a\xe4") == (
        "\\x1b[31m\\x07\\x7f\\x9b\\t\\n\\u2028 a\xe4"
    )
    assert shown("\ud800") == "\\ud800"  # which no file is called


# ---------------------------------------------------------------------------------- strays
@pytest.mark.parametrize("stray", ["stray.png", "unlabeled2017/u.png", "more/deep/u.png"])
def test_strays_do_not_mix_evaluation_into_training(tmp_path: Path, stray: str) -> None:
    for form, train, val in (("coco", "train2017", "val2017"), ("splits", "train", "val")):
        folder = tmp_path / form
        fill(folder, *(f"{train}/{n}.png" for n in range(9)), f"{val}/x.png", f"{val}/y.png", stray)
        layout, classes, files, images = sorted_out(folder)
        assert (layout, classes) == (form, ())
        assert {name: len(part) for name, part in files.items()} == {"train": 9, "val": 2}
        assert "1 images lie outside the folders of this layout: left out" in images.notes


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{name}/{name}{n}.png" for name in ("train", "bus") for n in range(9)))
    assert sorted_out(tmp_path)[:2] == ("classes", ("bus", "train"))
