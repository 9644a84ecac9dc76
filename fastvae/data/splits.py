"""Splits as stable functions of a sample's identity.

The identity is the content of the image, hashed: adding, removing or reordering files moves no
other sample between splits, and copies of an image never end up on both sides.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def identity_fraction(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """A uniform number in [0, 1) per image, from a hash of its bytes.

    Shapes: images (N, ...) uint8; returns (N,) float64.
    """
    rows = np.ascontiguousarray(images)
    digests = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, dtype="<u8").astype(np.float64) / 2.0**64


def split_indices(
    images: NDArray[np.uint8], val_fraction: float, test_fraction: float = 0.0
) -> dict[str, NDArray[np.int64]]:
    """Indices of the train, val and test samples, each ascending."""
    u = identity_fraction(images)
    test = u < test_fraction
    val = ~test & (u < test_fraction + val_fraction)
    parts = {"train": ~test & ~val, "val": val, "test": test}
    return {name: np.flatnonzero(mask).astype(np.int64) for name, mask in parts.items()}
