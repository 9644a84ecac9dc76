"""Quick, Draw!'s 28x28 bitmaps: one ``.npy`` of uint8 [n, 784] per category, white ink on black."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastvae.data.npy import read_header
from fastvae.errors import UserError

SIDE = 28
_FETCH = "fetch it again: fastvae-data download quickdraw --kind bitmap"


def read_bitmaps(path: Path) -> NDArray[np.uint8]:
    """Map the bitmaps of one category into memory, read-only.

    Nothing is unpickled, and what the header says is held against the file before it is mapped.

    Returns:
        (N, 28, 28) uint8, in the order of the category's simplified drawings.
    """
    try:
        with path.open("rb") as file:
            shape, fortran, dtype = read_header(file, str(path), _FETCH)
            start, size = file.tell(), path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if dtype != np.uint8 or len(shape) != 2 or shape[1] != SIDE * SIDE or fortran:
        order = ", in Fortran order" if fortran else ""
        raise UserError(
            f"{path} holds an array of {dtype} with shape {shape}{order}: expected Quick, Draw! "
            f"bitmaps, uint8 (n, {SIDE * SIDE})"
        )
    expected = start + shape[0] * shape[1]
    if size != expected:
        raise UserError(
            f"{path} is cut short or too long: {size} bytes, its header says {expected}: {_FETCH}"
        )
    if not shape[0]:  # an empty range cannot be mapped
        return np.empty((0, SIDE, SIDE), dtype=np.uint8)
    pixels = np.memmap(path, dtype=np.uint8, mode="r", offset=start, shape=shape)
    return pixels.reshape(-1, SIDE, SIDE)
