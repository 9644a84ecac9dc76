"""The resident source: all images as one uint8 tensor in RAM or on the training device.

A batch is one ``index_select``: no worker processes, no decoding, no copies of floats. It is the
default for anything that fits (MNIST is 47 MB).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvae.data.sources import Samples


class ResidentSource:
    """Images (N, C, H, W) uint8 and labels (N,) int64 or None, held in memory."""

    def __init__(self, images: Tensor, labels: Tensor | None) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise ValueError(
                f"images must be (N, C, H, W) uint8, got {images.shape} {images.dtype}"
            )
        if labels is not None and (labels.shape != images.shape[:1] or labels.dtype != torch.int64):
            raise ValueError(
                f"labels must be ({len(images)},) int64, got {tuple(labels.shape)} {labels.dtype}"
            )
        self.images = images
        self.labels = labels
        hasher = hashlib.blake2b(repr(tuple(images.shape)).encode(), digest_size=16)
        hasher.update(images.cpu().contiguous().numpy().data)
        if labels is not None:
            hasher.update(labels.cpu().contiguous().numpy().data)
        self._fingerprint = hasher.hexdigest()

    @classmethod
    def from_numpy(
        cls, images: NDArray[np.uint8], labels: NDArray[np.unsignedinteger[Any]] | None
    ) -> ResidentSource:
        """Copy arrays (N, H, W) or (N, C, H, W) and labels (N,) into tensors."""
        x = torch.from_numpy(np.ascontiguousarray(images).copy())
        y = None if labels is None else torch.from_numpy(labels.astype(np.int64))
        return cls(x.unsqueeze(1) if x.dim() == 3 else x, y)

    def to(self, device: torch.device) -> ResidentSource:
        """The same source with its bytes on ``device``."""
        moved = object.__new__(ResidentSource)
        moved.images = self.images.to(device)
        moved.labels = None if self.labels is None else self.labels.to(device)
        moved._fingerprint = self._fingerprint
        return moved

    @property
    def nbytes(self) -> int:
        return self.images.numel()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        c, h, w = self.images.shape[1:]
        return c, h, w

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def resident(self) -> tuple[Tensor, Tensor | None]:
        return self.images, self.labels

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, index: Tensor, epoch: int | None = None) -> Samples:
        where = index.to(self.device)
        images = torch.index_select(self.images, 0, where)
        labels = None if self.labels is None else torch.index_select(self.labels, 0, where)
        return Samples(images, None, labels)
