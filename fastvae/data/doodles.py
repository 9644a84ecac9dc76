"""Doodles: a generated data set of sketches in the form of Quick, Draw!, for want of a download.

Ten categories of parametric drawings that look drawn by hand: several strokes in the order in which
people make them, varying proportions, a tilt, a wobble along the strokes, now and then a stroke too
few or too many. A drawing is a function of (seed, category, number) alone, whatever else is made.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from fastvae.data.doodle_shapes import FEWEST_STROKES, MOST_STROKES, SHAPES, TURN, Pen
from fastvae.errors import UserError, nearest

UNRECOGNIZED = 0.03  # share of drawings; they are the sloppy ones
_RAW_DENSITY = 4  # points of raw drawings per point of simplified ones, about
CATEGORIES = tuple(SHAPES)  # at most 16, as _key_id counts; their order is part of the keys


@dataclass(frozen=True, eq=False)
class Doodle:
    """One drawing."""

    word: str
    key_id: int
    country: str
    timestamp: datetime
    recognized: bool
    strokes: list[list[list[float]]]
    """Per stroke x and y: integers 0 to 255; or of a raw drawing pixels and time in ms."""

    def line(self) -> bytes:
        """The drawing as a line of ndjson, as Google writes it."""
        when = f"{self.timestamp:%Y-%m-%d %H:%M:%S}.{self.timestamp.microsecond // 10:05d} UTC"
        recognized = "true" if self.recognized else "false"
        drawing = str(self.strokes).replace(" ", "")
        return (
            f'{{"word":"{self.word}","countrycode":"{self.country}","timestamp":"{when}",'
            f'"recognized":{recognized},"key_id":"{self.key_id}","drawing":{drawing}}}\n'
        ).encode()


def generate(
    count: int, seed: int = 0, categories: Sequence[str] | None = None, *, raw: bool = False
) -> Iterator[bytes]:
    """Lines of ndjson for ``count`` drawings, the categories in turn.

    Args:
        categories: names out of ``CATEGORIES``; all by default.
        raw: as in Quick, Draw!'s raw files: pixels as floats, and times in ms.
    """
    names = check_categories(categories)
    for i in range(count):
        yield doodle(names[i % len(names)], i // len(names), seed, raw=raw).line()


def write(
    folder: Path,
    count: int,
    seed: int = 0,
    categories: Sequence[str] | None = None,
    *,
    raw: bool = False,
    progress: Callable[[int], object] = lambda drawings: None,
) -> list[Path]:
    """Write the drawings of ``generate``, one file ``<category>.ndjson`` for each category.

    A file gets its name when it is complete. One that is there already is never written over: it
    could hold real drawings.

    Args:
        progress: called with the number of drawings made since the last call.

    Returns:
        The files.
    """
    names = check_categories(categories)
    paths = [folder / f"{name}.ndjson" for name in names]
    for path in paths:
        if path.exists():
            raise UserError(f"{path} is already there: remove it, or give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place, (name, path) in enumerate(zip(names, paths, strict=True)):
            temporary = path.with_name(f".{path.name}.tmp")
            with temporary.open("wb") as file:
                for number in range(len(range(place, count, len(names)))):
                    file.write(doodle(name, number, seed, raw=raw).line())
                    progress(1)
            temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or folder}: {error.strerror}") from None
    return paths


def check_categories(categories: Sequence[str] | None) -> list[str]:
    """The categories without repetitions, all of them for None; UserError for an unknown one."""
    for name in categories or ():
        if name not in SHAPES:
            raise UserError(f"no doodles of {name!r}{nearest(name, SHAPES)}")
    return list(dict.fromkeys(categories or CATEGORIES))


def doodle(category: str, number: int, seed: int = 0, *, raw: bool = False) -> Doodle:
    """One drawing. The raw form is the same one with more points, unscaled, and with times."""
    rng = random.Random(_hash(f"{seed}/doodles/{category}/{number}"))
    timestamp = _FIRST_DAY + timedelta(microseconds=10 * int(rng.random() * _DAYS * 86400e5))
    country = _COUNTRIES[int(rng.random() ** 2 * len(_COUNTRIES))]
    recognized = rng.random() >= UNRECOGNIZED
    pen = Pen(rng, _RAW_DENSITY if raw else 1, sloppiness=1.0 if recognized else 2.5)
    SHAPES[category](pen)
    _miss_or_add(pen)
    points, ends = _by_hand(pen)
    return Doodle(
        word=category,
        key_id=_key_id(category, number, seed),
        country=country,
        timestamp=timestamp,
        recognized=recognized,
        strokes=_raw(points, ends, rng) if raw else _simplified(points, ends),
    )


_FIRST_DAY = datetime(2017, 1, 23)
_DAYS = 66  # Quick, Draw!'s were made from January to March 2017
_COUNTRIES = ("US", "GB", "CA", "DE", "AU", "RU", "SE", "BR", "FI", "CZ", "IT", "PL", "FR", "TH")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _key_id(category: str, number: int, seed: int) -> int:
    """16 digits in the range of Google's keys, different for all drawings of a seed."""
    mask = (1 << 51) - 1
    key = ((number << 4) + CATEGORIES.index(category) + _hash(f"{seed}/keys")) & mask
    for multiplier in (0x9E3779B97F4A7, 0xBF58476D1CE4F):  # odd: each step can be undone
        key = key * multiplier & mask
        key ^= key >> 26
    return (1 << 52) + key


