"""Stock WebDataset tars: one image, one label, one file each. Reading groups, writing shards.

    000000.png  000000.cls  000000.json  000000.condition.png      a sample; then the next one
    000000.image.npy  000000.label.npy  ...                        or a pack of them, as in shards

The files of a sample lie side by side and have one key: the path up to the first dot of the file
name, as in ``webdataset``. So a key has no dots: ``a.1.png`` and ``a.2.png`` would be one sample
"a" with the files "1.png" and "2.png", which are no images to anyone.

What is in the files is the business of ``fastvae.data.sample_rows``. Files whose loading can run
any program (pickles) are counted and told, and never loaded; anything else that is not used is
counted.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastvae.data import npy
from fastvae.data.format import MANIFEST, sync_folder
from fastvae.data.tar import TarDamage, TarReader
from fastvae.data.urls import read_small
from fastvae.errors import UserError

SIZES = "sizes.json"
"""Beside tars, by webdataset's convention: {"name.tar": number of samples}."""
CLASSES = "classes.json"
"""Beside tars: a list of names of the labels, as ``fastvae-data convert`` writes it."""
IMAGES = ("png", "jpg", "jpeg", "webp")
PICKLES = ("pkl", "pickle", "pyd", "pth", "pt")
AGAIN = "copy the tar again from where it came from, or leave it out with --data.on-damage skip"
_PLAIN = (*IMAGES, "npy")
_PACK = ("image.npy", "label.npy", "key.npy")
_USED = {*_PLAIN, *(f"condition.{kind}" for kind in _PLAIN), *_PACK, "cls", "cls.txt", "json"}
_DOTS = "pack the tar again; what is left of the first dot of a file name tells samples apart"
_META = re.compile("__[^/]*__($|/)")  # names that webdataset keeps for itself
_MOST_CLASSES = 1 << 24  # bytes of their names
_NPY_HEAD = 4096  # bytes; the header of an array is shorter

Header = tuple[tuple[int, ...], np.dtype, int]
"""Of a .npy: shape, dtype, where its values begin."""


class BadTar(UserError):
    """A tar, or a sample in it, is damaged or cannot be used. The message names both, and the fix.

    Attributes:
        what: the message without the fix.
    """

    def __init__(self, what: str, fix: str = AGAIN) -> None:
        super().__init__(f"{what}: {fix}")
        self.what = what
        self._fix = fix

    def __reduce__(self) -> tuple[type[BadTar], tuple[str, str]]:
        """For pickle, which would take the whole message for ``what``."""
        return type(self), (self.what, self._fix)


class Group(NamedTuple):
    """The members of a tar that belong to one sample, or to one pack of samples."""

    key: str
    data: dict[str, bytes]
    """Extension -> contents, of what is used."""
    first: int
    """Number of the (first) sample in its tar."""
    rows: int
    """Samples."""

    @property
    def image(self) -> str:
        """Extension of the image."""
        return next(kind for kind in (*_PLAIN, "image.npy") if kind in self.data)


@dataclass
class Tally:
    """What was passed over in tars."""

    ignored: Counter[str] = field(default_factory=Counter)
    """By extension, or kind of member: how many."""
    pickles: Counter[str] = field(default_factory=Counter)
    first_pickle: str = ""

    def lines(self) -> list[str]:
        """In words, a line each."""
        lines = []
        if self.pickles:
            kinds = ", ".join(f".{kind}" for kind in sorted(self.pickles))
            lines.append(
                f"{sum(self.pickles.values()):,} pickled members of tars ({kinds}; the first: "
                f"{self.first_pickle}) are left alone, since loading them can run any program"
            )
        if self.ignored:
            kinds = ", ".join(f"{kind} ({n:,})" for kind, n in self.ignored.most_common(5))
            more = ", ..." if len(self.ignored) > 5 else ""
            lines.append(f"members of tars that are not used: {kinds}{more}")
        return lines


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension (in lower case) of a member, by webdataset's rule; None for no sample."""
    if name.startswith("__") and _META.match(name):
        return None
    folder, slash, base = name.rpartition("/")
    stem, dot, kind = base.partition(".")
    return (folder + slash + stem, kind.lower()) if stem and dot else None


