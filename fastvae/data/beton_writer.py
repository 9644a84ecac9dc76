"""Writes ``.beton`` files that FFCV reads, without FFCV."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import mmap
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvae.data import beton_layout as layout
from fastvae.data.beton_layout import DESCRIPTOR, HEADER, TABLE, Description
from fastvae.data.format import Field, Rows, sync_folder

_CHUNK = 1 << 16  # samples of the table that are written at once


class BetonWriter:
    """Writes a file and its description, sample after sample, as a context.

    Its bytes depend on nothing but the samples and the order of ``fields``. It is written beside
    its place, and gets its name when all ``count`` samples are there and the context ends without
    an error. Images are stored as pixels, also those whose field has ``bits``.

    Args:
        fields: arrays, and whole numbers (int64 or uint64 of shape ()); names of 16 bytes at most.
        count: samples to come: their numbers lie before their bytes.
    """

    def __init__(
        self,
        path: Path,
        fields: Mapping[str, Field],
        count: int,
        *,
        classes: tuple[str, ...] = (),
        preprocess: Mapping[str, Any] | None = None,
    ) -> None:
        if count < 1 or not fields:
            raise ValueError(f"{count} samples of {len(fields)} fields")
        for name, field in fields.items():
            if not name.isascii() or not 1 <= len(name) <= 16 or not name.isprintable():
                raise ValueError(f"{name!r} is no name for FFCV: 1 to 16 ASCII characters")
            if not field.shape and field.stored_dtype.itemsize != 8:
                raise ValueError(f"a single {field.dtype} cannot be stored: {name}")
        self.path, self.count, self.done = path, count, 0
        self.fields = {name: dataclasses.replace(f, bits=False) for name, f in fields.items()}
        self._about = classes, dict(preprocess or {})
        self._arrays = {name: f for name, f in self.fields.items() if f.shape}
        self._sample = sum(field.row_bytes for field in self._arrays.values())
        if self._sample > layout.LARGEST_PAGE:
            raise ValueError(f"a sample of {self._sample:,} bytes is too large for FFCV")
        self._page = layout.page_size(self._sample)
        self._per_page = self._page // max(self._sample, 1)
        types = [layout.ARRAY if field.shape else layout.INT for field in self.fields.values()]
        self._types, self._metadata = types, layout.metadata_dtype(types)
        self._start = HEADER.itemsize + len(fields) * DESCRIPTOR.itemsize
        self._first = layout.first_page(self._start + count * self._metadata.itemsize, self._page)
        self._part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file = self._part.open("wb+")

    def __enter__(self) -> BetonWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()
            self._part.unlink(missing_ok=True)

    def append(self, rows: Rows) -> None:
        """The next samples: all fields, (K, *shape) each."""
        if set(rows) != set(self.fields):
            raise ValueError(f"rows have {sorted(rows)}, expected {sorted(self.fields)}")
        stored = {name: field.to_stored(rows[name]) for name, field in self.fields.items()}
        counts = {len(values) for values in stored.values()}
        if len(counts) != 1:
            raise ValueError(f"fields have different numbers of rows: {counts}")
        k = counts.pop()
        if self.done + k > self.count:
            raise ValueError(f"more than the {self.count} samples that were announced")
        places = self._places(np.arange(self.done, self.done + k))
        metadata = np.zeros(k, dtype=self._metadata)
        samples = np.empty((k, self._sample), dtype=np.uint8)
        offset = 0
        for i, (name, field) in enumerate(self.fields.items()):
            if field.shape:
                metadata[f"f{i}"] = places + offset
                samples[:, offset : offset + field.row_bytes] = (
                    stored[name].reshape(k, -1).view(np.uint8)
                )
                offset += field.row_bytes
            else:
                metadata[f"f{i}"] = stored[name].view("<i8")
        self._put(self._start + self.done * self._metadata.itemsize, metadata)
        at = 0
        while at < k and self._sample:  # page by page
            fits = min(self._per_page - (self.done + at) % self._per_page, k - at)
            self._put(int(places[at]), samples[at : at + fits])
            at += fits
        self.done += k

    def _places(self, number: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the bytes of samples begin."""
        page, slot = np.divmod(number, self._per_page)
        places: NDArray[np.int64] = self._first + page * self._page + slot * self._sample
        return places

    def _put(self, place: int, values: NDArray[Any]) -> None:
        self._file.seek(place)
        self._file.write(np.ascontiguousarray(values).data.cast("B"))

    def _finish(self) -> None:
        if self.done != self.count:
            raise ValueError(f"{self.done} samples of {self.count} were written")
        table = self._first
        if self._sample:
            table = int(self._places(np.array([self.count - 1]))[0]) + self._sample
        self._put_ends(table)
        self._file.flush()
        os.fsync(self._file.fileno())
        text = layout.description_text(self._description(table))
        beside = layout.description_path(self.path)
        beside.unlink(missing_ok=True)  # of the file that is replaced
        self._part.replace(self.path)
        part = beside.with_name(f".{beside.name}.{os.getpid()}.tmp")
        with part.open("w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(beside)
        sync_folder(self.path.parent)

    def _put_ends(self, table: int) -> None:
        """Header, descriptors and allocation table."""
        head = np.zeros(1, dtype=HEADER)
        head[0] = (layout.FILE_VERSION, len(self.fields), self._page, self.count, table)
        described = np.zeros(len(self.fields), dtype=DESCRIPTOR)
        described["type"] = self._types
        for i, (name, field) in enumerate(self.fields.items()):
            described["name"][i, : len(name)] = np.frombuffer(name.encode(), dtype=np.uint8)
            if field.shape:
                described["arguments"][i] = layout.array_arguments(field.stored_dtype, field.shape)
        self._put(0, head)
        self._put(HEADER.itemsize, described)
        self._file.truncate(table)
        sizes = np.array([field.row_bytes for field in self._arrays.values()], dtype=np.int64)
        offsets = np.cumsum(sizes) - sizes
        for start in range(0, self.count if self._sample else 0, _CHUNK):
            number = np.arange(start, min(start + _CHUNK, self.count))
            entries = np.empty((len(number), len(sizes)), dtype=TABLE)
            entries["sample"] = number[:, None]
            entries["pointer"] = self._places(number)[:, None] + offsets
            entries["size"] = sizes
            self._put(table + start * len(sizes) * TABLE.itemsize, entries)

    def _description(self, table: int) -> Description:
        """Checksums of what now lies in the file."""
        classes, preprocess = self._about
        cuts = [*range(self._first, table, self._page), table]
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        with mapped, memoryview(mapped) as view:
            return Description(
                size=len(view),
                sha256=hashlib.sha256(view).hexdigest(),
                count=self.count,
                fields=self.fields,
                classes=classes,
                preprocess=preprocess,
                ends=(zlib.crc32(view[: self._first]), zlib.crc32(view[table:])),
                pages=tuple(zlib.crc32(view[a:b]) for a, b in itertools.pairwise(cuts)),
            )
