"""Packed images of any form as sets of samples: what convert, inspect and preview read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastvae.data.format import SPLITS, Field, Rows, read_manifest
from fastvae.data.sample_rows import Layout, SampleRows, label_of, layout_of
from fastvae.data.sample_tar import Group, SampleTar, Tally, read_classes
from fastvae.data.shards import ShardReader
from fastvae.data.tar import TarDamage, TarReader
from fastvae.data_tools.forms import Form, form_of, split_files, split_of
from fastvae.errors import UserError

Index = NDArray[np.int64]


class SampleSet(Protocol):
    """One split of a packed data set."""

    form: str
    """Of the data set, for people."""
    fields: Mapping[str, Field]
    classes: tuple[str, ...]
    preprocess: Mapping[str, Any]
    notes: list[str]
    """What a user should know, e.g. of members that are not read."""

    def __len__(self) -> int:
        """Number of samples."""

    def rows(self, index: Index) -> Rows:
        """All fields of samples ``index`` (B,), ascending."""

    def labels(self) -> Index:
        """(N,) of all samples; only where there is a field "label"."""


def open_sets(path: Path) -> dict[str, SampleSet]:
    """The splits of a packed data set of images, by name; one without splits is all train.

    They are alike: the same fields, shapes and classes.
    """
    form = form_of(path)
    if form is Form.STROKES:
        raise UserError(
            f"{path} holds strokes: make images of them with `fastvae-data quickdraw {path} --as "
            "images`"
        )
    sets = _OPENERS[form](path)
    (name, first), *others = sets.items()
    for other, part in others:
        if dict(part.fields) != dict(first.fields):
            what = f"{name} has {_in_words(first)}, {other} has {_in_words(part)}"
        elif part.classes != first.classes:
            what = f"the {len(first.classes)} classes of {name} are not those of {other}"
        else:
            continue
        raise UserError(f"{path}: {what}: make them alike, or give one of its files")
    return sets


def _in_words(part: SampleSet) -> str:
    fields = (f"{name} {'x'.join(map(str, f.shape))}" for name, f in sorted(part.fields.items()))
    return ", ".join(text.strip() for text in fields)


def in_order(sets: Mapping[str, SampleSet]) -> Iterator[tuple[str, SampleSet]]:
    """Splits and their sets: train, val, test."""
    return ((name, sets[name]) for name in SPLITS if name in sets)


class ShardSet:
    """A split of a folder of shards."""

    form = Form.SHARDS.value

    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader
        self.fields = reader.fields
        self.classes = reader.manifest.classes
        self.preprocess = reader.manifest.preprocess
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self.reader)

    def rows(self, index: Index) -> Rows:
        return self.reader.rows(index)

    def labels(self) -> Index:
        labels = np.empty(len(self), dtype=np.int64)
        self.reader.gather_into("label", np.arange(len(self), dtype=np.int64), labels)
        return labels


def _shards(path: Path) -> dict[str, SampleSet]:
    manifest = read_manifest(path)
    readers = {name: ShardReader(path, name, manifest=manifest) for name in manifest.splits}
    return {name: ShardSet(reader) for name, reader in readers.items()}


class TarSet:
    """Stock WebDataset tars, or packed ones without their manifest, read in order.

    Args:
        layout: what all samples must have in common; None: as the first one is.
    """

    form = Form.TARS.value

    def __init__(self, paths: list[Path], layout: Layout | None = None) -> None:
        self.paths = paths
        self.classes = read_classes(paths[0].parent)
        self.preprocess: Mapping[str, Any] = {}
        tally = Tally()
        self._counts = [_read(path, lambda tar: tar.count(), tally) for path in paths]
        first = next((p for p, count in zip(paths, self._counts, strict=True) if count), None)
        if first is None:
            raise UserError(f"{paths[0]} and {len(paths) - 1} more hold no sample with an image")
        self.layout = layout or layout_of(_read(first, lambda tar: next(tar.groups())), str(first))
        image = Field(dtype="uint8", shape=self.layout.shape)
        self.fields: Mapping[str, Field] = {
            "image": image,
            **({"condition": image} if self.layout.conditioned else {}),
            **({"label": Field(dtype="int64", shape=())} if self.layout.labelled else {}),
            "key": Field(dtype="uint64", shape=()),
        }
        self.notes = tally.lines()
        self._place: _Place | None = None  # what was read last
        self._rest: Iterator[_Place] = iter(())  # of its tar

    def __len__(self) -> int:
        return sum(self._counts)

    def rows(self, index: Index) -> Rows:
        """All fields of samples ``index`` (B,). Requests that ascend, also from one to the next,
        are one pass over each tar."""
        out = self.layout.allocate(len(index), keys=True)
        at = 0
        while at < len(index):
            place = self._find(int(index[at]))
            wanted = index[at : at + int(np.searchsorted(index[at:], place.stop))]
            first, span = int(wanted[0]), int(wanted[-1] - wanted[0]) + 1
            start = place.group.first + first - place.first
            reader = SampleRows(iter([place.group]), place.name, self.layout, start=start)
            if span == len(wanted):
                reader.take(out, at, span)
            else:
                every = self.layout.allocate(span, keys=True)
                reader.take(every, 0, span)
                for field, values in every.items():
                    out[field][at : at + len(wanted)] = values[wanted - first]
            at += len(wanted)
        return out

    def labels(self) -> Index:
        every = np.arange(len(self), dtype=np.int64)
        if self._packed():
            return self.rows(every)["label"]
        labels = np.empty(len(self), dtype=np.int64)
        for number in every:
            place = self._find(int(number))
            label = label_of(place.group, place.name)
            if label is None:
                raise UserError(
                    f"{place.name}: sample {place.group.key} has no label, unlike the first"
                )
            labels[number] = label
        return labels

    def _packed(self) -> bool:
        return bool(_read(self.paths[0], lambda tar: next(tar.groups()).image == "image.npy"))

    def _find(self, number: int) -> _Place:
        """The group with a sample: read on to it, or begin again where it lies before what was
        read last, or in another tar."""
        place = self._place
        if place is None or number < place.first or number >= place.tar_stop:
            place, self._rest = None, self._read_from(number)
        while place is None or number >= place.stop:
            self._place = None  # after an error, begin again
            place = next(self._rest, None)
            if place is None:
                raise UserError(f"{self.paths[0]} or a tar beside it changed while it was read")
        self._place = place
        return place

    def _read_from(self, number: int) -> Iterator[_Place]:
        """The groups of a tar from the one with sample ``number`` on."""
        ends = np.cumsum(self._counts)
        tar = int(np.searchsorted(ends, number, side="right"))
        path, tar_stop = self.paths[tar], int(ends[tar])
        begin = tar_stop - self._counts[tar]
        with _opened(path) as samples:
            for group in samples.groups(number - begin):
                first = begin + group.first
                yield _Place(first, first + group.rows, tar_stop, str(path), group)


class _Place(NamedTuple):
    """A group of samples of a set of tars."""

    first: int
    """Number of its first sample in the set."""
    stop: int
    tar_stop: int
    """Number after the last sample of its tar."""
    name: str
    """Of its tar."""
    group: Group


@contextmanager
def _opened(path: Path, tally: Tally | None = None) -> Iterator[SampleTar]:
    """A tar, open for one pass; damage is a UserError that names it."""
    try:
        if not path.is_file():  # a pipe would wait for a writer
            raise UserError(f"{path} is no regular file")
        with path.open("rb") as file:
            yield SampleTar(TarReader(file, seekable=True), str(path), tally)
    except TarDamage as error:
        raise UserError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _read(path: Path, use: Callable[[SampleTar], Any], tally: Tally | None = None) -> Any:
    with _opened(path, tally) as tar:
        return use(tar)


def _tars(path: Path) -> dict[str, SampleSet]:
    found: dict[str, list[Path]] = {}
    for file in split_files(path, ".tar"):
        found.setdefault(split_of(file), []).append(file)
    return {name: TarSet(found[name]) for name in SPLITS if name in found}


class BetonSet:
    """A .beton file."""

    form = Form.BETON.value

    def __init__(self, path: Path) -> None:
        from fastvae.data.beton import BetonFile

        self.file = BetonFile(path)
        self.fields: Mapping[str, Field] = self.file.as_fields()
        self.classes = self.file.classes
        self.preprocess: Mapping[str, Any] = self.file.preprocess
        self.notes: list[str] = []

    def __len__(self) -> int:
        return self.file.n

    def rows(self, index: Index) -> Rows:
        return self.file.gather(index)

    def labels(self) -> Index:
        return self.file.labels()


def _betons(path: Path) -> dict[str, SampleSet]:
    found: dict[str, SampleSet] = {}
    for file in split_files(path, ".beton"):
        split = split_of(file)
        if split in found:
            raise UserError(f"{path} holds several .beton files of {split}: give one of them")
        found[split] = BetonSet(file)
    return {name: found[name] for name in SPLITS if name in found}


_OPENERS: dict[Form, Callable[[Path], dict[str, SampleSet]]] = {
    Form.SHARDS: _shards,
    Form.TARS: _tars,
    Form.BETON: _betons,
}
