"""Bytes of an image file to an array of one size: decoded once, here, and never while training.

    bytes -> upright (EXIF) -> crop -> grey or RGB -> resize, antialiased -> (H, W, C) uint8

A JPEG that is far larger than the result is decoded at 1/2, 1/4 or 1/8 of its scale, never below
twice the size of the result; everything else is done in full.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

FITS = ("crop", "letterbox", "stretch")
RESAMPLE = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
# Not those that run other programs (EPS), and not those that are no photos.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_JPEG = ("JPEG", "MPO")  # the second: with more images behind the first, from phones
ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Undecodable(Exception):
    """An image cannot be read; the message is the reason in a few words."""


@dataclass(frozen=True, kw_only=True)
class ImageRecipe:
    """What becomes of an image."""

    size: tuple[int, int]
    """(H, W) of the result."""
    fit: str = "crop"
    """How an image of other proportions gets into ``size``: cut to its centre (crop), whole with
    bars (letterbox), or distorted (stretch)."""
    crop: int | None = None
    """Side of the centre square that is cut out of the upright image beforehand, in its pixels."""
    pad: bool = False
    """What ``crop`` does with an image that has a shorter side: it pads it with black, as
    torchvision's CenterCrop does, instead of taking the largest square that there is."""
    channels: int = 3
    """1 (grey) or 3 (RGB)."""
    resample: str = "bilinear"
    """The filter, a key of ``RESAMPLE``; its support grows with the scale (antialiasing)."""
    background: tuple[int, int, int] = (255, 255, 255)
    """RGB behind transparent pixels and of letterbox bars."""

    def __post_init__(self) -> None:
        numbers = (*self.size, 1 if self.crop is None else self.crop)
        if (
            min(numbers) < 1
            or self.fit not in FITS
            or self.channels not in (1, 3)
            or self.resample not in RESAMPLE
            or not all(0 <= value <= 255 for value in self.background)
        ):
            raise ValueError(f"impossible recipe: {self}")


class _Box(NamedTuple):
    """A rectangle of pixels, ends left out; may reach beyond an image (padding)."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def size(self) -> tuple[float, float]:
        """(width, height)."""
        return self.right - self.left, self.bottom - self.top


def decode(data: bytes, recipe: ImageRecipe) -> NDArray[np.uint8]:
    """The image in ``data`` (a whole file), made as the recipe says.

    Shapes: returns (H, W, C) uint8, C = ``recipe.channels``.

    Raises:
        Undecodable: it is no image, damaged, or too large.
    """
    with _careful():
        image, orientation = _open(data)
        upright = image.size[::-1] if orientation >= 5 else image.size
        region = _region(upright, recipe)
        inner = _inner(region, recipe)
        scale = _reduce(image, region, upright, inner)
        box = _turn_box(region, upright, orientation)  # in the pixels of the file
        image.load()
        if scale == 1:
            whole = _inside(box, image.size)
            # Padding is black in grey and RGB only, so it comes last where there is some.
            image = image if whole else _plain(image, recipe.channels, recipe.background)
            image = image.crop(_outward(box))
            image = _plain(image, recipe.channels, recipe.background)
            image = _turn(image, orientation).resize(inner, RESAMPLE[recipe.resample])
        else:
            box = _Box(*(edge / scale for edge in box))
            cut = _outward(box)
            image = _plain(image.crop(cut), recipe.channels, recipe.background)
            rest = _Box(box[0] - cut[0], box[1] - cut[1], box[2] - cut[0], box[3] - cut[1])
            rest = _turn_box(rest, image.size, {6: 8, 8: 6}.get(orientation, orientation))
            image = _turn(image, orientation)
            image = image.resize(inner, RESAMPLE[recipe.resample], rest)
        return _array(_on_bars(image, recipe))


def decode_whole(data: bytes, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """The whole image in ``data``, upright, at its own size, grey ("L") or RGB.

    Raises:
        Undecodable: it is no image, damaged, or too large.
    """
    with _careful():
        image, orientation = _open(data)
        image.load()
        return _turn(_plain(image, channels, background), orientation)


@contextmanager
def _careful() -> Iterator[None]:
    """Without warnings, and with Undecodable for whatever Pillow raises; too little memory is no
    fault of the image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (Undecodable, MemoryError):
        raise
    # Damaged files make Pillow's readers raise almost anything: struct.error, IndexError, ...
    except Exception as error:
        raise Undecodable(_reason(error)) from None


