"""What a ``.beton`` file of FFCV (version 2) consists of, and the description we write beside it.

    header         version, fields, bytes of a page, samples, where the allocation table is
    descriptors    per field: type, name, arguments (dtype and shape of an array)
    metadata       per sample: numbers themselves, and where the bytes of arrays are
    pages          those bytes; a sample lies within one page
    table          per array: number of the sample, place, bytes

All of it is little-endian. FFCV has no checksums. What we write has ``<name>.beton.json`` beside
it: size, checksums (of the file, and of each page, which is what is verified at once), fields,
classes and preprocessing.
"""

from __future__ import annotations

import json
import math
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvae.data.format import Field, field_json
from fastvae.errors import UserError

FORMAT, VERSION = "fastvae beton", 1
FILE_VERSION = 2  # FFCV's
AGAIN = "write it again, or copy it again from where it came from"

FLOAT, INT, RGB, BYTES, ARRAY, JSON, TENSOR = range(7)  # FFCV's numbers of its types of fields
HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page", "<u4"), ("samples", "<u8"), ("table", "<u8")]
)
DESCRIPTOR = np.dtype([("type", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
TABLE = np.dtype([("sample", "<u8"), ("pointer", "<u8"), ("size", "<u8")])
_ARRAY = np.dtype([("shape", "<u8", 32), ("text", "<u8")])  # then so many bytes of text
_PIECE = np.dtype([("pointer", "<u8"), ("size", "<u8")])
METADATA = {
    FLOAT: np.dtype("<f8"),
    INT: np.dtype("<i8"),
    RGB: np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")]),
    BYTES: _PIECE,
    ARRAY: np.dtype("<u8"),
    JSON: _PIECE,
    TENSOR: np.dtype("<u8"),
}
_NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16)")
_LARGEST_DESCRIPTION = 64 << 20  # bytes: for some four million pages


def metadata_dtype(types: list[int]) -> np.dtype:
    """Of one sample, with fields f0, f1, ... of these types."""
    return np.dtype([("", METADATA[number]) for number in types], align=True)


# ---------------------------------------------------------------------------------- arrays
def array_arguments(dtype: np.dtype, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The arguments (1024,) of an array field."""
    text = json.dumps(dtype.descr).encode()
    head = np.zeros(1, dtype=_ARRAY)
    head["shape"][0, : len(shape)] = shape
    head["text"] = len(text)
    raw = head.tobytes() + text
    return np.frombuffer(raw.ljust(1024, b"\0"), dtype=np.uint8)


def parse_array_arguments(raw: NDArray[np.uint8]) -> tuple[np.dtype, tuple[int, ...]]:
    """dtype and shape of an array field; ValueError for what is no array of numbers."""
    size = _ARRAY.itemsize
    head = raw[:size].view(_ARRAY)[0]
    text = raw[size:][: min(int(head["text"]), len(raw) - size)].tobytes()
    shape = [int(x) for x in head["shape"]]
    while shape and shape[-1] == 0:
        shape.pop()
    try:
        ((_, letters),) = json.loads(text)
        if _NUMBERS.fullmatch(letters) and shape and 0 not in shape:
            return np.dtype(letters), tuple(shape)
    except (ValueError, TypeError, RecursionError):
        pass
    raise ValueError(f"dtype {text[:40]!r}, shape {tuple(shape)}")


# ---------------------------------------------------------------------------------- description
@dataclass(frozen=True, kw_only=True)
class Description:
    """What ``<name>.beton.json`` says."""

    size: int
    sha256: str
    count: int
    """Samples."""
    fields: dict[str, Field]
    """None of them with bits."""
    classes: tuple[str, ...]
    preprocess: dict[str, Any]
    ends: tuple[int, int]
    """CRC-32 of all before the pages, and of the table."""
    pages: tuple[int, ...]
    """CRC-32 of each page."""


def description_path(path: Path) -> Path:
    """Where the description of a file is."""
    return path.with_name(f"{path.name}.json")


def description_text(about: Description) -> str:
    """As it is written: a line for each thing."""
    data = {
        "format": FORMAT,
        "version": VERSION,
        "size": about.size,
        "sha256": about.sha256,
        "count": about.count,
        "fields": {name: field_json(field) for name, field in about.fields.items()},
        "classes": list(about.classes),
        "preprocess": about.preprocess,
        "ends": list(about.ends),
        "pages": list(about.pages),
    }
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in data.items())
    return f"{{\n{lines}\n}}\n"


def read_description(path: Path) -> Description | None:
    """The description beside the file ``path``, or None where there is none.

    Raises:
        UserError: it cannot be read.
    """
    where = description_path(path)
    try:
        about = where.stat()
        if not stat.S_ISREG(about.st_mode):
            raise UserError(f"{where} is no regular file: move it away")
        if about.st_size > _LARGEST_DESCRIPTION:
            raise UserError(f"{where} is too large to describe {path.name}: remove it")
        data = json.loads(where.read_bytes())
    except UserError:  # a ValueError, too
        raise
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {where}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{where} is damaged (no JSON): {AGAIN}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"{where} does not describe {path.name} (format {FORMAT!r}): move it away")
    if data.get("version") != VERSION:
        raise UserError(
            f"{where} is of version {data.get('version')!r}, this program reads {VERSION}: write "
            f"{path.name} again with it"
        )
    try:
        return _description(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where} is damaged ({error!r}): {AGAIN}") from None


def _description(data: dict[str, Any]) -> Description:
    fields = {
        name: Field(dtype=about["dtype"], shape=tuple(about["shape"]))
        for name, about in data["fields"].items()
    }
    numbers = [data["size"], data["count"], *data["ends"], *data["pages"]]
    for field in fields.values():
        numbers += field.shape
    if any(type(number) is not int or not 0 <= number < 2**62 for number in numbers):
        raise ValueError("a number is none")
    if len(data["ends"]) != 2 or not re.fullmatch("[0-9a-f]{64}", data["sha256"]):
        raise ValueError("checksums")
    if not all(isinstance(name, str) for name in data["classes"]):
        raise ValueError("classes are no list of names")
    return Description(
        size=data["size"],
        sha256=data["sha256"],
        count=data["count"],
        fields=fields,
        classes=tuple(data["classes"]),
        preprocess=dict(data["preprocess"]),
        ends=tuple(data["ends"]),
        pages=tuple(data["pages"]),
    )


def is_described(field: Field, dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    """Whether a field of a description is what the file holds under its name."""
    if not field.shape:
        return shape == () and dtype == METADATA[INT]
    return shape == field.shape and dtype == field.stored_dtype


# ---------------------------------------------------------------------------------- pages
SMALLEST_PAGE, LARGEST_PAGE = 1 << 21, 1 << 31  # bytes; FFCV's limits


def page_size(sample_bytes: int) -> int:
    """Bytes of a page: the least power of two that wastes at most a 16th with samples of
    ``sample_bytes``, or the largest one."""
    size = SMALLEST_PAGE
    while size < LARGEST_PAGE and size % max(sample_bytes, 1) > size // 16:
        size *= 2
    return size


def first_page(metadata_end: int, page: int) -> int:
    """Where the pages of ``page`` bytes begin."""
    return -(-metadata_end // page) * page


def row_bytes(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of one sample of an array."""
    return math.prod(shape) * dtype.itemsize
