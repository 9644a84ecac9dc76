"""The strokes source: images drawn for each batch from strokes in RAM or on the training device.

A drawing is some 110 bytes as strokes and 4,096 as an image of 64x64, so drawings are never stored
as pixels. Where to cut a partial drawing and how to jitter it is a pure function of (seed, epoch,
index), computed on the CPU either way, so images made on a GPU show the same as those made here.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvae import ops
from fastvae.config import StrokesConfig
from fastvae.data.drawings import Drawings, fingerprint
from fastvae.data.sources import RandomAccess, Samples
from fastvae.errors import UserError
from fastvae.kernels import cuts
from fastvae.kernels.raster import Frame, rasterize
from fastvae.kernels.raster_binary import rasterize_binary

PAD = 10  # pixels around drawings of the binary rasterizer, half on each side
Index = NDArray[np.int64]
Affine = NDArray[np.float32]
Pair = tuple[Tensor, Tensor | None]


class StrokesSource(RandomAccess):
    """Drawings as images (B, 1, side, side) uint8, white lines on black.

    Args:
        drawings: the strokes.
        view: how they are drawn.
        side: height and width of the images.
        seed: of cuts and jitter.
    """

    def __init__(self, drawings: Drawings, view: StrokesConfig, side: int, seed: int) -> None:
        if view.partial == "time" and drawings.time is None:
            raise UserError(
                "strokes.partial = 'time': these drawings have no timing; pack raw files "
                "(`fastvae-data quickdraw --kind raw`), or use --strokes.partial points"
            )
        if view.raster == "binary" and side <= PAD:
            raise UserError(
                f"strokes.raster = 'binary' needs images of more than {PAD}x{PAD} pixels, not "
                f"{side}x{side}"
            )
        self.drawings = drawings
        self.view = view
        self.frame = Frame(side=side, line_width=view.line_width, padding=view.padding)
        self.pixels = _pixels(self.frame, binary=view.raster == "binary")
        self.seed = seed
        self.fingerprint = fingerprint(drawings)
        self.classes = drawings.words
        self.about = f"strokes, drawn ({view.raster})"
        self.has_condition = view.partial != "none"
        self._on_device: ops.DeviceStrokes | None = None
        self._epoch_seed: tuple[int | None, int] | None = None

    def to(self, device: torch.device) -> StrokesSource:
        """The same source with its strokes on ``device``; itself where they are drawn on the CPU
        (exact and binary)."""
        if self.view.raster != "fast" or device.type == "cpu":
            return self
        moved = object.__new__(StrokesSource)
        moved.__dict__.update(self.__dict__)
        moved._on_device = ops.DeviceStrokes.of(self.drawings.strokes).to(device)
        return moved

    @property
    def nbytes(self) -> int:
        return self.drawings.nbytes if self._on_device is None else self._on_device.nbytes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 1, self.frame.side, self.frame.side

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self._on_device is None else self._on_device.device

    @property
    def resident(self) -> None:
        return None

    def __len__(self) -> int:
        return len(self.drawings)

    def gather(self, index: Tensor, epoch: int | None = None, *, pin: bool = False) -> Samples:
        chosen = index.numpy()
        seed = self._seed(epoch)
        affine = None
        if self.view.jittered and epoch is not None:
            view = self.view
            affine = cuts.jitter(
                chosen,
                seed,
                rotate=view.rotate,
                scale=view.scale,
                shear=view.shear,
                shift=view.shift,
            )
        cut = self._cuts(chosen, seed, affine)
        draw = self._draw_here if self._on_device is None else self._draw_there
        full, partial = draw(chosen, cut, affine)
        if self.view.partial == "box":
            partial = self._without_box(full, chosen, seed, affine)
        label = torch.from_numpy(self.drawings.word[chosen].astype(np.int64))
        if pin and full.device.type == "cpu":
            full = full.pin_memory()
            partial = None if partial is None else partial.pin_memory()
        return Samples(full, partial, label)

    def _seed(self, epoch: int | None) -> int:
        if self._epoch_seed is None or self._epoch_seed[0] != epoch:
            seed = self.seed if epoch is None else ops.derive_seed(self.seed, "epoch", epoch)
            self._epoch_seed = epoch, seed
        return self._epoch_seed[1]

    def _cuts(self, index: Index, seed: int, affine: Affine | None) -> Index | None:
        mode = self.view.partial
        if mode == "none" or mode == "box":
            return None
        low, high = self.view.shown
        return cuts.prefix_cuts(
            self.drawings.strokes,
            index,
            seed,
            mode,
            self.pixels,
            low=low,
            high=high,
            affine=affine,
            time=self.drawings.time,
        )

    def _draw_here(self, index: Index, cut: Index | None, affine: Affine | None) -> Pair:
        """Images by Numba on the CPU, with as many threads as torch has."""
        threads = torch.get_num_threads()
        strokes, mode = self.drawings.strokes, self.view.raster
        if mode == "binary":
            images = rasterize_binary(
                strokes, self.frame.side, index, pad=PAD, cut=cut, threads=threads
            )
        else:
            images = rasterize(
                strokes, self.frame, index, cut=cut, affine=affine, mode=mode, threads=threads
            )
        both = images if isinstance(images, tuple) else (images, None)
        full, partial = (None if x is None else torch.from_numpy(x).unsqueeze(1) for x in both)
        return cast(Tensor, full), partial

    def _draw_there(self, index: Index, cut: Index | None, affine: Affine | None) -> Pair:
        """Images by Triton on the device. Nothing waits for it: copies come from pinned memory."""
        assert self._on_device is not None

        def send(array: NDArray[np.generic] | None) -> Tensor | None:
            if array is None:
                return None
            tensor = torch.from_numpy(array)
            if self.device.type != "cuda":
                return tensor.to(self.device)
            return tensor.pin_memory().to(self.device, non_blocking=True)

        images = ops.rasterize_strokes(
            self._on_device,
            cast(Tensor, send(index)),
            self.frame.side,
            cut=send(cut),
            affine=send(affine),
            line_width=self.frame.line_width,
            padding=self.frame.padding,
        )
        return images if isinstance(images, tuple) else (images, None)

    def _without_box(self, full: Tensor, index: Index, seed: int, affine: Affine | None) -> Tensor:
        low, high = self.view.shown
        box = cuts.boxes(
            self.drawings.strokes, index, seed, self.pixels, affine=affine, low=low, high=high
        )
        edges = torch.from_numpy(box).to(full.device, non_blocking=True)
        place = torch.arange(self.frame.side, device=full.device)
        rows = (place >= edges[:, 0:1]) & (place < edges[:, 1:2])
        columns = (place >= edges[:, 2:3]) & (place < edges[:, 3:4])
        return full.masked_fill((rows[:, :, None] & columns[:, None, :]).unsqueeze(1), 0)


def _pixels(frame: Frame, *, binary: bool) -> cuts.View:
    """What cuts have to know of the images: the frame of the rasterizer that draws them."""
    if binary:
        scale = (frame.side - PAD) / 256.0
        return cuts.View(frame.side, scale, PAD / 2.0, radius=1.5, centred=False)
    return cuts.View(frame.side, frame.scale, frame.margin * frame.scale, frame.radius)
