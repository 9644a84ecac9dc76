"""``fastvae-data quickdraw``: files of drawings to train, val and test sets of strokes, and, when
asked for, on to shards of images (``rasterize.py``).

    files --pieces.py--> Drawings, piece by piece --filter, limit, split--> three DrawingsWriters

Memory is that of a few pieces, whatever the size of the files (with --limit, 9 bytes per drawing
besides). Splits depend on the key of a drawing alone: the same drawing goes to the same split from
whatever files, in whatever order.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import fastvae
from fastvae.config import StrokesConfig
from fastvae.data.drawings import Drawings, DrawingsWriter
from fastvae.data.splits import key_fraction, split_fractions
from fastvae.data_tools.arguments import at_least, share
from fastvae.data_tools.pieces import KINDS, Piece, expand, pieces
from fastvae.data_tools.rasterize import build_images
from fastvae.data_tools.shard_job import WORK, BuildOptions, building_folder, default_out, report
from fastvae.data_tools.shard_job import check_target as check_shards
from fastvae.errors import UserError, nearest

SPLITS = ("train", "val", "test")
MANIFEST = "manifest.json"
BAD_RECORDS = "bad_records.jsonl"
FORMAT = "fastvae strokes"
CHOICE = 0x5EED_0F_C401CE  # added to the seed of --limit: the split has seed 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Parse files of drawings, filter them, split them by a hash of their key (sketch-rnn files "
        "keep the splits\nthat they come with), and pack them as strokes, ready for training "
        "(--data.dataset strokes --data.root DIR), or\n(--as images, --as bits) draw them once and "
        "pack the images as shards (--data.source shards --data.root DIR).\n"
        "Without --out: FILE-strokes or FILE-shards beside the first file or folder."
    )
    parser.epilog = (
        "examples:\n"
        "  fastvae-data doodles --out data/doodles-ndjson --count 5000\n"
        "  fastvae-data quickdraw data/doodles-ndjson --out data/doodles\n"
        "  fastvae-data quickdraw cat.ndjson dog.ndjson --out data/pets --limit 100000 "
        "--recognized\n"
        "  fastvae-data quickdraw sheep.npz --out data/sheep      (sketch-rnn)\n"
        "  fastvae-data quickdraw data/pets --as bits --side 64 --partial strokes   (of packed "
        "strokes)\n"
        "then: fastvae-data inspect DIR, fastvae-data preview DIR"
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help=".ndjson (simplified or raw), .bin, sketch-rnn .npz, or folders of these; with --as "
        "images or bits also one folder of packed strokes",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--as",
        dest="form",
        choices=("strokes", "images", "bits"),
        default="strokes",
        help="what to pack: strokes, which become images in training; or images, one byte or one "
        "bit per pixel (default: strokes)",
    )
    drawn = parser.add_argument_group("with --as images or bits")
    drawn.add_argument(
        "--side", type=at_least(1), default=28, metavar="N", help="pixels of the images (28)"
    )
    drawn.add_argument(
        "--raster",
        choices=("fast", "exact", "binary"),
        default="fast",
        help="as --strokes.raster in training (fast)",
    )
    drawn.add_argument(
        "--partial",
        choices=("none", "strokes", "points", "time", "box"),
        default="none",
        help="also store a partial drawing of each, cut once, for conditional models (none)",
    )
    parser.add_argument(
        "--kind",
        choices=KINDS,
        default="auto",
        help="what .ndjson files hold: auto looks at the first record of each; raw drawings are "
        "simplified by Quick, Draw!'s rule and keep their timing (default: auto)",
    )
    parser.add_argument(
        "--categories", nargs="+", metavar="NAME", help="keep these only (exact names)"
    )
    parser.add_argument(
        "--limit",
        type=at_least(1),
        metavar="N",
        help="keep N drawings, evenly and at random over the categories",
    )
    parser.add_argument(
        "--recognized", action="store_true", help="keep only drawings that were recognized"
    )
    for name, use in (("--val", "validation"), ("--test", "testing")):
        parser.add_argument(
            name, type=share, default=0.05, help=f"share for {use} (0.05; not for .npz files)"
        )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="of the choice that --limit makes (0)"
    )
    parser.add_argument(
        "--on-bad-record",
        choices=("error", "skip"),
        default="error",
        help=f"stop at a record that cannot be read, or skip it and list it in {BAD_RECORDS}",
    )
    parser.add_argument(
        "--workers",
        type=at_least(1),
        default=os.cpu_count() or 1,
        metavar="N",
        help="threads that parse (default: one per core)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace DIR if it is a packed data set"
    )


def run(args: argparse.Namespace) -> int:
    """Pack the files and say what came of them."""
    if args.val + args.test >= 1.0:
        raise UserError(f"--val {args.val} --test {args.test}: nothing is left to train on")
    first: Path = args.files[0].expanduser()
    if args.form == "strokes":
        out = args.out or default_out(first, "strokes")
        job, counts = pack(args, out)
        _report(out, job, counts)
        return 0
    options = BuildOptions(
        out=(args.out or default_out(first)).expanduser(),
        workers=args.workers,
        overwrite=args.overwrite,
    )
    view = StrokesConfig(raster=args.raster, partial=args.partial)
    check_shards(options.out, overwrite=options.overwrite)
    strokes = (
        first if _is_packed(first) and len(args.files) == 1 else _pack_meanwhile(args, options)
    )
    built = build_images(strokes, view, args.side, bits=args.form == "bits", options=options)
    report(built, options.out, "quickdraw-vae")
    return 0


def _is_packed(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / MANIFEST).read_bytes())["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _pack_meanwhile(args: argparse.Namespace, options: BuildOptions) -> Path:
    """Strokes of the files, packed inside the folder that is being built and removed with it at
    the end; those that a run with the same files and options has left are used again."""
    about = [
        args.kind,
        args.categories,
        args.limit,
        args.recognized,
        args.val,
        args.test,
        args.seed,
    ]
    about += [args.on_bad_record]
    for path in expand(args.files):
        found = path.stat()
        about.append((str(path.resolve()), found.st_size, found.st_mtime_ns))
    name = hashlib.sha256(repr(about).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    strokes = building_folder(options.out) / WORK / name
    if not strokes.is_dir():
        strokes.parent.mkdir(parents=True, exist_ok=True)
        job, _ = pack(args, strokes)
        if job.reasons:
            print(f"{job.reasons.total():,} bad records skipped:")
            for reason, count in job.reasons.most_common(10):
                print(f"  {count:,}  {reason}")
    return strokes


def pack(args: argparse.Namespace, out: Path) -> tuple[_Job, dict[str, Counter[str]]]:
    """Pack the files as strokes into ``out``, whole or not at all.

    Returns:
        What was read, and the number of drawings by split and category.
    """
    job = _Job(
        files=expand(args.files),
        kind=args.kind,
        workers=args.workers,
        keep=_Filter(args.categories, args.recognized),
        skip_bad=args.on_bad_record == "skip",
    )
    out = out.expanduser().resolve()
    check_target(out, job.files, overwrite=args.overwrite)
    chosen = None
    if args.limit is not None:
        chosen = _choose(job, args.limit, args.seed)
    building = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    _remove_abandoned(out)
    try:
        building.mkdir(parents=True)
        with (building / BAD_RECORDS).open("w", encoding="utf-8") as job.bad_file:
            counts = _pack(job, building, chosen, args.val, args.test)
        if not job.reasons:
            (building / BAD_RECORDS).unlink()
        _write_manifest(building, job, counts, args)
        if out.exists():
            aside = out.with_name(f".{out.name}.{os.getpid()}.old.tmp")
            out.rename(aside)
            building.rename(out)
            shutil.rmtree(aside)
        else:
            building.rename(out)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or out}: {error.strerror or error}"
        ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return job, counts


def check_target(out: Path, files: list[Path], *, overwrite: bool) -> None:
    """Raise UserError if ``out`` is there and may not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite or not out.is_dir():
        raise UserError(f"{out} is there already: give another --out, or --overwrite")
    ours = _is_packed(out)
    known = {*SPLITS, MANIFEST, BAD_RECORDS, "preview.png"}
    foreign = sorted({path.name for path in out.iterdir()} - known)
    inside = [path for path in files if out in path.resolve().parents]
    if not ours or foreign or inside:
        other = f" (it holds {(foreign or inside)[0]})" if foreign or inside else ""
        raise UserError(
            f"{out} is not a packed data set and nothing else{other}: --overwrite will not remove "
            "it"
        )


