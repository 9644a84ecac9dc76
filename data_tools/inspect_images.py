"""What a packed data set of images holds: ``fastvae-data inspect`` on shards, .beton and tars."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from fastvae.data.format import SPLITS
from fastvae.data_tools.sample_sets import SampleSet, open_sets

MOST_PIXELS = 64 << 20  # bytes of images that the mean is taken over


def inspect_images(path: Path, most: int) -> None:
    """Print counts, sizes, classes, and what the pixels are like.

    Args:
        most: classes to list.
    """
    sets = open_sets(path)
    first = next(iter(sets.values()))
    high, wide, channels = first.fields["image"].shape
    stored = "one bit per pixel" if first.fields["image"].bits else "uint8"
    others = [name for name in sorted(first.fields) if name != "image"]
    print(f"{path}: {first.form}, images {high}x{wide}x{channels} {stored}; also {others}")
    for name in SPLITS:
        if name in sets:
            part = sets[name]
            size = len(part) * sum(about.row_bytes for about in part.fields.values())
            print(f"{name:>6}: {len(part):,} samples, {size / 1e6:,.1f} MB")
    if "test" not in sets:
        print("  test: none of its own; training then tests on val")
    for part in sets.values():
        for line in part.notes:
            print(f"note: {line}")
    _pixels(first)
    if "label" in first.fields:
        _labels(sets, most)
    if first.preprocess:
        print(f"made by: {json.dumps(first.preprocess, ensure_ascii=True)}")


def _pixels(part: SampleSet) -> None:
    """Mean and spread of pixels, over evenly chosen images: what model.input_mean and _std are."""
    row = part.fields["image"].row_bytes
    count = min(len(part), max(1, MOST_PIXELS // row), 10_000)
    where = np.linspace(0, len(part) - 1, count).round().astype(np.int64)
    pixels = part.rows(where)["image"].reshape(count, -1) / np.float32(255.0)
    mean, std = pixels.mean(dtype=np.float64), pixels.std(dtype=np.float64)
    print(
        f"pixels: mean {mean:.3f}, standard deviation {std:.3f} in [0, 1], over {count:,} images "
        f"(--model.input-mean {mean:.2f} --model.input-std {std:.2f})"
    )


def _labels(sets: dict[str, SampleSet], most: int) -> None:
    names = next(iter(sets.values())).classes
    counts: Counter[int] = Counter()
    for split, part in sets.items():
        labels = part.labels()
        met, numbers = np.unique(labels[labels >= 0], return_counts=True)
        counts.update(dict(zip(met.tolist(), numbers.tolist(), strict=True)))
        if (labels < 0).any():
            print(f"note: {int((labels < 0).sum()):,} samples of {split} have no label (below 0)")
    print(f"labels: {len(counts)} classes")
    for label, number in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:most]:
        print(f"  {number:>10,}  {names[label] if label < len(names) else label}")
    if len(counts) > most:
        print(f"  and {len(counts) - most} more (--most N lists more)")
