"""``fastvae-data images``: photos in folders and zips to shards of one size.

sources --image_files--> files, keys --image_layouts--> splits --decode, in processes--> shards
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import ImageColor, features

from fastvae.data.format import Field, Rows, rows_per_pack
from fastvae.data_tools.arguments import at_least, share_or_none
from fastvae.data_tools.decode import FITS, RESAMPLE, ImageRecipe, Undecodable, decode
from fastvae.data_tools.image_files import content_keys, full_name, ignored_words, list_images, read
from fastvae.data_tools.image_layouts import LAYOUTS, Arranged, ImageFile, arrange, describe, divide
from fastvae.data_tools.shard_job import (
    BadSample,
    BuildOptions,
    Recipe,
    add_build_arguments,
    build,
    build_options,
    check_target,
    default_out,
    report,
)
from fastvae.errors import UserError

LARGEST_PACK = 1 << 30  # bytes; a pack is made, verified and loaded as one
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
DEFAULTS: dict[str, Any] = {
    "size": (64, 64),
    "fit": "crop",
    "crop": None,
    "pad": False,
    "channels": 3,
    "resample": "bilinear",
}
COCO: dict[str, Any] = {"crop": 375}
"""What is different for a set in COCO's layout."""
SYSTEMS: dict[str, dict[str, Any]] = {
    "coco64": {"size": (64, 64), "crop": 375},
    "faces128": {"size": (128, 128), "fit": "letterbox"},
    "faces512": {"size": (512, 512), "fit": "letterbox"},
}
"""``--for``: what the systems of that name train on."""


# ---------------------------------------------------------------------------------- arguments
def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Decode photos, bring them to one size and pack them as shards, ready for training. "
        "Without options: the largest\ncentred square of each as 64x64 RGB (COCO: its centre of "
        "375 pixels), in SOURCE-shards."
    )
    parser.epilog = (
        "examples:\n"
        "  fastvae-data images data/coco          (train2017.zip, val2017.zip, ... or folders)\n"
        "  fastvae-data images photos.zip more/photos --size 128\n"
        "  fastvae-data images data/faces --for faces512 --out data/faces512\n"
        "  fastvae-data images data/food --layout classes --crop 375 --pad"
    )
    add_source_arguments(parser, LAYOUTS)
    group = parser.add_argument_group("what becomes of an image")
    group.add_argument(
        "--for",
        dest="system",
        choices=SYSTEMS,
        help="options as this system needs them: "
        + "; ".join(f"{name} ({_words(about)})" for name, about in SYSTEMS.items())
        + "; other options have precedence",
    )
    group.add_argument(
        "--size",
        type=at_least(1),
        nargs="+",
        metavar="N",
        help="height and width, or one number for both (default: 64)",
    )
    group.add_argument(
        "--crop",
        type=_pixels,
        metavar="N|none",
        help="cut a centred square of N pixels out of each image first (default: none; COCO: 375)",
    )
    group.add_argument(
        "--pad",
        action=argparse.BooleanOptionalAction,
        help="with --crop, pad images that have a shorter side with black, instead of taking "
        "their largest square (default: no)",
    )
    group.add_argument(
        "--fit",
        choices=FITS,
        help="what happens to an image of other proportions than --size: cut to its centre, whole "
        "between bars, or distorted (default: crop)",
    )
    group.add_argument("--channels", type=int, choices=(1, 3), help="1: grey; 3: RGB (default)")
    group.add_argument(
        "--resample", choices=RESAMPLE, help="filter, antialiased (default: bilinear)"
    )
    group.add_argument(
        "--background",
        type=colour,
        metavar="COLOUR",
        help="behind transparent pixels and of bars: a name, or rrggbb (default: white; with "
        "--fit letterbox: black)",
    )
    group.add_argument("--no-labels", action="store_true", help="leave the classes out")
    add_build_arguments(parser)


