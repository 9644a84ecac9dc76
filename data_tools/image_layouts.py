"""What the folders of a set of images mean: classes, splits, both, or nothing.

| layout | folders |
|---|---|
| flat | mean nothing; splits are made by a hash of each file's content |
| classes | the first folder is the class; splits as above |
| splits | the first folder is the split (train, val, test); below it flat or classes |
| coco | train2017 and test2017 are for training, val2017 is for evaluation |

A folder that holds everything is passed over (``photos/cats``, ``photos/dogs``: classes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvae.data.format import SPLITS
from fastvae.data.splits import split_fractions
from fastvae.data_tools.image_files import Listing, full_name
from fastvae.data_tools.names import shown
from fastvae.errors import UserError

LAYOUTS = ("auto", "flat", "classes", "splits", "coco")
COCO = {"train2017": "train", "test2017": "train", "val2017": "val"}
FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {name: split for split, names in FOLDERS.items() for name in names}


class Place(NamedTuple):
    """What the folders say of an image; "" where they say nothing."""

    split: str
    label: str


Parts = tuple[str, ...]
_View = list[Parts]  # of each image: folders, name
_Reading = list[Place | None]  # of each image; None: it has no place in this layout
_Read = Callable[[_View], _Reading]
_Fits = Callable[[_Reading], bool]  # whether a reading is the right one


class ImageFile(NamedTuple):
    """An image to be made into a sample."""

    path: str
    member: str
    """Its name within a zip; "" for a file of its own."""
    label: int
    key: int
    """Hash of the file's content."""


