"""The batch: one naming everywhere."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images of one micro-batch on the training device.

    Attributes:
        x: (B, C, H, W) float32 in [0, 1], the image to model.
        y: (B, C, H, W) float32, the condition (a partial drawing), or None.
        label: (B,) int64 class labels, or None.
        weight: (B,) float32, 1 for samples that count and 0 for padding rows.
        index: (B,) int64, index of each sample in its source.
        ordinal: (B,) int64, number of each sample in the stream: what noise is keyed by.
    """

    x: Tensor
    y: Tensor | None
    label: Tensor | None
    weight: Tensor
    index: Tensor
    ordinal: Tensor

    def clone(self) -> Batch:
        """A copy with memory of its own."""
        return Batch(**{f.name: _clone(getattr(self, f.name)) for f in fields(self)})

    def copy_from(self, other: Batch) -> None:
        """Overwrite the tensors with those of another batch of the same shapes."""
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if mine is not None:
                mine.copy_(theirs)


def _clone(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.clone()
