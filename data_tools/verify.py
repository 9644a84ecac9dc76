"""``fastvae-data verify``: every byte of a data set against its checksums."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fastvae.data import drawings, npy
from fastvae.data.format import (
    BLOCK,
    Field,
    Manifest,
    Shard,
    check_member,
    member_bytes,
    member_name,
    read_manifest,
)
from fastvae.data.sample_rows import Layout
from fastvae.data.shards import ShardReader
from fastvae.data_tools.arguments import at_least
from fastvae.data_tools.forms import Form, form_of, split_files
from fastvae.data_tools.sample_sets import TarSet
from fastvae.errors import UserError

STEP = 1024  # samples decoded at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Read every byte of a packed data set and compare it with its checksums: shards (SHA-256 "
        "of each; place, shape\nand CRC-32 of each member), packed strokes, .beton files with "
        "their .json, stock WebDataset tars (headers, order and\nevery image, all alike: they "
        "have no checksums). Damage is named, file by file; exit code 2. Samples that are in\ntwo "
        "splits are counted in a note."
    )
    parser.epilog = "example: fastvae-data verify data/coco-shards"
    parser.add_argument("path", type=Path, metavar="DIR|FILE", help="what to verify")
    parser.add_argument(
        "--workers",
        type=at_least(1),
        default=os.cpu_count() or 1,
        metavar="N",
        help="threads that read (default: one per core)",
    )


def run(args: argparse.Namespace) -> int:
    """Verify, name what is damaged, and say that all is right where it is."""
    path: Path = args.path.expanduser()
    damage = list(_CHECKS[form_of(path)](path, args.workers))
    for line in damage:
        print(f"damaged: {line}")
    if damage:
        raise UserError(
            f"{path}: {len(damage)} thing{'s' * (len(damage) > 1)} damaged: make or copy it again; "
            "shards can be trained on without what is damaged (--data.on-damage skip)"
        )
    print(f"{path}: all right")
    return 0


def _shards(folder: Path, workers: int) -> Iterator[str]:
    manifest = read_manifest(folder)
    every = [shard for part in manifest.splits.values() for shard in part]
    known = {shard.name for shard in every}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in known:
            print(f"note: {path} is not in the manifest")
    with (
        tqdm(
            total=sum(s.bytes for s in every), unit="B", unit_scale=True, disable=None, leave=False
        ) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        found = pool.map(lambda shard: _shard(folder, shard, manifest.fields), every)
        broken = False
        for shard, reasons in zip(every, found, strict=True):
            bar.update(shard.bytes)
            broken = broken or bool(reasons)
            yield from reasons
    if not broken:
        _note_keys(folder, manifest)


def _shard(folder: Path, shard: Shard, fields: Mapping[str, Field]) -> list[str]:
    """What is wrong with one shard, and with what the manifest says of it."""
    path = folder / shard.name
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            return [f"{path}: {size:,} bytes instead of {shard.bytes:,}"]
        data = np.fromfile(path, dtype=np.uint8)
    except FileNotFoundError:
        return [f"{path} is missing"]
    except OSError as error:
        return [f"{path} cannot be read: {error.strerror or error}"]
    reasons = [
        check_member(data, shard, fields, pack, name)
        or _check_shape(data, shard, about, pack, name)
        for pack in range(len(shard.rows))
        for name, about in fields.items()
    ]
    found = [f"{path}: {reason}" for reason in reasons if reason]
    sizes = (member_bytes(about, n) for about in fields.values() for n in shard.rows)
    if sum(BLOCK + -(-n // BLOCK) * BLOCK for n in sizes) + 2 * BLOCK != shard.bytes:
        found.append(f"{path}: it holds more than the members that the manifest names")
    if not found and hashlib.sha256(data.data).hexdigest() != shard.sha256:
        found.append(f"{path}: its SHA-256 is another (between the members; they are right)")
    return found


def _check_shape(data: NDArray[np.uint8], shard: Shard, about: Field, pack: int, name: str) -> str:
    """Compare dtype and shape of a member's array with the manifest; "" or what is wrong."""
    start = shard.offset[name][pack]
    head = npy.header(about.stored_dtype, (shard.rows[pack], *about.stored_shape))
    if data[start : start + len(head)].tobytes() == head:
        return ""
    return f"{member_name(shard.first_pack + pack, name)} is another array than in the manifest"


def _note_keys(folder: Path, manifest: Manifest) -> None:
    """Tell of samples that are in two splits: equal ones, if that is what was packed."""
    if "key" not in manifest.fields:
        return
    met: dict[str, NDArray[np.uint64]] = {}
    for split in manifest.splits:
        reader = ShardReader(folder, split, manifest=manifest, verify=False)
        keys = np.empty(len(reader), dtype=np.uint64)
        reader.gather_into("key", np.arange(len(reader), dtype=np.int64), keys)
        reader.close()
        for other, theirs in met.items():
            both = len(np.intersect1d(keys, theirs))
            if both:
                print(f"note: {both:,} keys are in {other} and in {split}: equal samples")
        met[split] = keys


def _strokes(folder: Path, workers: int) -> Iterator[str]:
    for name in drawings_sets(folder):
        try:
            drawings.load(name, verify=True)
        except UserError as error:
            yield str(error)


def drawings_sets(folder: Path) -> list[Path]:
    """The sets of drawings in a folder, or the folder itself."""
    return sorted(path.parent for path in folder.glob(f"*/{drawings.INDEX}")) or [folder]


def _beton(path: Path, workers: int) -> Iterator[str]:
    from fastvae.data.beton import BetonFile

    for file in split_files(path, ".beton"):
        try:
            BetonFile(file, verify=True)
        except UserError as error:
            yield str(error)


def _tars(path: Path, workers: int) -> Iterator[str]:
    """Every header, every image, and whether the samples are alike."""
    found = split_files(path, ".tar")
    layout: Layout | None = None  # of the first one
    with tqdm(total=len(found), unit="tar", disable=None, leave=False) as bar:
        for file in found:
            try:
                part = TarSet([file], layout)
                layout = part.layout
                for start in range(0, len(part), STEP):
                    part.rows(np.arange(start, min(start + STEP, len(part)), dtype=np.int64))
            except UserError as error:
                yield str(error)
            bar.update()


_CHECKS = {
    Form.SHARDS: _shards,
    Form.STROKES: _strokes,
    Form.BETON: _beton,
    Form.TARS: _tars,
}
