"""Splits as stable functions of a sample's identity.

The identity is the content of an image, hashed, or the key that a drawing came with: adding,
removing or reordering files moves no other sample between splits, and copies never end up on both
sides.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from fastvae.data.plan import mix64


def identity(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A key per image (N, ...) from a hash of its bytes: (N,) uint64."""
    rows = np.ascontiguousarray(images)
    digests = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def identity_fraction(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """A uniform number in [0, 1) per image, from a hash of its bytes.

    Shapes: images (N, ...) uint8; returns (N,) float64.
    """
    return hash_fraction(identity(images))


def hash_fraction(key: NDArray[np.uint64]) -> NDArray[np.float64]:
    """A uniform number in [0, 1) per key (N,) that is a hash already."""
    return key.astype(np.float64) / 2.0**64


def split_indices(
    images: NDArray[np.uint8], val_fraction: float, test_fraction: float = 0.0
) -> dict[str, NDArray[np.int64]]:
    """Indices of the train, val and test samples, each ascending."""
    return split_fractions(identity_fraction(images), val_fraction, test_fraction)


def key_fraction(key: NDArray[np.uint64], seed: int = 0) -> NDArray[np.float64]:
    """A uniform number in [0, 1) per key (N,), from the key's bits mixed with those of ``seed``."""
    mixed = mix64(mix64(key, np.uint64(seed & (2**64 - 1))), np.uint64(0xD1B54A32D192ED03))
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53


def split_fractions(
    u: NDArray[np.float64], val_fraction: float, test_fraction: float
) -> dict[str, NDArray[np.int64]]:
    """Indices of the train, val and test samples, each ascending, by each one's number in [0, 1):
    the lowest go to test, the next to val."""
    test = u < test_fraction
    val = ~test & (u < test_fraction + val_fraction)
    parts = {"train": ~test & ~val, "val": val, "test": test}
    return {name: np.flatnonzero(mask).astype(np.int64) for name, mask in parts.items()}
