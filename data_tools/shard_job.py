"""The engine of all importers: samples to verified shards, in processes, resumable.

    splits (descriptions of samples) --cut--> tasks --make_shard--> tars --> manifest.json

``make_shard`` is a pure function of its task: any process on any machine that sees the files can
run it, and gets the same bytes. Shards are built in ``.NAME.building`` beside the folder to be; of
each finished one there is a note with its checksum and a hash of its task in ``.NAME.notes``.
Started again after a kill, the job verifies and keeps those and makes the others. The folder gets
its name when all is there, so a folder that has its name is complete.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import fastvae
from fastvae.data import format as shards
from fastvae.data.drawings import sha256
from fastvae.data.format import MANIFEST, SPLITS, Field, Manifest, Rows, Shard
from fastvae.data_tools import names
from fastvae.data_tools.arguments import at_least
from fastvae.data_tools.worker_pool import Progress, Stopped, run_tasks
from fastvae.errors import UserError

BAD_SAMPLES = "bad_samples.jsonl"
SHARD_BYTES = 64 << 20  # of a shard, about
SLOW_SHARD_BYTES = 16 << 20  # where making it is slow
SLOW_TASKS = 16  # at least so many tasks, where there are samples enough
_BUILDING, _NOTES = ".building", ".notes"
WORK = "work"
"""A folder inside the one that is being built, for what an importer needs meanwhile."""


class BadSample(NamedTuple):
    """A sample that could not be read."""

    name: str
    reason: str


class Maker(Protocol):
    """Makes the rows of samples: a pure function, picklable, whose ``repr`` tells its settings."""

    def __call__(self, samples: Sequence[Any]) -> tuple[Rows, list[BadSample]]:
        """Rows of the good samples, in order, with every field; and the bad ones."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is made of the samples."""

    fields: Mapping[str, Field]
    make: Maker
    preprocess: Mapping[str, Any]
    """Plain JSON, for the manifest."""
    classes: tuple[str, ...] = ()
    slow: bool = False
    """Whether making rows takes milliseconds each: shards are then smaller, so that many workers
    are busy to the end and little is lost by a kill."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Where shards go and how they are made; nothing here changes a byte of them but
    ``shard_rows`` and, where there are bad samples, ``skip_bad``."""

    out: Path
    workers: int = 1
    skip_bad: bool = False
    overwrite: bool = False
    shard_rows: int = 0
    """Samples per shard; 0 for as many as make about 64 MiB (16 where making them is slow)."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """What came of it."""

    out: Path
    manifest: Manifest
    kept: int
    """Shards that an earlier, broken-off run had finished."""
    bad: list[BadSample]
    seconds: float


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what all importers share."""
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to make (default: see above)"
    )
    parser.add_argument(
        "--workers",
        type=at_least(1),
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes (default: one per core); the result is the same with any number",
    )
    parser.add_argument(
        "--on-bad-record",
        choices=("error", "skip"),
        default="error",
        help=f"stop at a sample that cannot be read, or leave it out and list it in {BAD_SAMPLES}",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace DIR if it holds what this tool made and nothing else",
    )
    parser.add_argument(
        "--shard-rows",
        type=at_least(1),
        default=0,
        metavar="N",
        help="samples per shard (default: as many as make 64 MiB; photos: 16 MiB, or fewer)",
    )


def build_options(args: argparse.Namespace, default_out: Path) -> BuildOptions:
    """The options that ``add_build_arguments`` has declared."""
    return BuildOptions(
        out=(args.out or default_out).expanduser(),
        workers=args.workers,
        skip_bad=args.on_bad_record == "skip",
        overwrite=args.overwrite,
        shard_rows=args.shard_rows,
    )


def default_out(source: Path, ending: str = "shards") -> Path:
    """``SOURCE-shards`` beside the source; what comes after the first dot is left out."""
    path = source if source.name not in ("", "..") else source.resolve()
    if not path.name:
        raise UserError(f"{source} has no name to make one of: give a folder with --out")
    return path.with_name(f"{path.name.split('.')[0] or path.name}-{ending}")


