"""Samples for tests of .beton files, and a writer of FFCV's RGB fields."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastvae.data import beton_layout as layout
from fastvae.data.beton import BetonWriter
from fastvae.data.format import Field, Rows

FIELDS = {
    "image": Field(dtype="uint8", shape=(9, 7, 3)),
    "condition": Field(dtype="uint8", shape=(9, 7, 3)),
    "label": Field(dtype="int64", shape=()),
    "key": Field(dtype="uint64", shape=()),
}


def samples(n: int, fields: dict[str, Field] | None = None, seed: int = 0) -> Rows:
    """Random values of all fields; images of fields with bits are 0 and 255."""
    random, rows = np.random.default_rng(seed), {}
    for name, field in (fields or FIELDS).items():
        most = {"uint8": 256, "int64": 2**62, "uint64": 2**64}[field.dtype]
        rows[name] = random.integers(0, most, (n, *field.shape), dtype=field.dtype)
        if field.bits:
            rows[name] = np.where(rows[name] > 127, np.uint8(255), np.uint8(0))
    if "label" in rows:
        rows["label"] %= 10
    return rows


def write(path: Path, rows: Rows, fields: dict[str, Field] | None = None, step: int = 100) -> Path:
    """Write samples natively, ``step`` at a time."""
    n = len(rows["image"])
    with BetonWriter(path, fields or FIELDS, n, classes=("a", "b"), preprocess={"x": 1}) as writer:
        for start in range(0, n, step):
            writer.append({name: values[start : start + step] for name, values in rows.items()})
    return path


def without_description(path: Path) -> Path:
    """As FFCV writes files: with nothing beside them."""
    layout.description_path(path).unlink()
    return path


def jpeg(image: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, format="JPEG", quality=90)
    return out.getvalue()


def write_rgb(path: Path, images: list[NDArray[np.uint8]], modes: list[int]) -> Path:
    """A file with an RGB field "image" and an Int field "label", laid out as FFCV does: mode 0 is
    JPEG, 1 raw."""
    parts = [
        image.tobytes() if mode else jpeg(image) for image, mode in zip(images, modes, strict=True)
    ]
    n, page = len(images), layout.SMALLEST_PAGE
    metadata = np.zeros(n, dtype=layout.metadata_dtype([layout.RGB, layout.INT]))
    described = np.zeros(2, dtype=layout.DESCRIPTOR)
    for row, (kind, name) in zip(
        described, [(layout.RGB, b"image"), (layout.INT, b"label")], strict=True
    ):
        row["type"] = kind
        row["name"][: len(name)] = list(name)
    sizes = np.array([len(part) for part in parts])
    places = page + np.cumsum(sizes) - sizes
    metadata["f0"]["mode"] = modes
    metadata["f0"]["height"] = [len(image) for image in images]
    metadata["f0"]["width"] = [image.shape[1] for image in images]
    metadata["f0"]["pointer"] = places
    metadata["f1"] = np.arange(n)
    table = np.zeros(n, dtype=layout.TABLE)
    table["sample"], table["pointer"], table["size"] = np.arange(n), places, sizes
    head = np.zeros(1, dtype=layout.HEADER)
    head[0] = (2, 2, page, n, page + sizes.sum())
    front = head.tobytes() + described.tobytes() + metadata.tobytes()
    path.write_bytes(front.ljust(page, b"\0") + b"".join(parts) + table.tobytes())
    return path
