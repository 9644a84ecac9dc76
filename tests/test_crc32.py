"""The fast CRC-32 against zlib's."""

from __future__ import annotations

import mmap
import zlib
from pathlib import Path

import numpy as np
import pytest

from fastvae.kernels import crc32 as module
from fastvae.kernels.crc32 import crc32

DATA = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)


@pytest.fixture
def folded_from_64_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short buffers, which are zlib's otherwise, take the fast form too."""
    if not module.FOLDS:
        pytest.skip("this processor multiplies no polynomials (pclmul)")
    monkeypatch.setattr(module, "_SHORT", 64)


@pytest.mark.usefixtures("folded_from_64_bytes")
def test_every_length() -> None:
    for length in range(1025):
        offset = length % 67
        part = DATA[offset : offset + length]
        assert crc32(part) == zlib.crc32(part), length


@pytest.mark.usefixtures("folded_from_64_bytes")
def test_every_offset() -> None:
    for offset in range(130):
        part = DATA[offset : offset + 4096 + offset]
        assert crc32(part) == zlib.crc32(part), offset


@pytest.mark.usefixtures("folded_from_64_bytes")
@pytest.mark.parametrize("value", [0, 255])
def test_bytes_that_are_all_the_same(value: int) -> None:
    for length in (64, 127, 128, 192, 5000):
        part = np.full(length, value, dtype=np.uint8)
        assert crc32(part) == zlib.crc32(part), length


@pytest.mark.usefixtures("folded_from_64_bytes")
def test_every_flipped_bit_changes_it() -> None:
    part = DATA[:200].copy()
    seen = {crc32(part)}
    for byte in range(200):
        for bit in range(8):
            part[byte] ^= 1 << bit
            found = crc32(part)
            assert found == zlib.crc32(part)
            seen.add(found)
            part[byte] ^= 1 << bit
    assert len(seen) == 1601


def test_long_buffers_of_all_kinds(tmp_path: Path) -> None:
    whole = zlib.crc32(DATA)
    path = tmp_path / "data"
    path.write_bytes(DATA.tobytes())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert crc32(memoryview(mapped)) == whole
        assert crc32(np.frombuffer(mapped, dtype=np.uint8)[3:]) == zlib.crc32(DATA[3:])
    for buffer in (DATA, DATA.tobytes(), bytearray(DATA), DATA.reshape(256, -1), DATA.view("<i8")):
        assert crc32(buffer) == whole


def test_nothing_and_next_to_nothing() -> None:
    assert crc32(b"") == 0
    assert crc32(np.empty((0, 3), dtype=np.uint8)) == 0
    assert crc32(b"123456789") == 0xCBF43926  # the check value that everybody gives


def test_gaps_are_refused() -> None:
    for gaps in (DATA[::2], DATA.reshape(1024, -1).T):
        with pytest.raises((BufferError, TypeError, ValueError)):
            crc32(gaps)


def test_without_the_instruction_it_is_zlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLDS", False)
    assert crc32(DATA) == zlib.crc32(DATA)