# ---------------------------------------------------------------------------------- one shard
@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that is needed to make one shard."""

    path: Path
    split: str
    samples: Sequence[Any]
    fields: Mapping[str, Field]
    make: Maker
    first_pack: int
    pack_rows: int
    skip_bad: bool

    @property
    def digest(self) -> str:
        """Hash of everything that the shard's bytes depend on."""
        parts = (
            fastvae.__version__,
            shards.VERSION,
            sorted(self.fields.items()),
            self.make,
            self.split,
            self.first_pack,
            self.pack_rows,
        )
        hasher = hashlib.sha256(repr(parts).encode())
        samples = self.samples
        for sample in (samples,) if isinstance(samples, range) else samples:
            hasher.update(repr(sample).encode("utf-8", "surrogateescape") + b"\n")
        return hasher.hexdigest()


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """A shard that is there, or None where no sample of it could be read."""

    shard: Shard | None
    bad: list[BadSample]


def make_shard(task: ShardTask, progress: Progress) -> ShardResult:
    """Make one shard and leave a note that it is done; a bad sample raises unless ``skip_bad``."""
    bad: list[BadSample] = []

    def packs() -> Iterator[Rows]:
        for start in range(0, len(task.samples), task.pack_rows):
            chosen = task.samples[start : start + task.pack_rows]
            rows, unreadable = task.make(chosen)
            if unreadable and not task.skip_bad:
                raise UserError(
                    f"{unreadable[0].name}: {unreadable[0].reason}; mend or remove it, or use "
                    "--on-bad-record skip"
                )
            bad.extend(unreadable)
            if len(next(iter(rows.values()))):
                yield rows
            progress.add(len(chosen))

    shard: Shard | None = shards.write_shard(task.path, task.fields, packs(), task.first_pack)
    assert shard is not None
    if shard.count == 0:
        task.path.unlink()
        shard = None
    note = {
        "task": task.digest,
        "shard": shard and shards.shard_json(shard),
        "bad": [list(sample) for sample in bad],
    }
    path = _note(task.path)
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    part.write_text(json.dumps(note), encoding="ascii")
    part.replace(path)
    return ShardResult(shard=shard, bad=bad)


def finished(task: ShardTask) -> ShardResult | None:
    """The result of a task that an earlier run has finished, verified; None where there is none."""
    try:
        note = json.loads(_note(task.path).read_bytes())
        if note["task"] != task.digest:
            return None
        bad = [BadSample(*sample) for sample in note["bad"]]
        if bad and not task.skip_bad:
            return None  # made again, it says which
        if note["shard"] is None:
            return ShardResult(shard=None, bad=bad)
        shard = shards.shard_from_json(note["shard"], task.fields)
        if task.path.stat().st_size != shard.bytes or sha256(task.path) != shard.sha256:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return ShardResult(shard=shard, bad=bad)


def _note(path: Path) -> Path:
    """Where the note about a shard is: beside the folder, so that the folder itself is clean."""
    building = path.parent
    notes = building.with_name(building.name.removesuffix(_BUILDING) + _NOTES)
    return notes / f"{path.name}.json"


# ---------------------------------------------------------------------------------- all of them
def build(
    out: Path, splits: Mapping[str, Sequence[Any]], recipe: Recipe, options: BuildOptions
) -> Built:
    """Make a folder of shards.

    Args:
        splits: descriptions of the samples of each split, in order.

    Raises:
        UserError: ``out`` may not be replaced, a sample is bad, the disk is full, ...
    """
    begin = time.perf_counter()
    out = Path(os.path.realpath(out))
    check_target(out, overwrite=options.overwrite)
    total = sum(map(len, splits.values()))
    if total == 0 or not len(splits.get("train", ())):
        raise UserError(
            f"{out}: there is nothing to train on ({total} samples in all, 0 for train): give more "
            "of them, or smaller shares for val and test"
        )
    building = building_folder(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out.with_name(f".{out.name}.lock")):
            building.mkdir(exist_ok=True)
            tasks = cut(building, splits, recipe, options)
            results, kept = _make_all(building, tasks, options.workers, total)
            manifest = _assemble(tasks, results, recipe)
            bad = [sample for result in results for sample in result.bad]
            _finish(building, out, manifest, bad, overwrite=options.overwrite)
    except BrokenPipeError:
        raise  # who reads what is printed has gone
    except OSError as error:
        where = error.filename or building
        raise UserError(
            f"cannot write {where}: {error.strerror or error}; run the same command again to go on"
        ) from None
    return Built(
        out=out, manifest=manifest, kept=kept, bad=bad, seconds=time.perf_counter() - begin
    )


