"""``fastvae-data idx``: the idx files of MNIST and its relatives to shards."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastvae.data.format import Field, Rows
from fastvae.data.idx import read_idx
from fastvae.data.splits import hash_fraction, identity, split_fractions
from fastvae.data_tools.arguments import share_or_none
from fastvae.data_tools.shard_job import (
    BadSample,
    Recipe,
    add_build_arguments,
    build,
    build_options,
    default_out,
    report,
)
from fastvae.errors import UserError

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
TEST = ("t10k", "test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Pack the idx files of MNIST, Fashion-MNIST, EMNIST, ... (plain or .gz) as shards. The "
        "test files become the test split;\nthe training images are split into train and val by a "
        "hash of each one's pixels. Without --out: SOURCE-shards."
    )
    parser.epilog = (
        "examples:\n"
        "  fastvae-data idx data/mnist\n"
        "  fastvae-data idx data/emnist --prefix emnist-letters- --out data/letters\n"
        "  fastvae-data idx images.gz --labels labels.gz --out data/mine    (test split by hash)"
    )
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="folder of idx files, or one file of images"
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="labels of a SOURCE that is one file"
    )
    parser.add_argument(
        "--prefix", help="what the names of the files in a folder begin with, before 'train-'"
    )
    parser.add_argument(
        "--val", type=share_or_none, default=0.04, help="share for validation (0.04)"
    )
    parser.add_argument(
        "--test", type=share_or_none, help="share for testing without test files (0.1)"
    )
    add_build_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Pack the files and say what came of them."""
    source: Path = args.source.expanduser()
    files = _files(source, args)
    test = 0.1 if args.test is None and len(files) == 1 else args.test or 0.0
    if args.val + test >= 1.0:
        raise UserError(f"--val {args.val} --test {test}: nothing is left to train on")
    arrays = [read_images(images) for images, _ in files]
    shape = arrays[0].shape[1:]
    for (images, _), array in zip(files, arrays, strict=True):
        if array.shape[1:] != shape:
            raise UserError(f"{images} has images of {array.shape[1:]}, {files[0][0]} of {shape}")
    labels = [_labels(pair, len(array)) for pair, array in zip(files, arrays, strict=True)]
    fields = {
        "image": Field(dtype="uint8", shape=shape),
        "key": Field(dtype="uint64", shape=()),
    }
    classes: tuple[str, ...] = ()
    if all(part is not None for part in labels):
        fields["label"] = Field(dtype="int64", shape=())
        most = max(int(part.max(initial=0)) for part in labels if part is not None)
        classes = tuple(str(number) for number in range(most + 1))
    keys = [identity(array) for array in arrays]
    parts = split_fractions(hash_fraction(keys[0]), args.val, test)
    splits = {name: [int(i) for i in index] for name, index in parts.items()}
    if len(files) == 2:
        known = np.isin(keys[0], keys[1])
        if count := int(known.sum()):
            print(f"{count:,} training images are also among the test images: left out", flush=True)
        splits = {name: [i for i in part if not known[i]] for name, part in splits.items()}
        splits["test"] = [len(arrays[0]) + i for i in range(len(arrays[1]))]
    preprocess = {
        "tool": "idx",
        "files": [
            {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for pair in files
            for path in pair
            if path is not None
        ],
        "val": args.val,
    }
    make = IdxMaker(
        files=tuple((str(images), str(labels) if labels else "") for images, labels in files),
        digest=hashlib.sha256(repr(preprocess).encode()).hexdigest(),
    )
    options = build_options(args, default_out(source))
    recipe = Recipe(fields=fields, make=make, preprocess=preprocess, classes=classes)
    report(build(options.out, splits, recipe, options), options.out, "mnist")
    return 0


@dataclass(frozen=True)
class IdxMaker:
    """Rows of idx files by number, counted through all of them."""

    files: tuple[tuple[str, str], ...]
    """Images and labels ("" for none)."""
    digest: str
    """Of the files: other bytes make another task."""

    def __call__(self, samples: Sequence[int]) -> tuple[Rows, list[BadSample]]:
        images, labels = _read(self.files)
        chosen = np.asarray(samples, dtype=np.int64)
        rows: Rows = {"image": images[chosen]}
        rows["key"] = identity(rows["image"])
        if labels is not None:
            rows["label"] = labels[chosen]
        return rows, []


@lru_cache(maxsize=1)
def _read(
    files: tuple[tuple[str, str], ...],
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """All images (N, H, W, C) and labels (N,)."""
    images = np.concatenate([read_images(Path(name)) for name, _ in files])
    if not all(labels for _, labels in files):
        return images, None
    return images, np.concatenate([read_idx(Path(name)) for _, name in files]).astype(np.int64)


def read_images(path: Path) -> NDArray[np.uint8]:
    """Images of an idx file as (N, H, W, C)."""
    images = read_idx(path)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise UserError(
            f"{path} holds an array of shape {images.shape}: expected images (count, height, "
            "width) or (count, height, width, 1 or 3)"
        )
    return images


Pair = tuple[Path, Path | None]


def _labels(pair: Pair, count: int) -> NDArray[np.uint8] | None:
    if pair[1] is None:
        return None
    labels = read_idx(pair[1])
    if labels.shape != (count,):
        raise UserError(
            f"{pair[1]} holds an array of shape {labels.shape}, but {pair[0]} has {count} images: "
            "they do not belong together"
        )
    return labels


def _files(source: Path, args: argparse.Namespace) -> list[Pair]:
    """The files that the arguments speak of: of all images, or training and test files."""
    if not source.is_dir():
        if args.prefix is not None:
            raise UserError(f"--prefix is for a folder of idx files; {source} is none")
        for path in (source, args.labels):
            if path is not None and not path.is_file():
                what = "is no regular file" if path.exists() else "is not there: no such file"
                raise UserError(f"{path} {what}")
        return [(source, args.labels)]
    if args.labels is not None:
        raise UserError(f"--labels is for one file of images; {source} is a folder")
    files = _of_folder(source, args.prefix or "")
    if len(files) == 2 and args.test is not None:
        raise UserError(f"--test: the test split is {files[1][0]} already; leave it out")
    return files


def _of_folder(folder: Path, prefix: str) -> list[Pair]:
    """The training files, and the test files if they are there."""
    train = _pair(folder, f"{prefix}train-")
    if train is None:
        found = sorted(path.name for path in folder.glob(f"*train-{IMAGES}*"))
        hint = f"; found {', '.join(found[:4])}: give what comes before train- with --prefix"
        raise UserError(
            f"{folder} has no {prefix}train-{IMAGES}[.gz]"
            + (hint if found else ": fetch MNIST with `fastvae-data download mnist`")
        )
    tests = [_pair(folder, f"{prefix}{name}-") for name in TEST]
    return [train, *(pair for pair in tests if pair is not None)][:2]


def _pair(folder: Path, start: str) -> Pair | None:
    """Images that are there, with the labels that belong to them."""
    images, labels = (_one(folder, f"{start}{name}") for name in (IMAGES, LABELS))
    if images is None:
        return None
    if labels is None:
        raise UserError(f"{folder / start}{LABELS}[.gz] is missing beside {images.name}")
    return images, labels


def _one(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
