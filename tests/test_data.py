"""Reading, splitting, holding and binarizing images."""

from __future__ import annotations

import dataclasses
import gzip
import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastvae import ops
from fastvae.config import Config, DataConfig
from fastvae.data.batch import Batch
from fastvae.data.datasets import load_splits
from fastvae.data.idx import read_idx
from fastvae.data.loader import Loader, Pixels
from fastvae.data.plan import Plan
from fastvae.data.sources.resident import ResidentSource
from fastvae.data.splits import identity_fraction, split_indices
from fastvae.errors import UserError

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FASTVAE_SHARED_DATA", ROOT.parent / "shared" / "data"))
MODES = ["none", "threshold", "static", "dynamic"]


def random_images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8)


def idx_bytes(array: np.ndarray, kind: int = 0x08) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape)
    return header + array.tobytes()


def write_mnist(root: Path, *, compress: bool = True, **arrays: np.ndarray) -> None:
    """A small data set in the form of MNIST; arrays replace parts of it by name."""
    root.mkdir(exist_ok=True)
    parts: dict[str, np.ndarray] = {
        "train_images": random_images(300, 6, 5, seed=1),
        "train_labels": random_images(300, seed=2) % 10,
        "t10k_images": random_images(40, 6, 5, seed=3),
        "t10k_labels": random_images(40, seed=4) % 10,
    }
    for name, array in (parts | arrays).items():
        part, kind = name.split("_")
        file = f"{part}-{kind}-idx{'3' if kind == 'images' else '1'}-ubyte"
        body = idx_bytes(array)
        if compress:
            (root / f"{file}.gz").write_bytes(gzip.compress(body))
        else:
            (root / file).write_bytes(body)


def mnist_config(root: Path, **changes: Any) -> DataConfig:
    return DataConfig(dataset="mnist", root=str(root), **changes)


def fails(function: Callable[[], object], *expected: object) -> str:
    """The one line of the UserError that ``function`` raises."""
    with pytest.raises(UserError) as error:
        function()
    said = str(error.value)
    assert "\n" not in said
    for word in expected:
        assert str(word) in said
    return said


# --------------------------------------------------------------------------------------------- idx
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("shape", [(7,), (5, 4), (5, 4, 3), (3, 2, 4, 5), (0, 28, 28)])
def test_idx_reads_what_was_written(tmp_path: Path, compress: bool, shape: tuple[int]) -> None:
    array = random_images(shape[0], *shape[1:])
    body = idx_bytes(array)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(body) if compress else body)
    got = read_idx(path)
    assert got.dtype == np.uint8
    assert got.shape == shape
    assert np.array_equal(got, array)


def test_idx_of_several_gzip_members(tmp_path: Path) -> None:
    """pigz and cat write files of several members; they are one file."""
    array = random_images(20, 3, 3)
    body = idx_bytes(array)
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(body[:50]) + gzip.compress(body[50:]))
    assert np.array_equal(read_idx(path), array)


def test_idx_truncated_gzip_at_every_byte(tmp_path: Path) -> None:
    whole = gzip.compress(idx_bytes(random_images(4, 5, 5)))
    path = tmp_path / "train-images-idx3-ubyte.gz"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        said = fails(lambda: read_idx(path), path)
        if length >= 2:
            assert "cut short" in said
            assert f"fastvae-data download mnist --root {tmp_path}" in said


def test_idx_with_any_flipped_bit_is_an_error_or_the_same(tmp_path: Path) -> None:
    """gzip's checksum finds it; bits of its header that say nothing of the contents may differ."""
    array = random_images(2, 4, 4)
    whole = gzip.compress(idx_bytes(array))
    path = tmp_path / "file.gz"
    caught = 0
    for position in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(bytes(damaged))
        try:
            assert np.array_equal(read_idx(path), array)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017
            caught += 1
    assert caught > 0.9 * 8 * (len(whole) - 10)