# ---------------------------------------------------------------------------------- reading
class SampleTar:
    """The samples of one tar, in order; to be read once.

    Args:
        tar: at its beginning.
        name: path or URL, for errors.
        tally: where what is passed over is counted.
        digest: fed with name and size of every member.
    """

    def __init__(
        self,
        tar: TarReader,
        name: str,
        tally: Tally | None = None,
        digest: hashlib.blake2b | None = None,
    ) -> None:
        self.name = name
        self._tar = tar
        self._tally = Tally() if tally is None else tally
        self._digest = digest
        self._size = 0  # of the current member

    def count(self) -> int:
        """Number of samples, by the headers alone."""
        return sum(group.rows for group in self.groups(None))

    def groups(self, start: int | None = 0) -> Iterator[Group]:
        """The groups from the one with sample ``start`` on.

        Args:
            start: images before it are not read. None: all groups, without reading any data.

        Raises:
            BadTar: the tar is damaged; or the members of a sample lie apart, or one is there twice.
        """
        seen: set[str] = set()
        key, data, first = "", dict[str, bytes](), 0
        for at, kind in self._members():
            if at != key:
                group = self._group(key, data, first)
                if group is not None:
                    first += group.rows
                    if start is None or first > start:
                        yield group
                if at in seen:
                    raise BadTar(
                        f"{self.name}: the members of sample {at} are not side by side",
                        "pack the tar again with its members sorted (tar --sort=name)",
                    )
                seen.add(at)
                key, data = at, {}
            if kind in data:
                raise BadTar(f"{self.name}: sample {key} has two members .{kind}", _DOTS)
            if kind in _USED:
                data[kind] = self._load(kind, key, first, start)
        group = self._group(key, data, first)
        if group is not None and (start is None or first + group.rows > start):
            yield group
        self._tally.ignored.update(self._tar.left_out)

    def _members(self) -> Iterator[tuple[str, str]]:
        """Key and extension of each member that has both."""
        tally = self._tally
        try:
            for member in self._tar:
                if self._digest is not None:
                    line = f"{member.name}\0{member.size}\n"
                    self._digest.update(line.encode("utf-8", "surrogateescape"))
                named = split_name(member.name)
                kind = "" if named is None else named[1]
                if kind not in _USED:
                    last = kind.rpartition(".")[2]
                    if last in PICKLES:
                        tally.pickles[last] += 1
                        tally.first_pickle = tally.first_pickle or f"{member.name} in {self.name}"
                    else:
                        tally.ignored[f".{kind}" if kind else "files without a key"] += 1
                if named is not None:
                    self._size = member.size
                    yield named
        except TarDamage as error:
            raise BadTar(f"{self.name}: {error}") from None

    def _load(self, kind: str, key: str, first: int, start: int | None) -> bytes:
        """Contents of the current member; of what is passed over, nothing or the beginning."""
        try:
            if kind in _PACK:
                head = self._tar.read(_NPY_HEAD)
                rows = self._rows(head, f"{key}.{kind}", self._size)
                if start is None or first + rows <= start:
                    return head
                return head + self._tar.read()
            if start is not None and first >= start:
                return self._tar.read()
            return b"" if start is None or kind != "condition.npy" else self._tar.read()
        except TarDamage as error:
            raise BadTar(f"{self.name}: {error}") from None

    def _rows(self, head: bytes, member: str, size: int | None = None) -> int:
        """Rows of a pack, by the beginning of a member of ``size`` bytes."""
        shape, dtype, start = npy_header(head, f"{self.name}: {member}")
        if member.endswith(".image.npy") and len(shape) == 2:
            raise BadTar(
                f"{self.name}: {member} holds packed bits, whose shape only a {MANIFEST} tells",
                "read the folder with --data.source shards",
            )
        if not shape or (member.endswith(".image.npy") and (len(shape) != 4 or dtype != np.uint8)):
            raise BadTar(
                f"{self.name}: {member} is {dtype} {shape}, not uint8 (N, height, width, channels)",
                "make the tar again",
            )
        whole = all(type(n) is int and n >= 1 for n in shape)
        if not whole or size not in (None, start + math.prod(shape) * dtype.itemsize):
            raise BadTar(
                f"{self.name}: {member} says that it is {dtype} {shape}, which its size belies",
                "make the tar again",
            )
        return shape[0]

    def _group(self, key: str, data: dict[str, bytes], first: int) -> Group | None:
        images = [kind for kind in (*_PLAIN, "image.npy") if kind in data]
        if not images:
            if key:
                self._tally.ignored["samples without an image"] += 1
            return None
        if len(images) > 1:
            kinds = ", ".join(images)
            raise BadTar(f"{self.name}: sample {key} has several images: {kinds}", _DOTS)
        packed = images == ["image.npy"]
        rows = self._rows(data["image.npy"], f"{key}.image.npy") if packed else 1
        return Group(key, data, first, rows)


def read_classes(folder: Path) -> tuple[str, ...]:
    """Names of the labels, from the ``classes.json`` beside tars; () where there is none."""
    path = folder.absolute() / CLASSES
    data = read_small(str(path), _MOST_CLASSES)
    if data is None:
        return ()
    try:
        names = json.loads(data)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} is no list of names in JSON: mend it, or take it away")
    return tuple(names)


def npy_header(data: bytes, name: str) -> Header:
    """Shape, dtype and size of the header of a .npy in C order; BadTar if it has none."""
    length = int.from_bytes(data[8:10], "little") + 10 if data[6:7] == b"\1" else _NPY_HEAD
    try:
        return _npy_header(data[:length])  # samples of a set have one header
    except UserError as error:
        raise BadTar(
            f"{name}: {error}".removesuffix(": make the tar again"), "make the tar again"
        ) from None


