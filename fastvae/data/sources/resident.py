"""The resident source: all images as one uint8 tensor in RAM or on the training device.

A batch is one gather: no worker processes, no decoding, no copies of floats. It is the default for
anything that fits (MNIST is 47 MB).
"""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvae.data.shards import ShardReader
from fastvae.data.sources import RandomAccess, Samples
from fastvae.kernels.gather_rows import gather_packs


class ResidentSource(RandomAccess):
    """Images (N, C, H, W) uint8 held in memory, contiguous or in channels-last order.

    Args:
        labels: (N,) int64, or None.
        conditions: like the images, e.g. partial drawings, or None.
        fingerprint: hash of the contents where it is known; else it is computed.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None,
        *,
        conditions: Tensor | None = None,
        classes: tuple[str, ...] = (),
        fingerprint: str | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise ValueError(
                f"images must be (N, C, H, W) uint8, got {images.shape} {images.dtype}"
            )
        if labels is not None and (labels.shape != images.shape[:1] or labels.dtype != torch.int64):
            raise ValueError(
                f"labels must be ({len(images)},) int64, got {tuple(labels.shape)} {labels.dtype}"
            )
        if conditions is not None and (
            conditions.shape != images.shape or conditions.dtype != torch.uint8
        ):
            raise ValueError(
                f"conditions must be {tuple(images.shape)} uint8, "
                f"got {tuple(conditions.shape)} {conditions.dtype}"
            )
        self.images = images
        self.labels = labels
        self.conditions = conditions
        self.classes = classes
        self.about = "resident"
        self.has_condition = conditions is not None
        self.fingerprint = _hash(images, labels) if fingerprint is None else fingerprint

    @classmethod
    def from_numpy(
        cls, images: NDArray[np.uint8], labels: NDArray[np.unsignedinteger[Any]] | None
    ) -> ResidentSource:
        """Copy arrays (N, H, W) or (N, C, H, W) and labels (N,) into tensors."""
        x = torch.from_numpy(np.ascontiguousarray(images).copy())
        y = None if labels is None else torch.from_numpy(labels.astype(np.int64))
        return cls(x.unsqueeze(1) if x.dim() == 3 else x, y)

    @classmethod
    def from_shards(cls, reader: ShardReader) -> ResidentSource:
        """Read one split of shards into memory, verified; the reader is closed."""
        every = reader.rows(np.arange(len(reader), dtype=np.int64))
        reader.close()
        images, labels, conditions = (
            torch.from_numpy(every[name]) if name in every else None
            for name in ("image", "label", "condition")
        )
        assert images is not None
        source = cls(
            images.permute(0, 3, 1, 2),
            labels,
            conditions=None if conditions is None else conditions.permute(0, 3, 1, 2),
            classes=reader.manifest.classes,
            fingerprint=reader.fingerprint,
        )
        source.about = "resident shards"
        source.quarantined, source.lost = reader.quarantined, reader.lost
        return source

    def to(self, device: torch.device) -> ResidentSource:
        """The same source with its bytes on ``device``."""
        moved = copy.copy(self)
        moved.images = self.images.to(device)
        moved.labels = None if self.labels is None else self.labels.to(device)
        moved.conditions = None if self.conditions is None else self.conditions.to(device)
        return moved

    @property
    def nbytes(self) -> int:
        return self.images.numel() * (1 if self.conditions is None else 2)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        c, h, w = self.images.shape[1:]
        return c, h, w

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def resident(self) -> tuple[Tensor, Tensor | None] | None:
        return (self.images, self.labels) if self.conditions is None else None

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, index: Tensor, epoch: int | None = None, *, pin: bool = False) -> Samples:
        where = index.to(self.device)
        labels = None if self.labels is None else torch.index_select(self.labels, 0, where)
        images = _select(self.images, where, pin)
        conditions = None if self.conditions is None else _select(self.conditions, where, pin)
        return Samples(images, conditions, labels)


def _select(images: Tensor, where: Tensor, pin: bool) -> Tensor:
    """Rows of images (N, C, H, W), in the memory order that they are stored in."""
    last = images.permute(0, 2, 3, 1)
    stored = last if last.is_contiguous() else images
    if not stored.is_contiguous() or images.device.type != "cpu":
        return torch.index_select(images, 0, where)
    n, *shape = stored.shape
    rows = torch.empty((len(where), *shape), dtype=torch.uint8, pin_memory=pin)
    gather_packs(
        np.array([0, n]),
        np.array([stored.data_ptr()]),
        stored.stride(0),
        where.numpy(),
        rows.view(len(where), -1).numpy(),
        torch.get_num_threads(),
    )
    return rows.permute(0, 3, 1, 2) if stored is last else rows


def _hash(images: Tensor, labels: Tensor | None) -> str:
    hasher = hashlib.blake2b(repr(tuple(images.shape)).encode(), digest_size=16)
    hasher.update(images.cpu().contiguous().numpy().data)
    if labels is not None:
        hasher.update(labels.cpu().contiguous().numpy().data)
    return hasher.hexdigest()
