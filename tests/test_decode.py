"""Decoding against a reference that does every step in full: decode, turn, convert, cut, resize."""

from __future__ import annotations

import functools
import io
import os
import pickle
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from fastvae.data_tools.decode import (
    FITS,
    RESAMPLE,
    ImageRecipe,
    Undecodable,
    decode,
    decode_whole,
)

REPO = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FASTVAE_SHARED_DATA") or REPO.parent / "shared" / "data")
Pixels = NDArray[np.uint8]


@functools.cache
def photo(wide: int, high: int, seed: int = 0) -> Pixels:
    """Something like a photo (H, W, 3): slopes, edges and some noise, unlike its mirror images."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:high, :wide] / max(wide, high)
    image = np.stack([255 * x, 255 * y, 128 + 90 * np.sin(9 * x + 5 * y)], axis=-1)
    image[(x - 0.3) ** 2 + (y - 0.2) ** 2 < 0.02] = (250, 20, 30)
    image[high // 2 :, : wide // 4] = (10, 60, 200)
    image += rng.normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def file(image: Image.Image | Pixels, kind: str = "PNG", orientation: int = 1, **how: Any) -> bytes:
    """The image as a file, with an EXIF orientation."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    if orientation != 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        how["exif"] = exif.tobytes()
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()


