"""A small generated set of images, and the forms that it is packed in, for several test files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastvae.data.format import Field, Manifest, Rows
from fastvae.data.splits import identity
from fastvae.data_tools.shard_job import BadSample, BuildOptions, Recipe, build

FIELDS = {
    "image": Field(dtype="uint8", shape=(5, 7, 3)),
    "label": Field(dtype="int64", shape=()),
    "key": Field(dtype="uint64", shape=()),
}
CLASSES = ("cat", "dog", "ice cream")


def rows_of(numbers: Sequence[int] | NDArray[np.int64]) -> Rows:
    """Rows that anybody can make again from their numbers."""
    images = np.stack(
        [np.random.default_rng(int(i)).integers(0, 256, (5, 7, 3), dtype=np.uint8) for i in numbers]
    )
    labels = np.array([int(i) % 3 for i in numbers], dtype=np.int64)
    return {"image": images, "label": labels, "key": identity(images)}


@dataclass(frozen=True)
class NumberMaker:
    """Makes rows of numbers; ``bad`` ones cannot be read."""

    bad: frozenset[int] = frozenset()

    def __call__(self, samples: Sequence[int]) -> tuple[Rows, list[BadSample]]:
        good = [i for i in samples if i not in self.bad]
        rows = rows_of(good) if good else {k: f_empty(f) for k, f in FIELDS.items()}
        return rows, [BadSample(f"number {i}", "it is bad") for i in samples if i in self.bad]


def f_empty(about: Field) -> NDArray[np.generic]:
    return np.empty((0, *about.shape), dtype=about.dtype)


def pack(
    out: Path,
    *,
    train: int = 203,
    val: int = 31,
    test: int = 17,
    shard_rows: int = 40,
    workers: int = 1,
    make: NumberMaker | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> Manifest:
    """Shards of the numbers 0..train-1, and those after them for val and test."""
    splits = {"train": range(train)}
    if val:
        splits["val"] = range(train, train + val)
    if test:
        splits["test"] = range(train + val, train + val + test)
    recipe = Recipe(
        fields=FIELDS,
        make=make or NumberMaker(),
        preprocess={"tool": "numbers"},
        classes=CLASSES,
    )
    options = BuildOptions(
        out=out, workers=workers, shard_rows=shard_rows, skip_bad=skip_bad, overwrite=overwrite
    )
    return build(out, splits, recipe, options).manifest


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }
