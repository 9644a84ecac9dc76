"""Files of FFCV's, read and written without FFCV (with it: test_ffcv.py)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastvae.data import beton_layout as layout
from fastvae.data.beton import BetonFile, BetonWriter
from fastvae.data.format import Field
from fastvae.data.sources.beton import BetonSource
from fastvae.errors import UserError
from tests.beton_cases import FIELDS, samples, without_description, write, write_rgb

N = 257
Damage = Callable[[bytearray], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "train.beton", samples(N))


def equal(path: Path, n: int = N) -> None:
    got, expected = BetonFile(path).gather(np.arange(n)), samples(n)
    assert set(got) == set(expected)
    for name, values in expected.items():
        assert got[name].dtype == values.dtype, name
        np.testing.assert_array_equal(got[name], values, err_msg=name)


# ---------------------------------------------------------------------------------- round trip
def test_what_is_written_is_read(path: Path) -> None:
    equal(path)
    file = BetonFile(path, verify=True)
    assert (file.n, file.classes, file.preprocess) == (N, ("a", "b"), {"x": 1})
    assert file.as_fields() == FIELDS
    some = np.array([5, 5, N - 1, 0])
    np.testing.assert_array_equal(file.gather(some)["image"], samples(N)["image"][some])
    np.testing.assert_array_equal(file.labels(), samples(N)["label"])
    with pytest.raises(IndexError):
        file.gather(np.array([N]))
    with pytest.raises(IndexError):
        file.gather(np.array([-1]))


def test_layout_by_hand(path: Path) -> None:
    """Read with struct alone, by the format that FFCV documents in its code."""
    raw, rows = path.read_bytes(), samples(N)
    version, fields, page, n, table = struct.unpack_from("<HHIQQ", raw)
    assert (version, fields, page, n) == (2, 4, 2 << 20, N)
    for i, name in enumerate(FIELDS):
        kind, called = struct.unpack_from("<B16s", raw, 24 + 1041 * i)
        assert (kind, called.rstrip(b"\0").decode()) == (4 if i < 2 else 1, name)
    shape = struct.unpack_from("<4Q", raw, 24 + 17)
    (length,) = struct.unpack_from("<Q", raw, 24 + 17 + 256)
    assert shape == (9, 7, 3, 0)
    assert raw[24 + 17 + 264 :][:length] == b'[["", "|u1"]]'
    size = 9 * 7 * 3
    for i in range(N):
        one, two, label, key = struct.unpack_from("<QQqQ", raw, 24 + 4 * 1041 + 32 * i)
        assert raw[one : one + size] == rows["image"][i].tobytes()
        assert raw[two : two + size] == rows["condition"][i].tobytes()
        assert (label, key) == (rows["label"][i], rows["key"][i])
        assert one // page == (two + size - 1) // page
        assert struct.unpack_from("<6Q", raw, table + 48 * i) == (i, one, size, i, two, size)
    assert len(raw) == table + 48 * N


def test_bytes_depend_on_nothing_but_the_samples(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.beton", samples(N), step=N)
    small = write(tmp_path / "b.beton", samples(N), step=3)
    assert whole.read_bytes() == small.read_bytes()
    texts = [layout.description_path(p).read_text() for p in (whole, small)]
    assert texts[0] == texts[1]
    about = json.loads(texts[0])
    assert about["sha256"] == hashlib.sha256(whole.read_bytes()).hexdigest()
    assert about["size"] == whole.stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.beton", "a.beton.json", "b.beton", "b.beton.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("uint8", (700, 1000, 3)), ("uint8", (1500, 1500, 1)), ("int64", (4, 1)), ("int64", (3,))],
)
def test_samples_of_any_size_lie_within_pages(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    fields = {"image": Field(dtype="uint8", shape=(2, 2, 1)), "x": Field(dtype=dtype, shape=shape)}
    rows = samples(5, fields)
    file = BetonFile(write(tmp_path / "x.beton", rows, fields, step=2), verify=True)
    np.testing.assert_array_equal(file.take(file.field("x"), np.arange(5)), rows["x"])
    size = sum(field.row_bytes for field in fields.values())
    first, page = file.fields["image"].pointers, file.page_bytes
    assert first is not None
    assert size <= page
    np.testing.assert_array_equal(first // page, (first + np.uint64(size - 1)) // page)


def test_pages_waste_little() -> None:
    for size in (1, 784, 12288, 196608, 786432, 3 << 20, (1 << 31) - 5):
        page = layout.page_size(size)
        assert layout.SMALLEST_PAGE <= page <= layout.LARGEST_PAGE
        assert page >= size
        assert page == layout.LARGEST_PAGE or page % size <= page // 16


def test_bits_are_stored_as_pixels(tmp_path: Path) -> None:
    fields = {"image": Field(dtype="uint8", shape=(28, 28, 1), bits=True)}
    rows = samples(10, fields)
    file = BetonFile(write(tmp_path / "x.beton", rows, fields))
    assert not file.as_fields()["image"].bits
    np.testing.assert_array_equal(file.gather(np.arange(10))["image"], rows["image"])


# ---------------------------------------------------------------------------------- writing
def test_nothing_is_left_of_a_file_that_was_not_finished(path: Path) -> None:
    before = path.read_bytes()
    for count, expected in ((1, "1 samples of 2"), (3, "more than")):
        with pytest.raises(ValueError, match=expected), BetonWriter(path, FIELDS, 2) as writer:
            writer.append(samples(count))
    with pytest.raises(ZeroDivisionError), BetonWriter(path, FIELDS, 2) as writer:
        writer.append({**samples(2), "label": 1 // np.zeros((), dtype=int).item()})
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 2
    equal(path)


def test_a_file_is_replaced_together_with_its_description(path: Path) -> None:
    write(path, samples(7, seed=1))
    np.testing.assert_array_equal(
        BetonFile(path, verify=True).gather(np.arange(7))["key"], samples(7, seed=1)["key"]
    )


def test_rows_that_do_not_fit(tmp_path: Path) -> None:
    with BetonWriter(tmp_path / "x.beton", FIELDS, 4) as writer:
        writer.append(samples(4))
        with pytest.raises(ValueError, match="rows have"):
            writer.append({"image": samples(1)["image"]})
        with pytest.raises(ValueError, match="expected"):
            writer.append({**samples(1), "label": np.zeros(1, dtype=np.int32)})
        with pytest.raises(ValueError, match="different numbers"):
            writer.append({**samples(1), "label": np.zeros(2, dtype=np.int64)})
    for fields in ({}, {"a name of more than 16": FIELDS["image"]}, {"": FIELDS["image"]}):
        with pytest.raises(ValueError, match=r"samples of 0|no name"):
            BetonWriter(tmp_path / "y.beton", fields, 4)
    with pytest.raises(ValueError, match="single uint8"):
        BetonWriter(tmp_path / "y.beton", {"x": Field(dtype="uint8", shape=())}, 4)


# ---------------------------------------------------------------------------------- damage
def put(form: str, place: int, *values: int | bytes) -> Damage:
    return lambda raw: struct.pack_into(form, raw, place, *values)


DESCRIBED = 24 + 17  # where the arguments of the first field are
NUMBERS = 24 + 4 * 1041
HOSTILE: dict[str, tuple[Damage, str]] = {
    "version": (put("<H", 0, 3), "no .beton file of version 2"),
    "no fields": (put("<H", 2, 0), "impossible header"),
    "many fields": (put("<H", 2, 65535), "impossible header"),
    "more fields than bytes": (put("<H", 2, 256), "cut short|impossible name"),
    "page": (put("<I", 4, 3 << 20), "impossible header"),
    "no samples": (put("<Q", 8, 0), "impossible header"),
    "many samples": (put("<Q", 8, 2**63), "do not fit"),
    "table after the end": (put("<Q", 16, 2**63 + 24), "do not fit"),
    "table in the header": (put("<Q", 16, 24), "do not fit"),
    "type": (put("<B", 24, 255), "'image' of a type of its own"),
    "no name": (put("<B", 25, 0), "impossible name"),
    "strange name": (put("<B", 25, 200), "impossible name"),
    "two of a name": (put("<16s", 24 + 1041 + 1, b"image"), "impossible name"),
    "shape": (put("<Q", DESCRIBED, 2**60), "sample 0 of field 'image'"),
    "no shape": (put("<3Q", DESCRIBED, 0, 0, 0), "no array of numbers"),
    "gap in shape": (put("<Q", DESCRIBED, 0), "no array of numbers"),
    "text length": (put("<Q", DESCRIBED + 256, 2**63), "no array of numbers"),
    "objects": (put("<13s", DESCRIBED + 264, b'[["", "|O8"]]'), "no array of numbers"),
    "dates": (put("<13s", DESCRIBED + 264, b'[["", "<M8"]]'), "no array of numbers"),
    "no text": (put("<13s", DESCRIBED + 264, b"[" * 13), "no array of numbers"),
    "place in the header": (put("<Q", NUMBERS + 32 * 3, 24), "sample 3 of field 'image'"),
    "place after the end": (put("<Q", NUMBERS + 32 * 3, 2**63 + 5), "sample 3 of field 'image'"),
    "other place": (put("<Q", NUMBERS + 32 * 3 + 8, 2**64 - 1), "sample 3 of field 'condition'"),
    "entry": (lambda raw: put("<Q", len(raw) - 16, 2**64 - 1)(raw), "allocation table"),
    "entry's size": (lambda raw: put("<Q", len(raw) - 8, 2**64 - 1)(raw), "allocation table"),
    "entry's sample": (lambda raw: put("<Q", len(raw) - 24, N)(raw), "allocation table"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_numbers(path: Path, name: str) -> None:
    """Without a description, so that nothing but the numbers themselves can tell."""
    damage, expected = HOSTILE[name]
    raw = bytearray(without_description(path).read_bytes())
    damage(raw)
    path.write_bytes(raw)
    with pytest.raises(UserError, match=expected) as caught:
        BetonFile(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_length(path: Path) -> None:
    raw = without_description(path).read_bytes()
    for size in [*range(0, 200, 7), *range(1000, 1 << 14, 501), *range(2 << 20, len(raw), 9001)]:
        path.write_bytes(raw[:size])
        with pytest.raises(UserError, match=r"cut short|no .beton file"):
            BetonFile(path)


def test_any_byte(path: Path) -> None:
    """One byte wrong anywhere in what describes the samples: an error, or another value."""
    raw = bytearray(without_description(path).read_bytes())
    random = np.random.default_rng(0)
    (table,) = struct.unpack_from("<Q", raw, 16)
    places = [*range(24), *random.integers(24, NUMBERS + 32 * N, 300)]
    places += [*range(24, 60), *random.integers(table, len(raw), 50)]
    opened = 0
    for place in places:
        was = raw[place]
        raw[place] ^= int(random.integers(1, 256))
        path.write_bytes(raw)
        raw[place] = was
        with contextlib.suppress(UserError):
            file = BetonFile(path)
            file.gather(np.arange(min(file.n, N)))
            opened += 1
    assert 0 < opened < len(places)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no such file: .*/none\.beton$"):
        BetonFile(tmp_path / "none.beton")
    pipe = tmp_path / "pipe.beton"
    os.mkfifo(pipe)
    for bad in (tmp_path, pipe):  # nor does it wait for a writer
        with pytest.raises(UserError, match=f"^{bad} is no regular file"):
            BetonFile(bad)


def test_a_description_that_is_too_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_LARGEST_DESCRIPTION", 10)
    with pytest.raises(UserError, match=r"train\.beton\.json is too large"):
        BetonFile(path)


def test_a_description_that_is_a_pipe(path: Path) -> None:
    layout.description_path(path).unlink()
    os.mkfifo(layout.description_path(path))
    with pytest.raises(UserError, match=r"train\.beton\.json is no regular file"):
        BetonFile(path)


SHRINKING = """
import sys, os, numpy, torch
from pathlib import Path
from fastvae.data.beton import BetonFile
from fastvae.data.sources.beton import BetonSource
from fastvae.errors import UserError