def reference(data: bytes, recipe: ImageRecipe) -> Pixels:
    """What ``decode`` must give, the long way."""
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        turned = ImageOps.exif_transpose(opened)
        pixels = np.asarray(turned.convert("L" if recipe.channels == 1 else "RGB"))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width = recipe.size
    if recipe.crop is not None and recipe.pad:
        pixels = torchvision_centre_crop(pixels, recipe.crop)
    elif recipe.crop is not None:
        side = min(recipe.crop, *pixels.shape[:2])
        pixels = torchvision_centre_crop(pixels, side)
    high, wide = pixels.shape[:2]
    inner = (width, height)
    if recipe.fit == "crop":
        part = (high, max(1, round(high * width / height)))
        if part[1] > wide:
            part = (max(1, round(wide * height / width)), wide)
        top, left = round((high - part[0]) / 2), round((wide - part[1]) / 2)
        pixels = pixels[top : top + part[0], left : left + part[1]]
    elif recipe.fit == "letterbox":
        scale = min(width / wide, height / high)
        inner = (max(1, round(wide * scale)), max(1, round(high * scale)))
    small = Image.fromarray(pixels.squeeze(-1) if recipe.channels == 1 else pixels)
    small = small.resize(inner, RESAMPLE[recipe.resample])
    back = Image.new("RGB", (width, height), recipe.background).convert(small.mode)
    back.paste(small, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return np.asarray(back).reshape(height, width, recipe.channels)


def torchvision_centre_crop(pixels: Pixels, side: int) -> Pixels:
    """torchvision's CenterCrop, by its rules: zeros around what is too small, then the centre."""
    high, wide = pixels.shape[:2]
    if side > wide or side > high:
        left, top = max(0, (side - wide) // 2), max(0, (side - high) // 2)
        right, bottom = max(0, (side - wide + 1) // 2), max(0, (side - high + 1) // 2)
        pixels = np.pad(pixels, ((top, bottom), (left, right), (0, 0)))
        high, wide = pixels.shape[:2]
    top, left = round((high - side) / 2.0), round((wide - side) / 2.0)
    return pixels[top : top + side, left : left + side]


@pytest.fixture
def drafts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The scales, 2 to 8, at which JPEGs were decoded: as many as were asked to be reduced."""
    scales: list[float] = []
    original = JpegImageFile.draft

    def noted(image: JpegImageFile, mode: str, size: tuple[int, int]) -> Any:
        before = image.size
        result = original(image, mode, size)
        scales.append(before[0] / image.size[0])
        return result

    monkeypatch.setattr(JpegImageFile, "draft", noted)
    return scales


# ---------------------------------------------------------------------------------- geometry
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("shape", [(97, 61), (60, 131), (64, 64), (3, 200), (1, 1)])
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(48, 48), (40, 50)])
def test_equals_the_reference(
    kind: str, shape: tuple[int, int], fit: str, size: tuple[int, int], drafts: list[float]
) -> None:
    data = file(photo(*shape), kind)
    for channels, resample in ((3, "bilinear"), (1, "bicubic"), (3, "lanczos"), (3, "box")):
        recipe = ImageRecipe(size=size, fit=fit, channels=channels, resample=resample)
        made = decode(data, recipe)
        assert made.shape == (*size, channels)
        assert made.dtype == np.uint8
        assert np.array_equal(made, reference(data, recipe)), (channels, resample)
    assert not drafts, "reduced, but not more than twice as large as the result"


@pytest.mark.parametrize("shape", [(41, 90), (90, 41), (41, 40), (375, 33), (90, 91), (100, 81)])
@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_crop_and_padding_are_torchvisions(shape: tuple[int, int], pad: bool, kind: str) -> None:
    data = file(photo(*shape), kind)
    for crop in (40, 57, 75):
        recipe = ImageRecipe(size=(40, 40), crop=crop, pad=pad)
        assert np.array_equal(decode(data, recipe), reference(data, recipe)), crop


def test_reduced_scale_is_not_used_with_padding(drafts: list[float]) -> None:
    data = file(photo(400, 90), "JPEG")
    recipe = ImageRecipe(size=(16, 16), crop=120, pad=True)
    assert np.array_equal(decode(data, recipe), reference(data, recipe))
    assert not drafts


def test_padding_is_black_in_every_mode() -> None:
    grey = photo(20, 10).mean(-1).astype(np.uint8)
    palette = Image.fromarray(photo(20, 10)).quantize(16)
    palette.putpalette([200] * 3 + palette.getpalette()[3:48])  # type: ignore[index]
    clear = Image.new("RGBA", (20, 10), (255, 0, 0, 0))
    recipe = ImageRecipe(size=(20, 20), crop=20, pad=True)
    for image in (Image.fromarray(grey), palette, clear, Image.new("1", (20, 10), 1)):
        made = decode(file(image), recipe)
        assert (made[:5] == 0).all()
        assert (made[15:] == 0).all()
        assert (made[5:15] > 0).any()


def test_letterbox_has_bars_of_the_background() -> None:
    recipe = ImageRecipe(size=(30, 60), fit="letterbox", background=(9, 8, 7))
    made = decode(file(photo(40, 80)), recipe)
    assert (made[:, :22] == (9, 8, 7)).all()
    assert (made[:, 38:] == (9, 8, 7)).all()
    assert (made[:, 23:37] != (9, 8, 7)).any(axis=(0, 2)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "how"),
    [("JPEG", {"quality": 95}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})],
)
def test_every_orientation(orientation: int, kind: str, how: dict[str, Any]) -> None:
    data = file(photo(150, 91), kind, orientation, **how)
    for recipe in (
        ImageRecipe(size=(60, 60)),
        ImageRecipe(size=(45, 80), fit="letterbox"),
        ImageRecipe(size=(70, 40), fit="crop"),
        ImageRecipe(size=(64, 64), crop=83),
        ImageRecipe(size=(64, 64), crop=111, pad=True),
    ):
        assert np.array_equal(decode(data, recipe), reference(data, recipe)), recipe
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        whole = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(np.asarray(decode_whole(data, 3, (0, 0, 0))), whole)


# ---------------------------------------------------------------------------------- reduced scale
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("wide", "high", "scale"), [(640, 427, 2), (333, 501, 2), (1201, 799, 4), (2050, 1300, 8)]
)
def test_reduced_jpegs_are_close(
    wide: int, high: int, scale: int, orientation: int, drafts: list[float]
) -> None:
    """A reduced scale averages blocks of pixels before the filter does: less than a level on the
    mean, and no shift (which would show along the edges)."""
    data = file(photo(wide, high), "JPEG", orientation, quality=95)
    short = min(wide, high)
    side = short // (2 * scale)
    for recipe in (
        ImageRecipe(size=(side, side), crop=short - 1),
        ImageRecipe(size=(side, side), fit="letterbox"),
        ImageRecipe(size=(side - 3, side), fit="crop"),
        ImageRecipe(size=(side, side - 1), fit="stretch", channels=1),
    ):
        error = np.abs(decode(data, recipe).astype(int) - reference(data, recipe))
        assert error.mean() < 1.0
        assert np.percentile(error, 99.5) <= 8
    assert len(drafts) >= 3
    assert max(drafts) == pytest.approx(scale, rel=0.01)


def test_never_below_twice_the_size(drafts: list[float]) -> None:
    data = file(photo(512, 512), "JPEG")
    for side, scale in ((129, None), (128, 2), (65, 2), (64, 4), (33, 4), (32, 8), (8, 8)):
        drafts.clear()
        decode(data, ImageRecipe(size=(side, side)))
        assert drafts == ([] if scale is None else [scale])


def test_real_photos_are_close() -> None:
    folder = SHARED / "photos" / "coco_free"
    if not folder.is_dir():
        pytest.skip("no shared data here (FASTVAE_SHARED_DATA)")
    recipe = ImageRecipe(size=(64, 64), crop=375)
    for path in sorted(folder.glob("*.jpg")):
        data = path.read_bytes()
        error = np.abs(decode(data, recipe).astype(int) - reference(data, recipe))
        assert error.mean() < 1.5, path.name
        assert error.max() <= 24, path.name


# ---------------------------------------------------------------------------------- colours
def test_grey_becomes_three_equal_channels_and_back() -> None:
    grey = photo(40, 40).mean(-1).astype(np.uint8)
    made = decode(file(grey), ImageRecipe(size=(40, 40)))
    assert np.array_equal(made, np.repeat(grey[..., None], 3, axis=-1))
    one = decode(file(grey), ImageRecipe(size=(40, 40), channels=1))
    assert np.array_equal(one[..., 0], grey)


def test_palette_bits_cmyk_and_others_are_converted() -> None:
    colours = Image.fromarray(photo(40, 40))
    recipes = [ImageRecipe(size=(40, 40), channels=channels) for channels in (1, 3)]
    for image, kind in (
        (colours.quantize(64), "PNG"),
        (colours.quantize(64), "GIF"),
        (colours.convert("1"), "PNG"),
        (colours.convert("1"), "TIFF"),
        (colours.convert("CMYK"), "JPEG"),
        (colours.convert("CMYK"), "TIFF"),
        (colours.convert("YCbCr"), "JPEG"),
        (colours.convert("LAB"), "TIFF"),
        (colours, "BMP"),
        (colours, "PPM"),
        (colours, "WEBP"),
    ):
        data = file(image, kind)
        for recipe in recipes if image.mode != "LAB" else recipes[1:]:
            assert np.array_equal(decode(data, recipe), reference(data, recipe)), (image.mode, kind)


def test_cmyk_is_not_inverted() -> None:
    red = Image.new("RGB", (32, 32), (200, 30, 40))
    made = decode(file(red.convert("CMYK"), "JPEG", quality=100), ImageRecipe(size=(32, 32)))
    assert np.abs(made.astype(int) - (200, 30, 40)).max() < 12


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 90)])
def test_transparency_is_seen_against_the_background(background: tuple[int, int, int]) -> None:
    rgb = photo(40, 40)
    alpha = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (40, 1))
    recipe = ImageRecipe(size=(40, 40), background=background)

    def mixed(colours: Pixels) -> NDArray[np.float64]:
        share = alpha[..., None] / 255
        mix: NDArray[np.float64] = colours * share + np.array(background) * (1 - share)
        return mix

    rgba = np.concatenate([rgb, alpha[..., None]], axis=-1)
    for kind in ("PNG", "WEBP", "TIFF"):
        how = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        made = decode(file(rgba, kind, **how), recipe)
        assert np.abs(made - mixed(rgb)).max() <= 1, kind
    grey = rgb[..., :1]
    la = Image.fromarray(np.concatenate([grey, alpha[..., None]], axis=-1), "LA")
    assert np.abs(decode(file(la), recipe) - mixed(grey)).max() <= 1


def test_transparent_entries_of_palettes_and_key_colours() -> None:
    palette = Image.new("P", (16, 16))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.paste(1, (8, 0, 16, 16))
    recipe = ImageRecipe(size=(16, 16), background=(1, 2, 3))
    for kind, transparency in (("PNG", 1), ("PNG", bytes([255, 0])), ("GIF", 1)):
        made = decode(file(palette, kind, transparency=transparency), recipe)
        assert (made[:, 8:] == (1, 2, 3)).all(), (kind, transparency)
        assert (made[:, :8] == (255, 0, 0)).all()
    rgb = np.zeros((16, 16, 3), np.uint8)
    rgb[:, 8:] = (7, 7, 7)
    made = decode(file(rgb, transparency=(7, 7, 7)), recipe)
    assert (made[:, 8:] == (1, 2, 3)).all()
    assert (made[:, :8] == 0).all()
    grey = decode(file(rgb[..., 0], transparency=7), recipe)
    assert (grey[:, 8:] == (1, 2, 3)).all()


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    expected = np.round(values / 257.0)
    recipe = ImageRecipe(size=(64, 64), channels=1)
    for kind in ("PNG", "TIFF", "PPM"):
        made = decode(file(Image.fromarray(values), kind), recipe)
        assert np.abs(made[..., 0] - expected).max() <= 0.5, kind


def _png(wide: int, high: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG from its filtered rows."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body))
            + name
            + body
            + struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))
        )

    head = struct.pack(">IIBBBBB", wide, high, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_sixteen_bit_colours() -> None:
    pixel = struct.pack(">HHH", 65535, 32768, 257)
    data = _png(4, 4, 16, 2, (b"\0" + pixel * 4) * 4)
    made = decode(data, ImageRecipe(size=(4, 4)))
    assert np.abs(made.astype(int) - (255, 128, 1)).max() <= 1


def test_floats_and_wide_integers() -> None:
    recipe = ImageRecipe(size=(8, 8), channels=1)
    floats = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    made = decode(file(Image.fromarray(floats), "TIFF"), recipe)
    assert np.abs(made[..., 0] - floats * 255).max() <= 0.51
    for values, reason in (
        (floats * 300, "floats outside 0 to 1"),
        (np.where(floats > 0.5, np.float32(np.nan), floats), "floats outside 0 to 1"),
        ((floats * 1e6).astype(np.int32), "32-bit integers"),
    ):
        with pytest.raises(Undecodable, match=reason):
            decode(file(Image.fromarray(values), "TIFF"), recipe)


def test_first_image_of_an_animation() -> None:
    frames = [Image.fromarray(photo(32, 32, seed)).quantize(128) for seed in range(3)]
    frames[1] = frames[1].transpose(Image.Transpose.ROTATE_90)
    recipe = ImageRecipe(size=(32, 32))
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        rgb = [frame.convert("RGB") for frame in frames]
        images = frames if kind == "GIF" else rgb
        how = {"lossless": True} if kind == "WEBP" else {}
        data = file(images[0], kind, save_all=True, append_images=images[1:], **how)
        made = decode(data, recipe)
        assert np.abs(made.astype(int) - np.asarray(rgb[0])).max() <= 1, kind


def test_phones_put_further_images_behind_a_jpeg() -> None:
    first, second = (Image.fromarray(photo(200, 150, seed)) for seed in (0, 1))
    data = file(first, "MPO", 6, save_all=True, append_images=[second.rotate(90)])
    recipe = ImageRecipe(size=(120, 120))
    assert np.array_equal(decode(data, recipe), reference(data, recipe))
    reduced = ImageRecipe(size=(30, 30))
    assert np.abs(decode(data, reduced).astype(int) - reference(data, reduced)).mean() < 1


# ---------------------------------------------------------------------------------- bad files
JPEG = file(photo(120, 90), "JPEG")
RECIPE = ImageRecipe(size=(64, 64))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"\0" * 5000, "not an image"),
        (b"<html><body>404 Not Found</body></html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[:200], "not an image|damaged|truncated"),
        (file(photo(120, 90), "PNG")[:5000], "truncated"),
        (file(photo(120, 90), "WEBP")[:900], "damaged|not an image|truncated"),
        (file(photo(120, 90), "TIFF")[:9000], "damaged|truncated|not an image"),
        (_png(60000, 60000, 8, 2, b"\0"), "more pixels"),
        (_png(10, 10, 8, 2, b""), "truncated|damaged"),
    ],
)
def test_bad_files_have_a_short_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Undecodable, match=reason) as caught:
        decode(data, RECIPE)
    message = str(caught.value)
    assert len(message) < 140
    assert "0x" not in message
    assert "\n" not in message
    with pytest.raises(Undecodable):
        decode_whole(data, 3, (0, 0, 0))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_flipped_bytes_are_an_image_or_a_reason(kind: str) -> None:
    rng = np.random.default_rng(7)
    whole = np.frombuffer(file(photo(60, 40), kind, 6 if kind == "JPEG" else 1), np.uint8)
    for _ in range(120):
        data = whole.copy()
        place = rng.integers(
            0, min(len(data), rng.choice([60, 400, len(data)])), rng.integers(1, 6)
        )
        data[place] = rng.integers(0, 256, len(place))
        try:
            made = decode(data.tobytes()[: rng.integers(len(data) // 2, len(data) + 1)], RECIPE)
        except Undecodable as error:
            assert str(error)  # noqa: PT017
        else:
            assert made.shape == (64, 64, 3)


def test_warnings_do_not_leak(capfd: pytest.CaptureFixture[str]) -> None:
    large = Image.new("L", (9600, 9600))  # Pillow warns at 89 million pixels
    palette = Image.fromarray(photo(40, 40)).quantize(8)
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"  # a directory that is cut off
    files = [
        file(large),
        file(palette, transparency=bytes(range(8))),
        file(photo(60, 40), "JPEG", exif=exif),
        file(photo(60, 40), "TIFF", compression="tiff_lzw")[:-40],
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for data in files[:3]:
            decode(data, RECIPE)
        with pytest.raises(Undecodable):
            decode(files[3], RECIPE)
    assert not caught
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------------------- recipes
def test_recipes_are_checked_and_travel() -> None:
    recipe = ImageRecipe(size=(5, 6), crop=7, background=(1, 2, 3))
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert hash(recipe)
    for wrong in (
        {"size": (0, 4)},
        {"size": (4, 4), "crop": 0},
        {"size": (4, 4), "fit": "cut"},
        {"size": (4, 4), "channels": 4},
        {"size": (4, 4), "resample": "nearest"},
        {"size": (4, 4), "background": (0, 0, 256)},
    ):
        with pytest.raises(ValueError, match="impossible recipe"):
            ImageRecipe(**wrong)  # type: ignore[arg-type]


def test_too_little_memory_is_not_the_fault_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise MemoryError

    data = file(photo(8, 8))
    monkeypatch.setattr(Image, "open", none_left)
    with pytest.raises(MemoryError):
        decode(data, ImageRecipe(size=(4, 4)))
