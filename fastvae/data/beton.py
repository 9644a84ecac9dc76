"""FFCV's ``.beton`` files, read without FFCV: numbers, arrays, and images of one size.

Layout and description are in ``fastvae.data.beton_layout``. A file from elsewhere has no
description; then only what its own numbers say can be checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import mmap
import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fastvae.data import beton_layout as layout
from fastvae.data.beton_layout import AGAIN, DESCRIPTOR, HEADER, METADATA, TABLE, Description
from fastvae.data.beton_writer import BetonWriter as BetonWriter
from fastvae.data.format import Field, Rows
from fastvae.errors import UserError

_MOST_FIELDS = 256


@dataclass(frozen=True, kw_only=True)
class BetonField:
    """What one field of a file holds."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    """Of one sample; () for a number."""
    pointers: NDArray[np.uint64] | None = None
    """(N,): where in the file the bytes of a sample begin; None for numbers."""
    values: NDArray[Any] | None = None
    """(N,): the numbers; None for arrays."""
    jpeg: NDArray[np.bool_] | None = None
    """(N,): which samples are JPEG files (dtype and shape are of decoded images); None: none."""
    problem: str = ""
    """Why nobody here can read it."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""
        return layout.row_bytes(self.dtype, self.shape)


class BetonFile:
    """A file, mapped into memory, all of whose numbers have been compared with its size.

    Raises:
        UserError: names the file, the field or sample, and what to do. Also where the file has
            become shorter since it was opened, when it is read: what is mapped beyond the end of a
            file kills the process. (One that is cut while it is read is beyond help.)

    Args:
        verify: whether the whole file is compared with its SHA-256, where there is a description;
            else its pages are verified when they are first touched.

    Attributes:
        n: samples.
        data: (bytes,) uint8, the whole file.
        fields: all of them, also those that cannot be read here.
        about: the description beside the file, or None.
    """

    def __init__(self, path: Path, *, verify: bool = False) -> None:
        self.path = path
        self._mapped = self._map()
        self.data: NDArray[np.uint8] = np.frombuffer(self._mapped, dtype=np.uint8)
        head = self.data[: HEADER.itemsize].view(HEADER)[0]
        count, self.page_bytes = int(head["fields"]), int(head["page"])
        self.n, self.table = int(head["samples"]), int(head["table"])
        if int(head["version"]) != layout.FILE_VERSION:
            raise self._bad(f"is no .beton file of version {layout.FILE_VERSION}: {AGAIN}")
        if not 1 <= count <= _MOST_FIELDS or self.n < 1 or self.page_bytes.bit_count() != 1:
            raise self._bad(
                f"has an impossible header ({count} fields, {self.n:,} samples, pages of "
                f"{self.page_bytes:,} bytes): {AGAIN}"
            )
        start = HEADER.itemsize + count * DESCRIPTOR.itemsize
        if start > len(self.data):
            raise self._bad(f"is cut short within the descriptors of its {count} fields: {AGAIN}")
        described = self._names(self.data[HEADER.itemsize : start].view(DESCRIPTOR))
        metadata = layout.metadata_dtype([int(row["type"]) for row in described.values()])
        self.end = start + self.n * metadata.itemsize  # of the metadata
        rest = len(self.data) - self.table
        if not self.end <= self.table <= len(self.data) or rest % TABLE.itemsize:
            raise self._bad(
                f"is damaged or cut short: {self.n:,} samples, whose numbers end at byte "
                f"{self.end:,}, and a table at byte {self.table:,} do not fit {len(self.data):,} "
                f"bytes: {AGAIN}"
            )
        self.first_page = min(layout.first_page(self.end, self.page_bytes), self.table)
        self.about = layout.read_description(path)
        if self.about is not None:
            self._check_ends(self.about)
        self._check_table()
        rows = self.data[start : self.end].view(metadata)
        self.fields = {
            name: self._field(name, row, rows[f"f{i}"])
            for i, (name, row) in enumerate(described.items())
        }
        if self.about is not None:
            self._apply(self.about)
            if verify and self.sha256() != self.about.sha256:
                name = layout.description_path(path).name
                raise self._bad(f"is damaged: it has not the SHA-256 in {name}: {AGAIN}")
        self._sizes: dict[str, NDArray[np.uint64]] = {}
        self._seen = np.zeros(0 if self.about is None else len(self.about.pages), dtype=bool)

    # ------------------------------------------------------------------------ opening
    def _bad(self, what: str) -> UserError:
        return UserError(f"{self.path} {what}")

    def _map(self) -> mmap.mmap:
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait
        except FileNotFoundError:
            raise UserError(f"no such file: {self.path}") from None
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}") from None
        try:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode):
                raise self._bad("is no regular file: name a .beton file itself")
            if about.st_size < HEADER.itemsize:
                raise self._bad(f"is no .beton file ({about.st_size} bytes): {AGAIN}")
            return mmap.mmap(handle, about.st_size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}") from None
        finally:
            os.close(handle)

    def _check_size(self) -> None:
        """UserError where the file is not as long any more as when it was mapped."""
        size = self._mapped.size()  # of the file, now
        if size < len(self.data):
            raise self._bad(
                f"has shrunk from {len(self.data):,} to {size:,} bytes since it was opened: {AGAIN}"
            )

    def _names(self, described: NDArray[Any]) -> dict[str, Any]:
        """The descriptors by name; their types are known ones."""
        found: dict[str, Any] = {}
        for i, row in enumerate(described):
            raw = row["name"].tobytes().split(b"\0")[0]
            name = raw.decode("ascii", "replace")
            if not raw.isascii() or not name.isprintable() or not name or name in found:
                raise self._bad(f"has an impossible name {name!r} for its field {i}: {AGAIN}")
            if int(row["type"]) not in METADATA:
                raise self._bad(
                    f"has a field {name!r} of a type of its own (number {row['type']}), so that "
                    "nothing in it can be found: write it without this field"
                )
            found[name] = row
        return found

    def _check_table(self) -> None:
        entries = self.data[self.table :].view(TABLE)
        ends = entries["pointer"] + entries["size"]
        wrong = (entries["sample"] >= self.n) | (entries["pointer"] < self.end)
        wrong |= (ends > self.table) | (ends < entries["pointer"])
        if wrong.any():
            raise self._bad(
                f"is damaged: entry {int(wrong.argmax()):,} of its allocation table points "
                f"outside its pages: {AGAIN}"
            )

    def _field(self, name: str, row: Any, rows: NDArray[Any]) -> BetonField:
        number = int(row["type"])
        if number in (layout.INT, layout.FLOAT):
            return BetonField(name=name, dtype=METADATA[number], shape=(), values=rows)
        byte = np.dtype(np.uint8)
        if number in (layout.BYTES, layout.JSON):
            problem = "holds pieces of different lengths: read it with FFCV"
            return BetonField(name=name, dtype=byte, shape=(), problem=problem)
        if number == layout.RGB:
            field = self._images(name, rows)
        else:
            try:
                dtype, shape = layout.parse_array_arguments(row["arguments"])
            except ValueError as error:
                raise self._bad(
                    f"has a field {name!r} that is no array of numbers ({error}): {AGAIN}"
                ) from None
            field = BetonField(name=name, dtype=dtype, shape=shape, pointers=rows)
        if not field.problem:
            assert field.pointers is not None
            most = self.table - (field.row_bytes if field.jpeg is None else 1)
            wrong: NDArray[np.bool_] = field.pointers < self.end
            wrong |= field.pointers > max(most, 0)
            if wrong.any():
                raise self._bad(
                    f"is damaged: sample {int(wrong.argmax()):,} of field {name!r} does not lie "
                    f"between bytes {self.end:,} and {self.table:,}: {AGAIN}"
                )
        return field

    def _images(self, name: str, rows: NDArray[Any]) -> BetonField:
        """An RGB field: raw images, JPEG files, or some of each."""
        height, width = int(rows["height"][0]), int(rows["width"][0])
        other = (rows["height"] != height) | (rows["width"] != width)
        problem = ""
        if other.any():
            i = int(other.argmax())
            problem = (
                f"holds images of different sizes ({height}x{width} of sample 0, "
                f"{rows['height'][i]}x{rows['width'][i]} of sample {i:,}): write them in one size"
            )
        elif not height or not width or rows["mode"].max() > 1:
            raise self._bad(f"is damaged: field {name!r} has impossible images: {AGAIN}")
        return BetonField(
            name=name,
            dtype=np.dtype(np.uint8),
            shape=(height, width, 3),
            pointers=rows["pointer"],
            jpeg=None if rows["mode"].all() else rows["mode"] == 0,
            problem=problem,
        )

    def _check_ends(self, about: Description) -> None:
        """Compare size and ends with the description, before anything in them is believed."""
        name = layout.description_path(self.path).name
        if len(self.data) != about.size:
            what = "cut short" if len(self.data) < about.size else "too long"
            raise self._bad(
                f"is {what}: {len(self.data):,} bytes, {about.size:,} by {name}: {AGAIN}"
            )
        parts = self.data[: self.first_page], self.data[self.table :]
        for what, part, expected in zip(("header", "table"), parts, about.ends, strict=True):
            if zlib.crc32(part.data) != expected:
                raise self._bad(f"is damaged: its {what} has not the checksum in {name}: {AGAIN}")

    def _apply(self, about: Description) -> None:
        """Compare the fields with the description; unsigned numbers are told by it alone."""
        pages = -(-(self.table - self.first_page) // self.page_bytes)
        same = about.count == self.n and len(about.pages) == pages
        same = same and set(about.fields) == set(self.fields)
        if not same or not all(
            layout.is_described(about.fields[name], field.dtype, field.shape)
            for name, field in self.fields.items()
        ):
            raise self._bad(f"is not what {layout.description_path(self.path).name} describes")
        for name, field in self.fields.items():
            if field.values is not None:
                dtype = about.fields[name].stored_dtype
                self.fields[name] = dataclasses.replace(
                    field, dtype=dtype, values=field.values.view(dtype)
                )

    # ------------------------------------------------------------------------ what is in it
    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels; empty where nobody says."""
        return () if self.about is None else self.about.classes

    @property
    def preprocess(self) -> dict[str, Any]:
        """How the samples were made; empty where nobody says."""
        return {} if self.about is None else self.about.preprocess

    def field(self, name: str) -> BetonField:
        """A field that can be read; UserError for one that is not there or cannot."""
        if name not in self.fields:
            raise self._bad(f"has no field {name!r}, only {', '.join(map(repr, self.fields))}")
        if self.fields[name].problem:
            raise UserError(f"{self.path}: field {name!r} {self.fields[name].problem}")
        return self.fields[name]

    def roles(self) -> dict[str, BetonField]:
        """The fields that matter here, by our names for them: "image" (in any case), "condition",
        "label" and "key", or what can only be the image or the label."""
        images = [n for n, f in self.fields.items() if f.pointers is not None and _is_image(f)]
        numbers = [n for n, f in self.fields.items() if f.shape == () and f.dtype.kind in "iu"]
        numbers = [n for n in numbers if n != "key" and not self.fields[n].problem]
        name = "image" if "image" in self.fields else images[0] if len(images) == 1 else ""
        if not name or not _is_image(self.field(name)):
            raise self._bad(
                f"has no field of uint8 images (height, width, channels) called 'image', or only "
                f"one, among {', '.join(map(repr, self.fields))}"
            )
        found = {"image": self.field(name)}
        given = self.fields.get("condition")
        if name != "condition" and given is not None and given.shape == found["image"].shape:
            found["condition"] = self.field("condition")
        label = "label" if "label" in numbers else numbers[0] if len(numbers) == 1 else ""
        if label:
            found["label"] = self.fields[label]
        key = self.fields.get("key")
        if key is not None and key.values is not None and key.dtype.kind in "iu":
            found["key"] = dataclasses.replace(
                key, dtype=np.dtype("<u8"), values=key.values.view("<u8")
            )
        return found

    def as_fields(self) -> dict[str, Field]:
        """The same as fields of ours; images are (H, W, C)."""
        return {
            name: Field(
                dtype=field.dtype.newbyteorder("=").name,
                shape=(*field.shape, 1) if len(field.shape) == 2 else field.shape,
            )
            for name, field in self.roles().items()
        }

    def gather(self, index: NDArray[np.int64]) -> Rows:
        """All fields of ours of samples ``index`` (B,), JPEG files decoded by Pillow."""
        roles = self.roles()
        return {
            name: self.take(roles[name], index).reshape(len(index), *field.shape)
            for name, field in self.as_fields().items()
        }

    def labels(self) -> NDArray[np.int64]:
        """(N,) of all samples; KeyError where there are none."""
        return self.take(self.roles()["label"], np.arange(self.n))

    # ------------------------------------------------------------------------ reading
    def take(self, field: BetonField, index: NDArray[np.int64]) -> NDArray[Any]:
        """Samples ``index`` (B,) of a field, verified and copied: (B, *shape)."""
        if len(index) and not 0 <= index.min() <= index.max() < self.n:
            raise IndexError(f"samples {index.min()} to {index.max()} of {self.n}")
        self._check_size()
        if field.values is not None:
            return field.values[index].astype(field.dtype.newbyteorder("="))
        assert field.pointers is not None
        self.touch(field, index)
        places = field.pointers[index].astype(np.int64)
        if field.jpeg is not None:
            return self._decoded(field, index, places)
        rows = sliding_window_view(self.data, field.row_bytes)[places]  # (B, bytes), copied
        return rows.view(field.dtype).reshape(len(index), *field.shape)

    def _decoded(
        self, field: BetonField, index: NDArray[np.int64], places: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Images (B, H, W, 3), some or all of them from JPEG files."""
        assert field.jpeg is not None
        sizes, out = self.sizes(field), np.empty((len(index), *field.shape), dtype=np.uint8)
        for row, i, place in zip(out, index.tolist(), places.tolist(), strict=True):
            raw = self.data[place : place + int(sizes[i])]
            row[:] = self._jpeg(field, i, raw) if field.jpeg[i] else raw.reshape(field.shape)
        return out

    def _jpeg(self, field: BetonField, i: int, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(raw.tobytes()), formats=("JPEG",)) as image:
                if (image.height, image.width) == field.shape[:2]:
                    return np.asarray(image.convert("RGB"))
                reason = f"it is {image.height}x{image.width}, not as its field says"
        except (OSError, ValueError, SyntaxError) as error:
            reason = str(error)
        raise self._bad(
            f"is damaged: sample {i:,} of field {field.name!r} cannot be decoded ({reason}): "
            f"{AGAIN}"
        )

    def touch(self, field: BetonField, index: NDArray[np.int64]) -> None:
        """Verify the pages of samples ``index`` (B,) that have not been verified yet; UserError for
        a damaged one. Without a description nothing but the length of the file is."""
        self._check_size()
        if self._seen.all():
            return
        pages = np.unique(self.pages_of(field, index))
        for page in pages[~self._seen[pages]].tolist():
            if self.damaged(page):
                raise self._bad(
                    f"is damaged: {self.page_name(page)} has not its checksum: {AGAIN}, or leave "
                    "out what is damaged with --data.on-damage skip"
                )
            self._seen[page] = True

    def pages_of(self, field: BetonField, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """The pages (B,) that samples ``index`` (B,) lie in."""
        assert field.pointers is not None
        places = field.pointers[index].astype(np.int64)
        pages: NDArray[np.int64] = (places - self.first_page) // self.page_bytes
        return pages

    def damaged(self, page: int) -> bool:
        """Whether the bytes of a page are others than those described."""
        assert self.about is not None
        self._check_size()
        start = self.first_page + page * self.page_bytes
        part = self.data[start : min(start + self.page_bytes, self.table)]
        return zlib.crc32(part.data) != self.about.pages[page]

    def page_name(self, page: int) -> str:
        start = self.first_page + page * self.page_bytes
        return f"page {page:,} (from byte {start:,})"

    def sizes(self, field: BetonField) -> NDArray[np.uint64]:
        """Bytes of each sample (N,) by the allocation table, which FFCV believes: compared with
        the places of the samples, and with their size where that is known."""
        if field.name in self._sizes:
            return self._sizes[field.name]
        assert field.pointers is not None
        self._check_size()
        entries = self.data[self.table :].view(TABLE)
        order = np.argsort(entries["pointer"], kind="stable")
        known = entries["pointer"][order]
        at = np.minimum(np.searchsorted(known, field.pointers), max(len(known) - 1, 0))
        if not len(known) or (known[at] != field.pointers).any():
            raise self._bad(
                f"is damaged: samples of field {field.name!r} are not in its allocation table: "
                f"{AGAIN}"
            )
        sizes: NDArray[np.uint64] = entries["size"][order][at]
        wrong = sizes != field.row_bytes
        if (wrong if field.jpeg is None else wrong & ~field.jpeg).any():
            raise self._bad(
                f"is damaged: samples of field {field.name!r} have other sizes in its allocation "
                f"table: {AGAIN}"
            )
        self._sizes[field.name] = sizes
        return sizes

    def sha256(self) -> str:
        """Of the whole file."""
        self._check_size()
        return hashlib.sha256(self._mapped).hexdigest()

    def close(self) -> None:
        """Let go of the file; nothing may be read afterwards."""
        self.fields, self.n = {}, 0
        self.data = np.zeros(0, dtype=np.uint8)
        with contextlib.suppress(BufferError):  # an array of the caller's still looks at it
            self._mapped.close()


def _is_image(field: BetonField) -> bool:
    return field.dtype == np.uint8 and len(field.shape) in (2, 3)