def _miss_or_add(pen: Pen) -> None:
    """What people do: forget a stroke, add one, draw one backwards, or two in another order."""
    strokes = pen.strokes
    if len(strokes) > FEWEST_STROKES and pen.chance(0.1 * pen.sloppiness):
        del strokes[1 + int(pen.random() * (len(strokes) - 1))]
    del strokes[MOST_STROKES:]
    if len(strokes) < MOST_STROKES and pen.chance(0.06 * pen.sloppiness):
        x, y = pen.between(-0.9, 0.9), pen.between(-0.9, 0.9)
        end = (x + pen.between(-0.5, 0.5), y + pen.between(-0.5, 0.5))
        pen.curve((x, y), (pen.between(-0.9, 0.9), pen.between(-0.9, 0.9)), end)
    if pen.chance(0.1 * pen.sloppiness):
        i = 1 + int(pen.random() * (len(strokes) - 2))
        strokes[i], strokes[i + 1] = strokes[i + 1], strokes[i]
    for stroke in strokes:
        if pen.chance(0.12):
            stroke.reverse()


def _by_hand(pen: Pen) -> tuple[np.ndarray, list[int]]:
    """All points (P, 2) with a hand's tilt and wobble, and where each stroke ends."""
    lengths = [len(stroke) for stroke in pen.strokes]
    points = np.array([point for stroke in pen.strokes for point in stroke])
    # Each stroke a little off its place, then smooth noise along the way of the pen.
    off = np.array([(pen.about(0, 0.03), pen.about(0, 0.03)) for _ in lengths])
    points += np.repeat(off, lengths, axis=0)
    way = np.zeros(len(points))
    np.cumsum(np.hypot(*np.diff(points, axis=0).T), out=way[1:])
    waves = np.array(
        [
            (pen.between(low, 2 * low), TURN * pen.random(), size * pen.sloppiness)
            for low, size in _WOBBLE
            for _ in "xy"
        ]
    )
    noise = np.sin(np.outer(way, waves[:, 0]) + waves[:, 1]) * waves[:, 2]
    points += noise.reshape(len(points), -1, 2).sum(axis=1)
    tilt, slant = pen.about(0, 0.14) + pen.about(0, 0.14), pen.about(0, 0.1)
    wide = math.exp(pen.about(0, 0.2)) * (-1 if pen.chance(0.5) else 1)
    turn = np.array([[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]])
    return points @ np.array([[wide, 0], [slant, 1]]) @ turn, np.cumsum(lengths).tolist()


_WOBBLE = ((1.5, 0.025), (4.0, 0.012), (10.0, 0.006))  # lowest radians per unit, size


def _simplified(points: np.ndarray, ends: list[int]) -> list[list[list[float]]]:
    """Moved to 0, the longer side scaled to 255, rounded."""
    points = points - points.min(axis=0)
    x, y = np.rint(points * (255.0 / points.max())).astype(np.int64).T.tolist()
    return [[x[a:b], y[a:b]] for a, b in zip([0, *ends], ends, strict=False)]


def _raw(points: np.ndarray, ends: list[int], rng: random.Random) -> list[list[list[float]]]:
    """In pixels of some screen, with the time of each point."""
    scale, left, top = (low + (high - low) * rng.random() for low, high in _SCREEN)
    x = np.round(points[:, 0] * scale + left, 3).tolist()
    y = np.round(points[:, 1] * scale + top, 3).tolist()
    strokes = []
    time = 0.0
    for a, b in zip([0, *ends], ends, strict=False):
        pace = 8.0 + 17.0 * rng.random()
        times = [int(time + pace * i) for i in range(b - a)]
        strokes.append([x[a:b], y[a:b], times])
        time = times[-1] + 150.0 + 750.0 * rng.random()
    return strokes


_SCREEN = ((120.0, 400.0), (500.0, 700.0), (500.0, 700.0))  # pixels per unit, centre