path = Path(sys.argv[1])
source, file = BetonSource(path), BetonFile(path)
source.gather(torch.arange(100))
field = file.field("image")
os.truncate(path, 600)
index = numpy.arange(100)
for read in (
    lambda: source.gather(torch.arange(100)),
    lambda: file.take(file.field("label"), index),
    lambda: file.gather(index),
    lambda: file.sizes(field),
    file.sha256,
):
    try:
        read()
    except UserError as error:
        print(error)
"""


@pytest.mark.parametrize("described", [True, False])
def test_a_file_that_shrinks_is_an_error(path: Path, described: bool) -> None:
    """And not the end of the process: what is mapped there is gone."""
    size = path.stat().st_size
    if not described:
        without_description(path)
    done = subprocess.run(
        [sys.executable, "-c", SHRINKING, str(path)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    for line in lines:
        assert line.startswith(f"{path} has shrunk from {size:,} to 600 bytes since it was opened")


# ---------------------------------------------------------------------------------- description
def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


def test_a_description_tells_of_damage(path: Path) -> None:
    raw = path.read_bytes()
    (table,) = struct.unpack_from("<Q", raw, 16)
    for place, where in ((NUMBERS + 32 * 9 + 16, "header"), (table + 20, "table")):
        flip(path, place)
        with pytest.raises(UserError, match=f"damaged: its {where}"):
            BetonFile(path)
        path.write_bytes(raw)
    for size, what in ((len(raw) - 24, "cut short"), (len(raw) + 24, "too long")):
        path.write_bytes(raw[:size].ljust(size, b"\0"))
        with pytest.raises(UserError, match=what):
            BetonFile(path)
        path.write_bytes(raw)
    flip(path, table - 5)
    with pytest.raises(UserError, match="SHA-256"):
        BetonFile(path, verify=True)
    file = BetonFile(path)
    with pytest.raises(UserError, match="page 0"):
        file.gather(np.arange(3))
    without_description(path)
    BetonFile(path, verify=True).gather(np.arange(3))  # nothing tells


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": "else"}, "does not describe"),
        ({"version": 2}, "version 2"),
        ({"size": "1"}, "a number is none"),
        ({"size": True}, "a number is none"),
        ({"sha256": "0"}, "checksums"),
        ({"classes": [1]}, "names"),
        ({"fields": []}, "damaged"),
        ({"fields": {}}, "is not what"),
        ({"pages": []}, "is not what"),
        ({"count": 5}, "is not what"),
    ],
)
def test_damaged_descriptions(path: Path, change: dict[str, object], expected: str) -> None:
    beside = layout.description_path(path)
    beside.write_text(json.dumps(json.loads(beside.read_text()) | change))
    with pytest.raises(UserError, match=expected) as caught:
        BetonFile(path)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\xff"])
def test_no_description(path: Path, text: str) -> None:
    layout.description_path(path).write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match=r"train\.beton\.json"):
        BetonFile(path)


# ---------------------------------------------------------------------------------- RGB fields
def pictures(n: int, high: int = 16, wide: int = 24) -> list[np.ndarray]:
    """Smooth, so that JPEG keeps them."""
    y, x = np.mgrid[:high, :wide]
    return [
        np.stack([y * 8 + i, x * 8 - i, (x + y) * 4], axis=2).clip(0, 255).astype(np.uint8)
        for i in range(n)
    ]


def test_raw_images(tmp_path: Path) -> None:
    images = pictures(6)
    source = BetonSource(write_rgb(tmp_path / "x.beton", images, [1] * 6))
    assert source.image_shape == (3, 16, 24)
    given = source.gather(torch.tensor([4, 0, 4]))
    np.testing.assert_array_equal(
        given.images.permute(0, 2, 3, 1).numpy(), np.stack([images[i] for i in (4, 0, 4)])
    )
    assert given.label is not None
    assert given.label.tolist() == [4, 0, 4]


def test_jpeg_images_are_decoded_to_convert_them_but_not_to_train(tmp_path: Path) -> None:
    images = pictures(6)
    path = write_rgb(tmp_path / "x.beton", images, [0, 1, 0, 0, 1, 0])
    with pytest.raises(UserError, match=r"'image' holds JPEG.*data\.source ffcv.*convert"):
        BetonSource(path)
    got = BetonFile(path).gather(np.array([1, 2]))["image"]
    np.testing.assert_array_equal(got[0], images[1])
    assert np.abs(got[1].astype(int) - images[2]).mean() < 3
    raw = bytearray(path.read_bytes())
    place = raw.index(b"\xff\xc0", 2 << 20)  # of sample 0: what says its size
    raw[place + 6] += 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"sample 0 of field 'image' cannot be decoded \(it is 17x"):
        BetonFile(path).gather(np.arange(1))
    raw[2 << 20] = 0
    path.write_bytes(raw)
    with pytest.raises(UserError, match="sample 0 of field 'image' cannot be decoded"):
        BetonFile(path).gather(np.arange(1))


def test_images_of_different_sizes(tmp_path: Path) -> None:
    images = [*pictures(3), *pictures(1, 16, 25)]
    path = write_rgb(tmp_path / "x.beton", images, [1] * 4)
    with pytest.raises(UserError, match=r"different sizes \(16x24 of sample 0, 16x25 of sample 3"):
        BetonSource(path)


def test_impossible_images(tmp_path: Path) -> None:
    path = write_rgb(tmp_path / "x.beton", pictures(3), [1, 1, 1])
    raw = bytearray(path.read_bytes())
    raw[24 + 2 * 1041] = 7  # mode of sample 0
    path.write_bytes(raw)
    with pytest.raises(UserError, match="impossible images"):
        BetonFile(path)


# ---------------------------------------------------------------------------------- the source
def test_source(path: Path) -> None:
    rows, index = samples(N), np.random.default_rng(1).permutation(N)
    source = BetonSource(path)
    assert (len(source), source.image_shape, source.classes) == (N, (3, 9, 7), ("a", "b"))
    assert source.has_condition
    given = source.gather(torch.from_numpy(index))
    for name, tensor in (("image", given.images), ("condition", given.condition)):
        assert tensor is not None
        np.testing.assert_array_equal(tensor.permute(0, 2, 3, 1).numpy(), rows[name][index])
    assert given.label is not None
    np.testing.assert_array_equal(given.label.numpy(), rows["label"][index])
    for wrong in (N, -1):
        with pytest.raises(IndexError):
            source.gather(torch.tensor([0, wrong]))
    known = source.fingerprint
    source.close()
    with pytest.raises((IndexError, ValueError)):
        source.gather(torch.tensor([0]))
    foreign = BetonSource(without_description(path))
    assert foreign.fingerprint == known
    assert foreign.classes == ()


def test_fields_are_found_by_what_they_are(tmp_path: Path) -> None:
    fields = {
        "y": Field(dtype="int64", shape=()),
        "pixels": Field(dtype="uint8", shape=(6, 5)),
        "x": Field(dtype="int64", shape=(3,)),
    }
    rows = samples(9, fields)
    with BetonWriter(tmp_path / "x.beton", fields, 9) as writer:
        writer.append(rows)
    source = BetonSource(tmp_path / "x.beton")
    given = source.gather(torch.arange(9))
    np.testing.assert_array_equal(given.images[:, 0].numpy(), rows["pixels"])
    assert given.label is not None
    np.testing.assert_array_equal(given.label.numpy(), rows["y"])
    fields["more"] = fields["pixels"]
    with BetonWriter(tmp_path / "x.beton", fields, 9) as writer:
        writer.append(samples(9, fields))
    with pytest.raises(UserError, match="called 'image', or only one, among 'y', 'pixels'"):
        BetonSource(tmp_path / "x.beton")


def big(path: Path) -> tuple[dict[str, np.ndarray], int]:
    """A file of three pages; its samples, and how many are on a page."""
    fields = {
        "image": Field(dtype="uint8", shape=(64, 64, 3)),
        "label": Field(dtype="int64", shape=()),
    }
    rows = samples(400, fields)
    write(path, rows, fields)
    return rows, layout.SMALLEST_PAGE // (64 * 64 * 3)


def test_a_damaged_page_is_named_when_it_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    _, per_page = big(path)
    flip(path, path.stat().st_size - 400 * 24 - 100)
    source = BetonSource(path)
    source.gather(torch.arange(2 * per_page))
    with pytest.raises(UserError, match=r"page 2 .*on-damage skip"):
        source.gather(torch.arange(399, 400))


def test_damaged_pages_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    rows, per_page = big(path)
    whole = BetonSource(path, on_damage="skip")
    assert (whole.lost, len(whole), whole.quarantined) == (0, 400, [])
    flip(path, BetonFile(path).first_page + layout.SMALLEST_PAGE + 1000)
    source = BetonSource(path, on_damage="skip")
    left = np.r_[0:per_page, 2 * per_page : 400]
    assert (source.lost, len(source)) == (per_page, len(left))
    assert "page 1" in source.quarantined[0]
    assert source.fingerprint != whole.fingerprint
    given = source.gather(torch.arange(len(source)))
    np.testing.assert_array_equal(given.images.permute(0, 2, 3, 1).numpy(), rows["image"][left])
    assert given.label is not None
    np.testing.assert_array_equal(given.label.numpy(), rows["label"][left])


# ---------------------------------------------------------------------------------- without FFCV
def test_reading_needs_neither_torch_nor_ffcv() -> None:
    code = (
        "import sys, fastvae.data.beton\n"
        "assert not {'torch', 'ffcv', 'PIL'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_without_ffcv_the_error_says_what_works(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastvae.data.sources.ffcv import FFCVSource

    monkeypatch.setitem(sys.modules, "ffcv", None)
    with pytest.raises(UserError, match=r"ffcv.*fastvae\[ffcv\].*--data\.source beton"):
        FFCVSource(path)