@dataclass(frozen=True, kw_only=True)
class Arranged:
    """Images and what their folders say."""

    layout: str
    places: list[Place | None]
    """Of each entry of the listing; None: left out."""
    classes: tuple[str, ...]
    """Sorted; empty where there are no labels."""

    @property
    def given(self) -> tuple[str, ...]:
        """The splits that folders name."""
        named = {place.split for place in self.places if place}
        return tuple(name for name in SPLITS if name in named)


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images by split, each ascending by source and name."""

    splits: dict[str, list[ImageFile]]
    notes: list[str]
    """What the user should know, a line each."""


# ---------------------------------------------------------------------------------- folders
def arrange(listing: Listing, layout: str, *, labels: bool = True) -> Arranged:
    """Read the folders of all images as ``layout`` says, or as fits them (auto).

    Args:
        labels: whether classes are wanted.

    Raises:
        UserError: the folders do not fit the layout.
    """
    views = [_within_sources(listing), _with_sources(listing)]
    coco, splits = (_coco, views[1:], "coco"), (_by_split, views, "splits")
    tries: dict[str, list[tuple[_Read, list[_View], str, _Fits]]] = {
        # What is for evaluation must not get into training because a stray image is there, too.
        # Not by the names of the sources: those of `images photos more.zip` are no classes.
        "auto": [
            (*coco, _all_placed),
            (*splits, _all_placed),
            (*coco, _evaluates),
            (*splits, _evaluates),
            (_by_class, views[:1], "classes", _all_placed),
        ],
        "coco": [(*coco, any)],
        "splits": [(*splits, any)],
        "classes": [(_by_class, views, "classes", any)],
        "flat": [],
    }
    found = next(filter(None, (_first(*one) for one in tries[layout])), None)
    if found is None and layout not in ("auto", "flat"):
        raise UserError(f"--layout {layout}: {_EXPECTED[layout]}; see --layout auto")
    name, places = found or ("flat", [Place("", "") for _ in listing.entries])
    names = {place.label for place in places if place}
    classes = tuple(sorted(names)) if labels and "" not in names else ()
    arranged = Arranged(layout=name, places=places, classes=classes)
    if arranged.given and "train" not in arranged.given:  # val2017 alone
        places = [place and Place("", place.label) for place in places]
        arranged = Arranged(layout=name, places=places, classes=classes)
    return arranged


_EXPECTED = {
    "coco": f"no folder or zip called {', '.join(COCO)}",
    "splits": "no folder called train with others called val or test beside it",
    "classes": "there are not two folders with images, one for each class",
}


def _first(read: _Read, views: list[_View], name: str, fits: _Fits) -> tuple[str, _Reading] | None:
    """The first view whose reading ``fits``."""
    for view in views:
        places = read(view)
        if fits(places):
            return name, places
    return None


def _all_placed(places: _Reading) -> bool:
    return None not in places


def _evaluates(places: _Reading) -> bool:
    """Whether some images are for training and some for evaluation."""
    splits = {place.split for place in places if place}
    return "train" in splits and len(splits) > 1


def _within_sources(listing: Listing) -> _View:
    """Where each image is in its source, without the folders that hold all of it."""
    views: list[_View] = [[] for _ in listing.sources]
    for entry in listing.entries:
        views[entry.source].append(entry.parts)
    return [parts for view in views for parts in _stripped(view)]


def _with_sources(listing: Listing) -> _View:
    """The same with the name of the source in front."""
    names = [source_name(source) for source in listing.sources]
    return [(names[entry.source], *entry.parts) for entry in listing.entries]


def source_name(source: Path) -> str:
    """The name of a folder, or of a zip without its suffix."""
    name = source.resolve().name
    return name[:-4] if name.lower().endswith(".zip") else name


def _stripped(view: _View) -> _View:
    """Without the leading folders that all have in common."""
    depth = 0
    while view and all(len(parts) > depth + 1 for parts in view):
        if len({parts[depth] for parts in view}) > 1:
            break
        depth += 1
    return [parts[depth:] for parts in view]


def _coco(view: _View) -> _Reading:
    places: _Reading = []
    for parts in view:
        split = next((COCO[part] for part in parts[:-1] if part in COCO), "")
        places.append(Place(split, "") if split else None)
    return places


def _by_split(view: _View) -> _Reading:
    splits = [_SPLIT_OF.get(parts[0].lower(), "") if len(parts) > 1 else "" for parts in view]
    if "train" not in splits or len(set(splits) - {""}) < 2:
        return [None] * len(view)
    placed = [number for number, split in enumerate(splits) if split]
    rest = dict(zip(placed, _stripped([view[number][1:] for number in placed]), strict=True))
    labelled = all(len(parts) > 1 for parts in rest.values())
    return [
        Place(split, shown(rest[number][0]) if labelled else "") if split else None
        for number, split in enumerate(splits)
    ]


def _by_class(view: _View) -> _Reading:
    names = {parts[0] for parts in view if len(parts) > 1}
    if len(names) < 2:
        return [None] * len(view)
    return [Place("", shown(parts[0])) if len(parts) > 1 else None for parts in view]


# ---------------------------------------------------------------------------------- splits
def divide(
    listing: Listing,
    arranged: Arranged,
    keys: NDArray[np.uint64],
    *,
    val: float,
    test: float,
    keep_duplicates: bool = False,
) -> ImageSet:
    """Put each image into its split: the one that its folder names, else by its key.

    Of files with the same content one is kept: in the first of test, val and train that has one,
    the first in order. Where folders name no split for validation, it is cut off the training set.

    Args:
        keys: (N,) uint64, of the entries.
        val: share for validation, where no folder names it.
        test: share for testing, where no folder names any split.
    """
    numbers = {name: number for number, name in enumerate(arranged.classes)}
    kept = np.array([n for n, place in enumerate(arranged.places) if place], np.int64)
    notes = []
    if left_out := len(arranged.places) - len(kept):
        notes.append(f"{left_out:,} images lie outside the folders of this layout: left out")
    if not keep_duplicates:
        kept, words = _without_copies(listing, arranged, keys, kept)
        notes += words
    given = arranged.given
    index: dict[str, NDArray[np.int64]] = {}
    if given:
        of = np.array([_place(arranged, n).split for n in kept])
        index = {name: kept[of == name] for name in given}
        if "val" not in given:
            parts = _hashed(keys[index["train"]], val, 0.0)
            index |= {name: index["train"][parts[name]] for name in ("train", "val")}
            notes.append(
                f"no folder for validation: a share of {val:g} of the training set is used"
            )
        if "test" not in given:
            notes.append("no folder for testing: no test split is made, val stands in for it")
    else:
        index = {name: kept[part] for name, part in _hashed(keys[kept], val, test).items()}
        if arranged.layout == "coco":
            notes.append("nothing but val2017 is here: split by a hash, to train on")
    splits = {
        name: [
            ImageFile(
                listing.entries[n].path,
                listing.entries[n].member,
                numbers.get(_place(arranged, n).label, 0),
                int(keys[n]),
            )
            for n in index[name]
        ]
        for name in SPLITS
        if len(index.get(name, ()))
    }
    return ImageSet(splits=splits, notes=notes)


def _place(arranged: Arranged, number: int) -> Place:
    place = arranged.places[number]
    assert place is not None
    return place


def _hashed(keys: NDArray[np.uint64], val: float, test: float) -> dict[str, NDArray[np.int64]]:
    return split_fractions(keys.astype(np.float64) / 2.0**64, val, test)


def _without_copies(
    listing: Listing, arranged: Arranged, keys: NDArray[np.uint64], kept: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[str]]:
    """The entries ``kept`` without copies of others, ascending, and what to say of the rest."""
    rank = {"test": 0, "val": 1, "train": 2, "": 0}
    ranks = np.array([rank[_place(arranged, n).split] for n in kept], np.int64)
    order = kept[np.argsort(ranks, kind="stable")]
    _, first, which = np.unique(keys[order], return_index=True, return_inverse=True)
    chosen = order[first]
    pairs = [
        (int(copy), int(original))
        for copy, original in zip(order, chosen[which], strict=True)
        if copy != original
    ]
    if not pairs:
        return kept, []
    pairs.sort()
    places = [(_place(arranged, copy), _place(arranged, original)) for copy, original in pairs]
    words = f"{len(pairs):,} exact cop{'y' if len(pairs) == 1 else 'ies'} left out"
    if across := sum(copy.split != original.split for copy, original in places):
        words += f", {across:,} of them in another split"
    if arranged.classes and (odd := sum(copy.label != first.label for copy, first in places)):
        words += f", {odd:,} with another label"
    return np.sort(chosen), [
        f"{words} (--keep-duplicates keeps them)",
        *(f"  {_name(listing, copy)} = {_name(listing, original)}" for copy, original in pairs[:3]),
        *(["  ..."] if len(pairs) > 3 else []),
    ]


def _name(listing: Listing, number: int) -> str:
    entry = listing.entries[number]
    return full_name(entry.path, entry.member)


def describe(listing: Listing, arranged: Arranged, asked: str) -> str:
    """One line: how many images there are and how their folders were read."""
    counts: dict[str, int] = {}
    for place in arranged.places:
        if place:
            counts[place.split] = counts.get(place.split, 0) + 1
    words = f"{sum(counts.values()):,} images, layout {arranged.layout}"
    if arranged.given:
        named = ", ".join(f"{counts[name]:,} {name}" for name in arranged.given)
        words += f" ({named})"
    if arranged.classes:
        some = ", ".join(arranged.classes[:4]) + ", ..." * (len(arranged.classes) > 4)
        words += f", {len(arranged.classes)} classes ({some})"
    return words + (" (auto; --layout overrides)" if asked == "auto" else "")
