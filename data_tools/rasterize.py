"""From packed strokes to shards of images or packed bits: ``fastvae-data quickdraw --as images``.

The images are drawn by the very source that draws them for training, so a model sees the same
pixels either way. Partial drawings (``--partial``) are cut once, as they are for evaluation.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvae.config import StrokesConfig
from fastvae.data.drawings import fingerprint, load
from fastvae.data.format import SPLITS, Field, Rows
from fastvae.data_tools.shard_job import BadSample, BuildOptions, Built, Recipe, build

if TYPE_CHECKING:  # it brings torch along
    from fastvae.data.sources.strokes import StrokesSource


def build_images(
    strokes: Path, view: StrokesConfig, side: int, *, bits: bool, options: BuildOptions
) -> Built:
    """Make shards of the drawings of a folder made by ``fastvae-data quickdraw``.

    Args:
        view: how they are drawn; without jitter.
        bits: store one bit per pixel (ink at 128 and above) instead of a byte.
    """
    sets = {name: load(strokes / name) for name in SPLITS}
    image = Field(dtype="uint8", shape=(side, side, 1), bits=bits)
    fields = {
        "image": image,
        "label": Field(dtype="int64", shape=()),
        "key": Field(dtype="uint64", shape=()),
    }
    if view.partial != "none":
        fields["condition"] = image
    ends = np.cumsum([len(part) for part in sets.values()])
    begins = ends - [len(part) for part in sets.values()]
    splits = {
        name: range(int(first), int(last))
        for name, first, last in zip(SPLITS, begins, ends, strict=True)
        if last > first
    }
    make = StrokesMaker(
        folder=str(strokes),
        fingerprints=tuple(fingerprint(part) for part in sets.values()),
        view=view,
        side=side,
    )
    recipe = Recipe(
        fields=fields,
        make=make,
        preprocess={"tool": "quickdraw", "side": side, "bits": bits, **_plain(view)},
        classes=sets["train"].words,
    )
    return build(options.out, splits, recipe, options)


def _plain(view: StrokesConfig) -> dict[str, Any]:
    """The settings that make a difference."""
    kept = ("raster", "line_width", "padding", "partial", "shown")
    return {name: value for name, value in asdict(view).items() if name in kept}


@dataclass(frozen=True)
class StrokesMaker:
    """Images of drawings by number, counted through train, val and test."""

    folder: str
    fingerprints: tuple[str, ...]
    """Of the sets: other strokes make another task."""
    view: StrokesConfig
    side: int

    def __call__(self, samples: Sequence[int]) -> tuple[Rows, list[BadSample]]:
        import torch

        if multiprocessing.parent_process() is not None:
            torch.set_num_threads(1)  # one process per core already
        numbers = np.asarray(samples, dtype=np.int64)
        for source in _open(self.folder, self.view, self.side):
            if numbers[0] < len(source):  # a task is of one split
                break
            numbers = numbers - len(source)
        drawn = source.gather(torch.from_numpy(numbers))
        rows: Rows = {
            "image": drawn.images.permute(0, 2, 3, 1).numpy(),
            "key": np.ascontiguousarray(source.drawings.key_id[numbers]),
            "label": source.drawings.word[numbers].astype(np.int64),
        }
        if drawn.condition is not None:
            rows["condition"] = drawn.condition.permute(0, 2, 3, 1).numpy()
        return rows, []


@lru_cache(maxsize=1)
def _open(folder: str, view: StrokesConfig, side: int) -> tuple[StrokesSource, ...]:
    from fastvae.data.sources.strokes import StrokesSource

    return tuple(StrokesSource(load(Path(folder) / name), view, side, seed=0) for name in SPLITS)
