"""The loader: a step number in, a batch on the training device out.

It holds no state that matters: which samples a step covers is the plan's business, so any step of
any epoch can be loaded at once and a resumed run needs nothing from here. Pixels stay uint8 until
the end. Where images come from memory or disk and go to a GPU, one thread prepares the next two
batches: gathered into pinned memory, copied and converted on a stream of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvae import ops
from fastvae.config import DataConfig
from fastvae.data.batch import Batch
from fastvae.data.plan import Plan, evaluation_slices
from fastvae.data.prefetch import Prefetch
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

    def flips(self, keys: Tensor, epoch: int | None) -> Tensor | None:
        """Which images of a training batch are mirrored, (B, 1, 1, 1) bool; None where none is."""
        if not self.config.flip or epoch is None:
            return None
        seed = ops.derive_seed(self.seed, "flip", epoch)
        return ops.philox_normal(seed, keys, 1)[:, :, None, None] > 0.0

    def _rng(self, epoch: int | None, device: torch.device) -> Tensor:
        """State of the random bits on the device, made once per epoch."""
        seed = self.seed
        if self.config.binarize == "dynamic" and epoch is not None:
            seed = ops.derive_seed(seed, "epoch", epoch)
        if self._state is None or self._state[0] != (seed, device):
            self._state = (seed, device), ops.rng_state(seed, device)
        return self._state[1]


Slice = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32] | None, int | None]
"""Of one batch: indices (B,), ordinals (B,), weights (B,) or None for ones, epoch or None."""


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
        # Elsewhere there is nothing to hide: a gather takes microseconds, and what decodes or reads
        # ahead (tars, FFCV) has a thread of its own.
        self._ahead = device.type == "cuda" and source.device.type == "cpu"
        self._side: torch.cuda.Stream | None = None
        self._stream: Iterator[Batch] | None = None
        self._expected: tuple[Plan, int, int] | None = None

    def train_batch(self, plan: Plan, step: int, micro: int = 0) -> Batch:
        """Micro-batch ``micro`` of training step ``step`` for the plan's rank.

        Asked for in order, batches may come from what was prepared; any other one begins anew.
        """
        if self._stream is None or self._expected != (plan, step, micro):
            self._begin(_training_slices(plan, step, micro))
        assert self._stream is not None
        self._expected = None  # an error below leaves no half-read stream behind
        batch = next(self._stream)
        last = micro + 1 == plan.accumulate
        following = (plan, step + 1, 0) if last else (plan, step, micro + 1)
        # A stream is of one epoch: its end is known, and so is what a source reads ahead.
        self._expected = None if last and (step + 1) % plan.steps_per_epoch == 0 else following
        return batch

    def evaluation_batches(self, batch_size: int, world_size: int, rank: int) -> Iterator[Batch]:
        """Every sample once over all ranks, in order, with equal steps on each rank."""
        slices = evaluation_slices(len(self.source), batch_size, world_size, rank)
        self._begin((index, index, weight, None) for index, weight in slices)
        assert self._stream is not None
        yield from self._stream
        self._end()

    def rows(self, index: NDArray[np.int64]) -> Batch:
        """Chosen samples, binarized as for evaluation."""
        self._begin(iter([(index, index, None, None)]))
        assert self._stream is not None
        batch = next(self._stream)
        self._end()
        return batch

    def close(self) -> None:
        """End the thread, if there is one, and close the source."""
        self._end()
        self.source.close()

    def _begin(self, slices: Iterator[Slice]) -> None:
        """Start a stream of batches, and tell the source what will be asked of it."""
        self._end()
        mine, announced = itertools.tee(slices)
        self.source.follow(index for index, *_ in announced)
        batches: Iterator[Batch] = self._batches(mine)
        if self._ahead:
            # One for all: memory that was freed on it serves the next batches.
            self._side = self._side or torch.cuda.Stream(self.device)
            batches = _OnStream(self.device, self._side, batches)
        self._stream = batches

    def _end(self) -> None:
        if isinstance(self._stream, _OnStream):
            self._stream.close()
        self._stream = self._expected = None

    def _batches(self, slices: Iterator[Slice]) -> Iterator[Batch]:
        for index, ordinal, weight, epoch in slices:
            yield self._batch(index, ordinal, weight, epoch)

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
            samples = self.source.gather(rows, epoch, pin=self._ahead)
            x = self._convert(self._send(samples.images), where, epoch)
            # Keyed alike: bits drawn for a partial image are some of those of the full one.
            given = samples.condition
            y = None if given is None else self._convert(self._send(given), where, epoch)
            label = samples.label
        flips = self.pixels.flips(where, epoch)
        if flips is not None:
            x = torch.where(flips, x.flip(3), x)
            y = None if y is None else torch.where(flips, y.flip(3), y)
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
            pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
            return pinned.to(self.device, non_blocking=True)
        return tensor.to(self.device)


def _training_slices(plan: Plan, step: int, micro: int) -> Iterator[Slice]:
    """From a micro-batch on to the end of its epoch."""
    epoch = step // plan.steps_per_epoch
    for s in range(step, (epoch + 1) * plan.steps_per_epoch):
        for m in range(micro if s == step else 0, plan.accumulate):
            index, ordinal = plan.micro(s, m)
            yield index, ordinal, None, epoch


class _OnStream:
    """Batches made ahead by a thread, on a CUDA stream beside the one that trains."""

    def __init__(
        self, device: torch.device, stream: torch.cuda.Stream, batches: Iterator[Batch]
    ) -> None:
        self._ready = Prefetch(self._made(device, stream, batches))

    @staticmethod
    def _made(
        device: torch.device, stream: torch.cuda.Stream, batches: Iterator[Batch]
    ) -> Iterator[tuple[Batch, torch.cuda.Event]]:
        torch.cuda.set_device(device)  # of this thread
        with torch.cuda.stream(stream):
            for batch in batches:
                yield batch, stream.record_event()

    def __iter__(self) -> _OnStream:
        return self

    def __next__(self) -> Batch:
        batch, made = next(self._ready)
        here = torch.cuda.current_stream()
        here.wait_event(made)
        for item in fields(batch):
            tensor = getattr(batch, item.name)
            if tensor is not None:
                tensor.record_stream(here)  # its memory is not given away before it was used here
        return batch

    def close(self) -> None:
        """End the thread."""
        self._ready.close()
