"""Stock WebDataset tars: what we write others read, what others write we read, alike."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import webdataset
from numpy.typing import NDArray
from PIL import Image

from fastvae.data.sample_rows import Layout, SampleRows, Unlike, layout_of
from fastvae.data.sample_tar import (
    CLASSES,
    BadTar,
    OutSample,
    SampleTar,
    Tally,
    read_classes,
    split_name,
    write_sizes,
    write_tars,
)
from fastvae.data.tar import TarReader
from fastvae.errors import UserError
from tests.tar_cases import encoded, random_images, tar_bytes, write_set

GREY = random_images(4)
COLOUR = random_images(4, (6, 5, 3))
Members = Sequence[tuple[str, bytes]]


def sample_tar(members: Members, tally: Tally | None = None) -> SampleTar:
    return SampleTar(TarReader(io.BytesIO(tar_bytes(members)), seekable=True), "t.tar", tally)


def decode(
    members: Members, channels: int | None = None, start: int = 0, *, keys: bool = False
) -> dict[str, NDArray[np.generic]]:
    """All samples from ``start`` on, three at a time."""
    layout = layout_of(next(sample_tar(members).groups()), "t.tar", channels)
    rows = SampleRows(sample_tar(members).groups(start), "t.tar", layout, start)
    room = layout.allocate(50, keys=keys)
    count = 0
    while taken := rows.take(room, count, 3):
        count += taken
    assert rows.at_end()
    return {name: values[:count] for name, values in room.items()}


def npy(array: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def png_members(images: NDArray[np.uint8]) -> list[tuple[str, bytes]]:
    return [
        member
        for i, image in enumerate(images)
        for member in ((f"{i}.cls", b"%d\n" % i), (f"{i}.png", encoded(image.squeeze())))
    ]


# ----------------------------------------------------------------------------------------- writing
@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_stock_webdataset_reads_what_we_write(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    paths = write_set(tmp_path, images, per_tar=3, conditions=images[::-1])
    assert [path.name for path in paths] == ["train-000000.tar", "train-000001.tar"]
    mode = "l8" if images.shape[3] == 1 else "rgb8"
    stock = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False)
    found = list(stock.decode(mode))
    assert [sample["__key__"] for sample in found] == [f"{i:06d}" for i in range(4)]
    for i, sample in enumerate(found):
        np.testing.assert_array_equal(sample["png"], images[i].squeeze())
        np.testing.assert_array_equal(sample["condition.png"], images[3 - i].squeeze())
        assert sample["cls"] == i
        assert sample["json"] == {"key": f"{i:016x}"}


def test_what_we_write_comes_back(tmp_path: Path) -> None:
    samples = [
        OutSample(f"a/{i}", image, i % 2, GREY[i] // 2, 2**64 - 1 - i)
        for i, image in enumerate(GREY)
    ]
    sizes = write_tars(tmp_path, "val", samples, per_tar=10, classes=["cat", "dog"])
    assert sizes == {"val-000000.tar": 4}
    data = (tmp_path / "val-000000.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    found = decode(members, keys=True)
    np.testing.assert_array_equal(found["image"], GREY)
    np.testing.assert_array_equal(found["condition"], GREY // 2)
    assert found["label"].tolist() == [0, 1, 0, 1]
    assert found["key"].tolist() == [2**64 - 1 - i for i in range(4)]
    about = [json.loads(group.data["json"]) for group in sample_tar(members).groups()]
    assert [entry["class"] for entry in about] == ["cat", "dog", "cat", "dog"]


def test_jpeg_is_close(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.arange(0, 128, 4, dtype=np.uint8)[:, None, None], (32, 32, 3))
    write_tars(tmp_path, "train", [OutSample("a", smooth)], image="jpg")
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        assert sorted(tar.getnames()) == ["a.jpg", "a.json"]
    with (tmp_path / "train-000000.tar").open("rb") as file:
        groups = list(SampleTar(TarReader(file, seekable=True), "t").groups())
    layout = layout_of(groups[0], "t")
    assert layout == Layout((32, 32, 3), False, False)
    room = layout.allocate(1)
    SampleRows(iter(groups), "t", layout).take(room, 0, 1)
    assert np.abs(room["image"][0].astype(int) - smooth).max() < 6


def test_tars_are_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_set(tmp_path / "a", GREY, per_tar=3)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    monkeypatch.setattr(os, "getuid", lambda: 4321, raising=False)
    mask = os.umask(0o077)
    try:
        second = write_set(tmp_path / "b", GREY, per_tar=3)
    finally:
        os.umask(mask)
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    with tarfile.open(first[0]) as tar:
        for info in tar:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")
            assert info.mode == 0o644
    assert json.loads((tmp_path / "a" / "sizes.json").read_text()) == {
        "train-000000.tar": 3,
        "train-000001.tar": 1,
    }


def test_a_tar_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def samples():  # type: ignore[no-untyped-def]
        yield OutSample("a", GREY[0])
        yield OutSample("b", GREY[1])
        raise OSError("the disk of the source is gone")

    with pytest.raises(OSError, match="gone"):
        write_tars(tmp_path, "train", samples(), per_tar=1000)
    assert list(tmp_path.iterdir()) == []
    write_sizes(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["sizes.json"]


@pytest.mark.parametrize("key", ["a.b", "", "a/", "/a", "../a", "__a__/b", ".a", "a/../b"])
def test_keys_that_would_be_read_differently_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="is no key of a sample"):
        write_tars(tmp_path, "train", [OutSample(key, GREY[0])])


def test_equal_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"two samples of train-000000\.tar are 'a'"):
        write_tars(tmp_path, "train", [OutSample("a", GREY[0]), OutSample("a", GREY[1])])


# ----------------------------------------------------------------------------------------- reading
@pytest.mark.parametrize(
    "name",
    ["a.png", "d/a.png", "d.e/a.PNG", "a.b.png", "a", ".a.png", "d.e/a", "__x__/a.png",
     "__x__", "__a.png", "d/__x__/a.png"],
)  # fmt: skip
def test_keys_are_those_of_webdataset(name: str, tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes(tar_bytes([(name, b"1")]))
    stock = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
    expected = None
    if stock:
        (kind,) = (key for key in stock[0] if not key.startswith("__"))
        expected = stock[0]["__key__"], kind
    assert split_name(name) == expected


def test_images_are_decoded_as_stock_decoding_does(tmp_path: Path) -> None:
    pixels = COLOUR[0]
    palette = Image.fromarray(pixels).quantize(8)
    images = {
        "png": Image.fromarray(np.dstack([pixels, GREY[0]])),  # RGBA
        "jpg": Image.fromarray(pixels),
        "jpeg": Image.fromarray(pixels).convert("CMYK"),
        "webp": Image.fromarray(pixels),
    }
    for index, (kind, image) in enumerate([*images.items(), ("png", palette)]):
        file = io.BytesIO()
        image.save(file, {"jpg": "JPEG"}.get(kind, kind.upper()))
        path = tmp_path / f"{index}.tar"
        path.write_bytes(tar_bytes([(f"a.{kind}", file.getvalue())]))
        for channels, mode in ((1, "l8"), (3, "rgb8")):
            (stock,) = webdataset.WebDataset(str(path), shardshuffle=False).decode(mode)
            expected = stock[kind].reshape(6, 5, channels)
            found = decode([(f"a.{kind}", file.getvalue())], channels)["image"][0]
            np.testing.assert_array_equal(found, expected)


def test_sixteen_bits_become_eight() -> None:
    deep = np.arange(30, dtype=np.uint16).reshape(6, 5) * 2184
    members = [("a.png", encoded(deep))]
    for channels in (None, 1, 3):
        found = decode(members, channels)["image"][0]
        assert found.shape == (6, 5, channels or 1)
        assert (found == (deep >> 8)[:, :, None]).all()


def test_the_extension_need_not_be_true_but_the_format_must_be_plain() -> None:
    np.testing.assert_array_equal(
        decode([("a.jpg", encoded(GREY[0].squeeze()))])["image"], GREY[:1]
    )
    file = io.BytesIO()
    Image.fromarray(COLOUR[0]).save(file, "BMP")
    with pytest.raises(BadTar, match=r"t.tar: a.png cannot be decoded \(UnidentifiedImageError"):
        decode([("a.png", file.getvalue())])


def test_arrays_per_sample() -> None:
    members = [("a.npy", npy(GREY[0].squeeze())), ("b.npy", npy(GREY[1]))]
    np.testing.assert_array_equal(decode(members)["image"], GREY[:2])
    for bad in (GREY[0].astype(np.int64), GREY[0].ravel(), np.asfortranarray(COLOUR[0])):
        with pytest.raises(BadTar, match=r"t\.tar: a\.npy"):
            decode([("a.npy", npy(bad))])
    with pytest.raises(BadTar, match=r"which uint8 \(6, 5, 1\) has not"):
        decode([("a.npy", npy(GREY[0])[:-1])])


def test_labels_and_where_they_come_from() -> None:
    image = encoded(GREY[0].squeeze())
    for members, label in (
        ([("a.cls", b" 7\n")], 7),
        ([("a.cls.txt", b"8")], 8),
        ([("a.json", b'{"label": 9}')], 9),
        ([("a.cls", b"1"), ("a.cls.txt", b"2"), ("a.json", b'{"label": 3}')], 1),
        ([("a.cls.txt", b"2"), ("a.json", b'{"label": 3}')], 2),
        ([("a.CLS", b"-5")], -5),
    ):
        assert decode([*members, ("a.png", image)])["label"].tolist() == [label]
    for text in (b'{"label": "cat"}', b'{"label": true}', b"[1]", b'{"label": 1e3}', b"{}"):
        assert "label" not in decode([("a.json", text), ("a.png", image)])
    for kind, text in (("cls", b"cat"), ("cls", b""), ("cls", b"1_0"), ("json", b"{")):
        with pytest.raises(BadTar, match=rf"t.tar: a\.{kind} is .*no"):
            decode([(f"a.{kind}", text), ("a.png", image)])


def test_identities_are_read_or_made_of_the_bytes() -> None:
    image = encoded(GREY[0].squeeze())
    told = decode([("a.json", b'{"key": "00000000000000ff"}'), ("a.png", image)], keys=True)
    assert told["key"].tolist() == [255]
    made = decode([("a.json", b'{"key": "a name"}'), ("a.png", image)], keys=True)
    assert made["key"].tolist() == decode([("b.png", image)], keys=True)["key"].tolist()
    other = decode([("a.png", encoded(GREY[1].squeeze()))], keys=True)
    assert made["key"].tolist() != other["key"].tolist()


@pytest.mark.parametrize("start", range(5))
def test_reading_begins_at_any_sample(start: int) -> None:
    found = decode(png_members(GREY), start=start)
    np.testing.assert_array_equal(found["image"], GREY[start:])
    assert found["label"].tolist() == list(range(start, 4))


def test_what_is_passed_over_is_not_decoded() -> None:
    members = png_members(GREY)
    members[1] = ("0.png", b"junk")
    layout = Layout((6, 5, 1), True, False)
    with pytest.raises(BadTar, match=r"0\.png cannot be decoded"):
        SampleRows(sample_tar(members).groups(), "t", layout).take(layout.allocate(4), 0, 4)
    room = layout.allocate(3)
    assert SampleRows(sample_tar(members).groups(1), "t", layout, 1).take(room, 0, 4) == 3
    np.testing.assert_array_equal(room["image"], GREY[1:])
    assert sample_tar(members).count() == 4


def test_counting_reads_headers_only() -> None:
    tally = Tally()
    members = [*png_members(GREY), ("readme", b"x"), ("4.txt", b"x"), ("5.cls", b"5")]
    assert sample_tar(members, tally).count() == 4
    assert tally.ignored == {"files without a key": 1, ".txt": 1, "samples without an image": 2}
    assert tally.lines() == [
        "members of tars that are not used: samples without an image (2), files without a key (1), "
        ".txt (1)"
    ]


# ------------------------------------------------------------------------------------------- packs
def pack_members(images: NDArray[np.uint8], sizes: Sequence[int]) -> list[tuple[str, bytes]]:
    """As our shards have them."""
    members, at = [], 0
    for number, size in enumerate(sizes):
        rows = np.arange(at, at + size)
        at += size
        members += [
            (f"{number:06d}.condition.npy", npy(images[rows][:, ::-1].copy())),
            (f"{number:06d}.image.npy", npy(images[rows])),
            (f"{number:06d}.key.npy", npy(rows.astype(np.uint64) + 100)),
            (f"{number:06d}.label.npy", npy(rows)),
        ]
    return members


@pytest.mark.parametrize("start", range(10))
def test_packs_without_a_manifest(start: int) -> None:
    images = random_images(9, (40, 30, 3))  # longer than what is read for the header
    members = pack_members(images, [4, 4, 1])
    assert sample_tar(members).count() == 9
    found = decode(members, start=start, keys=True)
    np.testing.assert_array_equal(found["image"], images[start:])
    np.testing.assert_array_equal(found["condition"], images[start:, ::-1])
    assert found["label"].tolist() == list(range(start, 9))
    assert found["key"].tolist() == list(range(start + 100, 109))


def test_packs_that_cannot_be_read() -> None:
    bits = np.packbits(GREY.reshape(4, -1) > 9, axis=1)
    with pytest.raises(BadTar, match=r"packed bits, whose shape only a manifest.json tells"):
        sample_tar([("0.image.npy", npy(bits))]).count()
    with pytest.raises(BadTar, match=r"0.image.npy is float64 \(4, 6, 5, 1\), not uint8"):
        sample_tar([("0.image.npy", npy(GREY.astype(float)))]).count()
    with pytest.raises(BadTar, match=r"is no \.npy file that can be read"):
        sample_tar([("0.image.npy", b"junk")]).count()
    with pytest.raises(Unlike, match=r"0.label.npy is int64 \(3,\), expected int64 \(4,\)"):
        decode([("0.image.npy", npy(GREY)), ("0.label.npy", npy(np.arange(3)))])


# --------------------------------------------------------------------------------- what goes wrong
def test_members_that_lie_apart_are_an_error() -> None:
    members = png_members(GREY)
    apart = [*members[1::2], *members[0::2]]
    with pytest.raises(BadTar, match=r"t\.tar: the members of sample 0 are not side by side"):
        sample_tar(apart).count()


def test_two_images_of_one_sample_are_an_error() -> None:
    image = encoded(GREY[0].squeeze())
    with pytest.raises(BadTar, match="sample a has several images: png, jpg"):
        sample_tar([("a.png", image), ("a.jpg", image)]).count()
    with pytest.raises(BadTar, match=r"sample a has two members \.png"):
        sample_tar([("a.png", image), ("a.PNG", image)]).count()


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (
            [("1.cls", b"1"), ("1.png", encoded(np.zeros((5, 6), np.uint8)))],
            "1.png is 5x6x1, the first of the set 6x5x1: make them alike with `fastvae-data",
        ),
        (
            [("1.cls", b"1"), ("1.npy", npy(COLOUR[0]))],
            "1.npy is 6x5x3, the first of the set 6x5x1",
        ),
        ([("1.png", encoded(GREY[1].squeeze()))], "sample 1 has no label, unlike"),
        (
            [("1.cls", b"1"), ("1.condition.png", b""), ("1.png", encoded(GREY[1].squeeze()))],
            "sample 1 has a condition, unlike",
        ),
    ],
)
def test_samples_of_a_set_are_alike(second: Members, says: str) -> None:
    with pytest.raises(Unlike, match=f"t.tar: {says}"):
        decode([*png_members(GREY[:1]), *second])


def test_damaged_images_are_named() -> None:
    """Or the damage is harmless: PNG has checksums."""
    members = png_members(GREY)
    name, data = members[5]
    noticed = 0
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        members[5] = name, bytes(damaged)
        try:
            found = decode(members)
        except (BadTar, Unlike):
            noticed += 1
        else:
            np.testing.assert_array_equal(found["image"], GREY)
    assert noticed > 0.7 * len(data)
    for cut in (data[:60], b""):
        members[5] = name, cut
        with pytest.raises(BadTar, match=r"t\.tar: 2\.png cannot be decoded .*: copy the tar"):
            decode(members)


def test_errors_come_back_from_workers_as_they_were() -> None:
    for error in (BadTar("t.tar: bad"), BadTar("t.tar: bad", "mend it")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.what) == (BadTar, str(error), "t.tar: bad")


def test_classes_are_read_from_beside_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_classes(tmp_path) == ()
    path = tmp_path / CLASSES
    path.write_text('["cat", "d\u00f6g"]', encoding="utf-8")
    assert read_classes(tmp_path) == ("cat", "d\u00f6g")
    for text in ('{"cat": 0}', '["cat", 1]', '["cat"', "[" * 100_000, "\udcff"):
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError, match=rf"^{path} is no list of names in JSON: "):
            read_classes(tmp_path)
    monkeypatch.setattr("fastvae.data.sample_tar._MOST_CLASSES", 10)
    path.write_text('["much longer than ten"]')
    with pytest.raises(UserError, match="is larger than 10 bytes"):
        read_classes(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="is no regular file"):
        read_classes(tmp_path)


def test_a_damaged_tar_is_named() -> None:
    data = tar_bytes(png_members(GREY))
    tar = SampleTar(TarReader(io.BytesIO(data[:3000]), seekable=True), "t.tar")
    with pytest.raises(
        BadTar, match=r"^t.tar: cut off at byte 3,000, within .*: copy the tar"
    ) as e:
        tar.count()
    assert "\n" not in str(e.value)
    tar = SampleTar(TarReader(io.BytesIO(data[:2500])), "t.tar")
    layout = Layout((6, 5, 1), True, False)
    with pytest.raises(BadTar, match=r"^t.tar: cut off at byte 2,500"):
        SampleRows(tar.groups(), "t.tar", layout).take(layout.allocate(4), 0, 4)


class Bomb:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    import pickle

    import torch

    trap = tmp_path / "trap"
    bomb = pickle.dumps(Bomb(trap))
    torch.save(Bomb(trap), tmp_path / "bomb.pt")
    members = [("0.cls", b"3"), ("0.png", encoded(GREY[0].squeeze()))]
    for kind in ("pkl", "pickle", "pyd", "pth", "pt", "x.pyd"):
        members.append((f"0.{kind}", bomb if kind != "pt" else (tmp_path / "bomb.pt").read_bytes()))
    array = io.BytesIO()
    np.save(array, np.array([Bomb(trap)], dtype=object), allow_pickle=True)
    members += [("1.cls", b"3"), ("1.npy", array.getvalue())]
    tally = Tally()
    groups = sample_tar(members, tally).groups()
    first = next(groups)
    assert set(first.data) == {"cls", "png"}
    layout = layout_of(first, "t.tar")
    with pytest.raises(BadTar, match=r"1\.npy"):
        SampleRows(groups, "t.tar", layout).take(layout.allocate(1), 0, 1)
    assert tally.lines() == [
        "6 pickled members of tars (.pickle, .pkl, .pt, .pth, .pyd; the first: 0.pkl in t.tar) are "
        "left alone, since loading them can run any program"
    ]
    assert not trap.exists()
    pickle.loads(bomb)  # it would have gone off
    assert trap.exists()


def test_reading_imports_neither_torch_nor_webdataset() -> None:
    code = (
        "import sys, fastvae.data.sample_rows, fastvae.data.windows; "
        "assert not {'torch', 'webdataset'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "shape",
    [(-5, 6, 5, 1), (0, 6, 5, 1), (4, -6, -5, 1), (2**70, 6, 5, 1), (10**12, 6, 5, 1),
     (1, 2**22, 2**22, 1), (3, 6, 5, 1), (5, 6, 5, 1)],
)  # fmt: skip
def test_packs_that_are_not_what_they_say(shape: tuple[int, ...]) -> None:
    """Neither counted nor allocated: the size of the member tells."""
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    data = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + head.ljust(117) + b"\n"
    data += bytes(4 * 30)
    for use in (lambda tar: tar.count(), lambda tar: list(tar.groups())):
        with pytest.raises(BadTar, match=r"000000\.image\.npy"):
            use(sample_tar([("000000.image.npy", data)]))
