"""The stream source: stock WebDataset tars, local or on the web, read in one direction.

Samples come in the order of ``WindowOrder``: each tar is read once per epoch, from its beginning to
its end; one window of samples lies in memory, decoded, while one thread decodes the next. Which
sample comes when depends on (seed, epoch) alone, so a run goes on at any step; a reader finds its
place within a tar by passing over what comes before (by headers alone in local files).

Every rank reads and decodes every tar, and keeps its share of the samples. That, and decoding in
every epoch, is spared by ``fastvae-data convert``, which makes shards of the tars once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvae.data.order import WindowOrder
from fastvae.data.sample_tar import read_classes
from fastvae.data.sources import Samples
from fastvae.data.tar_index import index_tars
from fastvae.data.urls import expand, local_path
from fastvae.data.windows import Thread, Windows

WINDOW = 16384
WINDOW_BYTES = 512 << 20  # of the images of a window, at most
NATURAL = 1024  # samples that are decoded at once in the order of evaluation
_LAST_WAIT = 5.0  # seconds for the thread to end


class StreamSource:
    """Images of tars of one sample per key, or of packs without their manifest.

    Args:
        urls: paths, globs, folders, URLs, with braces; see ``fastvae.data.urls``.
        seed: of the order.
        window: samples that are shuffled among each other; fewer where images are large, so that a
            window takes 512 MiB at most. Two are held. A set that fits into one is decoded once.
        allow_pipe: run commands that are given as ``pipe:...``.
        channels: 1 or 3; images are converted; None: as many as the first has.
        on_damage: "raise": a damaged or missing tar is a UserError that names it, now where its
            headers tell, or when it is read. "skip": all tars are read and decoded once, now, and
            damaged ones are left out, the same on every rank that is given the same bytes.

    Attributes:
        classes: from the ``classes.json`` beside local tars; () where there is none, or where there
            are several that differ.
        order: for the plan of training.
        fingerprint: hash of what is known without decoding: of each tar its file name, number of
            samples, bytes, and (where it was counted here) names and sizes of its members; neither
            of the pixels nor of times and folders.
        quarantined: tars that were left out, a line each.
        lost: samples in them, as far as that is known.
    """

    preprocess: Mapping[str, Any] = MappingProxyType({})
    resident = None
    device = torch.device("cpu")

    def __init__(
        self,
        urls: str | list[str],
        *,
        seed: int,
        window: int = WINDOW,
        allow_pipe: bool = False,
        channels: int | None = None,
        on_damage: Literal["raise", "skip"] = "raise",
    ) -> None:
        named = expand(urls, allow_pipe=allow_pipe)
        self.classes = _classes(named)
        index = index_tars(
            named,
            channels=channels,
            allow_pipe=allow_pipe,
            on_damage=on_damage,
        )
        if os.environ.get("RANK", "0") == "0":
            for line in index.tally.lines():
                print(f"warning: {line}", file=sys.stderr, flush=True)
        self.fingerprint = index.fingerprint
        self.quarantined, self.lost = index.quarantined, index.lost
        self._layout = index.layout
        most = max(1, WINDOW_BYTES // self._layout.row_bytes)
        counts = [shard.count for shard in index.shards]
        self.order = WindowOrder(counts, min(window, most), seed)
        self._tars = len(counts)
        self._fits = self.order.windows == 1
        self._thread = Thread()
        natural = self.order.n if self._fits else min(NATURAL, self.order.window)
        self._natural = Windows(index, self.order, natural, self._thread)
        self._training = Windows(index, self.order, self.order.window, self._thread)
        self._closed = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self._layout.shape
        return channels, height, width

    @property
    def has_condition(self) -> bool:
        return self._layout.conditioned

    @property
    def about(self) -> str:
        tars = f"{self._tars:,} tar{'s' * (self._tars != 1)}"
        if self._fits:
            return f"{tars}, decoded once"
        return f"{tars}, decoded in windows of {self.order.window:,}"

    @property
    def nbytes(self) -> int:
        """Bytes of the windows that are held at once (one more for a moment, after a step back)."""
        return self.order.window * self._layout.row_bytes * (1 if self._fits else 2)

    def __len__(self) -> int:
        return self.order.n

    def to(self, device: torch.device) -> StreamSource:
        """Itself: tars stay where they are."""
        return self

    def follow(self, batches: Iterator[NDArray[np.int64]]) -> None:
        """Nothing: the order of the stream tells what comes next."""

    def gather(self, index: Tensor, epoch: int | None = None, *, pin: bool = False) -> Samples:
        """Samples (B,); fast where they are asked for in the order of training, or as they lie.

        Raises:
            UserError: a tar is damaged, or cannot be read; also where the thread that reads ahead
                has met with it.
        """
        chosen = index.numpy()
        if self._closed:
            raise ValueError("the source is closed")
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"samples must be in [0, {len(self)})")
        if epoch is None or self._fits:
            epoch, windows = None, self._natural
        else:
            windows = self._training
        windows.check()
        out = self._room(len(chosen), pin)
        which, slot = np.divmod(self.order.numbers(chosen, epoch), windows.size)
        numbers, first = np.unique(which, return_index=True)
        asked = [(epoch, number) for number in numbers[np.argsort(first)].tolist()]
        for window in asked:
            rows = windows.get(window)
            for name, tensor in out.items():
                if len(asked) == 1:
                    np.take(rows[name], slot, axis=0, out=tensor.numpy(), mode="clip")
                else:
                    inside = np.flatnonzero(which == window[1])
                    tensor.numpy()[inside] = rows[name][slot[inside]]
        if asked:
            windows.settle(asked)
        condition = out["condition"].permute(0, 3, 1, 2) if "condition" in out else None
        return Samples(out["image"].permute(0, 3, 1, 2), condition, out.get("label"))

    def _room(self, count: int, pin: bool) -> dict[str, Tensor]:
        """Tensors for a batch, by field."""
        shape = (count, *self._layout.shape)
        out = {"image": torch.empty(shape, dtype=torch.uint8, pin_memory=pin)}
        if self._layout.conditioned:
            out["condition"] = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
        if self._layout.labelled:
            out["label"] = torch.empty(count, dtype=torch.int64)
        return out

    def close(self) -> None:
        """End the thread and close the files."""
        if self._closed:
            return
        self._closed = True
        for windows in (self._natural, self._training):
            windows.close()
        self._thread.close(_LAST_WAIT)
        for windows in (self._natural, self._training):
            windows.close()


def _classes(urls: list[str]) -> tuple[str, ...]:
    """Names of the labels in tars, where all of their folders say the same."""
    paths = [local_path(url) for url in urls]
    folders = dict.fromkeys(None if path is None else path.parent for path in paths)
    found = {() if folder is None else read_classes(folder) for folder in folders}
    return found.pop() if len(found) == 1 else ()
