"""Samples of stock WebDataset tars, decoded into rows of arrays.

| member | what is made of it |
|---|---|
| png jpg jpeg webp | the image as stock decoding gives it: no alpha, not turned by EXIF; 8 bits |
| npy | the image: uint8 (H, W) or (H, W, C) |
| condition.png and so on | the condition |
| cls, cls.txt, json {"label": 3} | the label, in this order of preference |
| json {"key": "16 hexadecimal digits"} | the identity; without it, a hash of the image's bytes |
| image.npy (N, H, W, C), label.npy, ... | N samples at once, the fields of our shards |
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastvae.data.format import Rows
from fastvae.data.sample_tar import BadTar, Group, npy_header
from fastvae.errors import UserError

_FORMATS = ("PNG", "JPEG", "WEBP")  # that Pillow may look for, whatever the extension
_HEX = re.compile("[0-9a-f]{16}")
_ALIKE = "make them alike with `fastvae-data images`, or with `fastvae-data convert`"


class Unlike(UserError):
    """A sample is sound, and not like the others of its set. The message names tar and sample."""


class Layout(NamedTuple):
    """What all samples of a set have in common."""

    shape: tuple[int, int, int]
    """(H, W, C) of images, and of conditions."""
    labelled: bool
    conditioned: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of the images of one sample."""
        height, width, channels = self.shape
        return height * width * channels * (2 if self.conditioned else 1)

    def allocate(self, count: int, *, keys: bool = False) -> Rows:
        """Room for samples: "image" (N, H, W, C) uint8, "condition" and "label" (N,) int64 where
        there are any, and "key" (N,) uint64 if asked for."""
        rows: Rows = {"image": np.empty((count, *self.shape), dtype=np.uint8)}
        if self.conditioned:
            rows["condition"] = np.empty((count, *self.shape), dtype=np.uint8)
        if self.labelled:
            rows["label"] = np.empty(count, dtype=np.int64)
        if keys:
            rows["key"] = np.empty(count, dtype=np.uint64)
        return rows


def layout_of(group: Group, name: str, channels: int | None = None) -> Layout:
    """The layout of a set, by its first sample.

    Args:
        name: of the tar, for errors.
        channels: 1 or 3; None: as many as the sample has.
    """
    if group.image == "image.npy":
        shape, _, _ = npy_header(group.data["image.npy"], f"{name}: {group.key}.image.npy")
        labelled, conditioned = "label.npy" in group.data, "condition.npy" in group.data
        height, width, depth = shape[1:]
    else:
        height, width, depth = _decoded(group, group.image, name, channels).shape
        labelled = label_of(group, name) is not None
        conditioned = bool(condition_of(group))
    if min(height, width) < 1 or depth not in (1, 3) or channels not in (None, depth):
        raise Unlike(
            f"{name}: sample {group.key} is {height}x{width} of {depth} channels, expected "
            f"{'1 or 3' if channels is None else channels}: {_ALIKE}"
        )
    return Layout((height, width, depth), labelled, conditioned)


class SampleRows:
    """Samples of one tar, decoded in order.

    Args:
        groups: those from the one with sample ``start`` on.
        name: of the tar, for errors.
        start: number of the first sample that is taken.
    """

    def __init__(self, groups: Iterator[Group], name: str, layout: Layout, start: int = 0) -> None:
        self.name = name
        self.layout = layout
        self._groups = groups
        self._group: Group | None = None  # of which some rows are left
        self._at = start

    def take(self, rows: Rows, at: int, count: int) -> int:
        """Decode the next ``count`` samples into ``rows`` from row ``at`` on.

        Returns:
            How many there were; fewer at the end of the tar.

        Raises:
            BadTar: a sample cannot be decoded.
            Unlike: it is not like the others.
        """
        stop = at + count
        while at < stop:
            group = self._group = self._group or next(self._groups, None)
            if group is None:
                break
            skip = self._at - group.first
            n = min(stop - at, group.rows - skip)
            if group.image == "image.npy":
                self._unpack(group, rows, at, skip, n)
            else:
                self._decode(group, rows, at)
            at += n
            self._at += n
            if self._at == group.first + group.rows:
                self._group = None
        return count - (stop - at)

    def at_end(self) -> bool:
        """Whether there are no more samples; BadTar where the tar does not end as it should."""
        self._group = self._group or next(self._groups, None)
        return self._group is None

    @property
    def where(self) -> str:
        """What is being read, for errors."""
        return f"{self.name}, sample {self._group.key}" if self._group else self.name

    def _decode(self, group: Group, rows: Rows, at: int) -> None:
        layout, name = self.layout, self.name
        rows["image"][at] = self._fitting(group, group.image)
        given = condition_of(group)
        self._check(group, "condition", bool(given), layout.conditioned)
        if given:
            rows["condition"][at] = self._fitting(group, given)
        label = label_of(group, name)
        self._check(group, "label", label is not None, layout.labelled)
        if label is not None:
            rows["label"][at] = label
        if "key" in rows:
            rows["key"][at] = _identity(group, name)

    def _unpack(self, group: Group, rows: Rows, at: int, skip: int, n: int) -> None:
        """Copy rows ``skip .. skip + n`` of a pack."""
        self._check(group, "condition", "condition.npy" in group.data, self.layout.conditioned)
        self._check(group, "label", "label.npy" in group.data, self.layout.labelled)
        for name, out in rows.items():
            if name == "key" and "key.npy" not in group.data:
                out[at : at + n] = [_hash(row.tobytes()) for row in rows["image"][at : at + n]]
                continue
            values = _array(group, f"{name}.npy", self.name)
            expected = (group.rows, *out.shape[1:])
            kinds = "u" if out.dtype == np.uint8 else "iu"
            if values.shape != expected or values.dtype.kind not in kinds:
                raise Unlike(
                    f"{self.name}: {group.key}.{name}.npy is {values.dtype} {values.shape}, "
                    f"expected {out.dtype} {expected}: {_ALIKE}"
                )
            out[at : at + n] = values[skip : skip + n]

    def _fitting(self, group: Group, kind: str) -> NDArray[np.uint8]:
        """An image of the sample, of the shape that all have."""
        shape = self.layout.shape
        pixels = _decoded(group, kind, self.name, shape[2], shape)
        if pixels.shape != shape:
            own, others = ("x".join(map(str, x)) for x in (pixels.shape, shape))
            raise Unlike(
                f"{self.name}: {group.key}.{kind} is {own}, the first of the set {others}: {_ALIKE}"
            )
        return pixels

    def _check(self, group: Group, what: str, has: bool, expected: bool) -> None:
        if has != expected:
            raise Unlike(
                f"{self.name}: sample {group.key} has {'a' if has else 'no'} {what}, unlike the "
                "first of the set"
            )


