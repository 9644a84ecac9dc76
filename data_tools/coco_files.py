"""The photos of MS COCO 2017: three zips of 26.8 GB in all.

Sizes and checksums are those of the files as COCO serves them; each is published by several
projects (TensorFlow Datasets, ParlAI, ...) that fetched them independently.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from fastvae.data_tools import fetch as fetching
from fastvae.data_tools.fetch import AllMirrorsFailed, RemoteFile, disk_error, fetch, human, size_of
from fastvae.errors import UserError

PARTS = {
    "train": RemoteFile(
        name="train2017.zip",  # 118,287 photos
        size=19_336_861_798,
        sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        md5="cced6f7f71b7629ddf16f17bbcfab6b2",
    ),
    "val": RemoteFile(
        name="val2017.zip",  # 5,000
        size=815_585_330,
        sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        md5="442b8da7639aecaf257c1dceb8ba8c80",
    ),
    "test": RemoteFile(
        name="test2017.zip",  # 40,670
        size=6_646_970_404,
        sha256="c7908c3c9f94ba2f3340ebbeec58c25db6be8774f18d68c2f15d0e369d95baba",
        md5="77ad2c53ac5d0aea611d422c0938fb35",
    ),
}
MIRRORS = (
    "http://images.cocodataset.org/zips/",
    "https://s3.amazonaws.com/images.cocodataset.org/zips/",
)
TRIES = 5  # in a row without a byte, each after a longer pause


def fetch_coco(
    parts: Sequence[str], root: Path, *, mirrors: Sequence[str], timeout: float
) -> list[Path]:
    """Fetch zips of COCO, smallest first; what is there and right is kept, what is begun goes on.

    Args:
        parts: keys of ``PARTS``.
        root: the folder to put them in; made when missing.
        mirrors: folder URLs tried before COCO's.
        timeout: seconds without an answer after which a mirror is given up.

    Raises:
        UserError: the disk is too small or refused, or a file could not be had.
    """
    files = sorted((PARTS[part] for part in parts), key=lambda remote: remote.size)
    words = ", ".join(f"{remote.name} {human(remote.size)}" for remote in files)
    total = sum(remote.size for remote in files)
    print(f"{words}: {human(total)} in all, into {root}", flush=True)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _check_room(files, root)
    except OSError as error:
        raise disk_error(error, root) from None
    return [_persistently(remote, (*mirrors, *MIRRORS), root, timeout=timeout) for remote in files]


def _check_room(files: Sequence[RemoteFile], root: Path) -> None:
    """Raise UserError where the disk has less room than is needed for what is not there yet."""
    there = [
        max(size_of(root / remote.name), size_of(root / f"{remote.name}.part")) for remote in files
    ]
    needed = sum(max(0, remote.size - size) for remote, size in zip(files, there, strict=True))
    free = shutil.disk_usage(root).free
    if needed > free:
        raise UserError(
            f"{root} needs {human(needed)} more, the disk has {human(free)} left; make room, give "
            f"another folder with --root, or fewer --parts (val is {human(PARTS['val'].size)})"
        )


def _persistently(
    remote: RemoteFile, mirrors: Sequence[str], root: Path, *, timeout: float
) -> Path:
    """Fetch one file, again after a pause where all mirrors break off: it takes hours."""
    path, part = root / remote.name, root / f"{remote.name}.part"
    if size_of(path) == remote.size:
        print(f"{remote.name}: is here, comparing its checksum", flush=True)
    failures = 0
    while True:
        have = size_of(part)
        try:
            return fetch(remote, mirrors, root, timeout=timeout)
        except AllMirrorsFailed as error:
            arrived = size_of(part)
            failures = 1 if arrived > have else failures + 1
            # Without a part nothing ever arrived, or all of it did and was something else.
            if arrived < max(have, 1) or failures >= TRIES:
                raise AllMirrorsFailed(
                    f"{error}; check the network and run this again, or put {remote.name} into "
                    f"{root} by hand, or give another source with --mirror",
                    missing=error.missing,
                ) from None
            pause = 2.0 ** (failures - 1)
            print(f"{remote.name}: {error}; trying again in {pause:.0f} s", file=sys.stderr)
        fetching.sleep(pause)
