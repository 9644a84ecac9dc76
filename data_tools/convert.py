"""``fastvae-data convert``: between shards, stock WebDataset tars and FFCV .beton files."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fastvae.data.format import Field, Rows
from fastvae.data.sample_tar import CLASSES
from fastvae.data.splits import hash_fraction, identity, split_fractions
from fastvae.data_tools.arguments import share_or_none
from fastvae.data_tools.sample_sets import SampleSet, in_order, open_sets
from fastvae.data_tools.shard_job import (
    BadSample,
    BuildOptions,
    Recipe,
    add_build_arguments,
    build,
    build_options,
    building_folder,
    default_out,
    report,
)
from fastvae.data_tools.whole_folder import converting, whole_folder
from fastvae.errors import UserError

TARGETS = ("shards", "webdataset", "beton")
_ENDING = {"shards": "shards", "webdataset": "tars", "beton": "beton"}
SHARE = 0.05  # of a source without splits, for val and for test
STEP = 1024  # samples held at once
_IMAGES = ("image", "condition")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Convert a packed data set of images. shards: ours, read at memory speed (and by stock "
        "webdataset: arrays in tars);\nwebdataset: one PNG or JPEG per sample with .cls and "
        ".json; beton: train.beton, val.beton, test.beton for FFCV\n(needs no ffcv; .beton files "
        "with JPEG fields are read with it). Splits are kept; a source that has none is\nsplit by "
        "a hash of each sample's identity. Without --out: SOURCE-shards, -tars or -beton.\n"
        "Images that are stored as one bit per pixel become bytes in tars and .beton files, and "
        "are bytes on the way back\nunless you give --bits."
    )
    parser.epilog = (
        "examples:\n"
        "  fastvae-data convert data/mnist-shards --to webdataset\n"
        "  fastvae-data convert some.beton --to shards --out data/some-shards --val 0.1"
    )
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="folder of shards, of tars or of .beton; a file"
    )
    parser.add_argument("--to", choices=TARGETS, required=True, help="what to make")
    for name, use in (("--val", "validation"), ("--test", "testing")):
        parser.add_argument(
            name,
            type=share_or_none,
            help=f"share for {use} of a source without splits ({SHARE})",
        )
    tars = parser.add_argument_group("--to webdataset")
    tars.add_argument("--image", choices=("png", "jpg"), help="png keeps every bit (png)")
    tars.add_argument("--quality", type=_quality, metavar="Q", help="of jpg, 1 to 100 (95)")
    parser.add_argument_group("--to shards").add_argument(
        "--bits",
        action="store_true",
        default=None,
        help="store images of black and white (0 and 255 alone) as one bit per pixel",
    )
    add_build_arguments(parser)
    parser.set_defaults(workers=None, on_bad_record=None, shard_rows=None)


def run(args: argparse.Namespace) -> int:
    """Convert, and say what to do next."""
    source: Path = args.source.expanduser()
    _check_options(args)
    sets = open_sets(source)
    _check_shares(args, source, sets)
    options = build_options(_filled(args), default_out(source, _ENDING[args.to]))
    _check_apart(source, options.out)
    if any(len(part) == 0 for part in sets.values()):
        raise UserError(f"{source} has a split without samples: make it again")
    for part in sets.values():
        for line in part.notes:
            print(f"note: {line}")
    height, width, channels = next(iter(sets.values())).fields["image"].shape
    if args.to == "webdataset" and channels not in (1, 3):
        raise UserError(f"{source} has images of {channels} channels: PNG and JPEG hold 1 or 3")
    chosen = _splits(sets, args.val, args.test, skip_bad=options.skip_bad)
    if args.to == "shards":
        return _to_shards(source, sets, chosen, options, bits=bool(args.bits))
    with whole_folder(options.out, overwrite=options.overwrite) as folder:
        if args.to == "beton":
            _to_beton(sets, chosen, folder)
        else:
            _to_tars(sets, chosen, folder, args, options.shard_rows or 10_000)
    where = shlex.quote(str(options.out))
    total = sum(len(index) for _, index in chosen.values())
    print(f"{options.out}: {total:,} samples as {args.to}")
    print(
        f"train: fastvae train mnist --data.source {args.to} --data.root {where} "
        f"--model.image-shape {channels} {height} {width}"
        + " --data.binarize none"
        * (channels == 3)
    )
    return 0


# ---------------------------------------------------------------------------------- options
_ONLY_FOR = {
    "workers": ("shards",),
    "on_bad_record": ("shards",),
    "shard_rows": ("shards", "webdataset"),
    "bits": ("shards",),
    "image": ("webdataset",),
    "quality": ("webdataset",),
}


def _quality(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer from 1 to 100")
    return int(text)


def _check_options(args: argparse.Namespace) -> None:
    """UserError for an option that was given and would do nothing."""
    for name, targets in _ONLY_FOR.items():
        if getattr(args, name) is not None and args.to not in targets:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} is for --to {' and '.join(targets)}: leave it out")
    if args.quality is not None and args.image != "jpg":
        raise UserError("--quality is for --image jpg: leave it out, or give both")


def _check_shares(args: argparse.Namespace, source: Path, sets: Mapping[str, SampleSet]) -> None:
    """UserError where the splits are not to be made as the shares say; fills in the shares."""
    if "train" not in sets:
        (only, *more) = sets
        raise UserError(
            f"{source} holds {' and '.join([only, *more])} and nothing to train on: give a folder "
            f"that has a train split, too, or name its files train-..., and they are split anew"
        )
    if len(sets) > 1 and (args.val, args.test) != (None, None):
        raise UserError(
            f"{source} has splits of its own ({', '.join(sets)}), which are kept: leave out --val "
            "and --test"
        )
    args.val = SHARE if args.val is None else args.val
    args.test = SHARE if args.test is None else args.test
    if args.val + args.test >= 1.0:
        raise UserError(f"--val {args.val} --test {args.test}: nothing is left to train on")


def _filled(args: argparse.Namespace) -> argparse.Namespace:
    """The options with the defaults of those that were not given."""
    defaults = {
        "workers": os.cpu_count() or 1,
        "on_bad_record": "error",
        "shard_rows": 0,
        "image": "png",
        "quality": 95,
    }
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def _check_apart(source: Path, out: Path) -> None:
    """UserError where what is written would lie in the source, or replace it."""
    start = source.resolve()
    if out.resolve() == start:
        raise UserError(f"--out {out} is the source: give another folder")
    for place in (out.resolve(), converting(out.resolve()), building_folder(out)):
        if place == start or place in start.parents:
            raise UserError(f"--out {out}: the source {source} lies in it: give another folder")
        if start in place.parents:
            raise UserError(f"--out {out} lies in the source {source}: give another folder")


# ---------------------------------------------------------------------------------- splits
Index = NDArray[np.int64]
Chosen = dict[str, tuple[str, Index]]
"""New split -> the split of the source that its samples come from, and which of them."""


def _splits(sets: Mapping[str, SampleSet], val: float, test: float, *, skip_bad: bool) -> Chosen:
    """The source's own splits; or new ones where it has one only."""
    if len(sets) > 1:
        return {n: (n, np.arange(len(part), dtype=np.int64)) for n, part in in_order(sets)}
    ((name, part),) = sets.items()
    keys = np.empty(len(part), dtype=np.uint64)
    for index in _steps(np.arange(len(part), dtype=np.int64), "hashing"):
        rows, bad = _read(part, index, skip_bad=skip_bad)
        good = np.isin(index, list(bad), invert=True)
        keys[index[good]] = _keys(rows)
        keys[index[~good]] = ~np.uint64(0)  # train, where it is then left out
    parts = split_fractions(hash_fraction(keys), val, test)
    return {new: (name, index) for new, index in parts.items() if len(index)}


