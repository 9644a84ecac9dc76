"""The loader: a step number in, a batch on the training device out.

It holds no state: which samples a step covers is the plan's business, so any step of any epoch can
be loaded at once and a resumed run needs nothing from here. Pixels stay uint8 until the end.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvae import ops
from fastvae.config import DataConfig
from fastvae.data.batch import Batch
from fastvae.data.plan import Plan, evaluation_slices
from fastvae.data.sources import Source


class Pixels:
    """uint8 pixels to float32 targets in [0, 1], with the configured binarization.

    Random bits are keyed by (seed, sample index) or, when dynamic, by (seed, epoch, sample index):
    the same on any rank, in any batch, after any resume.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.config = config
        self.seed = ops.derive_seed(seed, "binarize")
        self._state: tuple[tuple[int, torch.device], Tensor] | None = None

    def __call__(
        self,
        images: Tensor,
        keys: Tensor,
        epoch: int | None,
        *,
        rows: Tensor | None = None,
        channels_last: bool = False,
    ) -> Tensor:
        """Convert images, or chosen rows of them.

        Args:
            images: (N, C, H, W) uint8.
            keys: (B,) sample index of each row.
            epoch: None stands for evaluation.
            rows: (B,) which of the images; None takes all of them in order.

        Returns:
            (B, C, H, W) float32.
        """
        mode = self.config.binarize
        if rows is None:
            rows = torch.arange(len(images), device=images.device)
        return ops.gather_normalize(
            images,
            rows,
            keys=keys,
            channels_last=channels_last,
            binarize={"static": "stochastic", "dynamic": "stochastic"}.get(mode, mode),
            threshold=self.config.threshold,
            rng=None if mode in ("none", "threshold") else self._rng(epoch, images.device),
        )

    def _rng(self, epoch: int | None, device: torch.device) -> Tensor:
        """State of the random bits on the device, made once per epoch."""
        seed = self.seed
        if self.config.binarize == "dynamic" and epoch is not None:
            seed = ops.derive_seed(seed, "epoch", epoch)
        if self._state is None or self._state[0] != (seed, device):
            self._state = (seed, device), ops.rng_state(seed, device)
        return self._state[1]


class Loader:
    """Batches of one source on ``device``."""

    def __init__(
        self,
        source: Source,
        pixels: Pixels,
        device: torch.device,
        *,
        channels_last: bool = False,
    ) -> None:
        self.source = source
        self.pixels = pixels
        self.device = device
        self.channels_last = channels_last

    def _batch(
        self,
        index: NDArray[np.int64],
        ordinal: NDArray[np.int64],
        weight: NDArray[np.float32] | None,
        epoch: int | None,
    ) -> Batch:
        rows = torch.from_numpy(index)
        where = self._send(rows)
        resident = self.source.resident
        if resident is not None and self.source.device == self.device:
            images, labels = resident
            x = self._convert(images, where, epoch, rows=where)
            y = None
            label = None if labels is None else torch.index_select(labels, 0, where)
        else:
            # The index goes to the bytes, never back from the device: that would wait for the GPU.
            samples = self.source.gather(rows, epoch)
            x = self._convert(self._send(samples.images), where, epoch)
            # Keyed alike: bits drawn for a partial image are some of those of the full one.
            given = samples.condition
            y = None if given is None else self._convert(self._send(given), where, epoch)
            label = samples.label
        ones = torch.ones(len(index), device=self.device)
        return Batch(
            x=x,
            y=y,
            label=None if label is None else self._send(label),
            weight=ones if weight is None else self._send(torch.from_numpy(weight)),
            index=where,
            ordinal=self._send(torch.from_numpy(ordinal)),
        )

    def _convert(
        self, images: Tensor, keys: Tensor, epoch: int | None, rows: Tensor | None = None
    ) -> Tensor:
        return self.pixels(images, keys, epoch, rows=rows, channels_last=self.channels_last)

    def _send(self, tensor: Tensor) -> Tensor:
        """Copy to the device without waiting (through pinned memory, which copies can overlap)."""
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def train_batch(self, plan: Plan, step: int, micro: int = 0) -> Batch:
        """Micro-batch ``micro`` of training step ``step`` for the plan's rank."""
        index, ordinal = plan.micro(step, micro)
        return self._batch(index, ordinal, None, step // plan.steps_per_epoch)

    def evaluation_batches(self, batch_size: int, world_size: int, rank: int) -> Iterator[Batch]:
        """Every sample once over all ranks, in order, with equal steps on each rank."""
        for index, weight in evaluation_slices(len(self.source), batch_size, world_size, rank):
            yield self._batch(index, index, weight, None)

    def rows(self, index: NDArray[np.int64]) -> Batch:
        """Chosen samples, binarized as for evaluation."""
        return self._batch(index, index, None, None)
