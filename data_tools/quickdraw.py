"""``fastvae-data quickdraw``: files of drawings to train, val and test sets of strokes, and, when
asked for, on to shards of images (``rasterize.py``).

Strokes are packed by ``stroke_packing.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fastvae.config import StrokesConfig
from fastvae.data_tools.arguments import at_least, share
from fastvae.data_tools.pieces import KINDS, expand
from fastvae.data_tools.rasterize import build_images
from fastvae.data_tools.shard_job import WORK, BuildOptions, building_folder, default_out, report
from fastvae.data_tools.shard_job import check_target as check_shards
from fastvae.data_tools.stroke_packing import BAD_RECORDS, SPLITS, Job, is_packed, pack
from fastvae.errors import UserError

PACKING = {
    "kind": "auto",
    "categories": None,
    "limit": None,
    "recognized": False,
    "val": 0.05,
    "test": 0.05,
    "seed": 0,
    "on_bad_record": "error",
}
"""Options of how strokes are packed, with their defaults."""
DRAWING = {"side": 28, "raster": "fast", "partial": "none"}
"""Options of how they are drawn."""


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
    drawn.add_argument("--side", type=at_least(1), metavar="N", help="pixels of the images (28)")
    drawn.add_argument(
        "--raster",
        choices=("fast", "exact", "binary"),
        help="as --strokes.raster in training (fast)",
    )
    drawn.add_argument(
        "--partial",
        choices=("none", "strokes", "points", "time", "box"),
        help="also store a partial drawing of each, cut once, for conditional models (none)",
    )
    parser.add_argument(
        "--kind",
        choices=KINDS,
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
        "--recognized",
        action="store_true",
        default=None,
        help="keep only drawings that were recognized",
    )
    for name, use in (("--val", "validation"), ("--test", "testing")):
        parser.add_argument(name, type=share, help=f"share for {use} (0.05; not for .npz files)")
    parser.add_argument("--seed", type=at_least(0), help="of the choice that --limit makes (0)")
    parser.add_argument(
        "--on-bad-record",
        choices=("error", "skip"),
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
    first: Path = args.files[0].expanduser()
    packed = len(args.files) == 1 and is_packed(first)
    if args.form == "strokes":
        _refuse(args, DRAWING, "is for --as images or bits; strokes are drawn in training")
    elif packed:
        _refuse(args, PACKING, f"is for files of drawings; {first} is packed already")
    for name, value in (PACKING | DRAWING).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.val + args.test >= 1.0:
        raise UserError(f"--val {args.val} --test {args.test}: nothing is left to train on")
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
    strokes = first if packed else _pack_meanwhile(args, options)
    built = build_images(strokes, view, args.side, bits=args.form == "bits", options=options)
    report(built, options.out, "quickdraw-vae")
    return 0


def _refuse(args: argparse.Namespace, options: Iterable[str], why: str) -> None:
    """Raise UserError for an option that was given and would change nothing."""
    for name in options:
        if getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} {why}")


def _pack_meanwhile(args: argparse.Namespace, options: BuildOptions) -> Path:
    """Strokes of the files, packed inside the folder that is being built and removed with it at
    the end; those that a run with the same files and options has left are used again."""
    about = [getattr(args, name) for name in PACKING]
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


def _report(out: Path, job: Job, counts: dict[str, Counter[str]]) -> None:
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