BODY = idx_bytes(random_images(3, 4, 4))


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (BODY[:-1], "is cut short or too long: 63 bytes, its header says 64"),
        (BODY[:20], "is cut short or too long: 20 bytes, its header says 64"),
        (BODY + b"\0", "is cut short or too long: 65 bytes, its header says 64"),
        (BODY[:16], "is cut short or too long: 16 bytes, its header says 64"),
        (BODY[:8], "is cut short or too long"),
        (BODY[:4], "is cut short or too long"),
        (BODY[:3], "is not an idx file"),
        (b"", "is not an idx file"),
        (b"\0\1" + BODY[2:], "is not an idx file"),
        (b"<html><body>sign in first</body></html>", "is not an idx file"),
        (b"PK\3\4" + BODY, "is not an idx file"),
        (b"\0\0\x08\0", "is not an idx file"),
        (b"\0\0\x08\x05" + BODY[4:], "is not an idx file"),
        (b"\0\0\x0d\x03" + BODY[4:], "holds idx type 0x0d; only uint8 (0x08) can be read"),
        (b"\0\0\x09\x03" + BODY[4:], "holds idx type 0x09"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "is cut short or too long"),
    ],
)
def test_idx_wrong_contents(tmp_path: Path, body: bytes, expected: str, compress: bool) -> None:
    path = tmp_path / "some-images"
    path.write_bytes(gzip.compress(body) if compress else body)
    fails(lambda: read_idx(path), path, expected)


def test_idx_bytes_after_the_gzip_stream(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(BODY) + b"more")
    fails(lambda: read_idx(path), path, "damaged")


def test_idx_named_gz_without_being_compressed(tmp_path: Path) -> None:
    """Some browsers unpack what they download and keep the name."""
    path = tmp_path / "file.gz"
    path.write_bytes(BODY)
    assert read_idx(path).shape == (3, 4, 4)


def test_idx_missing_file_and_folder(tmp_path: Path) -> None:
    fails(lambda: read_idx(tmp_path / "absent"), tmp_path / "absent", "no such file")
    fails(lambda: read_idx(tmp_path), tmp_path)


# ------------------------------------------------------------------------------------------- mnist
@pytest.mark.parametrize("compress", [False, True])
def test_mnist_form(tmp_path: Path, compress: bool) -> None:
    write_mnist(tmp_path / "set", compress=compress)
    sources = load_splits(Config(data=mnist_config(tmp_path / "set", val_fraction=0.2)))
    assert len(sources["train"]) + len(sources["val"]) == 300
    assert len(sources["test"]) == 40
    images, _, labels = sources["test"].gather(torch.arange(40))
    assert np.array_equal(images[:, 0].numpy(), random_images(40, 6, 5, seed=3))
    assert labels is not None
    assert labels.dtype == torch.int64
    assert np.array_equal(labels.numpy(), random_images(40, seed=4) % 10)
    assert sources["train"].image_shape == (1, 6, 5)


def test_mnist_labels_stay_with_their_images(tmp_path: Path) -> None:
    images = random_images(300, 6, 5, seed=9)
    write_mnist(tmp_path, train_images=images, train_labels=images[:, 0, 0])
    sources = load_splits(Config(data=mnist_config(tmp_path)))
    for name in ("train", "val"):
        index = torch.arange(len(sources[name]))
        pixels, _, labels = sources[name].gather(index)
        assert labels is not None
        assert torch.equal(pixels[:, 0, 0, 0].long(), labels)


def test_mnist_missing_folder(tmp_path: Path) -> None:
    root = tmp_path / "nowhere"
    fails(
        lambda: load_splits(Config(data=mnist_config(root))),
        root,
        f"fastvae-data download mnist --root {root}",
    )


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_mnist_missing_file(tmp_path: Path, name: str) -> None:
    write_mnist(tmp_path)
    (tmp_path / f"{name}.gz").unlink()
    fails(
        lambda: load_splits(Config(data=mnist_config(tmp_path))),
        f"{name}.gz",
        "missing",
        "fastvae-data",
    )


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"train_labels": np.zeros(299, np.uint8)}, ("300 images", "299 labels")),
        ({"t10k_labels": np.zeros(41, np.uint8)}, ("40 images", "41 labels")),
        ({"train_images": np.zeros((300, 30), np.uint8)}, ("train-images", "height, width")),
        ({"train_labels": np.zeros((300, 1), np.uint8)}, ("train-labels", "labels (count,)")),
        ({"t10k_images": random_images(40, 5, 6)}, ("(6, 5)", "(5, 6)")),
    ],
)
def test_mnist_parts_that_do_not_fit(
    tmp_path: Path, arrays: dict[str, np.ndarray], expected: tuple[str, ...]
) -> None:
    write_mnist(tmp_path, **arrays)
    fails(lambda: load_splits(Config(data=mnist_config(tmp_path))), tmp_path, *expected)


def test_mnist_set_too_small_to_split(tmp_path: Path) -> None:
    one = {"train_images": random_images(1, 6, 5), "train_labels": random_images(1)}
    write_mnist(tmp_path, **one)
    fails(lambda: load_splits(Config(data=mnist_config(tmp_path))), "split is empty", "fraction")


def test_bitmaps(tmp_path: Path) -> None:
    config = Config(data=DataConfig(dataset="bitmaps", root=str(tmp_path)))
    fails(lambda: load_splits(config), tmp_path, "--kind bitmap")
    cat, dog = random_images(300, 784, seed=1), random_images(200, 784, seed=2)
    np.save(tmp_path / "dog.npy", dog)
    np.save(tmp_path / "cat.npy", cat)
    sources = load_splits(config)
    assert sum(map(len, sources.values())) == 500
    images, _, labels = sources["train"].gather(torch.arange(len(sources["train"])))
    assert images.shape[1:] == (1, 28, 28)
    assert labels is not None
    known = {row.tobytes(): label for label, part in enumerate((cat, dog)) for row in part}
    assert [known[image.numpy().tobytes()] for image in images] == labels.tolist()


def test_unknown_data_set() -> None:
    fails(
        lambda: load_splits(Config(data=DataConfig(dataset="minst"))), "'minst'", "nearest: mnist"
    )


def test_digits() -> None:
    sources = load_splits(Config(data=DataConfig(dataset="digits")))
    assert {name: len(source) for name, source in sources.items()} == {
        "train": 1446,
        "val": 177,
        "test": 174,
    }
    for source in sources.values():
        assert source.image_shape == (1, 8, 8)
        images, _, labels = source.gather(torch.arange(len(source)))
        assert images.dtype == torch.uint8
        assert images.min() == 0
        assert images.max() == 255
        levels = {round(k * 255 / 16) for k in range(17)}
        assert set(images.unique().tolist()) <= levels
        assert labels is not None
        assert labels.unique().tolist() == list(range(10))
    assert load_splits(Config())["val"].fingerprint == sources["val"].fingerprint


@pytest.mark.skipif(
    not (SHARED / "mnist" / "train-images-idx3-ubyte.gz").is_file(), reason="MNIST is not here"
)
def test_real_mnist() -> None:
    sources = load_splits(Config(data=mnist_config(SHARED / "mnist", val_fraction=0.04)))
    assert len(sources["train"]) + len(sources["val"]) == 60_000
    assert abs(len(sources["val"]) - 2400) < 5 * 2400**0.5
    assert len(sources["test"]) == 10_000
    labels = sources["test"].gather(torch.arange(10)).label
    assert labels is not None
    assert labels.tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # the famous first ten
    images = sources["train"].gather(torch.arange(len(sources["train"]))).images
    assert images.shape[1:] == (1, 28, 28)
    mean = images.double().mean().item() / 255
    assert mean == pytest.approx(0.1307, abs=5e-4)


# ------------------------------------------------------------------------------------------ splits
def test_splits_do_not_overlap_and_cover() -> None:
    parts = split_indices(random_images(2000, 3, 3), 0.1, 0.2)
    found = np.concatenate(list(parts.values()))
    assert np.array_equal(np.sort(found), np.arange(2000))
    for index in parts.values():
        assert index.dtype == np.int64
        assert (np.diff(index) > 0).all()


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.1), (0.04, 0.0), (0.3, 0.5)])
def test_split_fractions(val: float, test: float) -> None:
    count = 20_000
    parts = split_indices(random_images(count, 4, 4), val, test)
    for name, share in (("val", val), ("test", test), ("train", 1 - val - test)):
        spread = (count * share * (1 - share)) ** 0.5
        assert abs(len(parts[name]) - count * share) <= 4 * spread


