"""The mapped source: shards on the disk, read through the page cache as if they were in memory.

Random order costs what copying the rows costs; there are no worker processes and nothing is
decoded. Bytes are verified when they are first touched (see ``fastvae.data.shards``).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvae.data.shards import ShardReader
from fastvae.data.sources import RandomAccess, Samples


class MappedSource(RandomAccess):
    """One split of a folder of shards."""

    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader
        self.classes = reader.manifest.classes
        self.preprocess = reader.manifest.preprocess
        self.fingerprint = reader.fingerprint
        self.device = torch.device("cpu")
        self.resident = None
        self.about = "mapped shards" + " of packed bits" * reader.fields["image"].bits
        self.has_condition = "condition" in reader.fields
        self.quarantined, self.lost = reader.quarantined, reader.lost
        self._length = len(reader)
        self._shape = reader.fields["image"].shape
        self._bits, self._labelled = reader.fields["image"].bits, "label" in reader.fields

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self._shape
        return channels, height, width

    @property
    def nbytes(self) -> int:
        """Bytes of the page cache that it takes when all of it has been read."""
        return self.reader.manifest.nbytes(self.reader.split)

    def __len__(self) -> int:
        return self._length

    def to(self, device: torch.device) -> MappedSource:
        """Itself: files stay where they are."""
        return self

    def gather(self, index: Tensor, epoch: int | None = None, *, pin: bool = False) -> Samples:
        rows, reader, threads = index.numpy(), self.reader, torch.get_num_threads()
        reader.touch(rows)
        images, label = self._empty(len(rows), pin), None
        if not self._labelled:
            reader.gather_into("image", rows, images.numpy(), threads)
        else:
            numbers = np.empty(len(rows), dtype=np.int64)
            if self._bits:
                reader.gather_into("image", rows, images.numpy(), threads)
                reader.gather_into("label", rows, numbers)
            else:
                reader.gather_labelled(rows, images.numpy(), numbers, threads)
            label = torch.from_numpy(numbers)
        condition = None
        if self.has_condition:
            condition = self._empty(len(rows), pin)
            reader.gather_into("condition", rows, condition.numpy(), threads)
            condition = condition.permute(0, 3, 1, 2)
        return Samples(images.permute(0, 3, 1, 2), condition, label)

    def _empty(self, count: int, pin: bool) -> Tensor:
        """Memory for images (count, H, W, C); NumPy's costs half of torch's, and pins nothing."""
        shape = (count, *self._shape)
        if pin:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return torch.from_numpy(np.empty(shape, dtype=np.uint8))

    def follow(self, batches: Iterator[NDArray[np.int64]]) -> None:
        """Look at the files once more before an epoch."""
        self.reader.check_sizes()

    def close(self) -> None:
        self.reader.close()
