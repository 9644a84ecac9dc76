"""Data sets of strokes: packed folders, and generated doodles."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastvae import ops
from fastvae.config import Config
from fastvae.data import drawings as stored
from fastvae.data import quickdraw
from fastvae.data.doodles import generate
from fastvae.data.drawings import Drawings
from fastvae.data.sources.strokes import StrokesSource
from fastvae.data.splits import key_fraction, split_fractions
from fastvae.errors import UserError, nearest

SPLITS = ("train", "val", "test")


def packed(config: Config) -> dict[str, StrokesSource]:
    """A folder made by ``fastvae-data quickdraw``: one set of drawings for each split."""
    root = Path(config.data.root)
    if not root.is_dir():
        raise UserError(
            f"data folder {root} does not exist: make it with `fastvae-data quickdraw FILES... "
            f"--out {root}` (files: `fastvae-data download quickdraw --categories cat`), give "
            "another with --data.root, or try --data.dataset doodles, which needs no files"
        )
    sets = {name: stored.load(root / name) for name in SPLITS}
    for name in SPLITS:
        if sets[name].words != sets["train"].words:
            raise UserError(
                f"{root / name} has other categories than {root / 'train'}: they were not packed "
                "together; pack the drawings again"
            )
    return _sources(sets, config)


def doodles(config: Config) -> dict[str, StrokesSource]:
    """Generated sketches, by way of the ndjson that they would be stored as."""
    lines = b"".join(generate(config.strokes.doodles, seed=0))
    whole, bad = quickdraw.from_ndjson(np.frombuffer(lines, dtype=np.uint8))
    if bad:
        raise AssertionError(f"the generator wrote a bad record: {bad[0]}")
    whole = whole.with_sorted_words()
    data = config.data
    parts = split_fractions(key_fraction(whole.key_id), data.val_fraction, data.test_fraction)
    return _sources({name: whole.select(index) for name, index in parts.items()}, config)


def _sources(sets: dict[str, Drawings], config: Config) -> dict[str, StrokesSource]:
    channels, height, width = config.model.image_shape
    if channels != 1 or height != width:
        raise UserError(
            f"model.image_shape = {list(config.model.image_shape)}: drawings become square images "
            "of one channel, e.g. --model.image-shape 1 64 64"
        )
    chosen = {name: _only(part, config.strokes.categories) for name, part in sets.items()}
    return {
        name: StrokesSource(part, config.strokes, height, ops.derive_seed(config.seed, name, "cut"))
        for name, part in chosen.items()
    }


def _only(drawings: Drawings, categories: tuple[str, ...]) -> Drawings:
    """The drawings of these categories; all of them where none is named."""
    if not categories:
        return drawings
    for word in categories:
        if word not in drawings.words:
            raise UserError(
                f"strokes.categories: no category {word!r} here{nearest(word, drawings.words)}"
            )
    numbers = [drawings.words.index(word) for word in categories]
    return drawings.select(np.flatnonzero(np.isin(drawings.word, numbers)))
