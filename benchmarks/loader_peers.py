"""Ways to read batches of small images, ours and those of others: for the benchmarks of loaders,
and for the test that each of them gives every sample.

All of them give 256 samples at a time, images as uint8 and labels as int64, in an order that
differs from epoch to epoch; what does not fill a batch is left out.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvae.data.beton_writer import BetonWriter
from fastvae.data.format import (
    Field,
    Manifest,
    Rows,
    rows_per_pack,
    shard_name,
    write_manifest,
    write_shard,
)
from fastvae.data.plan import Plan
from fastvae.data.shards import ShardReader
from fastvae.data.sources import Source
from fastvae.data.sources.mapped import MappedSource

BATCH = 256
SHARD_BYTES = 64 << 20

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Array = Tensor | NDArray[Any]
Epoch = Callable[[int], Iterator[tuple[Array, Array]]]
"""The batches (images, labels) of an epoch, by its number."""


# -------------------------------------------------------------------------------- on the disk
def write_shards(folder: Path, images: Images, labels: Labels) -> Path:
    """Our shards, of about 64 MiB; images (N, H, W, C)."""
    folder.mkdir()
    rows: Rows = {"image": images, "label": labels, "key": np.arange(len(images), dtype=np.uint64)}
    fields = _fields(rows)
    pack = rows_per_pack(fields)
    size = sum(field.row_bytes for field in fields.values())
    packs_per_shard = max(1, SHARD_BYTES // (pack * size))
    starts = range(0, len(images), pack * packs_per_shard)
    shards = []
    for number, start in enumerate(starts):
        end = min(len(images), start + pack * packs_per_shard)
        packs = [_part(rows, at, min(end, at + pack)) for at in range(start, end, pack)]
        path = folder / shard_name("train", number)
        shards.append(write_shard(path, fields, packs, number * packs_per_shard))
    write_manifest(folder, Manifest(fields=fields, splits={"train": tuple(shards)}))
    return folder


def write_beton(path: Path, images: Images, labels: Labels) -> Path:
    """A file of FFCV's with an array and a whole number per sample."""
    rows: Rows = {"image": images, "label": labels}
    with BetonWriter(path, _fields(rows), len(images)) as writer:
        for at in range(0, len(images), 4096):
            writer.append(_part(rows, at, at + 4096))
    return path


def write_png_tar(path: Path, images: Images, labels: Labels) -> Path:
    """A stock WebDataset tar: ``000000.png`` and ``000000.cls`` per sample."""
    import webdataset
    from PIL import Image

    with webdataset.TarWriter(str(path)) as tar:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            png = io.BytesIO()
            Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(png, "PNG")
            tar.write({"__key__": f"{i:06d}", "png": png.getvalue(), "cls": int(label)})
    return path


def _fields(rows: Rows) -> dict[str, Field]:
    return {
        name: Field(dtype=values.dtype.name, shape=values.shape[1:])
        for name, values in rows.items()
    }


def _part(rows: Rows, start: int, end: int) -> Rows:
    return {name: values[start:end] for name, values in rows.items()}


# -------------------------------------------------------------------------------- ours
def by_plan(source: Source) -> Epoch:
    """Batches of a source in the order that training takes."""
    plan = Plan(n=len(source), batch_size=BATCH, seed=0)

    def epoch(number: int) -> Iterator[tuple[Array, Array]]:
        for step in range(plan.steps_per_epoch):
            index, _ = plan.micro(number * plan.steps_per_epoch + step, 0)
            batch = source.gather(torch.from_numpy(index))
            assert batch.label is not None
            yield batch.images, batch.label

    return epoch


def mapped(folder: Path, *, verify: bool = True) -> Epoch:
    """Our shards, every sample in random order."""
    return by_plan(MappedSource(ShardReader(folder, "train", verify=verify)))


# -------------------------------------------------------------------------------- theirs
def ffcv(path: Path) -> Epoch:
    """FFCV with one thread, random order, the file in the page cache."""
    from ffcv.fields.decoders import IntDecoder, NDArrayDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import Squeeze, ToTensor

    loader = Loader(
        str(path),
        batch_size=BATCH,
        num_workers=1,
        os_cache=True,
        order=OrderOption.RANDOM,
        seed=0,
        drop_last=True,
        pipelines={
            "image": [NDArrayDecoder(), ToTensor()],
            "label": [IntDecoder(), ToTensor(), Squeeze(1)],
        },
    )

    def epoch(number: int) -> Iterator[tuple[Array, Array]]:
        loader.next_epoch = number
        yield from loader

    return epoch


def unbatched_webdataset(folder: Path) -> Epoch:
    """Our shards by stock WebDataset's own means: packs taken apart, samples shuffled in a buffer
    of 1000, batched again."""
    import webdataset

    paths = _tars(folder)

    def epoch(number: int) -> Iterator[tuple[Array, Array]]:
        data = webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode()
        data = data.to_tuple("image.npy", "label.npy").unbatched().shuffle(1000, seed=number)
        for images, labels in data.batched(BATCH, partial=False):
            yield np.asarray(images), np.asarray(labels)

    return epoch


def packed_webdataset(folder: Path) -> Epoch:
    """Our shards read by stock WebDataset, batches by hand: shuffled within a pack only, which is
    less than others do, and batches do not reach over the end of a pack."""
    import webdataset

    paths = _tars(folder)

    def epoch(number: int) -> Iterator[tuple[Array, Array]]:
        generator = np.random.default_rng(number)
        data = webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode()
        for pack in data:
            images, labels = pack["image.npy"], pack["label.npy"]
            order = generator.permutation(len(images))
            for at in range(0, len(order) - BATCH + 1, BATCH):
                chosen = order[at : at + BATCH]
                yield images[chosen], labels[chosen]

    return epoch


def _tars(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("train-*.tar"))]


def png_webdataset(path: Path) -> Epoch:
    """One png and one label per sample, shuffled in a buffer of 1000."""
    import webdataset

    def epoch(number: int) -> Iterator[tuple[Array, Array]]:
        data = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
        data = data.shuffle(1000, seed=number).decode("l8").to_tuple("png", "cls")
        for images, labels in data.batched(BATCH, partial=False):
            yield np.asarray(images), np.asarray(labels, dtype=np.int64)

    return epoch


def tensor_dataset(images: Images, labels: Labels) -> Epoch:
    """What a tutorial does: tensors in memory, DataLoader without workers."""
    from torch.utils.data import DataLoader, TensorDataset

    data = TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
    loader = DataLoader(data, BATCH, shuffle=True, drop_last=True)

    def epoch(number: int) -> Iterator[tuple[Array, Array]]:
        yield from loader

    return epoch