def test_split_of_an_image_depends_on_nothing_but_the_image() -> None:
    images = random_images(1000, 5, 5)

    def sides(array: np.ndarray) -> dict[bytes, str]:
        parts = split_indices(array, 0.2, 0.2)
        return {array[i].tobytes(): name for name, index in parts.items() for i in index}

    before = sides(images)
    order = np.random.default_rng(0).permutation(1000)
    assert sides(images[order]) == before
    assert sides(images[::3]) == {image.tobytes(): before[image.tobytes()] for image in images[::3]}
    more = sides(np.concatenate([random_images(500, 5, 5, seed=1), images]))
    assert {key: more[key] for key in before} == before


def test_copies_of_an_image_stay_together() -> None:
    images = random_images(300, 5, 5)
    parts = split_indices(np.concatenate([images, images[::-1]]), 0.3, 0.3)
    kept = [{i if i < 300 else 599 - i for i in index.tolist()} for index in parts.values()]
    assert sum(map(len, kept)) == 300
    assert all(len(index) == 2 * len(k) for index, k in zip(parts.values(), kept, strict=True))


def test_raising_a_fraction_only_adds() -> None:
    images = random_images(2000, 5, 5)
    small, large = (set(split_indices(images, v)["val"].tolist()) for v in (0.1, 0.2))
    assert small < large


def test_identity_is_pinned() -> None:
    """A change of the hash would move images between the splits of finished runs."""
    images = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    expected = identity_fraction(images)
    assert expected.tolist() == identity_fraction(np.asfortranarray(images)).tolist()
    assert expected.tolist() == pytest.approx([0.08081351729100837, 0.3708800313431403], abs=1e-12)


# ------------------------------------------------------------------------------------------ source
def test_resident_source_gathers() -> None:
    images, labels = random_images(20, 3, 4, 5), random_images(20) % 10
    source = ResidentSource.from_numpy(images, labels)
    assert len(source) == 20
    assert source.image_shape == (3, 4, 5)
    assert source.nbytes == images.nbytes
    assert source.device == CPU
    index = torch.tensor([19, 0, 3, 3])
    got, _, got_labels = source.gather(index)
    assert got.dtype == torch.uint8
    assert np.array_equal(got.numpy(), images[index.numpy()])
    assert got_labels is not None
    assert got_labels.tolist() == labels[index.numpy()].tolist()
    assert ResidentSource.from_numpy(images, None).gather(index).label is None


def test_resident_source_copies() -> None:
    images = random_images(4, 3, 3)
    source = ResidentSource.from_numpy(images, None)
    before = source.gather(torch.arange(4))[0].clone()
    images[:] = 0
    assert torch.equal(source.gather(torch.arange(4))[0], before)
    read_only = random_images(4, 3, 3)
    read_only.setflags(write=False)
    assert len(ResidentSource.from_numpy(read_only[::-1], None)) == 4


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(4, 1, 2, 2), None),
        (torch.zeros(4, 2, 2, dtype=torch.uint8), None),
        (torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, 1, dtype=torch.int64)),
        (torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4)),
    ],
)
def test_resident_source_refuses(images: Tensor, labels: Tensor | None) -> None:
    with pytest.raises(ValueError, match="images" if labels is None else "labels must be"):
        ResidentSource(images, labels)


def test_fingerprint_is_of_bytes_order_and_shape() -> None:
    images = random_images(10, 4, 6)

    def fingerprint(array: np.ndarray) -> str:
        return ResidentSource.from_numpy(array, None).fingerprint

    one = fingerprint(images)
    assert fingerprint(images.copy()) == one
    assert fingerprint(np.asfortranarray(images)) == one
    assert fingerprint(images[:, None]) == one
    changed = images.copy()
    changed[9, 3, 5] ^= 1
    others = [changed, images[::-1], images[:9], images.reshape(10, 6, 4), images.reshape(20, 2, 6)]
    assert len({one, *map(fingerprint, others)}) == 6
    source = ResidentSource.from_numpy(images, None)
    assert source.to(CPU).fingerprint == one
    assert source.to(CPU).gather(torch.arange(10))[0].shape == (10, 1, 4, 6)


# ------------------------------------------------------------------------------------------ pixels
def pixels(mode: str, seed: int = 0, **options: Any) -> Pixels:
    return Pixels(DataConfig(binarize=mode, **options), seed)  # type: ignore[arg-type]