@lru_cache(maxsize=256)
def _npy_header(head: bytes) -> Header:
    file = io.BytesIO(head)
    shape, fortran, dtype = npy.read_header(file, "it", "is it cut off?")
    if fortran or dtype.hasobject:
        raise UserError(f"it holds {dtype}{' in Fortran order' * fortran}, which is not read")
    return shape, dtype, file.tell()


# ---------------------------------------------------------------------------------- writing
class OutSample(NamedTuple):
    """A sample to be written."""

    key: str
    """Name of its members, without an extension: folders are allowed, dots in the last part not.
    No two samples of a tar have the same."""
    image: NDArray[np.uint8]
    """(H, W, C), of 1 or 3 channels."""
    label: int | None = None
    condition: NDArray[np.uint8] | None = None
    identity: int | None = None
    """64 bits, kept in the json member."""


def write_tars(
    folder: Path,
    split: str,
    samples: Iterable[OutSample],
    *,
    per_tar: int = 10_000,
    image: Literal["png", "jpg"] = "png",
    quality: int = 95,
    classes: Sequence[str] = (),
    progress: Callable[[int], object] = lambda samples: None,
) -> dict[str, int]:
    """Write ``{split}-NNNNNN.tar`` with members KEY.png, KEY.cls, KEY.json, each tar whole or not
    at all, the same bytes whenever and by whomever they are written.

    Args:
        per_tar: samples of each.
        image: png keeps the pixels; jpg (in which conditions are png, too) does not.
        classes: names of the labels, for the json.
        progress: told the samples of each tar that is done.

    Returns:
        Samples of each tar, for ``write_sizes``.
    """
    sizes: dict[str, int] = {}
    rest = iter(samples)
    for number in itertools.count():
        chunk = itertools.islice(rest, per_tar)
        first = next(chunk, None)
        if first is None:
            return sizes
        name = f"{split}-{number:06d}.tar"
        members = (
            _members_of(sample, image, quality, classes)
            for sample in itertools.chain([first], chunk)
        )
        sizes[name] = _write_tar(folder / name, members)
        progress(sizes[name])
    raise AssertionError("count never ends")


def write_sizes(folder: Path, sizes: Mapping[str, int]) -> None:
    """Write ``sizes.json``, last of all: readers of a stream need not count then."""
    text = json.dumps(dict(sorted(sizes.items())), indent=1) + "\n"
    _replace(folder / SIZES, lambda part: part.write_text(text, encoding="ascii"))


def _write_tar(path: Path, members: Iterable[dict[str, Any]]) -> int:
    """Write a tar beside its place and give it its name; returns the number of samples."""
    from webdataset import TarWriter  # imports torch

    seen: set[str] = set()

    def write(part: Path) -> None:
        with part.open("wb") as file:
            # Time, owner and rights are the same everywhere; user and group numbers are 0.
            with TarWriter(file, user="", group="", mode=0o644, encoder=False, mtime=0) as tar:
                for sample in members:
                    if sample["__key__"] in seen:
                        raise ValueError(f"two samples of {path.name} are {sample['__key__']!r}")
                    seen.add(sample["__key__"])
                    tar.write(sample)
            file.flush()
            os.fsync(file.fileno())

    _replace(path, write)
    return len(seen)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def _members_of(
    sample: OutSample, kind: str, quality: int, classes: Sequence[str]
) -> dict[str, Any]:
    """A sample as webdataset's writer takes it."""
    parts = sample.key.split("/")
    if split_name(f"{sample.key}.x") != (sample.key, "x") or {"", ".", ".."} & set(parts):
        raise ValueError(f"{sample.key!r} is no key of a sample (a path without dots)")
    about: dict[str, Any] = {
        "key": sample.key if sample.identity is None else f"{sample.identity:016x}"
    }
    members = {
        "__key__": sample.key,
        kind: _encoded(sample.image, "PNG" if kind == "png" else "JPEG", quality),
    }
    if sample.label is not None:
        members["cls"] = str(sample.label).encode("ascii")
        if 0 <= sample.label < len(classes):
            about["class"] = classes[sample.label]
    if sample.condition is not None:
        members["condition.png"] = _encoded(sample.condition, "PNG", quality)
    members["json"] = json.dumps(about, sort_keys=True).encode("ascii")
    return members


def _encoded(image: NDArray[np.uint8], form: str, quality: int) -> bytes:
    """(H, W, C) as a PNG or JPEG."""
    options = {"quality": quality, "subsampling": 0} if form == "JPEG" else {}
    file = io.BytesIO()
    plain = image[:, :, 0] if image.shape[2] == 1 else image
    Image.fromarray(np.ascontiguousarray(plain)).save(file, form, **options)
    return file.getvalue()
