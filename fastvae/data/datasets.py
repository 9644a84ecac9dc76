"""Data sets by name: read the files, check them, split them.

``load_splits(config)`` is the one door. What data tools have packed (shards, .beton, tars) is
opened by ``fastvae.data.packed``; of a data set's own files, a new one of images is one function in
``_READERS``, one of anything else is a function in ``_SOURCES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvae.config import Config, DataConfig
from fastvae.data.bitmaps import read_bitmaps
from fastvae.data.idx import read_idx
from fastvae.data.packed import choose, open_packed
from fastvae.data.sources import Source
from fastvae.data.sources.resident import ResidentSource
from fastvae.data.splits import split_indices
from fastvae.errors import UserError, nearest

Arrays = tuple[NDArray[np.uint8], NDArray[np.unsignedinteger[Any]]]
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


def _bitmaps(config: DataConfig) -> tuple[Arrays, Arrays | None]:
    """Quick, Draw!'s own 28x28 bitmaps: one .npy per category, labels in alphabetical order."""
    root = Path(config.root)
    paths = sorted(root.glob("*.npy"))
    if not paths:
        raise UserError(
            f"{root} holds no .npy bitmaps: run `fastvae-data download quickdraw --kind bitmap "
            "--categories cat fish`, or give the folder that holds them with --data.root"
        )
    images = [read_bitmaps(path) for path in paths]
    labels = np.repeat(np.arange(len(paths), dtype=np.uint16), [len(part) for part in images])
    return (np.concatenate(images), labels), None


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
    "bitmaps": _bitmaps,
}


def _strokes(config: Config) -> Mapping[str, Source]:
    from fastvae.data import stroke_sets  # brings Numba along, which takes a while to import

    return stroke_sets.packed(config)


def _doodles(config: Config) -> Mapping[str, Source]:
    from fastvae.data import stroke_sets

    return stroke_sets.doodles(config)


_SOURCES: dict[str, Callable[[Config], Mapping[str, Source]]] = {
    "strokes": _strokes,
    "doodles": _doodles,
}


def load_splits(config: Config, only: str | None = None) -> Mapping[str, Source]:
    """Read a data set into train, val and test sources.

    The test part is the data set's own where it has one; else ``test_fraction`` of the images.

    Args:
        only: the one split that is wanted: of packed data no other is opened.
    """
    name = config.data.dataset
    how = choose(config.data, needs_no_files=name in ("digits", "doodles"))
    if how != "files":
        sources: Mapping[str, Source] = open_packed(config, how, only)
    elif name in _SOURCES:
        sources = _SOURCES[name](config)
    elif name in _READERS:
        sources = _resident(config.data)
    else:
        raise UserError(f"unknown data set {name!r}{nearest(name, [*_READERS, *_SOURCES])}")
    for split in SPLITS if only is None else (only,):
        if len(sources[split]) == 0:
            total = sum(map(len, sources.values()))
            raise UserError(
                f"data set {name}: the {split} split is empty ({total} samples in all; equal ones "
                "go to the same split): give more of them, or larger shares (data.val_fraction, "
                "data.test_fraction, or those that the data were packed with)"
            )
    return sources


def fingerprints(sources: Mapping[str, Source]) -> str:
    """What all ranks have to agree upon."""
    return "\n".join(f"{name} {len(s)} {s.fingerprint}" for name, s in sorted(sources.items()))


def _resident(config: DataConfig) -> dict[str, Source]:
    """Images in memory."""
    (images, labels), own_test = _READERS[config.dataset](config)
    parts = split_indices(images, config.val_fraction, 0.0 if own_test else config.test_fraction)
    sources: dict[str, Source] = {
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
    return sources