RAMP = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def test_grey_values() -> None:
    x = pixels("none")(RAMP, torch.tensor([0]), 0)
    assert x.dtype == torch.float32
    assert torch.equal(x.flatten(), torch.arange(256) / 255.0)
    assert x.max() == 1.0


@pytest.mark.parametrize(
    "threshold", ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "0.999"]
)
def test_threshold_is_exact(threshold: str) -> None:
    """A pixel at the threshold (51/255 = 0.2) is not ink: decided in fractions."""
    x = pixels("threshold", threshold=float(threshold))(RAMP, torch.tensor([0]), 0)
    expected = [float(Fraction(value, 255) > Fraction(threshold)) for value in range(256)]
    assert x.flatten().tolist() == expected


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize("epoch", [None, 0, 3])
def test_drawn_bits(mode: str, epoch: int | None) -> None:
    raw = RAMP.expand(3000, 1, 16, 16)
    x = pixels(mode)(raw, torch.arange(3000), epoch)
    assert x.dtype == torch.float32
    assert set(x.unique().tolist()) == {0.0, 1.0}
    share = x.mean(dim=0).flatten().double()
    p = torch.arange(256).double() / 255
    assert share[0] == 0
    assert share[255] == 1
    z = (share - p)[1:255] / (p * (1 - p) / 3000).sqrt()[1:255]
    assert z.abs().max() < 4.5


@pytest.mark.parametrize("mode", MODES)
def test_a_sample_gets_the_same_bits_in_any_batch(mode: str) -> None:
    raw = torch.from_numpy(random_images(60, 1, 7, 7))
    index = torch.arange(60) + 1000
    convert = pixels(mode)
    whole = convert(raw, index, 2)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    assert torch.equal(convert(raw[order], index[order], 2), whole[order])
    for row in range(0, 60, 13):
        one = slice(row, row + 1)
        assert torch.equal(convert(raw[one], index[one], 2), whole[one])
    assert torch.equal(pixels(mode)(raw, index, 2), whole)


def test_bits_are_keyed_by_index_seed_and_epoch() -> None:
    raw = torch.full((40, 1, 8, 8), 128, dtype=torch.uint8)
    index = torch.arange(40)

    def bits(mode: str, epoch: int | None, seed: int = 0, shift: int = 0) -> Tensor:
        return pixels(mode, seed)(raw, index + shift, epoch)

    for mode in ("static", "dynamic"):
        assert len(bits(mode, 0).unique(dim=0)) == 40  # another draw for each sample
        assert not torch.equal(bits(mode, 0), bits(mode, 0, seed=1))
        assert torch.equal(bits(mode, 0, shift=5)[:-5], bits(mode, 0)[5:])
        assert torch.equal(bits(mode, None), bits(mode, None))
    assert torch.equal(bits("static", 0), bits("static", 1))
    assert torch.equal(bits("static", 0), bits("static", None))
    epochs = [bits("dynamic", epoch) for epoch in (0, 1, 2)] + [bits("dynamic", None)]
    for i, a in enumerate(epochs):
        for b in epochs[:i]:
            assert 0.4 < (a == b).float().mean() < 0.6  # independent coins
    assert torch.equal(bits("dynamic", None), bits("static", None))


# ------------------------------------------------------------------------------------------ loader
COLOUR = random_images(50, 3, 4, 6, seed=5)
NUMBERS = np.arange(50, dtype=np.uint8)


def loader(mode: str = "none", *, channels_last: bool = False, seed: int = 0) -> Loader:
    source = ResidentSource.from_numpy(COLOUR, NUMBERS)
    return Loader(source, pixels(mode, seed), CPU, channels_last=channels_last)


@pytest.mark.parametrize("channels_last", [False, True])
def test_train_batch_follows_the_plan(channels_last: bool) -> None:
    plan = Plan(n=50, batch_size=12, seed=4, world_size=2, rank=1, accumulate=3)
    load = loader(channels_last=channels_last)
    for step, micro in ((0, 0), (0, 2), (3, 1), (4, 0), (1000, 2)):
        batch = load.train_batch(plan, step, micro)
        index, ordinal = plan.micro(step, micro)
        assert batch.index.tolist() == index.tolist()
        assert batch.ordinal.tolist() == ordinal.tolist()
        assert batch.label is not None
        assert batch.label.tolist() == index.tolist()
        assert batch.weight.tolist() == [1.0, 1.0]
        assert batch.y is None
        expected = torch.from_numpy(COLOUR[index]).float() / 255
        assert torch.equal(batch.x, expected)
        form = torch.channels_last if channels_last else torch.contiguous_format
        assert batch.x.is_contiguous(memory_format=form)
        other = torch.contiguous_format if channels_last else torch.channels_last
        assert not batch.x.is_contiguous(memory_format=other)