def _reason(error: Exception) -> str:
    """Why an image cannot be read: the same words for the same bytes."""
    text = " ".join(str(error).split())
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a kind that can be read"
    if isinstance(error, Image.DecompressionBombError):
        return "more pixels than an image should have"
    if "truncated" in text.lower():
        return "truncated"
    text = re.sub(r"0x[0-9a-f]{6,}", "...", text)[:80]
    return f"damaged ({type(error).__name__}{': ' if text else ''}{text})"


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this Pillow can read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open(data: bytes) -> tuple[Image.Image, int]:
    """An image of at most 8 bits, and its EXIF orientation, 1 (upright) to 8.

    JPEGs are not decoded yet: their scale is to be chosen.
    """
    if not data:
        raise Undecodable("empty file")
    image: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
    if image.format not in _JPEG:
        image.load()  # which turns a TIFF upright and drops its tag
    orientation = image.getexif().get(ORIENTATION, 1)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    return image, orientation if orientation in _TURNS else 1


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _turn_box(box: _Box, upright: tuple[int, int], orientation: int) -> _Box:
    """Where a box of the upright image (of that size) lies in the image as it is stored."""
    left, top, right, bottom = box
    wide, high = upright
    if orientation >= 5:  # stored lying on its side
        left, top, right, bottom, wide, high = top, left, bottom, right, high, wide
    if orientation in (2, 3, 7, 8):
        left, right = wide - right, wide - left
    if orientation in (3, 4, 6, 7):
        top, bottom = high - bottom, high - top
    return _Box(left, top, right, bottom)


def _region(size: tuple[int, int], recipe: ImageRecipe) -> _Box:
    """What is used of an upright image of ``size`` (width, height), in whole pixels."""
    wide, high = size
    if recipe.crop is not None:
        wide = high = recipe.crop if recipe.pad else min(*size, recipe.crop)
    if recipe.fit == "crop":
        height, width = recipe.size
        if wide * height > high * width:
            wide = max(1, round(high * width / height))
        else:
            high = max(1, round(wide * height / width))
    left, top = _centred(size[0], wide), _centred(size[1], high)
    return _Box(left, top, left + wide, top + high)


def _centred(size: int, part: int) -> int:
    """Where a centred part begins, rounded as torchvision does; below zero where it is larger."""
    return round((size - part) / 2) if part <= size else -((part - size) // 2)


def _inner(region: _Box, recipe: ImageRecipe) -> tuple[int, int]:
    """(width, height) of the resized region within the result."""
    height, width = recipe.size
    if recipe.fit != "letterbox":
        return width, height
    wide, high = region.size
    scale = min(width / wide, height / high)
    return max(1, min(width, round(wide * scale))), max(1, min(height, round(high * scale)))


def _reduce(
    image: Image.Image, region: _Box, upright: tuple[int, int], inner: tuple[int, int]
) -> int:
    """Let a JPEG be decoded at a fraction of its size; 1, 2, 4 or 8: the fraction's denominator."""
    if image.format not in _JPEG or not _inside(region, upright):
        return 1
    wide, high = image.size
    times = min(region.size[0] / inner[0], region.size[1] / inner[1]) / 2
    for scale in (8, 4, 2):
        if scale <= times:
            image.draft("", (wide // scale, high // scale))
            break
    return round(wide / image.size[0])


def _inside(box: _Box, size: tuple[int, int]) -> bool:
    return box.left >= 0 and box.top >= 0 and box.right <= size[0] and box.bottom <= size[1]


def _outward(box: _Box) -> tuple[int, int, int, int]:
    """The whole pixels that a box touches."""
    left, top, right, bottom = box
    return int(left // 1), int(top // 1), int(-(-right // 1)), int(-(-bottom // 1))


def _plain(image: Image.Image, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """As grey ("L") or RGB, transparent pixels over the background."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        behind = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, or floats from 0 to 1, as 8 bits: scaled and rounded."""
    values = np.asarray(image)
    if image.mode == "F":
        if not (values.min() >= 0.0 and values.max() <= 1.0):
            raise Undecodable("floats outside 0 to 1: their range is not known")
        return Image.fromarray((values * np.float32(255) + np.float32(0.5)).astype(np.uint8))
    if image.mode == "I" and image.format == "TIFF":
        raise Undecodable("32-bit integers: their range is not known")
    return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))


def _on_bars(image: Image.Image, recipe: ImageRecipe) -> Image.Image:
    """A letterboxed image between its bars; others as they are."""
    height, width = recipe.size
    if image.size == (width, height):
        return image
    bars = Image.new("RGB", (width, height), recipe.background).convert(image.mode)
    bars.paste(image, ((width - image.size[0]) // 2, (height - image.size[1]) // 2))
    return bars


def _array(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W, C) uint8."""
    values = np.asarray(image)
    return values.reshape(*values.shape[:2], -1)