def add_source_arguments(parser: argparse.ArgumentParser, layouts: Sequence[str]) -> None:
    """Declare the arguments that say where images are and what they are for."""
    parser.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="SOURCE",
        help="folder or .zip of images; sub-folders, and zips in a folder, are looked into",
    )
    parser.add_argument(
        "--layout",
        choices=layouts,
        default="auto",
        help="what the folders mean (default: auto, which says what it takes them for)",
    )
    parser.add_argument(
        "--keep-duplicates", action="store_true", help="keep files of the same content"
    )
    for name, use in (("--val", "validation"), ("--test", "testing")):
        parser.add_argument(
            name,
            type=share_or_none,
            default=0.05,
            metavar="SHARE",
            help=f"of the images, for {use}, by a hash of each, where folders do not say (0.05)",
        )


def _words(about: dict[str, Any]) -> str:
    high, wide = about["size"]
    return ", ".join([f"{high}x{wide}", *(f"{k} {v}" for k, v in about.items() if k != "size")])


def _pixels(text: str) -> int:
    """A number of pixels; 0 for "none"."""
    return 0 if text.lower() == "none" else at_least(1)(text)


def colour(text: str) -> tuple[int, int, int]:
    """A colour by name or as rrggbb."""
    for word in (text, f"#{text}"):
        try:
            red, green, blue = ImageColor.getrgb(word)[:3]
        except ValueError:
            continue
        return red, green, blue
    raise argparse.ArgumentTypeError(f"{text!r}: expected a colour such as white, or rrggbb")


# ---------------------------------------------------------------------------------- the job
def run(args: argparse.Namespace) -> int:
    """Pack the images and say what came of them."""
    options = build_options(args, default_out(args.sources[0].expanduser()))
    recipe = image_recipe(args, coco=True)  # whose shape no layout changes
    fields = image_fields((*recipe.size, recipe.channels))
    found, arranged, splits = gather(args, options, labels=not args.no_labels)
    recipe = image_recipe(args, coco=arranged.layout == "coco")
    if arranged.classes:
        fields["label"] = Field(dtype="int64", shape=())
    preprocess = {"tool": "images", **asdict(recipe), **found}
    make = ImageMaker(recipe=recipe, labels=bool(arranged.classes), decoder=decoder())
    print(f"each becomes: {_recipe_words(recipe)}")
    built = build(
        options.out,
        splits,
        Recipe(
            fields=fields, make=make, preprocess=preprocess, classes=arranged.classes, slow=True
        ),
        options,
    )
    report(built, options.out, args.system or "coco64")
    return 0


def gather(
    args: argparse.Namespace, options: BuildOptions, *, labels: bool
) -> tuple[dict[str, Any], Arranged, dict[str, list[ImageFile]]]:
    """Find the images that ``add_source_arguments`` asks for, and say what was found.

    Returns:
        What the manifest tells of it, how folders were read, and the images by split.
    """
    if args.val + args.test >= 1.0:
        raise UserError(f"--val {args.val} --test {args.test}: nothing is left to train on")
    check_target(options.out, overwrite=options.overwrite)
    listing = list_images([source.expanduser() for source in args.sources])
    arranged = arrange(listing, args.layout, labels=labels)
    print(describe(listing, arranged, args.layout) + ignored_words(listing.ignored), flush=True)
    keys = content_keys(listing.entries, args.workers)
    images = divide(
        listing,
        arranged,
        keys,
        val=args.val,
        test=args.test,
        keep_duplicates=args.keep_duplicates,
    )
    for note in images.notes:
        print(note, flush=True)
    about = {
        "layout": arranged.layout,
        "val": args.val,
        "test": args.test,
        "duplicates": "kept" if args.keep_duplicates else "left out",
        "decoder": decoder(),
    }
    return about, arranged, images.splits


def image_recipe(args: argparse.Namespace, *, coco: bool) -> ImageRecipe:
    """Defaults, then what COCO's layout or ``--for`` says, then what other options say."""
    chosen = DEFAULTS | (SYSTEMS[args.system] if args.system else COCO if coco else {})
    for name in ("fit", "pad", "channels", "resample"):
        if getattr(args, name) is not None:
            chosen[name] = getattr(args, name)
    if args.size is not None:
        chosen["size"] = height_width(args.size, "--size")
    if args.crop is not None:
        chosen["crop"] = args.crop or None
    if args.pad and chosen["crop"] is None:
        raise UserError("--pad is for --crop N; whole images are padded with --fit letterbox")
    chosen["background"] = BLACK if chosen["fit"] == "letterbox" else WHITE
    if args.background is not None:
        chosen["background"] = args.background
    return ImageRecipe(**chosen)


def height_width(numbers: Sequence[int], option: str) -> tuple[int, int]:
    """One number for both, or two."""
    if len(numbers) > 2:
        raise UserError(f"{option} takes one number, or height and width; got {len(numbers)}")
    return numbers[0], numbers[-1]


def image_fields(shape: tuple[int, ...]) -> dict[str, Field]:
    """Fields of images (H, W, C) without labels.

    Raises:
        UserError: they are too large to be packed.
    """
    fields = {"image": Field(dtype="uint8", shape=shape), "key": Field(dtype="uint64", shape=())}
    rows = rows_per_pack(fields)
    if (size := rows * fields["image"].row_bytes) > LARGEST_PACK:
        raise UserError(
            f"images of {'x'.join(map(str, shape))} are too large: {rows} of them, which are "
            f"loaded at once, take {size / 1e9:.1f} GB; give a smaller size"
        )
    return fields


def decoder() -> str:
    """What decodes: another version may give other pixels."""
    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    return f"Pillow {PIL.__version__}, libjpeg {jpeg}"


def _recipe_words(recipe: ImageRecipe) -> str:
    """The recipe for people."""
    high, wide = recipe.size
    words = [f"{high}x{wide} {'RGB' if recipe.channels == 3 else 'grey'}"]
    if recipe.crop is not None:
        short = "padded with black" if recipe.pad else "their largest square"
        words.append(f"of its centre of {recipe.crop} pixels (smaller images: {short})")
    elif recipe.fit == "crop":
        words.append("of its largest centred part of these proportions")
    if recipe.fit != "crop":
        words.append({"letterbox": "whole, between bars", "stretch": "distorted"}[recipe.fit])
    return ", ".join([" ".join(words[:2]), *words[2:], recipe.resample])


@dataclass(frozen=True, kw_only=True)
class ImageMaker:
    """Rows of image files: a pure function of their bytes."""

    recipe: ImageRecipe
    labels: bool
    decoder: str
    """Another version of Pillow makes another task."""

    def __call__(self, samples: Sequence[ImageFile]) -> tuple[Rows, list[BadSample]]:
        made, good, bad = decode_all(
            samples, (*self.recipe.size, self.recipe.channels), self._decode
        )
        rows: Rows = {"image": made, "key": np.array([s.key for s in good], np.uint64)}
        if self.labels:
            rows["label"] = np.array([sample.label for sample in good], np.int64)
        return rows, bad

    def _decode(self, sample: ImageFile) -> NDArray[np.uint8]:
        return decode(read(sample.path, sample.member), self.recipe)


class _File(Protocol):
    @property
    def path(self) -> str: ...
    @property
    def member(self) -> str: ...


Sample = TypeVar("Sample", bound=_File)


def no_memory(sample: _File) -> UserError:
    """The error for an image that other work left no memory for."""
    return UserError(
        f"{full_name(sample.path, sample.member)}: not enough memory to decode it; run the same "
        "command again with fewer --workers to go on"
    )


def decode_all(
    samples: Sequence[Sample],
    shape: tuple[int, ...],
    decode_one: Callable[[Sample], NDArray[np.uint8]],
) -> tuple[NDArray[np.uint8], list[Sample], list[BadSample]]:
    """Images (N, *shape) of the samples that can be decoded, these, and the others."""
    images = np.empty((len(samples), *shape), np.uint8)
    good: list[Sample] = []
    bad = []
    for sample in samples:
        try:
            images[len(good)] = decode_one(sample)
        except Undecodable as error:
            bad.append(BadSample(full_name(sample.path, sample.member), str(error)))
        except MemoryError:
            raise no_memory(sample) from None
        else:
            good.append(sample)
    return images[: len(good)], good, bad
