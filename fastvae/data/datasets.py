"""Data sets by name: read the files, check them, split them.

``load_splits(config)`` is the one door; a new data set is one function in ``_READERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastvae.config import DataConfig
from fastvae.data.idx import read_idx
from fastvae.data.sources.resident import ResidentSource
from fastvae.data.splits import split_indices
from fastvae.errors import UserError, nearest

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]
SPLITS = ("train", "val", "test")


def _digits(config: DataConfig) -> tuple[Arrays, Arrays | None]:
    """scikit-learn's copy of the UCI optical digits: 1,797 images 8x8 with values 0..16."""
    from sklearn.datasets import load_digits

    images, labels = load_digits().images, load_digits().target
    return (np.rint(images * (255.0 / 16.0)).astype(np.uint8), labels.astype(np.uint8)), None


def _mnist(config: DataConfig) -> tuple[Arrays, Arrays | None]:
    """The original idx files of MNIST, or anything in the same form (Fashion-MNIST, KMNIST)."""
    root = Path(config.root)
    if root.exists() and not root.is_dir():
        raise UserError(f"--data.root {root} is a file: give the folder that holds the idx files")
    if not root.is_dir():
        raise UserError(
            f"data folder {root} does not exist: run `fastvae-data download mnist --root {root}`, "
            "or give the folder that holds the idx files with --data.root (evaluate: --root)"
        )
    return _idx_pair(root, "train"), _idx_pair(root, "t10k")


def _idx_pair(root: Path, part: str) -> Arrays:
    paths = []
    for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
        found = [p for p in (root / f"{name}.gz", root / name) if p.is_file()]
        if not found:
            raise UserError(
                f"{root / name}.gz is missing: run `fastvae-data download mnist --root {root}`"
            )
        paths.append(found[0])
    images, labels = read_idx(paths[0]), read_idx(paths[1])
    if images.ndim != 3:
        raise UserError(
            f"{paths[0]} holds an array of shape {images.shape}: expected grey images "
            "(count, height, width)"
        )
    if labels.ndim != 1:
        raise UserError(
            f"{paths[1]} holds an array of shape {labels.shape}: expected labels (count,)"
        )
    if len(images) != len(labels):
        raise UserError(
            f"{paths[0]} has {len(images)} images but {paths[1]} has {len(labels)} labels: "
            f"they do not belong together; run `fastvae-data download mnist --root {root}`"
        )
    return images, labels


_READERS: dict[str, Callable[[DataConfig], tuple[Arrays, Arrays | None]]] = {
    "digits": _digits,
    "mnist": _mnist,
}


def load_splits(config: DataConfig) -> dict[str, ResidentSource]:
    """Read a data set into resident train, val and test sources.

    The test part is the data set's own where it has one; else ``test_fraction`` of the images.
    """
    try:
        reader = _READERS[config.dataset]
    except KeyError:
        raise UserError(
            f"unknown data set {config.dataset!r}{nearest(config.dataset, _READERS)}"
        ) from None
    (images, labels), own_test = reader(config)
    parts = split_indices(images, config.val_fraction, 0.0 if own_test else config.test_fraction)
    sources = {
        name: ResidentSource.from_numpy(images[index], labels[index])
        for name, index in parts.items()
        if name != "test" or own_test is None
    }
    if own_test is not None:
        if own_test[0].shape[1:] != images.shape[1:]:
            raise UserError(
                f"{config.root}: training images are {images.shape[1:]} but test images are "
                f"{own_test[0].shape[1:]}"
            )
        sources["test"] = ResidentSource.from_numpy(*own_test)
    for name in SPLITS:
        if len(sources[name]) == 0:
            raise UserError(
                f"data set {config.dataset}: the {name} split is empty "
                f"({len(images)} images; equal ones go to the same split): give more images, or "
                "raise data.val_fraction or data.test_fraction"
            )
    return sources
