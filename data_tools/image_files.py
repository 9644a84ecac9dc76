"""Image files in folders and zips: found, read and identified. Nothing is unpacked to the disk.

A zip is treated as a folder of its name. Names need not be UTF-8: a name is a ``str`` as Python's
``os`` gives it (with lone surrogates for such bytes), and ``names.shown`` makes it printable.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import json
import os
import stat
import struct
import zipfile
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fastvae.data.format import MANIFEST
from fastvae.data_tools.decode import Undecodable
from fastvae.data_tools.names import shown
from fastvae.errors import UserError

SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm"),
    *(".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
LARGEST = 512 << 20  # bytes of a file; more is no image to train on
_FOR_GOOD = (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ELOOP)  # the file's own troubles
_BLOCK = 32  # files that a thread reads at a time


class Entry(NamedTuple):
    """An image file that was found."""

    source: int
    """Which of the sources it is in."""
    parts: tuple[str, ...]
    """Where it is in there: folders (a zip counts as one), then its name."""
    path: str
    """Of the file, or of the zip that it is in."""
    member: str
    """Its name in the zip; "" for a file of its own."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a number of sources hold."""

    sources: tuple[Path, ...]
    entries: list[Entry] = field(default_factory=list)
    """In the order of the sources, then by name."""
    ignored: Counter[str] = field(default_factory=Counter)
    """What else there is: why it is not an image -> number of files."""


# ---------------------------------------------------------------------------------- finding
def list_images(sources: Sequence[Path]) -> Listing:
    """All images in folders and zips; a source may also be a single image.

    Raises:
        UserError: a source is not there or cannot be read, or there are no images at all.
    """
    listing = Listing(sources=tuple(sources))
    for number, source in enumerate(sources):
        path = str(source)
        mode = _mode(path)
        if stat.S_ISDIR(mode):
            found = _in_folder(number, path, listing.ignored)
        elif not stat.S_ISREG(mode):
            raise UserError(f"{shown(path)} is neither a folder nor a regular file")
        elif _suffix(path) == ".zip":
            found = _in_zip(number, path, (), listing.ignored)
        elif _suffix(path) in SUFFIXES:
            found = iter([Entry(number, (os.path.basename(path),), path, "")])
        else:
            raise UserError(f"{shown(path)} is neither a folder, nor a .zip, nor an image")
        listing.entries.extend(sorted(found, key=lambda e: [os.fsencode(p) for p in e.parts]))
    if not listing.entries:
        names = ", ".join(shown(str(source)) for source in sources)
        raise UserError(f"no images in {names}{ignored_words(listing.ignored)}")
    return listing


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        raise UserError(f"no such file or folder: {shown(path)}") from None
    except OSError as error:
        raise UserError(f"cannot read {shown(path)}: {error.strerror or error}") from None


def ignored_words(ignored: Counter[str]) -> str:
    """What else was found, e.g. `` (ignored: 3 hidden)``, or nothing."""
    words = ", ".join(f"{count:,} {what}" for what, count in sorted(ignored.items()))
    return f" (ignored: {words})" if words else ""


def _in_folder(number: int, top: str, ignored: Counter[str]) -> Iterator[Entry]:
    """Images in a folder and its sub-folders. Every folder is entered once, under its own name
    rather than that of a link, so that links cannot lead in circles."""
    seen: set[tuple[int, int]] = set()
    folders: deque[tuple[str, tuple[str, ...]]] = deque([(top, ())])
    links: deque[tuple[str, tuple[str, ...]]] = deque()
    while folders or links:
        folder, parts = folders.popleft() if folders else links.popleft()
        try:
            about = os.stat(folder)
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(folder) as scan:
                inside = sorted(scan, key=lambda item: os.fsencode(item.name))
        except OSError as error:
            raise UserError(f"cannot read {shown(folder)}: {error.strerror or error}") from None
        if any(item.name == MANIFEST for item in inside) and _is_packed(folder):
            ignored["packed data set, a folder"] += 1
            continue
        names = {item.name for item in inside if item.is_dir()}
        for item in inside:
            place = (*parts, item.name)
            why = _no_image(item.name)
            if item.is_dir():
                if why in _UNWANTED:
                    ignored[f"{why}, a folder"] += 1
                else:
                    (links if item.is_symlink() else folders).append((item.path, place))
            elif _suffix(item.name) == ".zip" and item.is_file():
                if item.name[:-4] in names:
                    ignored["unzipped already"] += 1
                else:
                    yield from _in_zip(number, item.path, (*parts, item.name[:-4]), ignored)
            elif why or not item.is_file():
                ignored[why or "broken or special"] += 1
            else:
                yield Entry(number, place, item.path, "")


