"""The native .beton source: FFCV's files, mapped and read as if they were in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvae.data.beton import BetonFile
from fastvae.data.sources import RandomAccess, Samples
from fastvae.errors import UserError
from fastvae.kernels.gather_rows import gather_at


class BetonSource(RandomAccess):
    """The images of one file, with the labels and conditions that it has.

    Args:
        on_damage: of a file with a description. "raise": a page is verified when it is first
            touched, and a damaged one is a UserError that names it. "skip": all pages are verified
            now, and samples in damaged ones are left out. What lies outside the pages must be whole
            in any case.
    """

    def __init__(self, path: Path, *, on_damage: Literal["raise", "skip"] = "raise") -> None:
        self.file = BetonFile(path)
        roles = self.file.roles()
        self._images = [roles[name] for name in ("image", "condition") if name in roles]
        height, width, channels = (*roles["image"].shape, 1)[:3]
        self.image_shape = channels, height, width
        self.classes, self.preprocess = self.file.classes, self.file.preprocess
        self.has_condition = "condition" in roles
        self.device = torch.device("cpu")
        self.resident = None
        self.about = "native .beton"
        self.quarantined: list[str] = []
        self._rows = np.arange(self.file.n)  # samples of the file that are in the source
        if on_damage == "skip":
            self._leave_out()
        self._label: NDArray[np.int64] | None = None
        if "label" in roles:
            self._label = self.file.take(roles["label"], self._rows).astype(np.int64)
        self._hash = ""
        self._prepare()

    def _leave_out(self) -> None:
        """Leave out the samples of damaged pages."""
        pages = 0 if self.file.about is None else len(self.file.about.pages)
        bad = np.array([self.file.damaged(page) for page in range(pages)], dtype=bool)
        if not bad.any():
            return
        lost = np.zeros(self.file.n, dtype=bool)
        for field in self._images:
            lost |= bad[self.file.pages_of(field, self._rows)]
        self.quarantined = [
            f"{self.file.path}: {self.file.page_name(page)} is damaged"
            for page in np.flatnonzero(bad).tolist()
        ]
        self._rows, self.lost = np.flatnonzero(~lost), int(lost.sum())

    def _prepare(self) -> None:
        """Find the rows in memory."""
        self._address: list[NDArray[np.int64]] = []
        for field in self._images:
            if field.jpeg is not None:
                raise UserError(
                    f"{self.file.path}: field {field.name!r} holds JPEG files: read it with "
                    "--data.source ffcv, which needs FFCV, or decode them once with "
                    f"`fastvae-data convert {self.file.path} --to shards`"
                )
            assert field.pointers is not None
            places = field.pointers[self._rows].astype(np.int64)
            self._address.append(places + self.file.data.ctypes.data)

    @property
    def nbytes(self) -> int:
        """Bytes of the page cache that it takes when all of it has been read."""
        return len(self) * sum(field.row_bytes for field in self._images)

    @property
    def fingerprint(self) -> str:
        """Of the bytes of the file: those that its description gives, or computed, once."""
        if not self._hash:
            about = self.file.about
            self._hash = self.file.sha256() if about is None else about.sha256
        return f"{self._hash}-{len(self)}" if self.lost else self._hash

    def __len__(self) -> int:
        return len(self._rows)

    def to(self, device: torch.device) -> BetonSource:
        """Itself: files stay where they are."""
        return self

    def gather(self, index: Tensor, epoch: int | None = None, *, pin: bool = False) -> Samples:
        rows = index.numpy()
        images = []
        for field, address in zip(self._images, self._address, strict=True):
            self.file.touch(field, self._rows[rows])
            images.append(self._empty(len(rows), pin))
            out = images[-1].view(len(rows), -1).numpy()
            gather_at(address, field.row_bytes, rows, out, torch.get_num_threads())
        return self._samples(images, rows)

    def _empty(self, count: int, pin: bool) -> Tensor:
        """(B, H, W, C) uint8 for images or conditions."""
        channels, height, width = self.image_shape
        return torch.empty((count, height, width, channels), dtype=torch.uint8, pin_memory=pin)

    def _samples(self, images: list[Tensor], rows: NDArray[np.int64]) -> Samples:
        """Of images (B, H, W, C) and, if there are any, conditions."""
        image, *condition = (x.permute(0, 3, 1, 2) for x in images)
        label = None if self._label is None else torch.from_numpy(self._label[rows])
        return Samples(image, condition[0] if condition else None, label)

    def close(self) -> None:
        self._images, self._address = [], []
        self._rows = self._rows[:0]  # no index is inside any more
        self.file.close()
