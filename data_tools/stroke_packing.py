"""Files of drawings to train, val and test sets of strokes, in a folder with a manifest.

    files --pieces.py--> Drawings, piece by piece --filter, limit, split--> three DrawingsWriters

Memory is that of a few pieces, whatever the size of the files (with --limit, 9 bytes per drawing
besides). Splits depend on the key of a drawing alone: the same drawing goes to the same split from
whatever files, in whatever order.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
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
from fastvae.data.drawings import Drawings, DrawingsWriter
from fastvae.data.splits import key_fraction, split_fractions
from fastvae.data_tools.names import shown
from fastvae.data_tools.pieces import Piece, expand, pieces
from fastvae.errors import UserError, nearest

SPLITS = ("train", "val", "test")
MANIFEST = "manifest.json"
BAD_RECORDS = "bad_records.jsonl"
FORMAT = "fastvae strokes"
CHOICE = 0x5EED_0F_C401CE  # added to the seed of --limit: the split has seed 0


def is_packed(folder: Path) -> bool:
    """Whether a folder was made here."""
    try:
        return bool(json.loads((folder / MANIFEST).read_bytes())["format"] == FORMAT)
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        return False


def pack(args: argparse.Namespace, out: Path) -> tuple[Job, dict[str, Counter[str]]]:
    """Pack the files as strokes into ``out``, whole or not at all.

    Returns:
        What was read, and the number of drawings by split and category.
    """
    job = Job(
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
    ours = is_packed(out)
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
class Job:
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
                        about = {"file": shown(piece.path), **record._asdict()}
                        self.bad_file.write(json.dumps(about, ensure_ascii=False) + "\n")
                    self.reasons[record.reason] += 1
                self.records[str(piece.path)] += len(piece.drawings)
                if piece.kind:
                    self.kinds[str(piece.path)] = piece.kind
                bar.set_postfix_str(f"{self.records.total():,} drawings", refresh=False)
                bar.update(piece.bytes)
                yield piece
        self.keep.check()


def _choose(job: Job, limit: int, seed: int) -> dict[str, NDArray[np.bool_]]:
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
    job: Job,
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
    folder: Path, job: Job, counts: dict[str, Counter[str]], args: argparse.Namespace
) -> None:
    """Say in ``manifest.json`` what the data set was made from, and how."""
    manifest = {
        "format": FORMAT,
        "fastvae": fastvae.__version__,
        "files": [
            {
                "name": shown(path.name),
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
