"""``fastvae-data preview``: a contact sheet of drawings, the partial one above the full one.

Images that are packed as such (shards, .beton, tars) are laid out in ``preview_images.py``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fastvae.config import StrokesConfig
from fastvae.data.drawings import INDEX, Drawings, load
from fastvae.data.sources.strokes import StrokesSource
from fastvae.data_tools.arguments import at_least
from fastvae.data_tools.forms import Form, form_of
from fastvae.data_tools.pieces import SUFFIXES, expand, pieces
from fastvae.data_tools.preview_images import GAP, LABEL, fitting, sheet_of_images
from fastvae.errors import UserError, nearest

Images = NDArray[np.uint8]
MOST_READ = 100_000  # drawings, of files that are not packed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Draw some drawings of a packed data set, or of raw files, on one sheet: what is shown of "
        "each to a\nconditional model above what it is to draw. Of shards, .beton files and tars: "
        "images as they are stored\n(--side, --partial and --raster are for strokes)."
    )
    parser.epilog = (
        "examples:\n"
        "  fastvae-data preview data/doodles\n"
        "  fastvae-data preview data/doodles --split val --partial box --categories cat --seed 3\n"
        "  fastvae-data preview cat.ndjson --raster exact --side 28 --out cat.png"
    )
    parser.add_argument("source", type=Path, metavar="DIR|FILE", help="packed folder, or a file")
    parser.add_argument("--split", default="train", choices=("train", "val", "test"))
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PNG",
        help="picture to write (default: DIR/preview.png, or NAME-preview.png here of a FILE)",
    )
    parser.add_argument("--count", type=at_least(1), default=48, help="number of drawings (48)")
    parser.add_argument("--columns", type=at_least(1), default=12, help="drawings per row (12)")
    parser.add_argument("--side", type=at_least(8), default=96, help="pixels per drawing (96)")
    parser.add_argument(
        "--partial",
        default="strokes",
        choices=("none", "strokes", "points", "time", "box"),
        help="what partial drawings show (strokes)",
    )
    parser.add_argument("--raster", default="fast", choices=("fast", "exact", "binary"))
    parser.add_argument("--categories", nargs="+", metavar="NAME", help="these only")
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="of the choice of drawings and of cuts (0)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the sheet and say where it is."""
    if _is_images(args.source):
        picture, total = sheet_of_images(
            args.source, args.split, args.count, args.columns, args.categories, args.seed
        )
        return _save(picture, args.out or _out(args.source, True), f"of {total:,} images")
    drawings = _read(args.source, args.split)
    index = choose(drawings, args.count, args.categories, args.seed)
    if len(index) == 0:
        raise UserError(
            f"{args.source} has no drawing to show: try another --split or --categories"
        )
    chosen = drawings.select(index)
    full, partial = _render(chosen, args)
    labels = [chosen.words[number] for number in chosen.word]
    picture = sheet(full, partial, labels, args.columns)
    out = args.out or _out(args.source, (args.source / args.split).is_dir())
    return _save(picture, out, f"{len(chosen)} of {len(drawings):,} drawings")


def _is_images(source: Path) -> bool:
    """Whether images are packed here, and not strokes."""
    if source.is_dir() and any(p.suffix in SUFFIXES for p in source.iterdir()):
        return False
    if source.is_file() and source.suffix not in (".beton", ".tar"):
        return False
    return form_of(source) is not Form.STROKES


def _out(source: Path, packed: bool) -> Path:
    """In a packed folder; of anything else, in the current one, named after it."""
    inside = packed and source.is_dir()
    return source / "preview.png" if inside else Path(f"{source.stem}-preview.png")


def _save(picture: Image.Image, out: Path, what: str) -> int:
    """Write the picture whole or not at all."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(part := out.with_name(f".{out.name}.tmp"), format="png")
        part.replace(out)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {out}: {error}") from None
    print(f"{out}: {what}")
    return 0


def _read(source: Path, split: str) -> Drawings:
    """A split of a packed folder; or the first drawings of the files, MOST_READ and some more."""
    for folder in (source / split, source):
        if (folder / INDEX).is_file():
            return load(folder)
    parts: list[Drawings] = []
    for piece in pieces(expand([source])):
        parts.append(piece.drawings)
        if sum(map(len, parts)) >= MOST_READ:
            break
    if not any(map(len, parts)):
        raise UserError(f"{source} holds no drawing that can be read")
    timed = all(part.time is not None for part in parts if len(part))
    return Drawings.join([part if timed else replace(part, time=None) for part in parts])


def choose(
    drawings: Drawings, count: int, categories: list[str] | None, seed: int
) -> NDArray[np.int64]:
    """Random drawings, the same number of each category as far as they go, sorted by category."""
    numbers = {word: number for number, word in enumerate(drawings.words)}
    words = list(dict.fromkeys(categories)) if categories else sorted(numbers)
    rng = np.random.default_rng(seed)
    order = np.argsort(drawings.word, kind="stable")
    ends = np.searchsorted(drawings.word[order], np.arange(len(numbers) + 1))
    queues = []
    for word in words:
        if word not in numbers:
            raise UserError(f"no category {word!r} here{nearest(word, numbers)}")
        n = numbers[word]
        queues.append(rng.permutation(order[ends[n] : ends[n + 1]]))
    if len(queues) > count:
        queues = [queues[i] for i in sorted(rng.choice(len(queues), count, replace=False))]
    taken: list[list[int]] = [[] for _ in queues]
    total = sum(map(len, queues))
    turn = 0
    while sum(map(len, taken)) < min(count, total):
        for queue, mine in zip(queues, taken, strict=True):
            if turn < len(queue) and sum(map(len, taken)) < count:
                mine.append(int(queue[turn]))
        turn += 1
    return np.array([i for mine in taken for i in mine], dtype=np.int64)


def _render(drawings: Drawings, args: argparse.Namespace) -> tuple[Images, Images | None]:
    """Images (B, side, side) of all drawings, full and partial, as a model gets them."""
    view = StrokesConfig(raster=args.raster, partial=args.partial)
    source = StrokesSource(drawings, view, args.side, args.seed)
    full, partial, _ = source.gather(torch.arange(len(drawings)))
    return full[:, 0].numpy(), None if partial is None else partial[:, 0].numpy()


def sheet(full: Images, partial: Images | None, labels: list[str], columns: int) -> Image.Image:
    """Dark lines on light paper, in rows of ``columns``; under each drawing its category."""
    count, side = full.shape[:2]
    columns = min(columns, count)
    rows = -(-count // columns)
    pictures = [full] if partial is None else [partial, full]
    high = len(pictures) * (side + GAP) + LABEL + GAP
    wide = side + GAP
    paper = Image.new("L", (columns * wide + GAP, rows * high + GAP), 222)
    pen = ImageDraw.Draw(paper)
    for i in range(count):
        left, top = GAP + (i % columns) * wide, GAP + (i // columns) * high
        for images in pictures:
            paper.paste(Image.fromarray(255 - images[i]), (left, top))
            top += side + GAP
        pen.text((left, top - 2), fitting(pen, labels[i], side), fill=0)
    return paper