def building_folder(out: Path) -> Path:
    """Where ``out`` is built, until it is complete."""
    out = Path(os.path.realpath(out))
    return out.with_name(f".{out.name}{_BUILDING}")


def check_target(out: Path, *, overwrite: bool) -> None:
    """Raise UserError if ``out`` is there and may not be replaced."""
    if os.path.ismount(out):
        raise UserError(f"{out} is where a disk is mounted: give a folder in it with --out")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise UserError(f"{out} is there already, and is no folder: give another --out")
    if not overwrite:
        raise UserError(f"{out} is there already: give another --out, or --overwrite")
    try:
        manifest = shards.read_manifest(out)
    except UserError:
        raise UserError(f"{out} holds no shards: --overwrite will not remove it") from None
    ours = {shard.name for part in manifest.splits.values() for shard in part}
    foreign = sorted(
        {p.name for p in out.iterdir()} - ours - {MANIFEST, BAD_SAMPLES, "preview.png"}
    )
    if foreign:
        raise UserError(f"{out} also holds {foreign[0]}: --overwrite will not remove it")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock by a file of that name, which is gone at the end; UserError if it is taken."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle.fileno()).st_ino != os.stat(path).st_ino:
                raise BlockingIOError  # it was removed meanwhile, and is another's
        except (BlockingIOError, FileNotFoundError):
            name = path.name.removeprefix(".").removesuffix(".lock")
            raise UserError(
                f"another process is at work on {path.with_name(name)}: wait for it"
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def cut(
    folder: Path, splits: Mapping[str, Sequence[Any]], recipe: Recipe, options: BuildOptions
) -> list[ShardTask]:
    """The tasks, in order. They depend on the samples, not on how many workers there are."""
    pack_rows = shards.rows_per_pack(recipe.fields)
    shard_rows = options.shard_rows or _shard_rows(
        recipe, pack_rows, sum(map(len, splits.values()))
    )
    pack_rows = min(pack_rows, shard_rows)
    packs = -(-shard_rows // pack_rows)
    return [
        ShardTask(
            path=folder / shards.shard_name(split, number),
            split=split,
            samples=samples[number * shard_rows : (number + 1) * shard_rows],
            fields=recipe.fields,
            make=recipe.make,
            first_pack=number * packs,
            pack_rows=pack_rows,
            skip_bad=options.skip_bad,
        )
        for split, samples in ((s, splits[s]) for s in SPLITS if s in splits)
        for number in range(-(-len(samples) // shard_rows))
    ]


def _shard_rows(recipe: Recipe, pack_rows: int, total: int) -> int:
    """Samples per shard: whole packs."""
    pack = pack_rows * sum(about.row_bytes for about in recipe.fields.values())
    packs = max(1, (SLOW_SHARD_BYTES if recipe.slow else SHARD_BYTES) // pack)
    if recipe.slow:
        packs = min(packs, -(-total // (SLOW_TASKS * pack_rows)))
    return packs * pack_rows


def _make_all(
    building: Path, tasks: list[ShardTask], workers: int, total: int
) -> tuple[list[ShardResult], int]:
    """Results in the order of the tasks, and how many were there already."""
    known = {task.path.name for task in tasks}
    for path in building.iterdir():
        if path.name not in known | {WORK}:  # of other options, or cut off in the middle
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    results = [finished(task) for task in tasks]
    kept = sum(result is not None for result in results)
    left = [i for i, result in enumerate(results) if result is None]
    ahead = total - sum(len(tasks[i].samples) for i in left)
    if kept:
        print(f"going on: {kept} of {len(tasks)} shards are there and have their checksums")
    try:
        made = run_tasks(make_shard, [tasks[i] for i in left], workers, total, ahead)
        for i, result in zip(left, made, strict=True):
            results[i] = result
    except Stopped as error:
        raise UserError(f"{error}; run the same command again to go on") from None
    return [result for result in results if result is not None], kept


def _assemble(tasks: list[ShardTask], results: list[ShardResult], recipe: Recipe) -> Manifest:
    splits: dict[str, list[Shard]] = {}
    for task, result in zip(tasks, results, strict=True):
        if result.shard is not None:
            splits.setdefault(task.split, []).append(result.shard)
    if "train" not in splits:
        raise UserError("no sample for training could be read: look at the files")
    return Manifest(
        fields=recipe.fields,
        splits={name: tuple(parts) for name, parts in splits.items()},
        classes=recipe.classes,
        preprocess=recipe.preprocess,
        bad=sum(len(result.bad) for result in results),
    )


def _finish(
    building: Path, out: Path, manifest: Manifest, bad: list[BadSample], *, overwrite: bool
) -> None:
    """Write manifest and list of bad samples, tidy up, and give the folder its name."""
    if bad:
        lines = (json.dumps(sample._asdict()) + "\n" for sample in bad)
        (building / BAD_SAMPLES).write_text("".join(lines), encoding="ascii")
    wanted = {shard.name for part in manifest.splits.values() for shard in part}
    shards.write_manifest(building, manifest)
    for path in building.iterdir():
        if path.name not in wanted | {MANIFEST, BAD_SAMPLES}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    check_target(out, overwrite=overwrite)  # it may have come meanwhile
    if out.exists():
        aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old-"))
        out.rename(aside / out.name)
        building.rename(out)
        shutil.rmtree(aside)
    else:
        building.rename(out)
    shards.sync_folder(out.parent)
    shutil.rmtree(out.with_name(f".{out.name}{_NOTES}"), ignore_errors=True)


def report(built: Built, shown: Path, preset: str) -> None:
    """Say what came of it, and what to do next.

    Args:
        shown: the folder as the user named it.
        preset: one that can be trained on it.
    """
    manifest = built.manifest
    counts = ", ".join(f"{manifest.count(name):,} {name}" for name in manifest.splits)
    number = sum(map(len, manifest.splits.values()))
    size = sum(shard.bytes for part in manifest.splits.values() for shard in part)
    total = sum(manifest.count(name) for name in manifest.splits)
    high, wide, channels = manifest.fields["image"].shape
    print(
        f"{names.shown(shown)}: {total:,} images {high}x{wide}x{channels} ({counts}), {number} "
        f"shard{'s' * (number != 1)}, {size / 1e6:,.1f} MB, in {built.seconds:.1f} s"
    )
    if manifest.classes:
        some = ", ".join(manifest.classes[:6]) + ", ..." * (len(manifest.classes) > 6)
        print(f"labels: {len(manifest.classes)} classes ({some})")
    if built.bad:
        print(f"{len(built.bad):,} samples left out, listed in {shown / BAD_SAMPLES}; the first:")
        for sample in built.bad[:5]:
            print(f"  {sample.name}: {sample.reason}")
    where = shlex.quote(str(shown))
    print(f"look:  fastvae-data inspect {where}; fastvae-data preview {where}")
    shape = f"{channels} {high} {wide}"
    photos = channels == 3 or manifest.preprocess.get("tool") in ("images", "strips")
    print(
        f"train: fastvae train {preset} --data.source shards --data.root {where} "
        f"--model.image-shape {shape}" + " --data.binarize none" * photos
    )
