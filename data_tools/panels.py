"""Where the panels of a comic strip are: in equal parts of its width, or between its gutters.

A gutter is a run of columns of one colour (paper, or whatever is between panels) near the place
where it is expected. One with a frame line or full-height drawing on both sides counts more than an
empty part of a panel. Titles above and lines of text below the panels' common frame are left out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NEAR = 40  # grey levels within which a pixel is of the paper's colour
SAME = 0.96  # share of such pixels that makes a column part of a gutter between frames
BLANK = 0.995  # the same where there are no frames
LINE = 0.85  # share of other pixels that makes a column or row a frame line
EDGE = 0.6  # share of other pixels that makes a column the edge of a panel
REACH = 0.3  # of a panel's width: how far a gutter may be from where it is expected
BAND = (0.15, 0.85)  # of the height: where gutters are looked for, below titles and above footers
OPEN = 0.04  # of a panel's width: the narrowest gutter that has no edges beside it
THICK = 0.02  # of the strip's height: the thickest frame line


class Panel(NamedTuple):
    """A panel's pixels, ends left out."""

    left: int
    top: int
    right: int
    bottom: int


def equal_parts(wide: int, high: int, count: int) -> tuple[Panel, ...]:
    """``count`` parts of equal width (as far as pixels allow), of full height."""
    edges = [round(wide * i / count) for i in range(count + 1)]
    return tuple(Panel(edges[i], 0, edges[i + 1], high) for i in range(count))


def find_panels(grey: NDArray[np.uint8], count: int) -> tuple[Panel, ...] | None:
    """The panels between ``count - 1`` gutters, without margins and frames; None where gutters
    are not credible.

    Shapes: grey (H, W) uint8.
    """
    high, wide = grey.shape
    if wide < 16 * count or high < 16:
        return None
    rim = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    papers = {255, int(np.median(rim))}
    found = [_on_paper(grey, paper, count) for paper in papers]
    # White frame lines on black paper are narrower than its gutters, and the other way round.
    return min(filter(None, found), key=lambda p: sum(x.right - x.left for x in p), default=None)


def _on_paper(grey: NDArray[np.uint8], paper: int, count: int) -> tuple[Panel, ...] | None:
    """The same where the colour of the paper, around panels, is known."""
    high = len(grey)
    band = slice(int(BAND[0] * high), int(BAND[1] * high))
    drawn = np.abs(grey.astype(np.int16) - paper) > NEAR
    share = drawn[band].mean(0)  # (W,)
    used = np.flatnonzero(share > 1 - BLANK)
    if not len(used):
        return None
    left, right = int(used[0]), int(used[-1]) + 1
    gutters = _gutters(share, left, right, count)
    if gutters is None:
        return None
    edges = [left, *(edge for gutter in gutters for edge in gutter), right]
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    widths = [stop - start for start, stop in spans]
    if min(widths) < 0.6 * (right - left) / count or max(widths) > 1.5 * (right - left) / count:
        return None
    thick = max(2, round(THICK * high))
    for place, (start, stop) in enumerate(spans):
        columns, part = grey[band, start:stop].T, share[start:stop]
        first, last = _line(part, [columns], thick), _line(part[::-1], [columns[::-1]], thick)
        spans[place] = (start + first, stop - last)
    # Rows are lines where they are in all panels at once: a table's edge is in one of them only.
    share = np.min([drawn[:, start:stop].mean(1) for start, stop in spans], axis=0)  # (H,)
    used = np.flatnonzero(np.any([drawn[:, start:stop].any(1) for start, stop in spans], axis=0))
    top, bottom = _rows(share, int(used[0]), int(used[-1]) + 1)
    rows = [grey[top:bottom, start:stop] for start, stop in spans]
    part = share[top:bottom]
    first, last = _line(part, rows, thick), _line(part[::-1], [x[::-1] for x in rows], thick)
    return tuple(Panel(start, top + first, stop, bottom - last) for start, stop in spans)


