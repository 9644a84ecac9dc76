"""``fastvae-data strips``: comic strips to shards, the panels of each side by side in one image.

    files --panels.py--> where the panels are --each panel resized, side by side--> shards

Where to cut is found beforehand, for all strips: to tell how many have no clear gutters, and which.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvae.data.format import Rows
from fastvae.data_tools.arguments import at_least
from fastvae.data_tools.decode import RESAMPLE, Undecodable, decode_whole
from fastvae.data_tools.image_files import full_name, read
from fastvae.data_tools.images import (
    WHITE,
    add_source_arguments,
    colour,
    decode_all,
    decoder,
    gather,
    height_width,
    image_fields,
    no_memory,
)
from fastvae.data_tools.panels import Panel, equal_parts, find_panels
from fastvae.data_tools.shard_job import (
    BadSample,
    Recipe,
    add_build_arguments,
    build,
    build_options,
    default_out,
    report,
)
from fastvae.data_tools.worker_pool import Progress, Stopped, run_tasks
from fastvae.errors import UserError

LAYOUTS = ("auto", "flat", "splits")
CUTS = ("gutters", "fixed")
ODD = 1.7  # times wider or narrower than expected: another number of panels
_BLOCK = 256  # strips that are looked at in one task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Cut comic strips into their panels, bring these to one size and pack them side by side as "
        "shards. Without options:\nthree panels of 176x200 RGB, cut at their gutters, in "
        "SOURCE-shards."
    )
    parser.epilog = (
        "examples:\n"
        "  fastvae-data strips data/strips\n"
        "  fastvae-data strips data/strips --panels 4 --panel-size 96 96 --channels 1\n"
        "  fastvae-data strips data/strips --cut fixed --strict --on-bad-record skip"
    )
    add_source_arguments(parser, LAYOUTS)
    group = parser.add_argument_group("what becomes of a strip")
    group.add_argument(
        "--panels", type=at_least(1), default=3, metavar="N", help="per strip (default: 3)"
    )
    group.add_argument(
        "--panel-size",
        type=at_least(1),
        nargs="+",
        default=[176, 200],
        metavar="N",
        help="height and width, or one number for both (default: 176 200)",
    )
    group.add_argument(
        "--cut",
        choices=CUTS,
        default="gutters",
        help="gutters: between the gutters, margins and frames left out; into equal parts where "
        "there are no clear ones. fixed: equal parts of the width (default: gutters)",
    )
    group.add_argument(
        "--strict",
        action="store_true",
        help="take strips of far other proportions, or without clear gutters (--cut gutters), for "
        "bad samples",
    )
    group.add_argument("--channels", type=int, choices=(1, 3), default=3, help="1: grey; 3: RGB")
    group.add_argument(
        "--resample", choices=RESAMPLE, default="bilinear", help="filter (default: bilinear)"
    )
    group.add_argument(
        "--background",
        type=colour,
        default=WHITE,
        metavar="COLOUR",
        help="behind transparent pixels: a name, or rrggbb (default: white)",
    )
    add_build_arguments(parser)


class StripFile(NamedTuple):
    """A strip to be made into a sample; see ``ImageFile``."""

    path: str
    member: str
    key: int
    panels: tuple[Panel, ...]
    """Where they are; empty: in equal parts."""
    problem: str
    """Why it is taken for a bad sample, or ""."""


def run(args: argparse.Namespace) -> int:
    """Pack the strips and say what came of them."""
    options = build_options(args, default_out(args.sources[0].expanduser()))
    size = height_width(args.panel_size, "--panel-size")
    make = StripMaker(
        count=args.panels,
        size=size,
        channels=args.channels,
        resample=args.resample,
        background=args.background,
        decoder=decoder(),
    )
    fields = image_fields(make.shape)
    found, _, files = gather(args, options, labels=False)
    look = _Look(args.panels, size, args.cut, args.strict)
    every = [
        StripFile(file.path, file.member, file.key, (), "")
        for part in files.values()
        for file in part
    ]
    strips = find_all(every, look, args.workers)
    if args.cut == "gutters":
        _tell(strips)
    preprocess: dict[str, Any] = {
        "tool": "strips",
        "panels": args.panels,
        "panel_size": list(size),
        "cut": args.cut,
        "strict": args.strict,
        "channels": args.channels,
        "resample": args.resample,
        "background": list(args.background),
        **found,
    }
    rest = iter(strips)
    built = build(
        options.out,
        {name: [next(rest) for _ in part] for name, part in files.items()},
        Recipe(fields=fields, make=make, preprocess=preprocess, slow=True),
        options,
    )
    report(built, options.out, "strips")
    return 0


# ---------------------------------------------------------------------------------- looking
class _Look(NamedTuple):
    """What to look for in a strip."""

    panels: int
    size: tuple[int, int]
    """(H, W) of a panel."""
    cut: str
    strict: bool


def find_all(strips: Sequence[StripFile], look: _Look, workers: int) -> list[StripFile]:
    """The strips with their panels found, in processes."""
    if look.cut == "fixed" and not look.strict:
        return list(strips)
    tasks = [(strips[i : i + _BLOCK], look) for i in range(0, len(strips), _BLOCK)]
    try:
        return [strip for part in run_tasks(_find, tasks, workers, len(strips)) for strip in part]
    except Stopped as error:
        raise UserError(f"{error}; run the same command again") from None


def _find(task: tuple[Sequence[StripFile], _Look], progress: Progress) -> list[StripFile]:
    strips, look = task
    found = []
    for strip in strips:
        try:
            grey = np.asarray(decode_whole(read(strip.path, strip.member), 1, WHITE))
        except Undecodable:  # as the maker will find, and say
            found.append(strip)
        except MemoryError:
            raise no_memory(strip) from None
        else:
            found.append(_look_at(strip, grey, look))
        progress.add(1)
    return found


def _look_at(strip: StripFile, grey: NDArray[np.uint8], look: _Look) -> StripFile:
    high, wide = grey.shape
    panels = find_panels(grey, look.panels) if look.cut == "gutters" else ()
    problem = ""
    if look.strict:
        expected = look.panels * look.size[1] / look.size[0]
        if not 1 / ODD <= wide / high / expected <= ODD:
            problem = (
                f"{wide}x{high}, {wide / high:.1f} times as wide as high, is no strip of "
                f"{look.panels} panels ({expected:.1f})"
            )
        elif panels is None:
            problem = f"no clear gutters between {look.panels} panels"
    return strip._replace(panels=panels or (), problem=problem)


def _tell(strips: Sequence[StripFile]) -> None:
    """Say how many strips are cut at their gutters, and which are not."""
    others = [strip for strip in strips if not strip.panels and not strip.problem]
    words = f"{sum(bool(strip.panels) for strip in strips):,} of {len(strips):,} cut at gutters"
    if others:
        names = ", ".join(full_name(strip.path, strip.member) for strip in others[:3])
        more = ", ..." * (len(others) > 3)
        words += f", {len(others):,} without clear ones into equal parts: {names}{more}"
    print(words, flush=True)


# ---------------------------------------------------------------------------------- making
@dataclass(frozen=True, kw_only=True)
class StripMaker:
    """Rows of strips: a pure function of their bytes and of where they are cut."""

    count: int
    size: tuple[int, int]
    """(H, W) of a panel."""
    channels: int
    resample: str
    background: tuple[int, int, int]
    decoder: str
    """Another version of Pillow makes another task."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of all panels side by side."""
        return self.size[0], self.count * self.size[1], self.channels

    def __call__(self, samples: Sequence[StripFile]) -> tuple[Rows, list[BadSample]]:
        made, good, bad = decode_all(samples, self.shape, self._cut)
        return {"image": made, "key": np.array([s.key for s in good], np.uint64)}, bad

    def _cut(self, strip: StripFile) -> NDArray[np.uint8]:
        if strip.problem:
            raise Undecodable(strip.problem)
        image = decode_whole(read(strip.path, strip.member), self.channels, self.background)
        panels = strip.panels or equal_parts(*image.size, self.count)
        if any(panel.right <= panel.left for panel in panels):
            raise Undecodable(f"only {image.size[0]} pixels wide")
        high, wide = self.size
        filter_ = RESAMPLE[self.resample]
        parts = [np.asarray(image.crop(panel).resize((wide, high), filter_)) for panel in panels]
        return np.concatenate(parts, axis=1).reshape(self.shape)
