"""``fastvae-data inspect``: what a packed data set, or files of drawings, hold."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvae.data.drawings import INDEX, Drawings, load
from fastvae.data_tools.arguments import at_least
from fastvae.data_tools.pieces import expand, pieces
from fastvae.data_tools.quickdraw import MANIFEST, SPLITS
from fastvae.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Count what a packed data set holds, and compare its files with their checksums; or read "
        "files of drawings\nand list every record that cannot be read. Ends with exit code 2 when "
        "something is damaged."
    )
    parser.epilog = (
        "examples:\n  fastvae-data inspect data/doodles\n  fastvae-data inspect *.ndjson"
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="DIR|FILE", help="one packed folder, or files"
    )
    parser.add_argument(
        "--most",
        type=at_least(1),
        default=20,
        metavar="N",
        help="categories and bad records to list (20)",
    )


def run(args: argparse.Namespace) -> int:
    """Print what is there."""
    first: Path = args.paths[0]
    if len(args.paths) == 1 and any((first / part / INDEX).is_file() for part in (*SPLITS, "")):
        _packed(first, args.most)
    else:
        _files(args.paths, args.most)
    return 0


def _packed(folder: Path, most: int) -> None:
    """A folder made by ``fastvae-data quickdraw``, or one set of it."""
    names = [name for name in SPLITS if (folder / name).is_dir()]
    sets = {name: load(folder / name, verify=True) for name in names}
    if not sets:
        sets = {folder.name: load(folder, verify=True)}
    for name, drawings in sets.items():
        size = drawings.nbytes
        print(f"{name:>6}: {len(drawings):,} drawings, {size / 1e6:,.1f} MB, checksums right")
    _statistics(list(sets.values()), most)
    keys = [drawings.key_id for drawings in sets.values()]
    twice = sum(map(len, keys)) - len(np.unique(np.concatenate(keys)))
    if twice:
        print(f"keys: {twice:,} drawings share the key of another (all in the same split)")
    if (folder / MANIFEST).is_file():
        _origin(folder / MANIFEST)


def _origin(path: Path) -> None:
    """What the manifest says about where the data came from."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files, bad = manifest["files"], manifest["bad_records"]
        options = {k: v for k, v in manifest["options"].items() if v not in (None, [], False)}
        names = [str(file["name"]) for file in files]
        reasons = dict(bad["reasons"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): pack the drawings again") from None
    shown = ", ".join(names[:3]) + (f", and {len(names) - 3} more" if len(names) > 3 else "")
    print(f"made from {len(names)} files ({shown}) with {options}")
    for reason, count in reasons.items():
        print(f"  {count:,} bad records skipped: {reason}")


def _files(paths: list[Path], most: int) -> None:
    """Files that are not packed: parse them, list what is bad."""
    parts: list[Drawings] = []
    reasons: Counter[str] = Counter()
    for piece in pieces(expand(paths)):
        parts.append(piece.drawings)
        for record in piece.bad:
            if reasons.total() < most:
                print(f"bad: {piece.path}:{record.line}: {record.reason}")
            reasons[record.reason] += 1
    _statistics(parts, most)
    if reasons:
        raise UserError(
            f"{reasons.total():,} bad records ("
            + ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(5))
            + "): mend them, or pack with --on-bad-record skip"
        )


def _statistics(parts: list[Drawings], most: int) -> None:
    """Categories, and how large drawings are."""
    names: Counter[str] = Counter()
    recognized = total = 0
    strokes: list[NDArray[Any]] = []
    points: list[NDArray[Any]] = []
    times: list[NDArray[Any]] = []
    for part in parts:
        for number, count in zip(*np.unique(part.word, return_counts=True), strict=True):
            names[part.words[number]] += int(count)
        total += len(part)
        recognized += int(part.recognized.sum(dtype=np.int64))
        ends = part.strokes.stroke_offset[part.strokes.drawing_offset]
        strokes.append(np.diff(part.strokes.drawing_offset))
        points.append(np.diff(ends))
        if part.time is not None and len(part):
            full = points[-1] > 0
            times.append(part.time[ends[1:][full] - 1] / 1000.0)
    print(f"   all: {total:,} drawings of {len(names)} categories", end="")
    print(f", {recognized / total:.1%} recognized" if total else "")
    for what, values in (("strokes", strokes), ("points", points), ("seconds", times)):
        if values and total:
            print(f"{what:>8} per drawing: {_spread(np.concatenate(values))}")
    width = max((len(name) for name, _ in names.most_common(most)), default=0)
    for name, count in names.most_common(most):
        print(f"  {name:<{width}}  {count:,}")
    if len(names) > most:
        print(f"  and {len(names) - most} more (--most N lists more)")


def _spread(values: NDArray[Any]) -> str:
    low, half, high, top = np.percentile(values, [0, 50, 95, 100])
    return f"mean {values.mean():.1f}, least {low:g}, median {half:g}, 95% {high:g}, most {top:g}"
