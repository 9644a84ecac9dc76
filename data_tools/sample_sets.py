"""Packed images of any form as sets of samples: what convert, inspect and preview read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastvae.data.format import SPLITS, Field, Rows, read_manifest
from fastvae.data.sample_rows import SampleRows, label_of, layout_of
from fastvae.data.sample_tar import Group, SampleTar, Tally
from fastvae.data.shards import ShardReader
from fastvae.data.tar import TarDamage, TarReader
from fastvae.data_tools.forms import Form, form_of, split_files, split_of
from fastvae.errors import UserError

Index = NDArray[np.int64]
CLASSES = "classes.json"


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
    """The splits of a packed data set of images, by name; one without splits is all train."""
    form = form_of(path)
    if form is Form.STROKES:
        raise UserError(
            f"{path} holds strokes: make images of them with `fastvae-data quickdraw {path} --as "
            "images`"
        )
    return _OPENERS[form](path)


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
    """Stock WebDataset tars, or packed ones without their manifest, read in order."""

    form = Form.TARS.value

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.classes = read_classes(paths[0].parent)
        self.preprocess: Mapping[str, Any] = {}
        tally = Tally()
        self._counts = [_read(path, lambda tar: tar.count(), tally) for path in paths]
        first = next((p for p, count in zip(paths, self._counts, strict=True) if count), None)
        if first is None:
            raise UserError(f"{paths[0]} and {len(paths) - 1} more hold no sample with an image")
        group = _read(first, lambda tar: next(tar.groups()))
        self._layout = layout_of(group, str(first))
        image = Field(dtype="uint8", shape=self._layout.shape)
        self.fields: Mapping[str, Field] = {
            "image": image,
            **({"condition": image} if self._layout.conditioned else {}),
            **({"label": Field(dtype="int64", shape=())} if self._layout.labelled else {}),
            "key": Field(dtype="uint64", shape=()),
        }
        self.notes = tally.lines()

    def __len__(self) -> int:
        return sum(self._counts)

    def rows(self, index: Index) -> Rows:
        out = self._layout.allocate(len(index), keys=True)

        def take(group: Group, name: str, wanted: Index, at: int) -> None:
            every = self._layout.allocate(group.rows, keys=True)
            SampleRows(iter([group]), name, self._layout, start=group.first).take(
                every, 0, group.rows
            )
            for field, values in every.items():
                out[field][at : at + len(wanted)] = values[wanted - group.first]

        self._visit(index, take)
        return out

    def labels(self) -> Index:
        labels = np.empty(len(self), dtype=np.int64)

        def take(group: Group, name: str, wanted: Index, at: int) -> None:
            label = label_of(group, name)
            if label is None:
                raise UserError(f"{name}: sample {group.key} has no label, unlike the first")
            labels[at] = label

        if self._packed():
            return self.rows(np.arange(len(self), dtype=np.int64))["label"]
        self._visit(np.arange(len(self), dtype=np.int64), take)
        return labels

    def _packed(self) -> bool:
        return bool(_read(self.paths[0], lambda tar: next(tar.groups()).image == "image.npy"))

    def _visit(self, index: Index, take: Callable[[Group, str, Index, int], None]) -> None:
        """Give each group with wanted samples to ``take``: the group, the tar's name, the numbers
        within the tar of the wanted ones, and the place of the first of them in ``index``."""
        begin = at = 0
        for path, count in zip(self.paths, self._counts, strict=True):
            wanted = index[(index >= begin) & (index < begin + count)] - begin
            if len(wanted):
                at = _read(path, partial(_pass, name=str(path), wanted=wanted, at=at, take=take))
            begin += count


def read_classes(folder: Path) -> tuple[str, ...]:
    """Names of the labels, from a ``classes.json`` beside tars; () where there is none."""
    path = folder / CLASSES
    try:
        names = json.loads(path.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} is no list of names")
    return tuple(names)


def _pass(
    tar: SampleTar,
    name: str,
    wanted: Index,
    at: int,
    take: Callable[[Group, str, Index, int], None],
) -> int:
    """One pass over a tar; returns the place behind the last wanted sample."""
    for group in tar.groups(int(wanted[0])):
        low, high = np.searchsorted(wanted, [group.first, group.first + group.rows])
        if high > low:
            take(group, name, wanted[low:high], at)
            at += int(high - low)
        if high == len(wanted):
            break
    return at


def _read(path: Path, use: Callable[[SampleTar], Any], tally: Tally | None = None) -> Any:
    """Open a tar for one pass; damage is a UserError that names it."""
    try:
        with path.open("rb") as file:
            return use(SampleTar(TarReader(file, seekable=True), str(path), tally))
    except TarDamage as error:
        raise UserError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


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
