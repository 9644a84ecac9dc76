"""Sources: where bytes come from, behind one contract.

A source gives uint8 images by index. It knows nothing of order (``Plan``), of batches (``Loader``)
or of the training device beyond where its own bytes live.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvae.data.plan import Order


class Samples(NamedTuple):
    """What a source gives for B indices."""

    images: Tensor
    """(B, C, H, W) uint8."""
    condition: Tensor | None
    """(B, C, H, W) uint8, e.g. the partial drawing, or None."""
    label: Tensor | None
    """(B,) int64, or None."""


class Source(Protocol):
    """Random access to uint8 images."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""

    @property
    def device(self) -> torch.device:
        """Where the bytes live, and where ``gather`` leaves its result."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes there."""

    @property
    def fingerprint(self) -> str:
        """Hash of the contents: equal for equal bytes in equal order."""

    @property
    def resident(self) -> tuple[Tensor, Tensor | None] | None:
        """All images (N, C, H, W) uint8 and labels (N,) where they lie in memory as one tensor: a
        batch is then gathered and converted in one kernel. None for other sources."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, label 0 first; empty where they are not known."""

    @property
    def preprocess(self) -> Mapping[str, Any]:
        """How its samples were made, where that is known."""

    @property
    def order(self) -> Order | None:
        """The order in which it has to be read; None where any will do."""

    @property
    def about(self) -> str:
        """How it is read, in a few words for people."""

    @property
    def has_condition(self) -> bool:
        """Whether samples come with a condition."""

    @property
    def quarantined(self) -> Sequence[str]:
        """What was left out because it is damaged, a line each."""

    @property
    def lost(self) -> int:
        """Samples in it."""

    def __len__(self) -> int:
        """Number of samples."""

    def to(self, device: torch.device) -> Source:
        """The same source with its bytes on ``device``, or itself where it cannot live there."""

    def gather(self, index: Tensor, epoch: int | None = None, *, pin: bool = False) -> Samples:
        """Samples for index (B,) int64 on the CPU. What is random about them depends on the epoch
        and the index; None stands for evaluation, where nothing changes from one time to another.

        Args:
            pin: put images that are made on the CPU into pinned memory, to be sent to a GPU.
        """

    def follow(self, batches: Iterator[NDArray[np.int64]]) -> None:
        """Be told the index (B,) of each ``gather`` to come, in order: for sources that have to
        read ahead. Others leave ``batches`` alone."""

    def close(self) -> None:
        """Let go of files and threads; nothing may be gathered afterwards."""


class RandomAccess:
    """What sources share that need not know what comes next, and hold nothing open."""

    classes: tuple[str, ...] = ()
    preprocess: Mapping[str, Any] = MappingProxyType({})
    has_condition: bool = False
    order: Order | None = None
    quarantined: Sequence[str] = ()
    lost: int = 0

    def follow(self, batches: Iterator[NDArray[np.int64]]) -> None:
        """Nothing to prepare."""

    def close(self) -> None:
        """Nothing to let go of."""
