"""What data tools have packed: which form lies in a folder, and the source that reads it.

| form | in data.root | read by |
|---|---|---|
| shards | manifest.json, *.tar | resident (in memory) or mapped (from the disk) |
| beton | train.beton, val.beton, test.beton | beton (natively) or ffcv (by FFCV itself) |
| tars | train*.tar, val*.tar, test*.tar, or data.urls | webdataset (in order, window by window) |

A set without a test split is tested on its val split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fastvae import ops
from fastvae.config import Config, DataConfig, StrokesConfig
from fastvae.data.format import SPLITS, Manifest, is_shards, read_manifest
from fastvae.data.shards import ShardReader
from fastvae.data.sources import Source
from fastvae.data.sources.mapped import MappedSource
from fastvae.data.sources.resident import ResidentSource
from fastvae.errors import UserError

SMALL = 64 << 20  # bytes of all splits: read into memory at once, on any machine


def choose(data: DataConfig, *, needs_no_files: bool) -> str:
    """How the images are read: "files", or a value of ``data.source`` other than "auto"."""
    if data.urls and data.source not in ("auto", "webdataset"):
        raise UserError(f"data.urls is for data.source webdataset, not for {data.source}")
    if data.source != "auto" or data.urls:
        return "webdataset" if data.urls else data.source
    root = Path(data.root)
    if needs_no_files or not root.is_dir():
        return "files"
    if is_shards(root):
        return "shards"
    if (root / "train.beton").is_file():
        return "beton"
    return "webdataset" if any(root.glob("train*.tar")) else "files"


def open_packed(config: Config, how: str, only: str | None = None) -> dict[str, Source]:
    """The sources of the splits that are there, and of test in any case.

    Args:
        how: a value of ``data.source``.
        only: the one split that is wanted; no other is opened.

    Raises:
        UserError: names the file that is missing or damaged, or the option that does not fit.
    """
    there = _splits(config, how)
    for name in ("train", "val"):
        if name not in there:
            raise UserError(
                f"{config.data.root} has no {name} split: make it again, with a share for "
                "validation (--val)"
            )
    place = {name: name if name in there else "val" for name in SPLITS}
    wanted = SPLITS if only is None else (only,)
    opened = {name: _OPENERS[how](config, name) for name in dict.fromkeys(place[w] for w in wanted)}
    for name, source in opened.items():
        _check_view(config, source)
        if len(source) == 0:
            raise UserError(f"{config.data.root}: nothing is left of the {name} split")
    return {name: opened[place[name]] for name in wanted}


def _splits(config: Config, how: str) -> list[str]:
    """The splits that there are."""
    data = config.data
    if data.resident == "device" and how not in ("shards", "resident"):
        raise UserError(
            f"data.resident = 'device' is for what lies in memory, not for data.source {how}: use "
            "--data.source resident"
        )
    if how in _SHARDS:
        return list(_manifest(config).splits)
    if how == "webdataset" and data.urls:
        return list(SPLITS[: len(data.urls)])
    return list(_files(data, _PATTERN[how]))


def _check_view(config: Config, source: Source) -> None:
    """Raise UserError for options about strokes that packed images cannot follow."""
    strokes, root = config.strokes, config.data.root
    for name in ("categories", "rotate", "scale", "shear", "shift"):
        if getattr(strokes, name) != getattr(StrokesConfig(), name):
            raise UserError(
                f"strokes.{name} is for strokes, but {root} holds images: drop it, or train from "
                "packed strokes (--data.source files)"
            )
    if strokes.partial != "none" and not source.has_condition:
        raise UserError(
            f"strokes.partial = {strokes.partial!r}, but {root} holds whole images only: make it "
            f"with `fastvae-data quickdraw --as images --partial {strokes.partial}`, or train from "
            "strokes (--data.source files)"
        )
    made: Mapping[str, Any] = source.preprocess
    made = made.get("source", made)  # of what was converted
    for name in ("raster", "line_width", "padding", "partial", "shown"):
        wanted, stored = getattr(strokes, name), made.get(name)
        stored = tuple(stored) if isinstance(stored, list) else stored
        if wanted != getattr(StrokesConfig(), name) and stored is not None and stored != wanted:
            raise UserError(
                f"strokes.{name} = {wanted!r}, but the images of {root} were made with {stored!r}: "
                "make them again, or train from packed strokes (--data.source files)"
            )


# ---------------------------------------------------------------------------------- shards
def _manifest(config: Config) -> Manifest:
    return read_manifest(Path(config.data.root))


def _shards(config: Config, split: str) -> Source:
    """In memory when all splits together are small, when they fit on the GPU, or when asked for;
    else mapped. Packed bits stay packed: unpacked they take eight times the memory."""
    manifest, where = _manifest(config), config.data.resident
    size = sum(manifest.nbytes(name) for name in manifest.splits)
    if size < _room_on_gpu(config):
        return _resident(config, split)
    small = size <= SMALL and not manifest.fields["image"].bits
    return _resident(config, split) if small or where != "auto" else _mapped(config, split)


def _room_on_gpu(config: Config) -> float:
    """Bytes that data may take on the training device; 0 where that is the CPU."""
    if config.device == "cpu" or config.data.resident == "ram" or not torch.cuda.is_available():
        return 0.0
    return 0.6 * torch.cuda.mem_get_info()[0]


def _resident(config: Config, split: str) -> Source:
    """Read to where it will stay: a set as large as a GPU's memory may not fit into this one's."""
    reader = _reader(config, split)
    on_gpu = config.data.resident == "device" or _room_on_gpu(config) > reader.manifest.nbytes(
        split
    )
    cuda = on_gpu and config.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    return ResidentSource.from_shards(reader, device)


def _mapped(config: Config, split: str) -> Source:
    return MappedSource(_reader(config, split))


def _reader(config: Config, split: str) -> ShardReader:
    return ShardReader(
        Path(config.data.root),
        split,
        on_damage=config.data.on_damage,
        leave_out=("condition",) if config.strokes.partial == "none" else (),
    )


# ---------------------------------------------------------------------------------- other forms
def _beton(config: Config, split: str) -> Source:
    from fastvae.data.sources.beton import BetonSource

    (path,) = _files(config.data, _PATTERN["beton"])[split]
    return BetonSource(path, on_damage=config.data.on_damage)


def _ffcv(config: Config, split: str) -> Source:
    from fastvae.data.sources.ffcv import FFCVSource

    (path,) = _files(config.data, _PATTERN["ffcv"])[split]
    return FFCVSource(path, on_damage=config.data.on_damage)


def _webdataset(config: Config, split: str) -> Source:
    from fastvae.data.sources.stream import StreamSource

    data = config.data
    if data.urls:
        urls = [data.urls[SPLITS.index(split)]]
    else:
        urls = [str(path) for path in _files(data, _PATTERN["webdataset"])[split]]
    return StreamSource(
        urls,
        window=data.window,
        seed=ops.derive_seed(config.seed, "window"),
        channels=config.model.image_shape[0],
        allow_pipe=data.allow_pipe,
        on_damage=data.on_damage,
    )


def _files(data: DataConfig, pattern: str) -> dict[str, list[Path]]:
    """Files by split, of those splits that have any."""
    root = Path(data.root)
    found = {name: sorted(root.glob(pattern.format(name))) for name in SPLITS}
    if not found["train"]:
        raise UserError(
            f"{root} holds no {pattern.format('train')}: make it with `fastvae-data convert`, or "
            "give the folder with --data.root"
        )
    return {name: paths for name, paths in found.items() if paths}


_SHARDS = ("shards", "resident", "mapped")
_PATTERN = {"beton": "{}.beton", "ffcv": "{}.beton", "webdataset": "{}*.tar"}
_OPENERS: dict[str, Callable[[Config, str], Source]] = {
    "shards": _shards,
    "resident": _resident,
    "mapped": _mapped,
    "beton": _beton,
    "ffcv": _ffcv,
    "webdataset": _webdataset,
}


def describe(source: Source) -> str:
    """How a source is read, in a few words."""
    words = f"{source.about}, {source.nbytes / 1e6:,.1f} MB"
    if source.device.type != "cpu":
        words += f" on {source.device}"
    return words + (f", {source.lost:,} samples in quarantine" if source.lost else "")
