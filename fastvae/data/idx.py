"""The idx format of the original MNIST files, plain or gzip-compressed.

Header: two zero bytes, a type byte (0x08 = uint8), the number of axes, then each axis as a
big-endian uint32; the values follow in C order (LeCun, Cortes, Burges, "The MNIST database").
"""

from __future__ import annotations

import gzip
import math
import stat
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from fastvae.errors import UserError

_CHUNK = 1 << 20  # bytes that are read at once
_FETCH = "fetch it again, e.g. fastvae-data download mnist --root"


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a uint8 idx file; a UserError names the file when it is damaged or of another type."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"cannot read {path}: it is no regular file")
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            return _read(cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file, path)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path} is damaged or cut short ({error}): {_FETCH} {path.parent}"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _read(file: BinaryIO, path: Path) -> NDArray[np.uint8]:
    """The array in a file. No more is unpacked than the header speaks of, and a byte to tell."""
    data = bytearray(file.read(4))
    if len(data) < 4 or data[:2] != b"\0\0" or not 1 <= data[3] <= 4:
        raise UserError(f"{path} is not an idx file (its first bytes are {data.hex()!r})")
    if data[2] != 0x08:
        raise UserError(f"{path} holds idx type 0x{data[2]:02x}; only uint8 (0x08) can be read")
    axes = data[3]
    header = 4 + 4 * axes
    data += file.read(header - 4)
    shape = struct.unpack(f">{axes}I", data[4:header]) if len(data) == header else ()
    expected = header + math.prod(shape)
    while part := file.read(min(_CHUNK, expected + 1 - len(data))):
        data += part
    if len(data) != expected or not shape:
        raise UserError(
            f"{path} is cut short or too long: {len(data)} bytes, its header says {expected}: "
            f"{_FETCH} {path.parent}"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)
