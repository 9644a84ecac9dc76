"""The shapes of the doodles: what each category looks like, and the pen that draws it.

Strokes stand in the order in which people draw them. The frame is about -1 to 1, y downwards;
angles are in turns, from the right, clockwise as seen. The pen's random numbers are drawn in the
same order whatever the density, so that a raw drawing is the simplified one with more points.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

FEWEST_STROKES, MOST_STROKES = 3, 9
FEWEST_POINTS, MOST_POINTS = 5, 25  # per stroke, at density 1
TURN = 2.0 * math.pi

Point = tuple[float, float]


class Pen:
    """Draws strokes and holds the random numbers that vary them."""

    def __init__(self, rng: random.Random, density: int, sloppiness: float) -> None:
        self.random = rng.random
        self.density = density
        self.sloppiness = sloppiness
        self.strokes: list[list[Point]] = []

    def between(self, low: float, high: float) -> float:
        """A uniform random number."""
        return low + (high - low) * self.random()

    def chance(self, share: float) -> bool:
        """True for this share of the drawings."""
        return self.random() < share

    def about(self, value: float, by: float = 0.03) -> float:
        """``value``, missed by up to ``by``."""
        return value + by * self.sloppiness * (2.0 * self.random() - 1.0)

    def _steps(self, length: float, least: int) -> int:
        """How many pieces to draw a stroke of this length in."""
        steps = int(FEWEST_POINTS + 2.4 * length + 2.0 * self.random())
        return self.density * max(FEWEST_POINTS - 1, least, min(steps, MOST_POINTS - 1))

    def path(self, *corners: Point, close: bool = False) -> None:
        """Straight lines through the corners, each missed a little."""
        at = [(self.about(x), self.about(y)) for x, y in corners]
        if close:
            x, y = at[0]
            at.append((self.about(x), self.about(y)))
        lengths = [math.dist(a, b) for a, b in itertools.pairwise(at)]
        total = sum(lengths)
        spare = self._steps(total, len(lengths)) - len(lengths)
        stroke = [at[0]]
        used = done = 0.0
        for (ax, ay), (bx, by), length in zip(at, at[1:], lengths, strict=False):
            done += spare * length / total
            pieces = 1 + round(done) - round(used)
            used = done
            for i in range(1, pieces + 1):
                t = i / pieces
                stroke.append((ax + (bx - ax) * t, ay + (by - ay) * t))
        self.strokes.append(stroke)

    def curve(self, a: Point, b: Point, c: Point) -> None:
        """A bow from ``a`` to ``c`` that leans towards ``b``."""
        self.strokes.append(self._bow(a, b, c, self._steps(math.dist(a, b) + math.dist(b, c), 1)))

    def _bow(self, a: Point, b: Point, c: Point, steps: int) -> list[Point]:
        (ax, ay), (bx, by), (cx, cy) = ((self.about(x), self.about(y)) for x, y in (a, b, c))
        bow = []
        for i in range(steps + 1):
            t = i / steps
            p, q, r = (1 - t) * (1 - t), 2 * t * (1 - t), t * t
            bow.append((p * ax + q * bx + r * cx, p * ay + q * by + r * cy))
        return bow

    def bows(self, *points: Point) -> None:
        """One stroke of several bows: ends and leanings in turn."""
        stroke: list[Point] = []
        number = len(points) // 2
        steps = self.density * max(2, min(5, (MOST_POINTS - 1) // number))
        for i in range(0, len(points) - 1, 2):
            a, b, c = points[i : i + 3]
            bow = self._bow(stroke[-1] if stroke else a, b, c, steps)
            if stroke:
                bow[0] = stroke.pop()
            stroke += bow
        self.strokes.append(stroke)

    def arc(self, x: float, y: float, rx: float, ry: float, start: float, sweep: float) -> None:
        """Part of an ellipse; angles in turns, from the right, clockwise as seen."""
        x, y = self.about(x), self.about(y)
        rx, ry = self.about(rx, 0.06 * rx), self.about(ry, 0.06 * ry)
        steps = self._steps(abs(sweep) * TURN * (rx + ry) / 2, 1)
        # A hand closes no circle: the radius drifts.
        drift = self.sloppiness * self.between(-0.08, 0.08)
        stroke = []
        for i in range(steps + 1):
            angle = TURN * (start + sweep * i / steps)
            grow = 1.0 + drift * i / steps
            stroke.append((x + rx * grow * math.cos(angle), y + ry * grow * math.sin(angle)))
        self.strokes.append(stroke)

    def ring(self, x: float, y: float, rx: float, ry: float | None = None) -> None:
        """An ellipse from somewhere near its top, either way round."""
        way = -1.0 if self.chance(0.7) else 1.0
        self.arc(
            x,
            y,
            rx,
            rx if ry is None else ry,
            self.between(0.65, 0.85),
            way * self.between(0.93, 1.06),
        )


def _eyes(pen: Pen, apart: float, y: float, size: float) -> None:
    """A pair of rings, dashes or bows."""
    form = pen.random()
    for x in (-apart, apart):
        if form < 0.55:
            pen.ring(x, y, size, size * pen.between(0.9, 1.5))
        elif form < 0.8:
            pen.path((x, y - size * 1.3), (x, y + size * 1.3))
        else:
            pen.curve((x - size, y), (x, y - 2.2 * size), (x + size, y))


def _face(pen: Pen) -> None:
    tall = pen.between(0.9, 1.2)
    pen.ring(0, 0, 0.9, 0.9 * tall)
    _eyes(pen, pen.between(0.28, 0.4), pen.between(-0.4, -0.2), pen.between(0.07, 0.14))
    if pen.chance(0.5):
        pen.path((0.02, -0.12), (-0.1, 0.17), (0.07, 0.18))
    wide, low, deep = pen.between(0.3, 0.55), pen.between(0.33, 0.45), pen.between(0.25, 0.6)
    pen.curve((-wide, low), (0, low + deep), (wide, low))
    extra = pen.random()
    if extra < 0.15:
        pen.path((-wide, low), (wide, low))
    elif extra < 0.35:
        for side, start in ((-0.95, 0.25), (0.95, 0.75)):
            pen.arc(side, 0, 0.17, 0.24, start, 0.5)
    elif extra < 0.65:
        for x in (-0.3, 0, 0.3)[: 2 + pen.chance(0.6)]:
            top = -0.9 * tall * math.sqrt(1 - x * x)
            pen.curve((x, top), (x - 0.1, top - 0.2), (x + pen.between(-0.2, 0.2), top - 0.35))


def _house(pen: Pen) -> None:
    wide, top, low = pen.between(0.6, 0.95), pen.between(-0.25, 0.05), 0.9
    eaves = pen.between(0, 0.2)
    pen.path((-wide, top), (-wide, low), (wide, low), (wide, top), close=True)
    peak = top - pen.between(0.45, 0.8)
    pen.path((-wide - eaves, top), (0, peak), (wide + eaves, top))
    door, height = pen.between(0.14, 0.2), pen.between(0.42, 0.6)
    x = wide * pen.between(-0.6, 0.1)
    pen.path((x - door, low), (x - door, low - height), (x + door, low - height), (x + door, low))
    if pen.chance(0.4):
        pen.ring(x + 0.6 * door, low - 0.45 * height, 0.04)
    room = wide - x - door
    pane = min(pen.between(0.12, 0.17), 0.35 * room)
    x, y = wide - 0.5 * room, top + pen.between(0.3, 0.42)
    pen.path(
        (x - pane, y - pane),
        (x - pane, y + pane),
        (x + pane, y + pane),
        (x + pane, y - pane),
        close=True,
    )
    if pen.chance(0.6):
        pen.path((x, y - pane), (x, y + pane))
        pen.path((x - pane, y), (x + pane, y))
    if pen.chance(0.5):
        x, lift = wide * pen.between(0.4, 0.6), pen.between(0.3, 0.45)
        slope = (top - peak) / (wide + eaves)
        pen.path(
            (x, peak + slope * x),
            (x, peak + slope * x - lift),
            (x + 0.2, peak + slope * x - lift),
            (x + 0.2, peak + slope * (x + 0.2)),
        )


def _cat(pen: Pen) -> None:
    ear, wide = pen.between(1.0, 1.25), pen.between(0.9, 1.1)
    whole = pen.chance(0.5)
    if whole:  # head and ears in one go
        outline = (
            (-0.7, -0.45),
            (-0.78, -0.75),
            (-0.72, -ear),
            (-0.5, -0.95),
            (-0.28, -0.74),
            (0, -0.8),
            (0.28, -0.74),
            (0.5, -0.95),
            (0.72, -ear),
            (0.78, -0.75),
            (0.7, -0.45),
            (1.15, 0.2),
            (0.55, 0.62),
            (0, 0.95),
            (-0.55, 0.62),
            (-1.15, 0.2),
            (-0.7, -0.45),
        )
        pen.bows(*((x * wide, y) for x, y in outline))
    else:
        pen.ring(0, 0, 0.8 * wide, 0.75)
        for side in (-wide, wide):
            pen.path((0.66 * side, -0.45), (0.7 * side, -ear), (0.2 * side, -0.72))
    _eyes(pen, pen.between(0.27, 0.35), pen.between(-0.25, -0.12), pen.between(0.07, 0.12))
    pen.path((-0.09, 0.1), (0.09, 0.1), (0, 0.2), close=True)
    if whole or pen.chance(0.5):
        low = pen.between(0.36, 0.48)
        pen.bows((-0.25, 0.28), (-0.12, low), (0, 0.24), (0.12, low), (0.25, 0.28))
    out = pen.between(0.95, 1.3)
    for side in (-1, 1):
        if whole:
            pen.path((0.3 * side, 0.1), (out * side, pen.between(-0.1, 0.05)))
            pen.path((0.3 * side, 0.2), (out * side, pen.between(0.2, 0.4)))
        else:  # two or three without lifting the pen
            pen.path(
                (0.3 * side, 0.08),
                (out * side, -0.08),
                (0.3 * side, 0.16),
                (out * side, 0.14),
                (0.3 * side, 0.24),
                (out * side, 0.36),
            )


def _star_corners(x: float, y: float, size: float, turn: float) -> list[Point]:
    """The five tips of a star, from the top on, clockwise."""
    angles = (TURN * (i / 5 - 0.25 + turn) for i in range(5))
    return [(x + size * math.cos(a), y + size * math.sin(a)) for a in angles]


def _one_star(pen: Pen, x: float, y: float, size: float) -> None:
    turn = pen.between(-0.02, 0.02)
    tips = _star_corners(x, y, size, turn)
    if pen.chance(0.5):  # five lines across
        pen.path(*(tips[i % 5] for i in (3, 0, 2, 4, 1, 3)))
    else:  # the outline
        inner = _star_corners(x, y, size * pen.between(0.38, 0.5), turn + 0.1)
        pen.path(*(corner for pair in zip(tips, inner, strict=True) for corner in pair), close=True)


def _star(pen: Pen) -> None:
    form = pen.random()
    if form < 0.2:  # each line, or each tip, by itself
        tips = _star_corners(0, 0, 1, pen.between(-0.02, 0.02))
        inner = _star_corners(0, 0, 0.42, 0.1)
        across = pen.chance(0.5)
        for i in range(5):
            if across:
                pen.path(tips[2 * i % 5], tips[(2 * i + 2) % 5])
            else:
                pen.path(inner[i - 1], tips[i], inner[i])
        return
    _one_star(pen, 0, 0, 1)
    if form < 0.55:  # it twinkles
        first = pen.between(0, 0.2)
        for i in range(2 + int(4 * pen.random())):
            a = TURN * (first + 0.2 * i - 0.15)
            near, far = pen.between(0.75, 0.85), pen.between(1.1, 1.35)
            x, y = math.cos(a), math.sin(a)
            pen.path((near * x, near * y), (far * x, far * y))
    elif form < 0.8:  # it smiles
        _eyes(pen, 0.15, -0.1, pen.between(0.05, 0.07))
        pen.curve((-0.2, 0.1), (0, pen.between(0.3, 0.4)), (0.2, 0.1))
    else:  # it is not alone
        for x in (-1, 1):
            size = pen.between(0.25, 0.45)
            _one_star(pen, x * pen.between(1.1, 1.3), pen.between(-0.9, 0.9), size)


def _fish(pen: Pen) -> None:
    tall, tail = pen.between(0.38, 0.6), pen.between(0.28, 0.45)
    if pen.chance(0.5):
        pen.ring(0, 0, 0.8, tall)
        pen.path((0.76, 0), (1.25, -tail), (pen.between(1.1, 1.3), tail), close=True)
    else:  # back, tail and belly in one go
        pen.bows(
            (-0.85, 0),
            (-0.1, -2 * tall),
            (0.7, -0.05),
            (0.95, -0.2),
            (1.25, -tail),
            (pen.between(1.05, 1.2), 0),
            (1.25, tail),
            (0.95, 0.2),
            (0.7, 0.05),
            (-0.1, 2 * tall),
            (-0.85, 0),
        )
    pen.ring(-0.5, -0.25 * tall, pen.between(0.05, 0.1))
    mouth = pen.between(0.15, 0.35) * tall
    pen.curve((-0.8, mouth), (-0.66, 1.2 * mouth), (-0.56, 0.9 * mouth))
    if pen.chance(0.6):
        pen.curve((-0.25, -0.6 * tall), (-0.08, 0), (-0.25, 0.6 * tall))
    if pen.chance(0.55):
        pen.curve((-0.15, -0.95 * tall), (0.15, -tall - 0.4), (0.35, -0.85 * tall))
    if pen.chance(0.4):
        pen.curve((-0.05, 0.97 * tall), (0.15, tall + 0.35), (0.25, 0.9 * tall))
    extra = pen.random()
    if extra < 0.3:
        for x, y in ((0.1, -0.3), (0.1, 0.3), (0.38, 0))[: 2 + pen.chance(0.5)]:
            pen.curve((x - 0.07, y * tall - 0.1), (x + 0.1, y * tall), (x - 0.07, y * tall + 0.1))
    elif extra < 0.55:
        for x, y in ((-1.0, -0.25), (-1.12, -0.5)):
            pen.ring(x, y, pen.between(0.05, 0.09))


def _flower(pen: Pen) -> None:
    y, size = -0.4, pen.between(0.5, 0.65)
    heart = size * pen.between(0.3, 0.42)
    pen.ring(0, y, heart)
    separate, first = pen.chance(0.45), pen.random()
    petals = 5 if separate else 5 + pen.chance(0.5)

    def at(turn: float, radius: float) -> Point:
        angle = TURN * (first + turn / petals)
        return radius * math.cos(angle), y + radius * math.sin(angle)

    around = [at(-0.45, heart)]
    for i in range(petals):  # each petal up one side and down the other
        left, right = i - 0.42, i + 0.42
        around += [at(left, 1.15 * size), at(i, size), at(right, 1.15 * size), at(i + 0.45, heart)]
        if separate:
            pen.bows(*around)
            around = [at(i + 0.55, heart)]
    if not separate:
        pen.bows(*around)
    lean = pen.between(-0.2, 0.2)
    pen.curve((0, y + 0.85 * size), (lean, 0.5), (lean / 2, 1.1))
    for side in (-1, 1)[: 1 + pen.chance(0.5)]:
        x, root, tip = lean * 0.7, pen.between(0.7, 0.9), pen.between(0.35, 0.55)
        pen.bows(
            (x, root),
            (x + 0.15 * side, root - 0.3),
            (x + tip * side, root - 0.3),
            (x + 0.4 * side, root + 0.05),
            (x, root),
        )


def _car(pen: Pen) -> None:
    roof, hood, low = pen.between(-0.6, -0.42), pen.between(-0.1, 0.05), 0.38
    front, back = pen.between(0.25, 0.45), pen.between(-0.75, -0.5)
    slant = pen.between(0.15, 0.3)
    if pen.chance(0.65):
        pen.path(
            (-1.05, low),
            (-1.05, hood),
            (back, hood),
            (back + slant, roof),
            (front, roof),
            (front + slant, hood),
            (1.1, hood + 0.08),
            (1.1, low),
            close=True,
        )
    else:
        pen.path((-1.05, hood), (1.05, hood), (1.1, low), (-1.05, low), close=True)
        pen.path((back, hood), (back + slant, roof), (front, roof), (front + slant, hood))
    wheel, at = pen.between(0.18, 0.26), pen.between(0.52, 0.62)
    for x in (-at, at):
        pen.ring(x, low, wheel)
    if pen.chance(0.45):
        for x in (-at, at):
            pen.ring(x, low, 0.4 * wheel)
    middle, sill = (back + slant + front) / 2, hood - 0.05
    gap = 0.04
    pen.path(
        (middle - gap, roof + 0.1),
        (back + slant, roof + 0.1),
        (back + 0.3 * slant, sill),
        (middle - gap, sill),
        close=True,
    )
    if pen.chance(0.75):
        pen.path(
            (middle + gap, roof + 0.1),
            (front, roof + 0.1),
            (front + 0.7 * slant, sill),
            (middle + gap, sill),
            close=True,
        )
    if pen.chance(0.35):
        pen.ring(1.0, hood + 0.18, 0.07)
    elif pen.chance(0.35):
        pen.path((middle, hood), (middle, low - 0.03))


def _tree(pen: Pen) -> None:
    trunk = pen.between(0.1, 0.18)
    if pen.chance(0.25):  # a fir
        top, wide = -1.1, pen.between(0.3, 0.4)
        for i in range(3):
            w, y = wide * (1 + 0.45 * i), top + 0.55 * i
            pen.path((0, y - 0.05), (-w, y + 0.65), (w, y + 0.65), close=True)
        pen.path((-trunk, 0.68), (-trunk, 1.1), (trunk, 1.1), (trunk, 0.68))
    else:
        foot, crown, size = trunk + pen.between(0, 0.12), pen.between(-0.45, -0.3), 0.65
        under = crown + 0.85 * size
        if pen.chance(0.6):
            pen.curve((-trunk, under), (-trunk, 0.7), (-foot, 1.1))
            pen.curve((trunk, under), (trunk, 0.7), (foot, 1.1))
        else:
            pen.path((-trunk, under), (-foot, 1.1), (foot, 1.1), (trunk, under))
        wide = pen.between(1.0, 1.3)
        if pen.chance(0.7):  # leaves like a cloud
            bumps = 6
            around = []
            for i in range(2 * bumps + 1):
                angle, radius = TURN * (0.25 + i / (2 * bumps)), size * (1.6 if i % 2 else 0.9)
                around.append((wide * radius * math.cos(angle), crown + radius * math.sin(angle)))
            pen.bows(*around)
        else:
            pen.ring(0, crown, wide * size, size)
        if pen.chance(0.35):
            pen.path((0, under), (-0.02, crown + 0.1))
            pen.path((0, crown + 0.35), (0.2, crown + 0.1))
        elif pen.chance(0.5):
            for x, y in ((-0.3, -0.15), (0.3, -0.2), (0.05, 0.25))[: 2 + pen.chance(0.7)]:
                pen.ring(wide * x, crown + y, pen.between(0.06, 0.1))
    if len(pen.strokes) < FEWEST_STROKES or pen.chance(0.35):
        pen.path((-pen.between(0.5, 1.0), 1.12), (pen.between(0.5, 1.0), 1.12))


def _sun(pen: Pen) -> None:
    size = pen.between(0.45, 0.65)
    pen.ring(0, 0, size)
    smiles = pen.chance(0.3)
    if smiles:
        _eyes(pen, 0.35 * size, -0.2 * size, pen.between(0.05, 0.09))
        pen.curve((-0.45 * size, 0.2 * size), (0, size), (0.45 * size, 0.2 * size))
    rays = 5 if smiles else 6 + int(3 * pen.random())
    first = pen.between(-0.3, -0.2)
    near, far = size + pen.between(0.05, 0.15), pen.between(1.0, 1.25)
    for i in range(rays):
        angle = TURN * (first + (i + pen.between(-0.12, 0.12)) / rays)
        x, y, end = math.cos(angle), math.sin(angle), far * pen.between(0.9, 1.1)
        pen.path((near * x, near * y), (end * x, end * y))


def _umbrella(pen: Pen) -> None:
    tall, ribs = pen.between(0.7, 0.95), 3 + pen.chance(0.5)
    pen.arc(0, 0, 1, tall, 0.5, 0.5)
    joints = [-1 + 2 * i / ribs for i in range(ribs + 1)]
    sag = pen.between(0.2, 0.35)
    edge: list[Point] = [(-1, 0)]
    for a, b in itertools.pairwise(joints):
        edge += [((a + b) / 2, -sag), (b, 0)]
    pen.bows(*edge)
    low, hook = pen.between(0.85, 1.05), pen.between(0.2, 0.32)
    top = -tall if pen.chance(0.25) else -0.5 * sag
    pen.bows(
        (0, top),
        (0, 0),
        (0, 0.5),
        (0, 0.7),
        (0, low),
        (0.02, low + hook),
        (hook / 2, low + hook),
        (hook, low + hook),
        (hook, low),
    )
    if pen.chance(0.6):
        for x in joints[1:-1]:
            pen.curve((0, -tall), (0.8 * x, -0.7 * tall), (x, 0))
    if len(pen.strokes) < FEWEST_STROKES or pen.chance(0.6):
        pen.path((0, -tall), (0, -tall - pen.between(0.1, 0.2)))


SHAPES: dict[str, Callable[[Pen], None]] = {
    "face": _face,
    "house": _house,
    "cat": _cat,
    "star": _star,
    "fish": _fish,
    "flower": _flower,
    "car": _car,
    "tree": _tree,
    "sun": _sun,
    "umbrella": _umbrella,
}
