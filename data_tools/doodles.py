"""``fastvae-data doodles``: write generated sketches as the ndjson files of Quick, Draw!."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from tqdm import tqdm

from fastvae.data.doodles import CATEGORIES, write
from fastvae.data_tools.arguments import at_least
from fastvae.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        f"Generate sketches of {len(CATEGORIES)} categories and write them as ndjson, in the form "
        "of Quick, Draw!: for trying things out without a download. The same seed gives the same "
        "drawings; more of them leave the first ones as they are."
    )
    parser.epilog = "example: fastvae-data doodles --out data/doodles-ndjson --count 5000 --seed 1"
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where to write <category>.ndjson; needed"
    )
    parser.add_argument(
        "--count",
        type=at_least(1),
        default=12_000,
        metavar="N",
        help="drawings in all (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, metavar="S", help="default: %(default)s"
    )
    parser.add_argument(
        "--categories",
        nargs="+",
        metavar="NAME",
        help=f"some of {', '.join(CATEGORIES)} (default: all)",
    )
    parser.add_argument(
        "--raw", action="store_true", help="as drawn: pixels as floats, and times in ms"
    )


def run(args: argparse.Namespace) -> int:
    """Do ``fastvae-data doodles`` and return its exit code."""
    if args.out is None:
        raise UserError("where to? give a folder with --out")
    folder: Path = args.out.expanduser()
    with tqdm(total=args.count, unit="drawings", leave=False, disable=None) as bar:
        paths = write(
            folder, args.count, args.seed, args.categories, raw=args.raw, progress=bar.update
        )
    for path in paths:
        print(path)
    size = sum(path.stat().st_size for path in paths)
    print(
        f"{args.count:,} {'raw ' * args.raw}drawings, "
        f"{tqdm.format_sizeof(size, suffix='B')}, seed {args.seed}"
    )
    names = (folder, folder.with_name(f"{folder.name}-strokes"))
    files, packed = (shlex.quote(str(name)) for name in names)
    print(f"next: fastvae-data quickdraw {files} --out {packed}")
    return 0
