"""CRC-32C (Castagnoli), the checksum of Google's storage where it has no MD5."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78  # of RFC 3720, bits reversed
_BLOCK_BYTES = 1 << 20


def crc32c(path: Path) -> int:
    """CRC-32C of a file."""
    state = np.uint32(0xFFFFFFFF)
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            state = _update(state, np.frombuffer(block, dtype=np.uint8), _TABLE)
    return int(state) ^ 0xFFFFFFFF


def _table() -> NDArray[np.uint32]:
    """The remainder of each byte."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table[:] = (table >> 1) ^ (table & 1) * np.uint32(_POLYNOMIAL)
    return table


_TABLE = _table()


@njit(cache=True, nogil=True)
def _update(state: np.uint32, block: NDArray[np.uint8], table: NDArray[np.uint32]) -> np.uint32:
    for byte in block:
        state = table[(state ^ byte) & 0xFF] ^ (state >> np.uint32(8))
    return state
