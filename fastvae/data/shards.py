"""Reading shards: mapped into memory, rows by index, every pack verified when first touched."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import resource
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastvae.data.format import (
    AGAIN,
    Field,
    Manifest,
    Rows,
    Shard,
    check_member,
    read_manifest,
)
from fastvae.data.npy import HEADER_BYTES
from fastvae.errors import UserError
from fastvae.kernels.gather_rows import gather_bits, gather_numbered, gather_packs, untouched

OnDamage = Literal["raise", "skip"]
_SPARE_FILES = 128  # that the rest of the process may want to open


class ShardReader:
    """One split of a folder of shards.

    Args:
        on_damage: "raise": a pack is verified (CRC-32, tar header) when it is first touched, and a
            damaged one is a UserError that names it. "skip": all packs are verified now, and what
            is damaged, cut short or missing is left out: the same rows on every machine that sees
            the same bytes.
        verify: whether packs are verified at all under "raise".
        leave_out: fields that are not wanted.

    Attributes:
        quarantined: what was left out, a line each.
        lost: number of samples in it.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        on_damage: OnDamage = "raise",
        verify: bool = True,
        manifest: Manifest | None = None,
        leave_out: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.split = split
        self.manifest = read_manifest(folder) if manifest is None else manifest
        self.fields: Mapping[str, Field] = {
            name: about for name, about in self.manifest.fields.items() if name not in leave_out
        }
        self.quarantined: list[str] = []
        self.lost = 0
        self._maps: list[mmap.mmap] = []
        self._names: list[str] = []
        shards = self.manifest.splits.get(split, ())
        _allow_files(len(shards))
        packs: list[tuple[NDArray[np.uint8], Shard, int]] = []
        for shard in shards:
            data, reason = self._map(shard)
            if data is None:
                if on_damage == "raise":
                    raise UserError(f"{reason}: {AGAIN}{_LEAVE_OUT}")
                self._quarantine(reason, shard.count)
                continue
            packs += [(data, shard, pack) for pack in range(len(shard.rows))]
        if on_damage == "skip":
            packs = [p for p in packs if not self._damaged(p)]
        self._packs = packs
        counts = [shard.rows[pack] for _, shard, pack in packs]
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self._address = {name: self._addresses(name) for name in self.fields}
        for array in (self._first, *self._address.values()):
            array.flags.writeable = False  # kernels then take it without a view
        self._row_bytes = {name: about.row_bytes for name, about in self.fields.items()}
        self._seen = np.zeros(len(packs), dtype=np.uint8)
        self._unseen = len(packs) if verify and on_damage == "raise" else 0

    def _map(self, shard: Shard) -> tuple[NDArray[np.uint8] | None, str]:
        """The bytes of a shard, or None and what is wrong with it."""
        path = self.folder / shard.name
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for a writer
            try:
                about = os.fstat(handle)
                if not stat.S_ISREG(about.st_mode):
                    return None, f"{path} is no regular file"
                if about.st_size != shard.bytes:
                    what = "cut short" if about.st_size < shard.bytes else "too long"
                    return None, f"{path} is {what}: {about.st_size:,} bytes of {shard.bytes:,}"
                mapped = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
            finally:
                os.close(handle)
        except FileNotFoundError:
            return None, f"{path} is missing"
        except OSError as error:
            return None, f"cannot read {path}: {error.strerror or error}"
        self._maps.append(mapped)
        self._names.append(shard.name)
        return np.frombuffer(mapped, dtype=np.uint8), ""

    def check_sizes(self) -> None:
        """Raise UserError if a file has been cut short since it was opened: reading what is gone
        would end the process (SIGBUS)."""
        for mapped, name in zip(self._maps, self._names, strict=True):
            if mapped.size() < len(mapped):
                raise UserError(f"{self.folder / name} was cut short while it was read: {AGAIN}")

    def _damaged(self, pack: tuple[NDArray[np.uint8], Shard, int]) -> bool:
        """Whether a pack is damaged; it is then in quarantine."""
        data, shard, number = pack
        for name in self.fields:
            reason = check_member(data, shard, self.fields, number, name)
            if reason:
                self._quarantine(f"{self.folder / shard.name}: {reason}", shard.rows[number])
                return True
        return False

    def _quarantine(self, reason: str, samples: int) -> None:
        self.quarantined.append(f"{reason} ({samples:,} samples)")
        self.lost += samples

    def _addresses(self, name: str) -> NDArray[np.int64]:
        """Where in memory the rows of a field begin, for each pack."""
        bases: dict[int, int] = {}
        found = np.empty(len(self._packs), dtype=np.int64)
        for i, (data, shard, pack) in enumerate(self._packs):
            base = bases.setdefault(id(data), data.ctypes.data)
            found[i] = base + shard.offset[name][pack] + HEADER_BYTES
        return found

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def fingerprint(self) -> str:
        """Hash of the contents; with something in quarantine, of what is left."""
        whole = self.manifest.fingerprint(self.split)
        return f"{whole}-{len(self)}" if self.lost else whole

    def touch(self, index: NDArray[np.int64]) -> None:
        """Verify the packs of samples ``index`` (B,) that have not been verified yet."""
        if not self._unseen:
            return
        for number in untouched(self._first, index, self._seen):
            data, shard, pack = self._packs[number]
            for name in self.fields:
                reason = check_member(data, shard, self.fields, pack, name)
                if reason:
                    raise UserError(f"{self.folder / shard.name}: {reason}: {AGAIN}{_LEAVE_OUT}")
            self._seen[number] = 1
            self._unseen -= 1

    def gather_into(
        self, name: str, index: NDArray[np.int64], out: NDArray[Any], threads: int = 1
    ) -> None:
        """Copy one field of samples ``index`` (B,) int64 into ``out`` (B, *shape), contiguous; the
        packs must have been touched. IndexError for samples that are not there."""
        about = self.fields[name]
        rows = out.reshape(len(index), math.prod(out.shape[1:])).view(np.uint8)
        gather = gather_bits if about.bits else gather_packs
        gather(self._first, self._address[name], self._row_bytes[name], index, rows, threads)

    def gather_labelled(
        self,
        index: NDArray[np.int64],
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        threads: int,
    ) -> None:
        """``gather_into`` for images, not packed as bits, and labels at once."""
        gather_numbered(
            self._first,
            self._address["image"],
            self._row_bytes["image"],
            self._address["label"],
            index,
            images.reshape(len(index), self._row_bytes["image"]),
            labels,
            threads,
        )

    def rows(self, index: NDArray[np.int64]) -> Rows:
        """All fields of samples ``index`` (B,) int64, copied."""
        self.touch(index)
        rows: Rows = {}
        for name, about in self.fields.items():
            rows[name] = np.empty((len(index), *about.shape), dtype=about.dtype)
            self.gather_into(name, index, rows[name])
        return rows

    def close(self) -> None:
        """Let go of the files; nothing may be read afterwards."""
        self._packs, self._unseen = [], 0
        self._first = np.zeros(1, dtype=np.int64)  # no index is inside any more
        self._address = {name: np.zeros(0, dtype=np.int64) for name in self.fields}
        for mapped in self._maps:
            with contextlib.suppress(BufferError):  # an array of the caller's still looks at it
                mapped.close()
        self._maps, self._names = [], []


_LEAVE_OUT = ", or leave out what is damaged with --data.on-damage skip"


def _allow_files(count: int) -> None:
    """Raise this process's own limit of open files, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