def _keys(rows: Rows) -> NDArray[np.uint64]:
    return rows["key"] if "key" in rows else identity(rows["image"])


def _steps(index: Index, what: str) -> Iterator[Index]:
    """Some samples at a time, with a bar."""
    with tqdm(total=len(index), desc=what, unit="sample", disable=None, leave=False) as bar:
        for start in range(0, len(index), STEP):
            some = index[start : start + STEP]
            yield some
            bar.update(len(some))


def _read(part: SampleSet, index: Index, *, skip_bad: bool) -> tuple[Rows, dict[int, str]]:
    """Rows of the samples that can be read, and number and reason of those that cannot."""
    try:
        return part.rows(index), {}
    except UserError:
        if not skip_bad:
            raise
    parts: list[Rows] = [
        {name: np.empty((0, *f.shape), dtype=f.dtype) for name, f in part.fields.items()}
    ]
    bad: dict[int, str] = {}
    for i in range(len(index)):
        try:
            parts.append(part.rows(index[i : i + 1]))
        except UserError as error:
            bad[int(index[i])] = str(error)
    return {name: np.concatenate([rows[name] for rows in parts]) for name in parts[0]}, bad


# ---------------------------------------------------------------------------------- to shards
def _to_shards(
    source: Path,
    sets: Mapping[str, SampleSet],
    chosen: Chosen,
    options: BuildOptions,
    *,
    bits: bool,
) -> int:
    first = next(iter(sets.values()))
    begins, begin = {}, 0
    for name, part in sets.items():
        begins[name] = begin
        begin += len(part)
    splits = {new: [begins[name] + int(i) for i in index] for new, (name, index) in chosen.items()}
    files = sorted(p for p in ([source] if source.is_file() else source.iterdir()) if p.is_file())
    make = SetMaker(
        source=str(source),
        begins=tuple(begins.items()),
        files=tuple((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files),
        bits=bits,
    )
    fields = {**first.fields, "key": Field(dtype="uint64", shape=())}
    if bits:
        fields |= {name: replace(fields[name], bits=True) for name in _IMAGES if name in fields}
    recipe = Recipe(
        fields=fields,
        make=make,
        preprocess={"tool": "convert", "from": first.form, "source": dict(first.preprocess)},
        classes=first.classes,
    )
    report(build(options.out, splits, recipe, options), options.out, "mnist")
    return 0


@dataclass(frozen=True)
class SetMaker:
    """Rows of a packed data set by number, counted through its splits."""

    source: str
    begins: tuple[tuple[str, int], ...]
    """Number of the first sample of each split."""
    files: tuple[tuple[str, int, int], ...]
    """Names, sizes and times: other files make another task."""
    bits: bool = False
    """Whether pixels other than 0 and 255 are an error."""

    def __call__(self, samples: Sequence[int]) -> tuple[Rows, list[BadSample]]:
        numbers = np.asarray(samples, dtype=np.int64)
        name, begin = next((n, b) for n, b in reversed(self.begins) if b <= numbers[0])
        part = _open(self, os.getpid())[name]
        rows, bad = _read(part, numbers - begin, skip_bad=True)
        for field in _IMAGES if self.bits else ():
            if field in rows and not np.isin(rows[field], (0, 255)).all():
                raise UserError(
                    f"{self.source}: the {field} of a sample of {name} has pixels other than 0 and "
                    "255: leave out --bits"
                )
        return {**rows, "key": _keys(rows)}, [
            BadSample(f"sample {i} of {name}", reason) for i, reason in bad.items()
        ]


@lru_cache(maxsize=1)
def _open(make: SetMaker, process: int) -> dict[str, SampleSet]:
    """The sets that a maker reads; a process has its own, since they have places in open files."""
    return open_sets(Path(make.source))


# ---------------------------------------------------------------------------------- to the others
def _to_beton(sets: Mapping[str, SampleSet], chosen: Chosen, folder: Path) -> None:
    from fastvae.data.beton_writer import BetonWriter

    for new, (name, index) in chosen.items():
        part = sets[name]
        fields = {**part.fields, "key": Field(dtype="uint64", shape=())}
        with BetonWriter(
            folder / f"{new}.beton",
            fields,
            classes=part.classes,
            preprocess=part.preprocess,
            count=len(index),
        ) as writer:
            for some in _steps(index, new):
                rows = part.rows(some)
                writer.append({**rows, "key": _keys(rows)})


def _to_tars(
    sets: Mapping[str, SampleSet],
    chosen: Chosen,
    folder: Path,
    args: argparse.Namespace,
    per_tar: int,
) -> None:
    from fastvae.data.sample_tar import OutSample, write_sizes, write_tars

    def samples(part: SampleSet, new: str, index: Index) -> Iterator[OutSample]:
        number = 0
        for some in _steps(index, new):
            rows = part.rows(some)
            keys = _keys(rows)
            for i in range(len(keys)):
                yield OutSample(
                    key=f"{number:08d}",
                    image=rows["image"][i],
                    label=int(rows["label"][i]) if "label" in rows else None,
                    condition=rows["condition"][i] if "condition" in rows else None,
                    identity=int(keys[i]),
                )
                number += 1

    sizes: dict[str, int] = {}
    for new, (name, index) in chosen.items():
        sizes |= write_tars(
            folder,
            new,
            samples(sets[name], new, index),
            per_tar=per_tar,
            image=args.image,
            quality=args.quality,
            classes=sets[name].classes,
        )
    classes = next(iter(sets.values())).classes
    if classes:
        (folder / CLASSES).write_text(json.dumps(classes) + "\n", encoding="ascii")
    write_sizes(folder, sizes)