def _is_packed(folder: str) -> bool:
    """Whether a folder was made by these tools: its pictures are previews."""
    try:
        about = json.loads(Path(folder, MANIFEST).read_bytes())
        return str(about["format"]).startswith("fastvae ")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _in_zip(
    number: int, path: str, parts: tuple[str, ...], ignored: Counter[str]
) -> Iterator[Entry]:
    """Images in a zip; where several have one name, the last counts, as when it is unpacked."""
    try:
        members = {info.filename: info for info in _open_zip(path).infolist()}
    except Undecodable as error:
        raise UserError(f"{shown(path)}: {error}") from None
    except (OSError, *_ZIP_ERRORS) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise UserError(f"cannot read {shown(path)}: {error.strerror}") from None
        raise UserError(
            f"{shown(path)} cannot be read as a zip ({error}): a download that was cut off?"
        ) from None
    for name, info in members.items():
        if name and info.is_dir():
            continue
        separator = "/" if "/" in name else "\\"  # the second: from old programs on Windows
        place = tuple(part for part in name.split(separator) if part not in ("", ".", ".."))
        why = next(filter(None, map(_no_image, place[-1:])), "") or next(
            (word for word in map(_no_image, place[:-1]) if word in _UNWANTED), ""
        )
        if stat.S_ISLNK(info.external_attr >> 16):
            why = "broken or special"
        if why or not place:
            ignored[why or "of another kind"] += 1
        else:
            yield Entry(number, (*parts, *place), path, name)


_ZIP_ERRORS = (
    *(ValueError, IndexError, EOFError, struct.error),
    *(NotImplementedError, zipfile.BadZipFile),
)
"""What ``zipfile`` raises at damaged directories."""
_UNWANTED = ("hidden", "of macOS")


def _no_image(name: str) -> str:
    """Why a file of this name is not an image to use, or ""."""
    if name.startswith("."):
        return "hidden"
    if name == "__MACOSX":
        return "of macOS"
    return "" if _suffix(name) in SUFFIXES else "of another kind"


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def full_name(path: str, member: str) -> str:
    """A file, or a file in a zip, for people."""
    return shown(f"{path}/{member}" if member else path)


# ---------------------------------------------------------------------------------- reading
def read(path: str, member: str) -> bytes:
    """The bytes of an image file.

    Raises:
        Undecodable: it is gone, encrypted, damaged, larger than ``LARGEST``, or no file to read.
        UserError: the disk or the network failed: another time it may be readable.
    """
    try:
        if not member:
            size = _regular(path).st_size
            if size > LARGEST:
                raise Undecodable(f"too large ({size:,} bytes)")
            with open(path, "rb") as file:
                return file.read()
        archive = _open_zip(path)
        info = archive.getinfo(member)
        if info.flag_bits & 1:
            raise Undecodable("encrypted")
        if info.file_size > LARGEST:
            raise Undecodable(f"too large (says that it has {info.file_size:,} bytes)")
        return archive.read(info)
    except (Undecodable, MemoryError):
        raise
    except OSError as error:
        if error.errno in _FOR_GOOD:
            raise Undecodable(f"cannot be read ({error.strerror})") from None
        if not member or error.errno not in (None, errno.EINVAL):
            raise UserError(
                f"cannot read {full_name(path, member)}: {error.strerror or error}; run the same "
                "command again to go on"
            ) from None
        raise Undecodable("damaged in its zip (OSError)") from None
    # zlib.error, lzma.LZMAError, BadZipFile, KeyError, NotImplementedError, struct.error, ...
    except Exception as error:
        raise Undecodable(f"damaged in its zip ({type(error).__name__})") from None


def _regular(path: str) -> os.stat_result:
    """What the system says of a file; to open a pipe or a device might wait for ever."""
    about = os.stat(path)
    if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
        raise Undecodable("no regular file")
    return about


def _open_zip(path: str) -> zipfile.ZipFile:
    about = _regular(path)
    return _zip(path, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=8)
def _zip(path: str, _changed: int, _size: int) -> zipfile.ZipFile:
    """An open zip. Its directory, long where it holds 100,000 files, is read once per process."""
    return zipfile.ZipFile(path)


# ---------------------------------------------------------------------------------- identity
def content_keys(entries: Sequence[Entry], threads: int | None = None) -> NDArray[np.uint64]:
    """The identity of each file: the first 8 bytes of BLAKE2b of its content, little-endian.

    A file that cannot be read is identified by its place; reading it again, to decode it, will say
    what is wrong with it.

    Shapes: returns (N,) uint64.
    """
    count = threads or min(8, os.cpu_count() or 1)
    keys = np.empty(len(entries), np.uint64)
    starts = iter(range(0, len(entries), _BLOCK))

    def work(start: int) -> tuple[int, list[int]]:
        return start, [_key(entry) for entry in entries[start : start + _BLOCK]]

    with (
        ThreadPoolExecutor(count) as pool,
        tqdm(total=len(entries), desc="reading", unit="file", disable=None, leave=False) as bar,
    ):
        waiting: deque[Future[tuple[int, list[int]]]] = deque(
            pool.submit(work, start) for start in itertools.islice(starts, 2 * count)
        )
        while waiting:
            start, found = waiting.popleft().result()
            keys[start : start + len(found)] = found
            bar.update(len(found))
            waiting.extend(pool.submit(work, more) for more in itertools.islice(starts, 1))
    return keys


def _key(entry: Entry) -> int:
    try:
        data = read(entry.path, entry.member)
    except Undecodable:
        data = os.fsencode("\0".join(("cannot be read", str(entry.source), *entry.parts)))
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
