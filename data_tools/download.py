"""``fastvae-data download``: fetch the original files of a data set, resumable and verified.

The files of ``mnist`` and ``coco`` are known by their SHA-256 (``fetch.py``). Those of
``quickdraw`` and ``sketchrnn`` are verified by what Google's server says of them (``served.py``).
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fastvae.data_tools import coco_files
from fastvae.data_tools import fetch as fetching
from fastvae.data_tools.fetch import AllMirrorsFailed, RemoteFile, fetch, human
from fastvae.data_tools.quickdraw_files import (
    BUCKET,
    CATEGORIES,
    KINDS,
    SKETCHRNN,
    Kind,
    check_categories,
)
from fastvae.data_tools.served import fetch_served
from fastvae.errors import UserError, nearest

EXIT_INTERRUPTED = 130  # 128 + SIGINT, what a shell reports for Ctrl-C
LONGEST_TIMEOUT = 86400.0  # seconds; sockets refuse numbers that are too large
PAUSE = 0.5  # seconds between two files from one server
SCHEMES = ("http", "https", "file")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """The files of a data set and where they are kept, best mirror first."""

    files: tuple[RemoteFile, ...]
    mirrors: tuple[str, ...]


DATA_SETS = {
    "mnist": DataSet(
        files=(
            RemoteFile(
                name="train-images-idx3-ubyte.gz",
                size=9_912_422,
                sha256="440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                md5="f68b3c2dcbeaaa9fbdd348bbdeb94873",
            ),
            RemoteFile(
                name="train-labels-idx1-ubyte.gz",
                size=28_881,
                sha256="3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                md5="d53e105ee54ea40749a09fcbcd1e9432",
            ),
            RemoteFile(
                name="t10k-images-idx3-ubyte.gz",
                size=1_648_877,
                sha256="8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                md5="9fb629c4189551a2d022fa330f9573f3",
            ),
            RemoteFile(
                name="t10k-labels-idx1-ubyte.gz",
                size=4_542,
                sha256="f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                md5="ec29112dd5afa0611ce80d1b7f02629c",
            ),
        ),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "http://yann.lecun.com/exdb/mnist/",
        ),
    ),
}

BY_CATEGORY = ("quickdraw", "sketchrnn")
COCO = "coco"
NAMES = (*DATA_SETS, *BY_CATEGORY, COCO)


def download(name: str, root: Path, *, mirrors: Sequence[str], timeout: float) -> list[Path]:
    """Fetch all files of the data set ``name`` into ``root`` and return their paths.

    Args:
        name: a key of ``DATA_SETS``.
        root: the folder to put them in; made when missing.
        mirrors: folder URLs tried before the data set's own.
        timeout: seconds without an answer after which a mirror is given up.

    Raises:
        UserError: a file could not be had or written; the message says what to do.
    """
    data_set = DATA_SETS[name]
    tried = (*mirrors, *data_set.mirrors)
    try:
        return [fetch(remote, tried, root, timeout=timeout) for remote in data_set.files]
    except AllMirrorsFailed as error:
        names = ", ".join(remote.name for remote in data_set.files)
        raise AllMirrorsFailed(
            f"{error}; check the network and run this again, or download {names} by hand from "
            f"{data_set.mirrors[0]} and put them into {root}, or give another source with --mirror"
        ) from None


def download_categories(
    names: Sequence[str],
    kind: Kind,
    root: Path,
    *,
    mirrors: Sequence[str],
    timeout: float,
    rate: float = math.inf,
    check: bool = False,
) -> dict[Path, str]:
    """Fetch the files of Quick, Draw! categories, one after the other.

    Args:
        names: categories.
        kind: which files of theirs.
        root: the folder to put them in, or in a subfolder for the kind; made when missing.
        mirrors: folder URLs tried before Google's.
        timeout: seconds without an answer after which a mirror is given up.
        rate: bytes per second at most.
        check: hold files that are already here against the server.

    Returns:
        What was verified of each file: "md5", "crc32c", "size", or "" for nothing.

    Raises:
        UserError: a file could not be had or written; the message says what to do. Where a server
            says that it does not have a file, the others are fetched first.
    """
    folder, tried = root / kind.subfolder, (*mirrors, BUCKET + kind.folder)
    done: dict[Path, str] = {}
    missing: list[str] = []
    for name in names:
        if any(done.values()):
            fetching.sleep(PAUSE)
        try:
            path, verified = fetch_served(
                f"{name}{kind.suffix}", tried, folder, timeout=timeout, rate=rate, check=check
            )
            done[path] = verified
        except AllMirrorsFailed as error:
            if not error.missing:
                raise AllMirrorsFailed(
                    f"{error}; check the network and run this again, or put the files into "
                    f"{folder} by hand, or give another source with --mirror"
                ) from None
            missing.append(str(error))
    if missing:
        raise AllMirrorsFailed(
            f"{len(missing)} of {len(names)} files could not be had, the others are in {folder}: "
            f"{'; '.join(missing)}",
            missing=True,
        )
    return done


def _mirror(text: str) -> str:
    """Return ``text`` when it is a URL that can be opened: the type of ``--mirror``."""
    if urlsplit(text).scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL that begins with one of {known}")
    return text


def _seconds(text: str) -> float:
    """Return ``text`` as a time in seconds: the type of ``--timeout``."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds above 0 and up to {LONGEST_TIMEOUT:.0f}"
        )
    return seconds


