"""Sources: where bytes come from, behind one contract.

A source gives uint8 images by index. It knows nothing of order (``Plan``), of batches (``Loader``)
or of the training device beyond where its own bytes live.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


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

    def __len__(self) -> int:
        """Number of samples."""

    def to(self, device: torch.device) -> Source:
        """The same source with its bytes on ``device``, or itself where it cannot live there."""

    def gather(self, index: Tensor, epoch: int | None = None) -> Samples:
        """Samples for index (B,) int64 on the CPU. What is random about them depends on the epoch
        and the index; None stands for evaluation, where nothing changes from one time to another.
        """
