"""``fastvae-data inspect``: what a packed data set, or files of drawings, hold.

Strokes and files of drawings are counted here, images in ``inspect_images.py``.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvae.data.drawings import Drawings, load
from fastvae.data_tools.arguments import at_least
from fastvae.data_tools.forms import Form, form_of
from fastvae.data_tools.inspect_images import inspect_images
from fastvae.data_tools.names import shown
from fastvae.data_tools.pieces import SUFFIXES, expand, pieces
from fastvae.data_tools.stroke_packing import MANIFEST, SPLITS
from fastvae.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Count what a packed data set holds (shards, .beton, WebDataset tars, strokes; of strokes "
        "the checksums are\ncompared, too; of the others: fastvae-data verify); or read files of "
        "drawings and list every record that\ncannot be read. Ends with exit code 2 when something "
        "is damaged."
    )
    parser.epilog = (
        "examples:\n"
        "  fastvae-data inspect data/doodles\n"
        "  fastvae-data inspect data/coco-shards\n"
        "  fastvae-data inspect *.ndjson"
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
    form = _form(first) if len(args.paths) == 1 else None
    if form is Form.STROKES:
        _packed(first, args.most)
    elif form is not None:
        inspect_images(first, args.most)
    else:
        _files(args.paths, args.most)
    return 0


def _form(path: Path) -> Form | None:
    """The form of what is packed; None for files of drawings and folders of them."""
    if path.is_file() and path.suffix not in (".beton", ".tar"):
        return None
    if path.is_dir() and any(p.suffix in SUFFIXES for p in path.iterdir()):
        return None
    return form_of(path)


def _packed(folder: Path, most: int) -> None:
    """A folder made by ``fastvae-data quickdraw``, or one set of it."""
    whole = (folder / MANIFEST).is_file() or (folder / SPLITS[0]).is_dir()
    names = SPLITS if whole else ("",)
    sets = {name or folder.name: load(folder / name, verify=True) for name in names}
    statistics = _Statistics()
    for name, drawings in sets.items():
        size = drawings.nbytes
        print(f"{name:>6}: {len(drawings):,} drawings, {size / 1e6:,.1f} MB, checksums right")
        statistics.add(drawings)
    statistics.show(most)
    keys = {name: np.unique(drawings.key_id) for name, drawings in sets.items()}
    twice = sum(map(len, sets.values())) - sum(map(len, keys.values()))
    if twice:
        print(f"keys: {twice:,} drawings share the key of another in the same split")
    if whole:
        _origin(folder / MANIFEST)
    if len({drawings.words for drawings in sets.values()}) > 1:
        raise UserError(f"{folder}: its splits have different tables of categories: pack again")
    for one, other in itertools.combinations(keys, 2):
        shared = np.intersect1d(keys[one], keys[other], assume_unique=True)
        if len(shared):
            raise UserError(
                f"{folder}: {len(shared):,} keys, e.g. {shared[0]}, are in {one} and in {other}: "
                "pack again"
            )


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
    some = shown(", ".join(names[:3])) + (f", and {len(names) - 3} more" if len(names) > 3 else "")
    print(f"made from {len(names)} files ({some}) with {options}")
    for reason, count in reasons.items():
        print(f"  {count:,} bad records skipped: {shown(str(reason))}")


def _files(paths: list[Path], most: int) -> None:
    """Files that are not packed: parse them, list what is bad."""
    statistics = _Statistics()
    reasons: Counter[str] = Counter()
    for piece in pieces(expand(paths)):
        statistics.add(piece.drawings)
        for record in piece.bad:
            if reasons.total() < most:
                print(f"bad: {shown(piece.path)}:{record.line}: {record.reason}")
            reasons[record.reason] += 1
    statistics.show(most)
    if reasons:
        raise UserError(
            f"{reasons.total():,} bad records ("
            + ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(5))
            + "): mend them, or pack with --on-bad-record skip"
        )


class _Statistics:
    """Categories, and how large drawings are; 12 bytes per drawing are kept."""

    def __init__(self) -> None:
        self.words: Counter[str] = Counter()
        self.recognized = 0
        self.sizes: dict[str, list[NDArray[Any]]] = {"strokes": [], "points": [], "seconds": []}

    def add(self, part: Drawings) -> None:
        """Count the drawings of one piece."""
        for number, count in zip(*np.unique(part.word, return_counts=True), strict=True):
            self.words[part.words[number]] += int(count)
        self.recognized += int(part.recognized.sum(dtype=np.int64))
        ends = part.strokes.stroke_offset[part.strokes.drawing_offset]
        points = np.diff(ends)
        self.sizes["strokes"].append(np.diff(part.strokes.drawing_offset).astype(np.int32))
        self.sizes["points"].append(points.astype(np.int32))
        if part.time is not None:
            last = part.time[ends[1:][points > 0] - 1]
            self.sizes["seconds"].append((last / 1000.0).astype(np.float32))

    def show(self, most: int) -> None:
        """Print them."""
        total = self.words.total()
        print(f"   all: {total:,} drawings of {len(self.words)} categories", end="")
        print(f", {self.recognized / total:.1%} recognized" if total else "")
        for what, values in self.sizes.items():
            if sum(map(len, values)):
                print(f"{what:>8} per drawing: {_spread(np.concatenate(values))}")
        top = [(shown(name), count) for name, count in self.words.most_common(most)]
        width = max((len(name) for name, _ in top), default=0)
        for name, count in top:
            print(f"  {name:<{width}}  {count:,}")
        if len(self.words) > most:
            print(f"  and {len(self.words) - most} more (--most N lists more)")


def _spread(values: NDArray[Any]) -> str:
    low, half, high, top = np.percentile(values, [0, 50, 95, 100])
    mean = values.mean(dtype=np.float64)
    return f"mean {mean:.1f}, least {low:g}, median {half:g}, 95% {high:g}, most {top:g}"
