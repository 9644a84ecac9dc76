"""Sources: where bytes come from, behind one contract.

A source gives uint8 images by index. It knows nothing of order (``Plan``), of batches (``Loader``)
or of the training device beyond where its own bytes live.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Source(Protocol):
    """Random access to uint8 images."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""

    @property
    def device(self) -> torch.device:
        """Where ``gather`` expects its indices and leaves its result."""

    @property
    def fingerprint(self) -> str:
        """Hash of the contents: equal for equal bytes in equal order."""

    @property
    def resident(self) -> tuple[Tensor, Tensor | None] | None:
        """All images (N, C, H, W) uint8 and labels (N,) where they lie in memory as one tensor: a
        batch is then gathered and converted in one kernel. None for other sources."""

    def __len__(self) -> int:
        """Number of samples."""

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (B, C, H, W) uint8 and labels (B,) int64 or None, for index (B,) int64."""
