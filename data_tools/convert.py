"""``fastvae-data convert``: between shards, stock WebDataset tars and FFCV .beton files."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fastvae.data import format as shards
from fastvae.data.format import Field, Rows
from fastvae.data.splits import hash_fraction, identity, split_fractions
from fastvae.data_tools.arguments import at_least, share_or_none
from fastvae.data_tools.forms import Form, form_of
from fastvae.data_tools.sample_sets import CLASSES, SampleSet, in_order, open_sets
from fastvae.data_tools.shard_job import (
    BadSample,
    BuildOptions,
    Recipe,
    add_build_arguments,
    build,
    build_options,
    check_target,
    default_out,
    report,
)
from fastvae.errors import UserError

TARGETS = ("shards", "webdataset", "beton")
_ENDING = {"shards": "shards", "webdataset": "tars", "beton": "beton"}
_OURS = ("*.tar", "*.beton", "*.beton.json", "sizes.json", CLASSES, "preview.png")
STEP = 1024  # samples held at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Convert a packed data set of images. shards: ours, read at memory speed (and by stock "
        "webdataset: arrays in tars);\nwebdataset: one PNG or JPEG per sample with .cls and "
        ".json; beton: train.beton, val.beton, test.beton for FFCV\n(needs no ffcv; .beton files "
        "with JPEG fields are read with it). Splits are kept; a source that has none is\nsplit by "
        "a hash of each sample's identity. Without --out: SOURCE-shards, -tars or -beton."
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
            default=0.05,
            help=f"share for {use} of a source without splits (0.05)",
        )
    tars = parser.add_argument_group("--to webdataset")
    tars.add_argument(
        "--image", choices=("png", "jpg"), default="png", help="png keeps every bit (png)"
    )
    tars.add_argument(
        "--quality", type=at_least(1), default=95, metavar="Q", help="of jpg, up to 100 (95)"
    )
    add_build_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Convert, and say what to do next."""
    source: Path = args.source.expanduser()
    if args.val + args.test >= 1.0:
        raise UserError(f"--val {args.val} --test {args.test}: nothing is left to train on")
    sets = open_sets(source)
    options = build_options(args, default_out(source, _ENDING[args.to]))
    if options.out.resolve() == source.resolve():
        raise UserError(f"--out {options.out} is the source: give another folder")
    if any(len(part) == 0 for part in sets.values()):
        raise UserError(f"{source} has a split without samples: make it again")
    for part in sets.values():
        for line in part.notes:
            print(f"note: {line}")
    chosen = _splits(sets, args.val, args.test)
    if args.to == "shards":
        return _to_shards(source, sets, chosen, options)
    with _whole_folder(options) as folder:
        if args.to == "beton":
            _to_beton(sets, chosen, folder)
        else:
            _to_tars(sets, chosen, folder, args, options.shard_rows or 10_000)
    where = shlex.quote(str(options.out))
    total = sum(len(index) for _, index in chosen.values())
    print(f"{options.out}: {total:,} samples as {args.to}")
    shape = next(iter(sets.values())).fields["image"].shape
    print(
        f"train: fastvae train mnist --data.source {args.to} --data.root {where} "
        f"--model.image-shape {shape[2]} {shape[0]} {shape[1]}"
    )
    return 0


Index = NDArray[np.int64]
Chosen = dict[str, tuple[str, Index]]
"""New split -> the split of the source that its samples come from, and which of them."""


def _splits(sets: Mapping[str, SampleSet], val: float, test: float) -> Chosen:
    """The source's own splits; or new ones where it has one only."""
    if len(sets) > 1:
        return {n: (n, np.arange(len(part), dtype=np.int64)) for n, part in in_order(sets)}
    ((name, part),) = sets.items()
    keys = np.concatenate([_keys(rows) for _, rows in _chunks(part, "hashing")])
    parts = split_fractions(hash_fraction(keys), val, test)
    return {new: (name, index) for new, index in parts.items() if len(index)}


def _keys(rows: Rows) -> NDArray[np.uint64]:
    return rows["key"] if "key" in rows else identity(rows["image"])


def _chunks(part: SampleSet, what: str, index: Index | None = None) -> Iterator[tuple[Index, Rows]]:
    """Samples of a set, some at a time, with a bar."""
    every = np.arange(len(part), dtype=np.int64) if index is None else index
    with tqdm(total=len(every), desc=what, unit="sample", disable=None, leave=False) as bar:
        for start in range(0, len(every), STEP):
            some = every[start : start + STEP]
            yield some, part.rows(some)
            bar.update(len(some))


# ---------------------------------------------------------------------------------- to shards
def _to_shards(
    source: Path, sets: Mapping[str, SampleSet], chosen: Chosen, options: BuildOptions
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
    )
    fields = {**first.fields, "key": Field(dtype="uint64", shape=())}
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

    def __call__(self, samples: Sequence[int]) -> tuple[Rows, list[BadSample]]:
        numbers = np.asarray(samples, dtype=np.int64)
        name, begin = next((n, b) for n, b in reversed(self.begins) if b <= numbers[0])
        rows = _open(self.source)[name].rows(numbers - begin)
        return {**rows, "key": _keys(rows)}, []


@lru_cache(maxsize=1)
def _open(source: str) -> dict[str, SampleSet]:
    return open_sets(Path(source))


# ---------------------------------------------------------------------------------- to the others
def _to_beton(sets: Mapping[str, SampleSet], chosen: Chosen, folder: Path) -> None:
    from fastvae.data.beton import BetonWriter

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
            for _, rows in _chunks(part, new, index):
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
        for _, rows in _chunks(part, new, index):
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


@contextmanager
def _whole_folder(options: BuildOptions) -> Iterator[Path]:
    """A folder that gets its name when all of it is there."""
    out = options.out.resolve()
    _check_folder(out, overwrite=options.overwrite)
    building = out.with_name(f".{out.name}.converting")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        yield building
        if out.exists():
            shutil.rmtree(out)
        building.rename(out)
        shards.sync_folder(out.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or building}: {error.strerror or error}"
        ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _check_folder(out: Path, *, overwrite: bool) -> None:
    """Raise UserError if ``out`` is there and is not a folder of ours that may be replaced."""
    if out.is_dir() and overwrite and any(out.iterdir()) and form_of(out) is not Form.SHARDS:
        known = {path for pattern in _OURS for path in out.glob(pattern)}
        foreign = sorted(set(out.iterdir()) - known)
        if foreign:
            raise UserError(f"{out} also holds {foreign[0].name}: --overwrite will not remove it")
        return
    check_target(out, overwrite=overwrite)
