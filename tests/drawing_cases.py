"""Small sets of drawings for tests."""

from __future__ import annotations

import numpy as np

from fastvae.data.drawings import Drawings
from fastvae.kernels.strokes import from_lists


def random_drawings(
    count: int, *, seed: int = 0, words: tuple[str, ...] = ("cat", "hot dog"), timed: bool = False
) -> Drawings:
    """Drawings of 1..6 strokes of 2..9 points with keys, categories and perhaps times."""
    rng = np.random.default_rng(seed)
    strokes = from_lists(
        [
            [rng.integers(0, 256, (2, rng.integers(2, 10))).tolist() for _ in range(1 + i % 6)]
            for i in range(count)
        ]
    )
    ends = strokes.stroke_offset[strokes.drawing_offset]
    steps = [np.arange(n, dtype=np.int32) * 10 for n in np.diff(ends)]
    return Drawings(
        strokes=strokes,
        key_id=rng.integers(0, 2**63, count).astype(np.uint64),
        word=rng.integers(0, len(words), count).astype(np.int32),
        recognized=(rng.random(count) < 0.9).astype(np.uint8),
        words=words,
        time=np.concatenate(steps) if timed and count else None,
    )


def same(a: Drawings, b: Drawings) -> bool:
    """Whether two sets hold the same drawings (categories compared by name)."""
    ours, theirs = a.arrays(), b.arrays()
    names = ours.keys() - {"word"}
    return (
        ours.keys() == theirs.keys()
        and all(np.array_equal(ours[name], theirs[name]) for name in names)
        and [a.words[i] for i in a.word] == [b.words[i] for i in b.word]
    )