def _rate(text: str) -> float:
    """Return ``text``, in MB/s, as bytes per second: the type of ``--rate``."""
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of MB/s above 0")
    return rate * 1e6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fastvae-data download`` to ``parser``."""
    parser.add_argument(
        "name", metavar="DATA_SET", nargs="?", help=f"which data set: {', '.join(NAMES)}"
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="FOLDER",
        help="where to put the files (default: data/DATA_SET)",
    )
    parser.add_argument(
        "--mirror",
        type=_mirror,
        action="extend",
        nargs="+",
        default=[],
        metavar="URL",
        help="folder URLs to try before the built-in ones; file:///some/folder works too",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="give a mirror up after so many seconds without an answer (default: %(default)g)",
    )
    coco = parser.add_argument_group("coco only")
    coco.add_argument(
        "--parts",
        choices=coco_files.PARTS,
        nargs="+",
        help="which of its zips (default: all); "
        + ", ".join(f"{name} {human(about.size)}" for name, about in coco_files.PARTS.items()),
    )
    by_category = parser.add_argument_group("quickdraw and sketchrnn only")
    which = by_category.add_mutually_exclusive_group()
    which.add_argument(
        "--categories", nargs="+", default=[], metavar="NAME", help='such as: cat "ice cream"'
    )
    which.add_argument("--all", action="store_true", help=f"all {len(CATEGORIES)} categories")
    which.add_argument("--list", action="store_true", help="print the categories and stop")
    by_category.add_argument(
        "--kind",
        choices=KINDS,
        help="which files (quickdraw; default: simplified): "
        + "; ".join(f"{name} ({kind.meaning})" for name, kind in KINDS.items()),
    )
    by_category.add_argument("--rate", type=_rate, metavar="MB/s", help="no faster than this")
    by_category.add_argument(
        "--check",
        action="store_true",
        help="hold files that are already here against the server, too",
    )
    parser.epilog = "Files that are there and right are kept; a broken download is resumed."


def run(args: argparse.Namespace) -> int:
    """Do ``fastvae-data download`` and return its exit code."""
    if args.name is None:
        raise UserError(f"which data set?{nearest('', NAMES)}")
    if args.name not in NAMES:
        raise UserError(f"no data set {args.name!r}{nearest(args.name, NAMES)}")
    root: Path = (args.root or Path("data", args.name)).expanduser()
    _check_options(args)
    try:
        if args.name in BY_CATEGORY:
            return _run_categories(args, root)
        return _run_coco(args, root) if args.name == COCO else _run_table(args, root)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return EXIT_INTERRUPTED


def _check_options(args: argparse.Namespace) -> None:
    """Raise UserError for an option of another data set."""
    options: dict[str, tuple[str, ...]] = {"parts": (COCO,)}
    options |= dict.fromkeys(("categories", "all", "list", "kind", "rate", "check"), BY_CATEGORY)
    for option, names in options.items():
        if getattr(args, option) and args.name not in names:
            raise UserError(f"--{option} is for {' and '.join(names)}, not for {args.name}")


def _run_table(args: argparse.Namespace, root: Path) -> int:
    """A data set whose files are listed in ``DATA_SETS``."""
    paths = download(args.name, root, mirrors=args.mirror, timeout=args.timeout)
    _tell(paths, "checksums right")
    print(f"next: fastvae train {args.name} --data.root {shlex.quote(str(root))}")
    return 0


def _run_coco(args: argparse.Namespace, root: Path) -> int:
    """The photos of MS COCO 2017."""
    parts = dict.fromkeys(args.parts or coco_files.PARTS)
    paths = coco_files.fetch_coco(list(parts), root, mirrors=args.mirror, timeout=args.timeout)
    _tell(paths, "checksums right")
    print(f"next: fastvae-data images {shlex.quote(str(root))}")
    return 0


def _run_categories(args: argparse.Namespace, root: Path) -> int:
    """Quick, Draw! and what was made of it, one file per category."""
    if args.list:
        print("\n".join(CATEGORIES))
        return 0
    if args.name == "sketchrnn" and args.kind:
        raise UserError("--kind is for quickdraw: sketchrnn has one kind of files")
    if not (args.categories or args.all):
        raise UserError(
            f'which categories? fastvae-data download {args.name} --categories cat "ice cream", '
            "or --all; --list shows their names"
        )
    names = CATEGORIES if args.all else check_categories(args.categories)
    kind = SKETCHRNN if args.name == "sketchrnn" else KINDS[args.kind or "simplified"]
    done = download_categories(
        names,
        kind,
        root,
        mirrors=args.mirror,
        timeout=args.timeout,
        rate=args.rate or math.inf,
        check=args.check,
    )
    counts = Counter(done.values())
    words = [f"{counts[how]} by {how}" for how in ("md5", "crc32c", "size") if counts[how]]
    told = f"verified by what the server says: {', '.join(words)}" if words else ""
    kept = f"{counts['']} already here, not checked (--check does)" if counts[""] else ""
    _tell(list(done), "; ".join(part for part in (told, kept) if part))
    folder = shlex.quote(str(root / kind.subfolder))
    if kind.suffix == ".npy":
        print(f"next: fastvae train mnist --data.dataset bitmaps --data.root {folder}")
    else:
        print(f"next: fastvae-data quickdraw {folder} --out data/{args.name}-strokes")
    return 0


def _tell(paths: Sequence[Path], verified: str) -> None:
    """Print the files and how sure they are."""
    for path in paths:
        print(path)
    total = sum(path.stat().st_size for path in paths)
    print(f"{len(paths)} file{'s' * (len(paths) != 1)}, {human(total)}, {verified}")