def everything(batches: list[Batch]) -> dict[int, bytes]:
    """The image bytes of each counted sample."""
    return {
        int(index): x.contiguous().numpy().tobytes()
        for batch in batches
        for index, x, weight in zip(batch.index, batch.x, batch.weight, strict=True)
        if weight == 1
    }


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_is_the_same_for_any_batch_and_world(mode: str) -> None:
    expected = everything(list(loader(mode).evaluation_batches(50, 1, 0)))
    assert sorted(expected) == list(range(50))
    for batch_size, world_size in ((1, 1), (7, 1), (7, 3), (64, 2)):
        ranks = [
            list(loader(mode).evaluation_batches(batch_size, world_size, rank))
            for rank in range(world_size)
        ]
        assert len({len(rank) for rank in ranks}) == 1
        batches = [batch for rank in ranks for batch in rank]
        assert sum(batch.weight.sum().item() for batch in batches) == 50
        assert all(len(batch.x) == batch_size for batch in batches)
        assert all(torch.equal(batch.ordinal, batch.index) for batch in batches)
        assert everything(batches) == expected


@pytest.mark.parametrize("mode", MODES)
def test_rows_equal_those_of_the_evaluation(mode: str) -> None:
    expected = everything(list(loader(mode).evaluation_batches(50, 1, 0)))
    chosen = np.array([7, 3, 49], dtype=np.int64)
    batch = loader(mode).rows(chosen)
    assert batch.index.tolist() == [7, 3, 49]
    assert batch.label is not None
    assert batch.label.tolist() == [7, 3, 49]
    assert batch.weight.tolist() == [1.0] * 3
    assert everything([batch]) == {i: expected[i] for i in (7, 3, 49)}


def test_dynamic_bits_change_with_the_epoch_and_not_with_the_world() -> None:
    def epoch(number: int, world_size: int) -> dict[int, bytes]:
        plan = Plan(n=50, batch_size=12, seed=4, tail="wrap", world_size=world_size)
        load = loader("dynamic")
        steps = range(number * plan.steps_per_epoch, (number + 1) * plan.steps_per_epoch)
        ranks = [dataclasses.replace(plan, rank=rank) for rank in range(world_size)]
        return everything([load.train_batch(rank, step) for step in steps for rank in ranks])

    first, second = epoch(0, 1), epoch(1, 1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert all(first[i] != second[i] for i in range(50))
    assert epoch(0, 3) == first
    assert epoch(1, 4) == second
    fixed = everything(list(loader("dynamic").evaluation_batches(50, 1, 0)))
    assert all(first[i] != fixed[i] for i in range(50))


def test_a_sample_that_comes_twice_in_an_epoch_has_the_same_bits() -> None:
    """The bits belong to the epoch, not to the step: 50 samples fill 4 1/6 batches of 12."""
    plan = Plan(n=50, batch_size=12, seed=4, tail="wrap")
    load = loader("dynamic")
    for epoch in (0, 1):
        first, last = (load.train_batch(plan, step) for step in (5 * epoch, 5 * epoch + 4))
        assert last.index[2:].tolist() == first.index[:10].tolist()
        assert torch.equal(last.x[2:], first.x[:10])


def test_loader_without_labels() -> None:
    source = ResidentSource.from_numpy(COLOUR, None)
    batch = Loader(source, pixels("none"), CPU).rows(np.array([1, 2]))
    assert batch.label is None


def test_static_bits_are_philox_bits_of_the_index() -> None:
    """The key is part of what a run means: pinned against the generator itself."""
    batch = loader("static", seed=3).rows(np.array([11, 30]))
    raw = torch.from_numpy(COLOUR[[11, 30]])
    expected = ops.philox_bernoulli(ops.derive_seed(3, "binarize"), torch.tensor([11, 30]), raw)
    assert torch.equal(batch.x, expected.float())
