"""The batch: one naming everywhere."""

from __future__ import annotations

from dataclasses import dataclass

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
