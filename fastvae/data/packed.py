"""What data tools have packed: which form lies in a folder, and the source that reads it.

| form | in data.root | read by |
|---|---|---|
| shards | manifest.json, *.tar | resident (in memory) or mapped (from the disk) |
| beton | train.beton, val.beton, test.beton | beton (natively) or ffcv (by FFCV itself) |
| tars | train*.tar, val*.tar, test*.tar, or data.urls | webdataset (in order, window by window) |

A set without a test split is tested on its val split.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from fastvae import ops
from fastvae.config import Config, DataConfig
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


def open_packed(config: Config, how: str) -> dict[str, Source]:
    """The sources of the splits that are there, and of test in any case.

    Raises:
        UserError: names the file that is missing or damaged, or the option that does not fit.
    """
    sources = _OPENERS[how](config)
    for name, source in sources.items():
        if config.strokes.partial != "none" and not source.has_condition:
            raise UserError(
                f"strokes.partial = {config.strokes.partial!r}, but {config.data.root} holds whole "
                "images only: make it with `fastvae-data quickdraw --as images --partial "
                f"{config.strokes.partial}`, or train from strokes (--data.source files)"
            )
        if len(source) == 0:
            raise UserError(f"{config.data.root}: nothing is left of the {name} split")
    for name in ("train", "val"):
        if name not in sources:
            raise UserError(
                f"{config.data.root} has no {name} split: make it again, with a share for "
                "validation (--val)"
            )
    return sources if "test" in sources else {**sources, "test": sources["val"]}


def _shards(config: Config) -> dict[str, Source]:
    """In memory when all splits together are small, or when they fit on the GPU; else mapped."""
    manifest = read_manifest(Path(config.data.root))
    size = sum(manifest.nbytes(name) for name in manifest.splits)
    wanted = config.data.resident == "device" or size <= SMALL or size < _room_on_gpu(config)
    return _open_shards(config.data, manifest, resident=wanted and not _bits(manifest))


def _bits(manifest: Manifest) -> bool:
    """Packed bits stay packed: unpacked they take eight times the memory."""
    return manifest.fields["image"].bits


def _room_on_gpu(config: Config) -> float:
    """Bytes that data may take on the training device; 0 where that is the CPU."""
    if config.device == "cpu" or config.data.resident == "ram" or not torch.cuda.is_available():
        return 0.0
    return 0.6 * torch.cuda.mem_get_info()[0]


def _resident(config: Config) -> dict[str, Source]:
    return _open_shards(config.data, read_manifest(Path(config.data.root)), resident=True)


def _mapped(config: Config) -> dict[str, Source]:
    return _open_shards(config.data, read_manifest(Path(config.data.root)), resident=False)


def _open_shards(data: DataConfig, manifest: Manifest, *, resident: bool) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for name in manifest.splits:
        reader = ShardReader(Path(data.root), name, on_damage=data.on_damage, manifest=manifest)
        sources[name] = ResidentSource.from_shards(reader) if resident else MappedSource(reader)
    return sources


def _beton(config: Config) -> dict[str, Source]:
    from fastvae.data.sources.beton import BetonSource

    paths = _files(config.data, "{}.beton")
    return {
        name: BetonSource(path, on_damage=config.data.on_damage) for name, (path,) in paths.items()
    }


def _ffcv(config: Config) -> dict[str, Source]:
    from fastvae.data.sources.ffcv import FFCVSource

    paths = _files(config.data, "{}.beton")
    return {
        name: FFCVSource(path, on_damage=config.data.on_damage) for name, (path,) in paths.items()
    }


def _webdataset(config: Config) -> dict[str, Source]:
    from fastvae.data.sources.stream import StreamSource

    data = config.data
    if data.urls:
        urls = {name: [url] for name, url in zip(SPLITS, data.urls, strict=False)}
    else:
        urls = {n: [str(p) for p in paths] for n, paths in _files(data, "{}*.tar").items()}
    return {
        name: StreamSource(
            parts,
            window=data.window,
            seed=ops.derive_seed(config.seed, "window"),
            channels=config.model.image_shape[0],
            allow_pipe=data.allow_pipe,
            on_damage=data.on_damage,
        )
        for name, parts in urls.items()
    }


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


_OPENERS: dict[str, Callable[[Config], dict[str, Source]]] = {
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