def _runs(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where runs of true begin and end (ends left out), (runs, 2)."""
    steps = np.diff(np.concatenate([[0], mask.view(np.int8), [0]]))
    return np.stack([np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)], axis=1)


def _gutters(
    share: NDArray[np.float64], left: int, right: int, count: int
) -> list[tuple[int, int]] | None:
    """The gutters, or None: those with edges on both sides, nearest to where they are expected; or,
    where no panel has a frame, the widest ones there.

    Args:
        share: (W,) of each column that is drawn.
        left, right: where the panels begin and end.
    """
    framed, opened = (_Runs(share, 1 - least) for least in (SAME, BLANK))
    panel = (right - left) / count
    expected = left + panel * np.arange(1, count)[:, None]  # (gutters, 1)
    for runs, good, reach, weight in (
        (framed, framed.before & framed.after, REACH, 0),
        # Beside one frame line only is where a panel is empty.
        (opened, ~opened.before & ~opened.after & (opened.width >= OPEN * panel), REACH / 2, 1),
    ):
        good &= (runs.start > left) & (runs.stop < right) & (runs.width <= panel / 4)
        if count == 1 or not good.any():
            continue
        far = np.abs(runs.middle - expected) / panel  # (gutters, runs)
        cost = np.where(good & (far <= reach), far - weight * runs.width / panel, np.inf)
        if np.isfinite(cost.min(axis=1)).all():
            chosen = cost.argmin(axis=1)
            found = list(zip(runs.start[chosen], runs.stop[chosen], strict=True))
            edges = np.array([left, right, *np.ravel(found)])
            apart = np.abs(framed.middle[:, None] - edges).min(axis=1)
            if (apart[framed.before & framed.after] > 0.4 * panel).any():
                return None  # another one, in the middle of a panel
            return [(int(start), int(stop)) for start, stop in found]
    return [] if count == 1 else None


class _Runs:
    """Runs of columns of which at most the share ``most`` is drawn."""

    def __init__(self, share: NDArray[np.float64], most: float) -> None:
        self.start, self.stop = _runs(share <= most).T
        self.width = self.stop - self.start
        self.middle = (self.start + self.stop) / 2
        near = [share[np.clip(self.start - i, 0, None)] for i in (1, 2, 3)]
        self.before = np.max(near, axis=0) >= EDGE
        near = [share[np.clip(self.stop + i, None, len(share) - 1)] for i in (0, 1, 2)]
        self.after = np.max(near, axis=0) >= EDGE


def _line(share: NDArray[np.float64], panels: list[NDArray[np.uint8]], thick: int) -> int:
    """How many rows to leave out because a frame line ends with them.

    Args:
        share: (N,) of each row that is drawn, the outermost row first.
        panels: their pixels (N, length).
        thick: rows that a line has at most.
    """
    lines = _runs(share[: 2 * thick + 1] >= LINE)
    if not len(lines) or lines[0, 0] > thick:
        return 0
    if lines[0, 1] - lines[0, 0] <= thick:
        return int(lines[0, 1])
    return int(np.median([_plain_rows(rows, thick) for rows in panels]))  # the panel is coloured


def _plain_rows(rows: NDArray[np.uint8], thick: int) -> int:
    """How many of the first rows are of one colour each, before one that is not or that goes on for
    more than ``thick`` rows (a plain background)."""
    rows = rows[: thick + 1].astype(np.int16)
    depth = 0
    while depth < len(rows):
        same = (np.abs(rows[depth:] - np.median(rows[depth])) <= NEAR).mean(1) >= LINE
        length = len(same) if same.all() else int(same.argmin())
        if length == 0 or depth + length > thick:
            break
        depth += length
    return depth


def _rows(share: NDArray[np.float64], top: int, bottom: int) -> tuple[int, int]:
    """From the first frame line to the last: what is beyond is title and footer.

    Args:
        share: (H,) of each row that is drawn, in the panel where that is least.
        top, bottom: where there is anything; returned where there is no line.
    """
    high = len(share)
    lines = _runs(share >= LINE)
    upper = lines[lines[:, 0] < high / 4]
    bars = (upper[:, 1] - upper[:, 0] > THICK * high) & (upper[:, 1] < high / 4)  # behind a title
    below = upper[int(np.flatnonzero(bars)[-1]) + 1 if bars.any() else 0 :]
    if len(below):
        top = int(below[0, 0])
    lower = lines[lines[:, 1] > high * 3 / 4]
    if len(lower):
        bottom = int(lower[-1, 1])
    return top, bottom
