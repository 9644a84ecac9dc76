"""The plan: which sample comes when, as a pure function of a few integers.

Order within an epoch is a keyed permutation: a Feistel network over 2^(2k) >= n values, walked
along its cycles until the value falls below n (Black and Rogaway, "Ciphers with arbitrary finite
domains", 2002). It needs no memory, any position can be computed anywhere, and the state to resume
from is the step number. The global batch of a step does not depend on the number of ranks: each
takes its slice.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fastvae.errors import UserError
from fastvae.kernels.permutation import permuted, permuted_run

Indices = NDArray[np.int64]
_ROUNDS = 6


def mix64(x: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """The 64-bit finalizer of splitmix64 (Steele et al. 2014) on ``x + key``."""
    x = x + key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(positions: Indices, n: int, seed: int, epoch: int) -> Indices:
    """Map positions 0..n-1 to samples 0..n-1, one to one, in an order keyed by (seed, epoch).

    Shapes: positions (K,) int64, each in [0, n); returns (K,) int64.
    """
    return permuted(positions, n, _half(n), _keys(seed, epoch))


def _half(n: int) -> int:
    """Bits per half; 4 or more mix well."""
    return max(4, ((n - 1).bit_length() + 1) // 2)


@lru_cache(maxsize=16)
def _keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    """Of the rounds."""
    text = f"fastvae.plan/{seed}/{epoch}".encode()
    digest = hashlib.blake2b(text, digest_size=8 * _ROUNDS).digest()
    keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    keys.flags.writeable = False  # kernels then take it without a view
    return keys


class Order(Protocol):
    """Another order than the keyed permutation, for sources that cannot be read in any order."""

    def indices(self, positions: Indices, epoch: int) -> Indices:
        """Samples (K,) at positions (K,) of the stream of an epoch: a bijection of 0..n-1."""

    def describe(self) -> dict[str, int | str]:
        """What the order depends on, plain numbers and words."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The order of training samples: a step covers ``batch_size`` positions of the stream."""

    n: int
    """Samples in the source."""
    batch_size: int
    """Samples per step over all ranks and micro-batches."""
    seed: int
    world_size: int = 1
    rank: int = 0
    accumulate: int = 1
    """Micro-batches per step and rank."""
    tail: Literal["drop", "wrap"] = "drop"
    """What happens to the last n % batch_size samples of an epoch."""
    order: Order | None = None
    """Order within an epoch; None for ``permute``."""

    def __post_init__(self) -> None:
        sizes = (self.n, self.batch_size, self.world_size, self.accumulate)
        if min(sizes) < 1 or not 0 <= self.rank < self.world_size:
            raise ValueError(f"impossible plan: {self}")
        shares = self.world_size * self.accumulate
        if self.batch_size % shares:
            near = max(1, self.batch_size // shares) * shares
            raise UserError(
                f"batch_size = {self.batch_size} cannot be split over {self.world_size} ranks x "
                f"{self.accumulate} micro-batches: use a multiple of {shares}, e.g. {near}"
            )
        if self.n < self.batch_size and self.tail == "drop":
            raise UserError(
                f"batch_size = {self.batch_size} is larger than the training set of {self.n} "
                "images: use a smaller --batch-size, or --data.tail wrap"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch, the same on every rank."""
        full, rest = divmod(self.n, self.batch_size)
        return full + (1 if rest and self.tail == "wrap" else 0)

    @property
    def micro_batch(self) -> int:
        """Samples per forward pass on one rank."""
        return self.batch_size // (self.world_size * self.accumulate)

    def offset(self, micro: int) -> int:
        """Place of a micro-batch of this rank within the global batch of a step."""
        return (micro * self.world_size + self.rank) * self.micro_batch

    def micro(self, step: int, micro: int) -> tuple[Indices, Indices]:
        """Samples of one micro-batch of this rank.

        Returns:
            (indices, ordinals), both (micro_batch,) int64. Micro-batches of a step are laid out
            rank by rank within each accumulation round; ordinals number the whole stream.
        """
        epoch, in_epoch = divmod(step, self.steps_per_epoch)
        offset, count = self.offset(micro), self.micro_batch
        start = in_epoch * self.batch_size + offset
        if self.order is not None:
            positions = np.arange(start, start + count, dtype=np.int64) % self.n
            chosen = self.order.indices(positions, epoch)
        else:
            chosen = permuted_run(start, count, self.n, _half(self.n), _keys(self.seed, epoch))
        ordinal = step * self.batch_size + offset
        return chosen, np.arange(ordinal, ordinal + count, dtype=np.int64)

    def state(self) -> dict[str, int | str]:
        """What must not change for a resumed run to see the same stream."""
        fixed = {name: getattr(self, name) for name in ("n", "batch_size", "seed", "tail")}
        return fixed if self.order is None else fixed | self.order.describe()


def evaluation_slices(
    n: int, batch_size: int, world_size: int, rank: int
) -> list[tuple[Indices, NDArray[np.float32]]]:
    """Split samples 0..n-1 in order over ranks: each counts once, every rank takes equal steps.

    Returns:
        For each step of this rank, indices (batch_size,) int64 and weights (batch_size,) float32;
        padding rows repeat the last sample with weight 0 (one that was just read).
    """
    steps = -(-n // (batch_size * world_size))
    slices = []
    for step in range(steps):
        start = (step * world_size + rank) * batch_size
        index = start + np.arange(batch_size, dtype=np.int64)
        inside = index < n
        slices.append((np.minimum(index, n - 1), inside.astype(np.float32)))
    return slices
