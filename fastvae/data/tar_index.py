"""What a set of stock tars holds: how many samples in each, found before the first is asked for.

Local tars are counted by their headers (some 100,000 a second). For those on the web the counts are
taken from an index beside them, ``sizes.json`` (webdataset's convention) or our ``manifest.json``;
without one each is read once, and counted once per process.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

from tqdm import tqdm

from fastvae.data.format import FORMAT, MANIFEST
from fastvae.data.sample_rows import Layout, SampleRows, layout_of
from fastvae.data.sample_tar import SIZES, BadTar, SampleTar, Tally
from fastvae.data.tar import TarReader
from fastvae.data.urls import Missing, beside, local_path, name_of, open_url, read_small
from fastvae.errors import UserError

_CHECKED = 256  # samples that are decoded at once when all are verified


@dataclass(frozen=True)
class TarShard:
    """One tar."""

    url: str
    count: int
    """Samples."""
    size: int | None
    """Bytes, where that is known."""
    digest: str
    """Of the names and sizes of its members; "" where only an index was read."""


@dataclass(frozen=True)
class TarIndex:
    """A set of tars."""

    shards: tuple[TarShard, ...]
    layout: Layout
    tally: Tally
    quarantined: tuple[str, ...]
    """Tars that were left out, with the reason, a line each."""
    lost: int
    """Samples in them, as far as that is known."""
    allow_pipe: bool

    @property
    def fingerprint(self) -> str:
        """Hash of what is known without decoding: for each tar its file name, number of samples,
        bytes, and names and sizes of its members; not the pixels, nor times or folders."""
        digest = hashlib.blake2b(repr(self.layout).encode(), digest_size=16)
        for shard in self.shards:
            about = [name_of(shard.url), shard.count, shard.size, shard.digest]
            digest.update(json.dumps(about).encode())
        return digest.hexdigest()


def index_tars(
    urls: Iterable[str],
    *,
    channels: int | None = None,
    allow_pipe: bool = False,
    on_damage: Literal["raise", "skip"] = "raise",
) -> TarIndex:
    """Count the samples of tars.

    Args:
        urls: as ``expand`` gives them.
        channels: 1 or 3; None: as many as the first sample has.
        on_damage: "raise": a UserError names a damaged or missing tar. "skip": every tar is read
            and decoded once, here, and what is damaged or missing is left out.
    """
    urls = list(urls)
    find = _Finder(channels, allow_pipe)
    shards: list[TarShard] = []
    quarantined: list[str] = []
    lost = 0
    quiet = os.environ.get("RANK", "0") != "0"  # one bar is enough
    for url in tqdm(urls, unit="tar", leave=False, disable=True if quiet else None):
        if on_damage == "raise":
            shards.append(find.counted(url))
            continue
        try:
            shards.append(find.verified(url))
        except (BadTar, Missing) as error:
            quarantined.append(error.what if isinstance(error, BadTar) else str(error))
            lost += find.told(url) or find.reached
    first = next((shard for shard in shards if shard.count), None)
    if first is None:
        reason = (quarantined or find.tally.lines() or ["they are empty"])[0]
        raise UserError(f"no samples in {', '.join(urls[:3])}{', ...' * (len(urls) > 3)}: {reason}")
    layout = find.layout or find.layout_in(first.url)
    return TarIndex(tuple(shards), layout, find.tally, tuple(quarantined), lost, allow_pipe)


class OpenTar:
    """A tar by path or URL, opened; to be closed."""

    def __init__(
        self,
        url: str,
        *,
        allow_pipe: bool = False,
        stop: threading.Event | None = None,
        scan: bool = False,
        tally: Tally | None = None,
        digest: hashlib.blake2b | None = None,
    ) -> None:
        self.stream = open_url(url, allow_pipe=allow_pipe, stop=stop, scan=scan)
        tar = TarReader(self.stream.file, seekable=self.stream.seekable, size=self.stream.size)
        self.samples = SampleTar(tar, url, tally, digest)

    def close(self) -> None:
        self.stream.file.close()


class _Finder:
    """Looks into tars one after another."""

    def __init__(self, channels: int | None, allow_pipe: bool) -> None:
        self.tally = Tally()
        self.layout: Layout | None = None
        self.reached = 0
        """Samples of the last tar before it proved to be damaged."""
        self._channels = channels
        self._allow_pipe = allow_pipe
        self._told: dict[str, dict[str, tuple[int, int | None]]] = {}

    def counted(self, url: str) -> TarShard:
        """Count a tar in the cheapest way that there is."""
        if local_path(url) is not None:
            return self._count(url)
        told = self._index_beside(url).get(name_of(url))
        if told is not None:
            return TarShard(url, *told, "")
        if url not in _COUNTED:
            _COUNTED[url] = self._count(url)
        return _COUNTED[url]

    def _count(self, url: str) -> TarShard:
        digest = hashlib.blake2b(digest_size=16)
        with closing(self._open(url, scan=True, digest=digest)) as tar:
            count = tar.samples.count()
            return TarShard(url, count, tar.stream.size, digest.hexdigest())

    def verified(self, url: str) -> TarShard:
        """Count a tar by decoding all that is in it."""
        self.reached = 0
        digest = hashlib.blake2b(digest_size=16)
        with closing(self._open(url, digest=digest)) as tar:
            groups = tar.samples.groups()
            first = next(groups, None)
            if first is not None:
                self.layout = self.layout or layout_of(first, url, self._channels)
                rows = SampleRows(itertools.chain([first], groups), url, self.layout)
                room = self.layout.allocate(_CHECKED)
                while taken := rows.take(room, 0, _CHECKED):
                    self.reached += taken
            return TarShard(url, self.reached, tar.stream.size, digest.hexdigest())

    def layout_in(self, url: str) -> Layout:
        """The layout of a set, by the first sample of a tar."""
        with closing(OpenTar(url, allow_pipe=self._allow_pipe)) as tar:
            first = next(tar.samples.groups(), None)
            if first is None:
                raise BadTar(f"{url}: no sample with an image in it", "make the tar again")
            return layout_of(first, url, self._channels)

    def told(self, url: str) -> int:
        """Samples of a tar, by the index beside it; 0 where there is none."""
        return self._index_beside(url).get(name_of(url), (0, None))[0]

    def _open(
        self, url: str, *, scan: bool = False, digest: hashlib.blake2b | None = None
    ) -> OpenTar:
        return OpenTar(url, allow_pipe=self._allow_pipe, scan=scan, tally=self.tally, digest=digest)

    def _index_beside(self, url: str) -> dict[str, tuple[int, int | None]]:
        """Samples and bytes (where known) by file name, as an index in the same folder says."""
        places = [beside(url, SIZES), beside(url, MANIFEST)]
        key = str(places[0])
        if key not in self._told:
            readers = (_sizes, _manifest)
            self._told[key] = {}
            for place, reader in zip(places, readers, strict=True):
                data = None if place is None else read_small(place)
                if data is not None:
                    self._told[key] = _parsed(reader, data, str(place))
                    break
        return self._told[key]


_COUNTED: dict[str, TarShard] = {}
"""Tars on the web that have been read for counting, by this process."""


def _parsed(
    reader: Callable[[Any], dict[str, tuple[int, int | None]]], data: bytes, name: str
) -> dict[str, tuple[int, int | None]]:
    try:
        return reader(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"{name} is no index of tars: mend it, or take it away") from None


def _sizes(data: Any) -> dict[str, tuple[int, int | None]]:
    return {name: (_number(count), None) for name, count in data.items()}


def _manifest(data: Any) -> dict[str, tuple[int, int | None]]:
    if data.get("format") != FORMAT:
        return {}  # somebody else's
    return {
        shard["name"]: (_number(shard["count"]), _number(shard["bytes"]))
        for shards in data["splits"].values()
        for shard in shards
    }


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of samples")
    return value