def _remove_abandoned(out: Path) -> None:
    """Remove what a process that was killed while it packed into ``out`` has left behind."""
    for path in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
        number = path.name.removeprefix(f".{out.name}.").partition(".")[0]
        if number.isdecimal() and int(number) != os.getpid() and not _alive(int(number)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is somebody else's
    return True


class _Filter:
    """Which drawings are wanted; remembers what it saw, to be able to say why nothing was left."""

    def __init__(self, categories: list[str] | None, recognized: bool) -> None:
        self.categories = set(categories or ())
        self.recognized = recognized
        self.met: set[str] = set()

    def __call__(self, drawings: Drawings) -> NDArray[np.int64]:
        """Indices of the drawings to keep."""
        self.met |= {drawings.words[number] for number in np.unique(drawings.word)}
        keep = np.ones(len(drawings), dtype=bool)
        if self.categories:
            wanted = [i for i, word in enumerate(drawings.words) if word in self.categories]
            keep &= np.isin(drawings.word, wanted)
        if self.recognized:
            keep &= drawings.recognized > 0
        return np.flatnonzero(keep)

    def check(self) -> None:
        """Raise UserError for a category that was never met."""
        for word in sorted(self.categories - self.met):
            raise UserError(
                f"--categories: none of the files has a drawing of {word!r}"
                f"{nearest(word, sorted(self.met))}"
            )


@dataclass
class _Job:
    """What is read, and what was met on the way."""

    files: list[Path]
    kind: str
    workers: int
    keep: _Filter
    skip_bad: bool
    bad_file: TextIO | None = None
    """Where bad records are listed, a line of JSON each, as they are met."""
    kinds: dict[str, str] = field(default_factory=dict)
    """simplified or raw, by ndjson file."""
    reasons: Counter[str] = field(default_factory=Counter)
    records: Counter[str] = field(default_factory=Counter)
    """Good records by file."""

    def read(self, what: str) -> Iterator[Piece]:
        """All pieces in order, with a progress bar; bad records are counted, or raised."""
        self.reasons.clear()
        self.records.clear()
        total = sum(path.stat().st_size for path in self.files)
        with tqdm(
            total=total, desc=what, unit="B", unit_scale=True, disable=None, leave=False
        ) as bar:
            for piece in pieces(self.files, self.kind, self.workers):
                for record in piece.bad:
                    if not self.skip_bad:
                        raise UserError(
                            f"{piece.path}:{record.line}: {record.reason}; mend the file, or use "
                            "--on-bad-record skip"
                        )
                    if self.bad_file is not None:
                        about = {"file": readable(piece.path), **record._asdict()}
                        self.bad_file.write(json.dumps(about, ensure_ascii=False) + "\n")
                    self.reasons[record.reason] += 1
                self.records[str(piece.path)] += len(piece.drawings)
                if piece.kind:
                    self.kinds[str(piece.path)] = piece.kind
                bar.set_postfix_str(f"{self.records.total():,} drawings", refresh=False)
                bar.update(piece.bytes)
                yield piece
        self.keep.check()


def _choose(job: _Job, limit: int, seed: int) -> dict[str, NDArray[np.bool_]]:
    """For each category, which of its drawings (in the order met) are among the ``limit`` kept.

    Categories get equal numbers; one that has fewer leaves its rest to the others. Within a
    category those with the lowest hash of their key are kept, each key once. The hash is another
    than that of the split, so that the kept ones are split like any others.
    """
    keys: dict[str, list[NDArray[np.uint64]]] = {}
    for piece in job.read("counting"):
        kept = job.keep(piece.drawings)
        word, key = piece.drawings.word[kept], piece.drawings.key_id[kept]
        for number in np.unique(word):
            keys.setdefault(piece.drawings.words[number], []).append(key[word == number])
    chosen, first_of = {}, {}
    for name, parts in keys.items():
        every = np.concatenate(parts)
        chosen[name] = np.zeros(len(every), dtype=bool)
        unique, first = np.unique(every, return_index=True)
        first_of[name] = first[np.argsort(key_fraction(unique, CHOICE + seed), kind="stable")]
    quota = even_quotas({name: len(first) for name, first in first_of.items()}, limit)
    for name, first in first_of.items():
        chosen[name][first[: quota[name]]] = True
    return chosen


def even_quotas(sizes: dict[str, int], limit: int) -> dict[str, int]:
    """Share ``limit`` out evenly; what a small category cannot fill goes to the others."""
    quota: dict[str, int] = {}
    left = limit
    for place, name in enumerate(sorted(sizes, key=lambda name: (sizes[name], name))):
        quota[name] = min(sizes[name], left // (len(sizes) - place))
        left -= quota[name]
    return quota


def _pack(
    job: _Job,
    folder: Path,
    chosen: dict[str, NDArray[np.bool_]] | None,
    val: float,
    test: float,
) -> dict[str, Counter[str]]:
    """Write the three sets into ``folder``; return the number of drawings by split and category."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in SPLITS}
    words: dict[str, int] = {}
    met: Counter[str] = Counter()
    source = job.read("packing")
    first = next((piece for piece in source if len(piece.drawings)), None)
    timed = first is not None and first.drawings.time is not None
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(DrawingsWriter(folder / name, timed=timed, words=words))
            for name in SPLITS
        }
        for piece in [] if first is None else _chain(first, source):
            if len(piece.drawings) == 0:
                continue
            if (piece.drawings.time is not None) != timed:
                raise UserError(
                    f"{piece.path}: drawings with timing (raw) and without (simplified) cannot "
                    "go into one data set: pack them apart"
                )
            kept = job.keep(piece.drawings)
            if chosen is not None:
                kept = kept[_wanted(piece.drawings, kept, chosen, met)]
            drawings = piece.drawings.select(kept)
            if piece.split is None:
                parts = split_fractions(key_fraction(drawings.key_id), val, test)
            else:
                parts = {piece.split: np.arange(len(drawings), dtype=np.int64)}
            for name, index in parts.items():
                part = drawings.select(index)
                writers[name].append(part)
                for number, count in zip(*np.unique(part.word, return_counts=True), strict=True):
                    counts[name][part.words[number]] += int(count)
        if not any(counts.values()):
            why = f" ({job.records.total():,} were read)" if job.records.total() else ""
            raise UserError(f"no drawing is left to pack{why}: look at the files and the filters")
    return counts


def readable(path: Path) -> str:
    """A path as text that can be written: names need not be UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _chain(first: Piece, rest: Iterator[Piece]) -> Iterator[Piece]:
    yield first
    yield from rest


def _wanted(
    drawings: Drawings,
    kept: NDArray[np.int64],
    chosen: dict[str, NDArray[np.bool_]],
    met: Counter[str],
) -> NDArray[np.bool_]:
    """Which of the kept drawings --limit has chosen; ``met`` counts each category's so far."""
    word = drawings.word[kept]
    wanted = np.zeros(len(kept), dtype=bool)
    for number in np.unique(word):
        name, places = drawings.words[number], np.flatnonzero(word == number)
        wanted[places] = chosen[name][met[name] : met[name] + len(places)]
        met[name] += len(places)
    return wanted


def _write_manifest(
    folder: Path, job: _Job, counts: dict[str, Counter[str]], args: argparse.Namespace
) -> None:
    """Say in ``manifest.json`` what the data set was made from, and how."""
    manifest = {
        "format": FORMAT,
        "fastvae": fastvae.__version__,
        "files": [
            {
                "name": readable(Path(path.name)),
                "bytes": path.stat().st_size,
                "kind": job.kinds.get(str(path), path.suffix[1:]),
                "drawings": job.records[str(path)],
            }
            for path in job.files
        ],
        "options": {
            "kind": args.kind,
            "categories": args.categories or [],
            "limit": args.limit,
            "recognized": args.recognized,
            "val": args.val,
            "test": args.test,
            "seed": args.seed,
        },
        "bad_records": {"count": job.reasons.total(), "reasons": dict(job.reasons)},
        "drawings": {name: dict(sorted(counts[name].items())) for name in SPLITS},
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _report(out: Path, job: _Job, counts: dict[str, Counter[str]]) -> None:
    sizes = {name: counts[name].total() for name in SPLITS}
    categories = len(set().union(*counts.values()))
    print(
        f"{out}: {sum(sizes.values()):,} drawings of {categories} "
        f"categor{'y' if categories == 1 else 'ies'} ("
        + ", ".join(f"{size:,} {name}" for name, size in sizes.items())
        + f") from {job.records.total():,} in {len(job.files)} "
        f"file{'' if len(job.files) == 1 else 's'}"
        + (f" ({' and '.join(sorted(set(job.kinds.values())))} ndjson)" if job.kinds else "")
    )
    if job.reasons:
        print(f"{job.reasons.total():,} bad records skipped, listed in {out / BAD_RECORDS}:")
        for reason, count in job.reasons.most_common(10):
            print(f"  {count:,}  {reason}")
    where = shlex.quote(str(out))
    print(f"look:  fastvae-data inspect {where}; fastvae-data preview {where}")
    print(f"train: fastvae train quickdraw-vae --data.root {where}")