# ---------------------------------------------------------------------------------- one member
def condition_of(group: Group) -> str:
    """Extension of the condition of a sample, or ""."""
    return next((kind for kind in group.data if kind.startswith("condition.")), "")


def _decoded(
    group: Group,
    kind: str,
    name: str,
    channels: int | None,
    expected: tuple[int, int, int] | None = None,
) -> NDArray[np.uint8]:
    """An image as (H, W, C); where the size is not the ``expected`` one, its pixels are not made.

    Args:
        channels: 1 or 3; None: as many as it has.
    """
    data = group.data[kind]
    if kind.endswith("npy"):
        pixels = _array(group, kind, name)
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
            raise BadTar(
                f"{name}: {group.key}.{kind} is {pixels.dtype} {pixels.shape}, not uint8 (H, W) or "
                "(H, W, C)",
                "make the tar again",
            )
        return pixels.reshape(*pixels.shape, 1) if pixels.ndim == 2 else pixels
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if expected is not None and image.size != (expected[1], expected[0]):
                return np.empty((image.height, image.width, expected[2]), dtype=np.uint8)
            return _pixels(image, channels)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever comes to them
        reason = (str(error).splitlines() or [""])[0].partition(" <_io")[0]
        raise BadTar(
            f"{name}: {group.key}.{kind} cannot be decoded ({type(error).__name__}: {reason})"
        ) from None


def _pixels(image: Image.Image, channels: int | None) -> NDArray[np.uint8]:
    """(H, W, C) of an opened image."""
    grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
    depth = channels or (1 if grey else 3)
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
        pixels = (np.asarray(image) >> 8).astype(np.uint8)[:, :, None]
        return np.broadcast_to(pixels, (*pixels.shape[:2], depth))
    mode = "L" if depth == 1 else "RGB"
    converted = image if image.mode == mode else image.convert(mode)
    raw = converted.tobytes()  # cheaper for small images than numpy's own way
    return np.frombuffer(raw, np.uint8).reshape(image.height, image.width, depth)


def _array(group: Group, kind: str, name: str) -> NDArray[Any]:
    """The values of a .npy, not copied."""
    data, what = group.data[kind], f"{name}: {group.key}.{kind}"
    shape, dtype, start = npy_header(data, what)
    if len(data) != start + math.prod(shape) * dtype.itemsize:
        raise BadTar(f"{what} has {len(data):,} bytes, which {dtype} {shape} has not")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def label_of(group: Group, name: str) -> int | None:
    for kind in ("cls", "cls.txt"):
        if kind in group.data:
            text = group.data[kind].strip()
            if not re.fullmatch(rb"-?[0-9]{1,18}", text):
                raise BadTar(
                    f"{name}: {group.key}.{kind} is {text[:20]!r}, not a number",
                    "make the tar again",
                )
            return int(text)
    label = _about(group, name).get("label")
    return label if type(label) is int and abs(label) < 1 << 63 else None


def _identity(group: Group, name: str) -> int:
    key = _about(group, name).get("key")
    if isinstance(key, str) and _HEX.fullmatch(key):
        return int(key, 16)
    return _hash(group.data[group.image])


def _about(group: Group, name: str) -> dict[str, Any]:
    """The json member; empty where there is none."""
    if "json" not in group.data:
        return {}
    try:
        about = json.loads(group.data["json"])
    except (ValueError, RecursionError):
        raise BadTar(f"{name}: {group.key}.json is no JSON") from None
    return about if isinstance(about, dict) else {}


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
