"""The mapped source: shards on the disk, read through the page cache as if they were in memory.

Random order costs what copying the rows costs; there are no worker processes and nothing is
decoded. Bytes are verified when they are first touched (see ``fastvae.data.shards``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.data.shards import ShardReader
from fastvae.data.sources import RandomAccess, Samples


class MappedSource(RandomAccess):
    """One split of a folder of shards."""

    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader
        self.classes = reader.manifest.classes
        self.fingerprint = reader.fingerprint
        self.device = torch.device("cpu")
        self.resident = None
        self.about = "mapped shards" + " of packed bits" * reader.fields["image"].bits
        self.has_condition = "condition" in reader.fields
        self.quarantined, self.lost = reader.quarantined, reader.lost
        self._length = len(reader)
        self._shape = reader.fields["image"].shape

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
        rows = index.numpy()
        reader, threads = self.reader, torch.get_num_threads()
        reader.touch(rows)

        def images(name: str) -> Tensor:
            out = torch.empty((len(rows), *self._shape), dtype=torch.uint8, pin_memory=pin)
            reader.gather_into(name, rows, out.numpy(), threads)
            return out.permute(0, 3, 1, 2)

        label = None
        if "label" in reader.fields:
            label = torch.empty(len(rows), dtype=torch.int64)
            reader.gather_into("label", rows, label.numpy())
        return Samples(
            images("image"), images("condition") if "condition" in reader.fields else None, label
        )

    def close(self) -> None:
        self.reader.close()
