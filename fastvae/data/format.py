"""The shard format: valid WebDataset tars of packed arrays, and the manifest that describes them.

    DIR/manifest.json            counts, offsets, checksums, fields, classes, preprocessing
    DIR/train-000000.tar         members 000000.image.npy, 000000.key.npy, 000000.label.npy, ...
    DIR/train-000001.tar         (a pack is some hundred samples; numbers go on over the shards)

Every member is an uncompressed ``.npy`` of one field and one pack, whose values begin at a multiple
of 64 bytes: stock ``webdataset`` (``decode()``), ``tarfile`` + ``numpy.load`` and a memory map all
read them. Nothing in a shard depends on when, where, or by how many workers it was written. The
manifest is written last: a folder without one is not a data set.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvae.data import npy
from fastvae.errors import UserError
from fastvae.kernels.crc32 import crc32

FORMAT, VERSION = "fastvae shards", 1
MANIFEST = "manifest.json"
SPLITS = ("train", "val", "test")
BLOCK = 512  # bytes, of which tars are made
AGAIN = "make the shards again, or copy them again from where they came from"

Rows = dict[str, NDArray[Any]]
"""Field name -> (N, *shape): some samples."""

_TAR_REST = (b"0" + bytes(100) + b"ustar\x0000").ljust(BLOCK - 156, b"\0")  # a file of nobody
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.tar")
_FIELD = re.compile(r"[a-z][a-z0-9_]{0,31}")
_DTYPES = ("uint8", "int64", "uint64")
_FIELDS = {"image": "uint8", "condition": "uint8", "label": "int64", "key": "uint64"}


@dataclass(frozen=True, kw_only=True)
class Field:
    """What one field holds for each sample."""

    dtype: str
    """uint8, int64 or uint64; little-endian when stored."""
    shape: tuple[int, ...]
    """Of one sample; images are (H, W, C)."""
    bits: bool = False
    """Stored as ``numpy.packbits`` of the flattened image (the first pixel is the highest bit):
    pixels are 0 or 255."""

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES or any(size < 1 for size in self.shape):
            raise ValueError(f"impossible field: {self}")
        if self.bits and self.dtype != "uint8":
            raise ValueError(f"only uint8 can be packed bits: {self}")

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of one sample, as it is stored."""
        return (-(-math.prod(self.shape) // 8),) if self.bits else self.shape

    @property
    def stored_dtype(self) -> np.dtype:
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample, stored."""
        return math.prod(self.stored_shape) * self.stored_dtype.itemsize

    def to_stored(self, values: NDArray[Any]) -> NDArray[Any]:
        """(N, *shape) as it is stored: (N, *stored_shape), contiguous."""
        if values.shape[1:] != self.shape or values.dtype != np.dtype(self.dtype):
            raise ValueError(
                f"expected (N, {', '.join(map(str, self.shape))}) {self.dtype}, "
                f"got {values.shape} {values.dtype}"
            )
        if self.bits:
            return np.packbits(values.reshape(len(values), -1) >= 128, axis=1)
        return np.ascontiguousarray(values, self.stored_dtype)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar and the packs in it."""

    name: str
    bytes: int
    sha256: str
    first_pack: int
    """Number of its first pack within the split, in the names of members."""
    rows: tuple[int, ...]
    """Samples of each pack."""
    offset: Mapping[str, tuple[int, ...]]
    """By field, for each pack: where its ``.npy`` begins; the values begin 128 bytes later."""
    crc32: Mapping[str, tuple[int, ...]]
    """By field, for each pack: of the whole ``.npy``."""

    @property
    def count(self) -> int:
        """Samples."""
        return sum(self.rows)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of shards holds."""

    fields: Mapping[str, Field]
    splits: Mapping[str, tuple[Shard, ...]]
    classes: tuple[str, ...] = ()
    """Names of the labels, label 0 first; empty where there are none."""
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    """How the samples were made, for people and for the fingerprint."""
    bad: int = 0
    """Samples that could not be read and were left out."""

    def count(self, split: str) -> int:
        """Samples of a split; 0 where there is none."""
        return sum(shard.count for shard in self.splits.get(split, ()))

    def nbytes(self, split: str) -> int:
        """Bytes of the samples of a split, as they are stored."""
        return self.count(split) * sum(field.row_bytes for field in self.fields.values())

    def fingerprint(self, split: str) -> str:
        """Hash of a split's contents: equal for equal bytes in equal order."""
        digest = hashlib.blake2b(digest_size=16)
        for name, about in sorted(self.fields.items()):
            digest.update(f"{name}/{about.dtype}/{about.shape}/{about.bits}\n".encode())
        digest.update("\0".join(self.classes).encode())
        for shard in self.splits.get(split, ()):
            digest.update(f"\n{shard.count} {shard.sha256}".encode())
        return digest.hexdigest()


# ---------------------------------------------------------------------------------- writing
def rows_per_pack(fields: Mapping[str, Field]) -> int:
    """Samples of a pack: about 4 MiB, a power of two between 16 and 1024.

    A pack is what is verified at once, when it is first touched.
    """
    row = sum(about.row_bytes for about in fields.values())
    return 1 << min(10, max(4, ((4 << 20) // row).bit_length() - 1))


def write_shard(
    path: Path, fields: Mapping[str, Field], packs: Iterable[Rows], first_pack: int
) -> Shard:
    """Write one shard beside its place, flush it, and give it its name.

    Args:
        packs: rows of each pack, with all of ``fields``.
        first_pack: number of the first pack within its split.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    rows: list[int] = []
    offset: dict[str, list[int]] = {name: [] for name in fields}
    crc32: dict[str, list[int]] = {name: [] for name in fields}
    digest, at = hashlib.sha256(), 0
    try:
        with part.open("wb") as file:

            def put(*pieces: bytes | memoryview) -> None:
                nonlocal at
                for piece in pieces:
                    file.write(piece)
                    digest.update(piece)
                    at += len(piece)

            for number, pack in enumerate(packs, first_pack):
                if set(pack) != set(fields):
                    raise ValueError(f"a pack has {sorted(pack)}, expected {sorted(fields)}")
                counts = {len(values) for values in pack.values()}
                if len(counts) != 1:
                    raise ValueError(f"fields of a pack have different numbers of rows: {counts}")
                rows.append(counts.pop())
                for name in sorted(fields):
                    stored = fields[name].to_stored(pack[name])
                    head = npy.header(stored.dtype, stored.shape)
                    body = stored.data.cast("B") if stored.size else memoryview(b"")
                    size = len(head) + len(body)
                    put(tar_header(number, name, size))
                    offset[name].append(at)
                    crc32[name].append(zlib.crc32(body, zlib.crc32(head)))
                    put(head, body, bytes(-size % BLOCK))
            put(bytes(2 * BLOCK))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return Shard(
        name=path.name,
        bytes=at,
        sha256=digest.hexdigest(),
        first_pack=first_pack,
        rows=tuple(rows),
        offset={name: tuple(values) for name, values in offset.items()},
        crc32={name: tuple(values) for name, values in crc32.items()},
    )


def member_name(pack: int, field_name: str) -> str:
    """Name of a member: the part before the first dot is its WebDataset key."""
    return f"{pack:06d}.{field_name}.npy"


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:06d}.tar"


def tar_header(pack: int, field_name: str, size: int) -> bytes:
    """The ustar header of a member of ``size`` bytes; it says nothing of time, place or person.

    These are the bytes that ``tarfile`` writes, made in 2 us instead of 30: that of every pack is
    compared when it is first touched.
    """
    if size >= 8**11:
        raise ValueError(f"{size:,} bytes are too many for a member of a tar")
    name = member_name(pack, field_name).encode().ljust(100, b"\0")
    head = name + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"00000000000\0"
    total = sum(head) + 8 * ord(" ") + sum(_TAR_REST)
    return head + b"%06o\0 " % total + _TAR_REST


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` whole or not at all; the same manifest gives the same bytes."""
    head = {
        "format": FORMAT,
        "version": VERSION,
        "fields": {name: field_json(about) for name, about in sorted(manifest.fields.items())},
        "classes": list(manifest.classes),
        "preprocess": manifest.preprocess,
        "bad": manifest.bad,
        "counts": {name: manifest.count(name) for name in manifest.splits},
        "fingerprints": {name: manifest.fingerprint(name) for name in manifest.splits},
    }
    lines = json.dumps(head, indent=1, ensure_ascii=True)[:-2]
    parts = []
    for name, shards in manifest.splits.items():
        rows = ",\n".join(f"   {json.dumps(shard_json(shard))}" for shard in shards)
        parts.append(f"  {json.dumps(name)}: [\n{rows}\n  ]")
    text = f'{lines},\n "splits": {{\n' + ",\n".join(parts) + "\n }\n}\n"
    part = folder / f".{MANIFEST}.tmp"
    with part.open("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / MANIFEST)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder outlast a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def field_json(about: Field) -> dict[str, Any]:
    return {"dtype": about.dtype, "shape": list(about.shape), "bits": about.bits}


def shard_json(shard: Shard) -> dict[str, Any]:
    """A shard as JSON, the inverse of ``shard_from_json``."""
    return {
        "name": shard.name,
        "bytes": shard.bytes,
        "sha256": shard.sha256,
        "count": shard.count,
        "first_pack": shard.first_pack,
        "rows": list(shard.rows),
        "offset": {name: list(values) for name, values in sorted(shard.offset.items())},
        "crc32": {name: list(values) for name, values in sorted(shard.crc32.items())},
    }


# ---------------------------------------------------------------------------------- reading
def is_shards(folder: Path) -> bool:
    """Whether a folder is one of shards, by its manifest: one that cannot be read is taken for
    theirs, so that ``read_manifest`` says what is wrong with it."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            if FORMAT.encode() in file.read(200):
                return True
            file.seek(0)
            data = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, RecursionError):
        return True
    return isinstance(data, dict) and data.get("format") == FORMAT


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``manifest.json``; a UserError names what is wrong with it.

    Only the manifest is looked at, not the shards.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(_not_there(folder)) from None
    except NotADirectoryError:
        raise UserError(f"{folder} is a file: give the folder that holds {MANIFEST}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged (no JSON): {AGAIN}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"{path} does not describe shards (format {FORMAT!r})")
    if data.get("version") != VERSION:
        raise UserError(
            f"{path} is of version {data.get('version')!r}, this program reads {VERSION}: make the "
            "shards again with it"
        )
    try:
        return _manifest(data)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is damaged ({error!r}): {AGAIN}") from None


def _not_there(folder: Path) -> str:
    if not folder.exists():
        return f"no such folder: {folder}"
    if any(folder.glob("*.tar")):
        return (
            f"{folder} has tars but no {MANIFEST}: a job that was stopped (run the same command "
            "again and it goes on), or stock WebDataset tars (read them with --data.source "
            "webdataset, or `fastvae-data convert` them)"
        )
    return f"{folder} holds no shards (no {MANIFEST} in it): make some with fastvae-data"


def _manifest(data: dict[str, Any]) -> Manifest:
    for about in data["fields"].values():
        if type(about["bits"]) is not bool or any(type(n) is not int for n in about["shape"]):
            raise ValueError(f"a field is {about}")
    fields = {
        name: Field(dtype=about["dtype"], shape=tuple(about["shape"]), bits=about["bits"])
        for name, about in data["fields"].items()
    }
    for name, about in fields.items():
        expected = _FIELDS.get(name)
        if not _FIELD.fullmatch(name) or (expected is not None and about.dtype != expected):
            raise ValueError(f"field {name!r} of {about.dtype}")
        if name in ("image", "condition") and len(about.shape) != 3:
            raise ValueError(
                f"field {name!r} of shape {about.shape}, not (height, width, channels)"
            )
        if name in ("label", "key") and about.shape:
            raise ValueError(f"field {name!r} of shape {about.shape}")
    if "image" not in fields:
        raise ValueError("no field 'image'")
    if fields.get("condition", fields["image"]).shape != fields["image"].shape:
        raise ValueError("images and conditions of different shapes")
    splits = {
        name: tuple(shard_from_json(shard, fields) for shard in shards)
        for name, shards in data["splits"].items()
    }
    if not splits or not set(splits) <= set(SPLITS) or not all(splits.values()):
        raise ValueError(f"splits {sorted(splits)}, or one without shards")
    names = [shard.name for shards in splits.values() for shard in shards]
    if len(set(names)) != len(names):
        raise ValueError("a shard is named twice")
    classes = data["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("classes are no list of names")
    "".join(classes).encode()  # a lone surrogate is no text
    manifest = Manifest(
        fields=fields,
        splits=splits,
        classes=tuple(classes),
        preprocess=dict(data["preprocess"]),
        bad=int(data["bad"]),
    )
    for name in splits:
        if data["counts"][name] != manifest.count(name):
            raise ValueError(f"counts: {name} has {manifest.count(name)} samples")
        if data["fingerprints"][name] != manifest.fingerprint(name):
            raise ValueError(f"fingerprints: that of {name} is another")
    return manifest


def shard_from_json(data: Any, fields: Mapping[str, Field]) -> Shard:
    """A shard whose numbers belong together: every pack lies within the file."""
    shard = Shard(
        name=data["name"],
        bytes=data["bytes"],
        sha256=data["sha256"],
        first_pack=data["first_pack"],
        rows=tuple(data["rows"]),
        offset={name: tuple(data["offset"][name]) for name in fields},
        crc32={name: tuple(data["crc32"][name]) for name in fields},
    )
    numbers = [shard.bytes, shard.first_pack, *shard.rows]
    for name in fields:
        numbers += [*shard.offset[name], *shard.crc32[name]]
        if not len(shard.offset[name]) == len(shard.crc32[name]) == len(shard.rows):
            raise ValueError(f"{shard.name}: {name} has another number of packs")
    if any(type(number) is not int or not 0 <= number < 2**62 for number in numbers):
        raise ValueError(f"{shard.name}: a number is none")
    if data["count"] != shard.count:
        raise ValueError(f"{shard.name}: its count is another")
    if not shard.rows or shard.bytes < 2 * BLOCK:
        raise ValueError(f"{shard.name}: there is nothing in it")
    if not _NAME.fullmatch(shard.name) or not re.fullmatch("[0-9a-f]{64}", shard.sha256):
        raise ValueError(f"shard {shard.name!r}")
    for name, about in fields.items():
        for rows, at in zip(shard.rows, shard.offset[name], strict=True):
            if rows < 1 or at % 64 or at < BLOCK or at + member_bytes(about, rows) > shard.bytes:
                raise ValueError(f"{shard.name}: a pack of {name} lies outside the file")
    return shard


def member_bytes(about: Field, rows: int) -> int:
    """Bytes of the ``.npy`` of one pack."""
    return npy.HEADER_BYTES + rows * about.row_bytes


def check_member(
    data: NDArray[np.uint8], shard: Shard, fields: Mapping[str, Field], pack: int, name: str
) -> str:
    """Compare one member with what the manifest says of it; "" or what is wrong.

    Args:
        data: (bytes,) uint8, the whole shard.
        pack: number within the shard.
    """
    start = shard.offset[name][pack]
    size = member_bytes(fields[name], shard.rows[pack])
    member = member_name(shard.first_pack + pack, name)
    if data[start - BLOCK : start].tobytes() != tar_header(shard.first_pack + pack, name, size):
        return f"the tar header of {member}, at byte {start - BLOCK:,}, is another"
    if crc32(data[start : start + size]) != shard.crc32[name][pack]:
        return f"{member}, bytes {start:,} to {start + size:,}, does not have its checksum"
    return ""
