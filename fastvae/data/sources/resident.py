"""The resident source: all images as one uint8 tensor in RAM or on the training device.

A batch is one gather: no worker processes, no decoding, no copies of floats. It is the default for
anything that fits (MNIST is 47 MB).
"""

from __future__ import annotations

import copy
import hashlib
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvae.data.shards import ShardReader
from fastvae.data.sources import RandomAccess, Samples

_AT_ONCE = 64 << 20  # bytes of images, on their way into memory
_KEPT = ("image", "condition", "label")


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
    def from_shards(cls, reader: ShardReader, device: torch.device) -> ResidentSource:
        """Read one split of shards into memory of ``device``, verified, some at a time; the reader
        is closed."""
        n, image = len(reader), reader.fields["image"]
        step = max(1, _AT_ONCE // math.prod(image.shape))
        every: dict[str, Tensor] = {}
        for start in range(0, n, step):
            index = np.arange(start, min(start + step, n), dtype=np.int64)
            for name, rows in reader.rows(index).items():
                part = torch.from_numpy(rows) if name in _KEPT else None
                if part is not None:
                    if name not in every:
                        shape = (n, *part.shape[1:])
                        every[name] = torch.empty(shape, dtype=part.dtype, device=device)
                    every[name][start : start + len(index)] = part
        reader.close()
        conditions = every.get("condition")
        source = cls(
            every["image"].permute(0, 3, 1, 2),
            every.get("label"),
            conditions=None if conditions is None else conditions.permute(0, 3, 1, 2),
            classes=reader.manifest.classes,
            fingerprint=reader.fingerprint,
        )
        source.about = "resident shards"
        source.preprocess = reader.manifest.preprocess
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
    shape = (len(where), *stored.shape[1:])
    rows = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
    torch.index_select(stored, 0, where, out=rows)
    return rows.permute(0, 3, 1, 2) if stored is last else rows


def _hash(images: Tensor, labels: Tensor | None) -> str:
    hasher = hashlib.blake2b(repr(tuple(images.shape)).encode(), digest_size=16)
    hasher.update(images.cpu().contiguous().numpy().data)
    if labels is not None:
        hasher.update(labels.cpu().contiguous().numpy().data)
    return hasher.hexdigest()
