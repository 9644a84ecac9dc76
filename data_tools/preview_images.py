"""A contact sheet of packed images: ``fastvae-data preview`` on shards, .beton and tars."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fastvae.data_tools.sample_sets import open_sets
from fastvae.errors import UserError, nearest

Images = NDArray[np.uint8]
GAP, LABEL = 4, 14  # pixels between pictures, and for the line of text under them
TILE = 96  # smaller images are enlarged to about this height


def sheet_of_images(
    path: Path, split: str, count: int, columns: int, categories: list[str] | None, seed: int
) -> tuple[Image.Image, int]:
    """The sheet and the number of images in the split: chosen at random, conditions on top."""
    sets = open_sets(path)
    if split not in sets:
        raise UserError(f"{path} has no {split} split; it has {', '.join(sets)}")
    part = sets[split]
    channels = part.fields["image"].shape[2]
    if channels not in (1, 3):
        raise UserError(f"{path} has images of {channels} channels: pictures are made of 1 or 3")
    where = np.arange(len(part), dtype=np.int64)
    if categories:
        for name in categories:
            if name not in part.classes:
                raise UserError(f"no category {name!r} here{nearest(name, part.classes)}")
        numbers = [part.classes.index(name) for name in categories]
        where = where[np.isin(part.labels(), numbers)]
    rng = np.random.default_rng(seed)
    where = np.sort(rng.choice(where, min(count, len(where)), replace=False))
    if not len(where):
        raise UserError(f"{path} has no such image in {split}")
    rows = part.rows(where)
    labels = []
    if "label" in rows:
        labels = [part.classes[i] if 0 <= i < len(part.classes) else "" for i in rows["label"]]
    pictures = [rows[name] for name in ("condition", "image") if name in rows]
    return sheet(pictures, labels, columns), len(part)


def sheet(pictures: list[Images], labels: list[str], columns: int) -> Image.Image:
    """Images (B, H, W, C) in rows of ``columns``, the k-th of each entry of ``pictures`` one above
    the other, and its label under them."""
    factor = max(1, round(TILE / pictures[0].shape[1]))
    big = [images.repeat(factor, axis=1).repeat(factor, axis=2) for images in pictures]
    count, height, width, channels = big[0].shape
    columns = min(columns, count)
    high = len(big) * (height + GAP) + (LABEL if labels else 0)
    mode = "L" if channels == 1 else "RGB"
    size = (columns * (width + GAP) + GAP, -(-count // columns) * high + GAP)
    paper = Image.new(mode, size, 222 if channels == 1 else (222, 222, 222))
    pen = ImageDraw.Draw(paper)
    for i in range(count):
        left, top = GAP + (i % columns) * (width + GAP), GAP + (i // columns) * high
        for images in big:
            paper.paste(
                Image.fromarray(images[i, :, :, 0] if channels == 1 else images[i]), (left, top)
            )
            top += height + GAP
        if labels:
            pen.text((left, top - 2), fitting(pen, labels[i], width), fill=0)
    return paper


def fitting(pen: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """As much of a label as there is room for, on one line."""
    text = " ".join(text.split())
    while len(text) > 1 and pen.textlength(text) > width:
        text = text[:-1]
    return text
