"""Quick, Draw!'s 28x28 bitmaps as .npy files: mapped, never unpickled, damage named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fastvae.data.bitmaps import read_bitmaps
from fastvae.errors import UserError

SHARED = Path(
    os.environ.get("FASTVAE_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
)


def bitmaps(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 784), dtype=np.uint8)


def test_reads_what_was_written_without_copying(tmp_path: Path) -> None:
    path = tmp_path / "cat.npy"
    np.save(path, bitmaps(5))
    images = read_bitmaps(path)
    assert images.shape == (5, 28, 28)
    assert images.dtype == np.uint8
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable
    np.testing.assert_array_equal(images.reshape(5, 784), bitmaps(5))


def test_second_version_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "cat.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, bitmaps(3), version=(2, 0))
    np.testing.assert_array_equal(read_bitmaps(path).reshape(3, 784), bitmaps(3))


def test_no_bitmaps(tmp_path: Path) -> None:
    np.save(tmp_path / "none.npy", bitmaps(0))
    assert read_bitmaps(tmp_path / "none.npy").shape == (0, 28, 28)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (bitmaps(2).astype(np.int16), "int16 with shape (2, 784)"),
        (bitmaps(2).reshape(2, 28, 28), "uint8 with shape (2, 28, 28)"),
        (bitmaps(2)[:, :783], "uint8 with shape (2, 783)"),
        (np.asfortranarray(bitmaps(2)), "(2, 784), in Fortran order"),
        (np.array([print, None]), "object with shape (2,)"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray, said: str) -> None:
    path = tmp_path / "cat.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(UserError) as caught:
        read_bitmaps(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 5, 20, 100, 128 + 3 * 784 - 1, 128 + 3 * 784 + 1])
def test_cut_and_overlong_files_are_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "cat.npy"
    np.save(path, bitmaps(3))
    content = path.read_bytes() + b"x"
    path.write_bytes(content[:size])
    with pytest.raises(UserError, match="fastvae-data download quickdraw --kind bitmap") as caught:
        read_bitmaps(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 784), }\n",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (9" + b"9" * 30 + b", 784), }\n",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (",
        b"__import__('os').system('true')\n",
        b"\xff" * 40,
        b"{" * 9000 + b"\n",
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "cat.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(UserError) as caught:
        read_bitmaps(path)
    assert "\n" not in str(caught.value)


def test_html_page_pickle_and_folder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cat.npy"
    path.write_text("<html>sign in first</html>")
    with pytest.raises(UserError, match=r"no \.npy file"):
        read_bitmaps(path)
    bitmaps(1).dump(path)
    with pytest.raises(UserError, match=r"no \.npy file"):
        read_bitmaps(path)
    with pytest.raises(UserError, match="cannot read"):
        read_bitmaps(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_bitmaps(tmp_path / "dog.npy")


def test_googles_own_bitmaps(tmp_path: Path) -> None:
    source = SHARED / "quickdraw" / "bitmap28" / "trains1000.bin"
    if not source.is_file():
        pytest.skip("no shared data here (FASTVAE_SHARED_DATA)")
    pixels = np.frombuffer(source.read_bytes(), dtype=np.uint8).reshape(1000, 784)
    np.save(tmp_path / "train.npy", pixels)
    images = read_bitmaps(tmp_path / "train.npy")
    np.testing.assert_array_equal(images.reshape(1000, 784), pixels)
    assert images[:, 0].mean() < images[:, 10:18].mean()  # ink is white, in the middle
