"""FFCV itself reads what we write, we read what it writes, and its loader is a source."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch

from fastvae.data import beton_layout as layout
from fastvae.data.beton import BetonFile
from fastvae.data.sources import ffcv as adapter
from fastvae.data.sources.beton import BetonSource
from fastvae.data.sources.ffcv import FFCVSource, threads_kept
from fastvae.errors import UserError
from tests.beton_cases import FIELDS, samples, without_description, write, write_rgb
from tests.ffcv_here import require_ffcv

require_ffcv()
# Numba complains when one of FFCV's loaders is collected: KeyError in a finalizer, harmless.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
N = 1003
ROOT = Path(__file__).parents[1]
Index = np.ndarray

# In a process of its own: it forks, and waits forever for a worker that has died.
WRITER = """
import sys
import numpy as np
import torch
from ffcv.fields import (
    FloatField, IntField, JSONField, NDArrayField, RGBImageField, TorchTensorField,
)
from ffcv.writer import DatasetWriter

class Rows:
    def __init__(self, *columns):
        self.columns = columns
    def __len__(self):
        return len(self.columns[0])
    def __getitem__(self, i):
        return tuple(column(i) if callable(column) else column[i] for column in self.columns)

folder, every = sys.argv[1], np.load(sys.argv[1] + "/every.npz")
image, smooth, label = every["image"], every["smooth"], every["label"]
rows = {
    "arrays": (
        {
            "image": NDArrayField(np.dtype("uint8"), image.shape[1:]),
            "label": IntField(),
            "weight": FloatField(),
            "vector": NDArrayField(np.dtype("float32"), (3, 2)),
            "tensor": TorchTensorField(torch.int16, (5,)),
            "text": JSONField(),
        },
        Rows(image, label, every["weight"], every["vector"],
             torch.from_numpy(every["tensor"]), lambda i: {"number": int(i), "x": "x" * (i % 7)}),
    ),
    "raw": ({"image": RGBImageField(write_mode="raw"), "label": IntField()}, Rows(smooth, label)),
    "jpeg": ({"label": IntField(), "picture": RGBImageField(write_mode="jpg")},
             Rows(label, smooth)),
    "mixed": ({"image": RGBImageField(write_mode="proportion"), "label": IntField()},
              Rows(smooth, label)),
}
for name, (fields, data) in rows.items():
    DatasetWriter(f"{folder}/{name}.beton", fields, num_workers=2).from_indexed_dataset(data)
"""


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of ours, of several pages."""
    return write(tmp_path_factory.mktemp("ours") / "train.beton", samples(N))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files of FFCV's, and every.npz, what they hold."""
    folder = tmp_path_factory.mktemp("theirs")
    random = np.random.default_rng(0)
    y, x = np.mgrid[:48, :40]
    shift = np.arange(N)[:, None, None] % 64
    smooth = np.stack([y * 2 + shift, x * 3 + shift, x + y + shift], axis=3).astype(np.uint8)
    np.savez(
        folder / "every.npz",
        image=random.integers(0, 256, (N, 28, 28, 1), dtype=np.uint8),
        smooth=smooth,
        label=random.integers(-5, 10, N),
        weight=random.normal(size=N),
        vector=random.normal(size=(N, 3, 2)).astype(np.float32),
        tensor=random.integers(-(2**15), 2**15, (N, 5), dtype=np.int16),
    )
    command = [sys.executable, "-c", WRITER, str(folder)]
    subprocess.run(command, check=True, timeout=120, capture_output=True, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def source(ours: Path) -> Iterator[FFCVSource]:
    source = FFCVSource(ours)
    yield source
    source.close()


def batches(n: int = N, size: int = 128, seed: int = 0) -> list[Index]:
    order = np.random.default_rng(seed).permutation(n)
    return [order[i : i + size] for i in range(0, n, size)]


def pixels(images: torch.Tensor | None) -> np.ndarray:
    """(B, H, W, C) of a batch."""
    assert images is not None
    return images.permute(0, 2, 3, 1).numpy()


def gather(source: FFCVSource, index: Index) -> Any:
    return source.gather(torch.from_numpy(index))


# ---------------------------------------------------------------------------------- interop
@pytest.mark.parametrize("cached", [True, False], ids=["os_cache", "process_cache"])
@pytest.mark.parametrize("order", ["SEQUENTIAL", "RANDOM", "QUASI_RANDOM"])
def test_ffcv_reads_what_we_write(tmp_path: Path, order: str, cached: bool) -> None:
    n = 12_000  # several pages
    rows = samples(n)
    path = write(tmp_path / "x.beton", rows, step=5000)
    assert (path.stat().st_size - BetonFile(path).first_page) // layout.SMALLEST_PAGE >= 2
    with threads_kept():
        from ffcv.loader import Loader, OrderOption

        loader = Loader(
            str(path),
            batch_size=1000,
            num_workers=1,
            order=OrderOption[order],
            os_cache=cached,
            drop_last=False,
            seed=1,
        )
        seen = [[part.clone().numpy() for part in batch] for batch in loader]
    image, condition, label, key = (np.concatenate(part) for part in zip(*seen, strict=True))
    found, where = np.argsort(key[:, 0].view(np.uint64)), np.argsort(rows["key"])
    assert (order == "SEQUENTIAL") == bool((key[:, 0].view(np.uint64) == rows["key"]).all())
    np.testing.assert_array_equal(key[found, 0].view(np.uint64), rows["key"][where])
    np.testing.assert_array_equal(image[found], rows["image"][where])
    np.testing.assert_array_equal(condition[found], rows["condition"][where])
    np.testing.assert_array_equal(label[found, 0], rows["label"][where])


def test_we_read_what_ffcv_writes(theirs: Path) -> None:
    every = np.load(theirs / "every.npz")
    file = BetonFile(theirs / "arrays.beton")
    index = np.random.default_rng(1).permutation(N)
    for name in ("image", "label", "weight", "vector", "tensor"):
        got = file.take(file.field(name), index)
        assert got.dtype == every[name].dtype
        np.testing.assert_array_equal(got, every[name][index], err_msg=name)
    with pytest.raises(UserError, match="'text' holds pieces of different lengths"):
        file.field("text")
    for name, field in (("arrays", "image"), ("raw", "smooth")):
        source = BetonSource(theirs / f"{name}.beton")
        given = source.gather(torch.from_numpy(index))
        np.testing.assert_array_equal(pixels(given.images), every[field][index])
        assert given.label is not None
        np.testing.assert_array_equal(given.label.numpy(), every["label"][index])
    with pytest.raises(UserError, match="'picture' holds JPEG"):
        BetonSource(theirs / "jpeg.beton")


@pytest.mark.parametrize("name", ["arrays", "raw", "jpeg", "mixed"])
def test_the_source_reads_what_ffcv_writes(theirs: Path, name: str) -> None:
    every = np.load(theirs / "every.npz")
    image = every["image" if name == "arrays" else "smooth"]
    source = FFCVSource(theirs / f"{name}.beton")
    assert source.image_shape == (image.shape[3], *image.shape[1:3])
    source.follow(iter(batches()))
    worst = 0.0
    for index in batches():
        given = gather(source, index)
        difference = np.abs(pixels(given.images).astype(int) - image[index])
        worst = max(worst, float(difference.mean(axis=(1, 2, 3)).max()))
        assert given.label is not None
        np.testing.assert_array_equal(given.label.numpy(), every["label"][index])
    source.close()
    assert worst <= (3.0 if name in ("jpeg", "mixed") else 0.0)
    assert worst > 0.0 or name in ("arrays", "raw")


def test_jpeg_files_decoded_by_pillow_are_close(theirs: Path) -> None:
    smooth = np.load(theirs / "every.npz")["smooth"]
    index = np.arange(0, N, 50)
    got = BetonFile(theirs / "mixed.beton").gather(index)["image"]
    assert np.abs(got.astype(int) - smooth[index]).mean() < 3


# ---------------------------------------------------------------------------------- the stream
def test_announced_batches_come_in_order(source: FFCVSource) -> None:
    rows = samples(N)
    for seed in (0, 1):
        source.follow(iter(batches(seed=seed)))
        kept = [(index, gather(source, index)) for index in batches(seed=seed)]
        thread = source._epoch
        for index, given in kept:  # looked at in the end: nothing is a view of FFCV's buffers
            np.testing.assert_array_equal(pixels(given.images), rows["image"][index])
            np.testing.assert_array_equal(pixels(given.condition), rows["condition"][index])
            np.testing.assert_array_equal(given.label.numpy(), rows["label"][index])
        assert thread is not None  # the last batch was smaller: an order of its own


def test_one_thread_serves_all_batches_of_one_size(
    source: FFCVSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, begin = [], source._begin
    monkeypatch.setattr(source, "_begin", lambda: begun.append(0) or begin())
    code = source._loader.code
    order = batches(size=100)
    source.follow(iter(order))
    for index in order:
        gather(source, index)
    assert len(begun) == 2  # the last one is smaller
    assert source._loader.code is code  # compiled once
    monkeypatch.setattr(adapter, "_SEGMENT", 4)
    source.follow(iter(order[:10]))
    for index in order[:10]:
        gather(source, index)
    assert len(begun) == 2 + 3


def test_other_batches_than_announced(source: FFCVSource) -> None:
    rows = samples(N)
    source.follow(iter(batches()))
    gather(source, batches()[0])
    for index in (np.array([5, 5, 0, N - 1]), batches()[3], np.array([7]), batches()[1]):
        given = gather(source, index)
        np.testing.assert_array_equal(pixels(given.images), rows["image"][index])
        np.testing.assert_array_equal(given.label.numpy(), rows["label"][index])
    assert len(gather(source, np.zeros(0, dtype=np.int64)).images) == 0
    for wrong in (N, -1):
        with pytest.raises(IndexError):
            gather(source, np.array([0, wrong]))
    source.follow(iter(batches()))  # and it can be followed again
    np.testing.assert_array_equal(
        pixels(gather(source, batches()[0]).images), rows["image"][batches()[0]]
    )


def test_threads_of_torch_and_numba_are_kept(ours: Path) -> None:
    before = torch.get_num_threads(), numba.get_num_threads()
    most = numba.config.NUMBA_NUM_THREADS
    try:
        for threads in ((3, most), (2, max(1, most - 1))):
            torch.set_num_threads(threads[0])
            numba.set_num_threads(threads[1])
            seen = []
            source = FFCVSource(ours)
            seen.append((torch.get_num_threads(), numba.get_num_threads()))
            for epoch in range(2):
                source.follow(iter(batches(seed=epoch)))
                for index in batches(seed=epoch):
                    gather(source, index)
                    seen.append((torch.get_num_threads(), numba.get_num_threads()))
            source.close()
            assert set(seen) == {threads}
            with ThreadPoolExecutor(1) as pool:  # a thread that begins now
                assert pool.submit(torch.get_num_threads).result() == threads[0]
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])


def test_importing_it_is_left_to_who_opens_a_file() -> None:
    code = (
        "import sys, torch\n"
        "torch.set_num_threads(3)\n"
        "import fastvae.data.datasets, fastvae.data.sources.ffcv as adapter\n"
        "assert 'ffcv' not in sys.modules\n"
        "with adapter.threads_kept():\n"
        "    adapter._ffcv()\n"
        "assert 'ffcv.loader' in sys.modules\n"
        "assert torch.get_num_threads() == 3, torch.get_num_threads()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_numpys_global_generator_is_left_alone(ours: Path) -> None:
    state = np.random.get_state()[1:3]
    source = FFCVSource(ours)
    gather(source, np.arange(3))
    source.close()
    after = np.random.get_state()[1:3]
    assert (state[0] == after[0]).all()
    assert state[1] == after[1]


def test_several_workers(theirs: Path) -> None:
    one, two = (FFCVSource(theirs / "jpeg.beton", workers=w) for w in (1, 2))
    index = np.arange(N)
    assert torch.equal(gather(one, index).images, gather(two, index).images)
    one.close()
    two.close()


# ---------------------------------------------------------------------------------- the watchdog
def stages(source: FFCVSource, monkeypatch: pytest.MonkeyPatch, before: Any) -> None:
    """Call ``before`` in FFCV's thread at the start of each batch."""
    ((stage, defined), *rest), outputs = source._loader.code

    def run(**arguments: Any) -> Any:
        before()
        return stage(**arguments)

    monkeypatch.setattr(source._loader, "code", ([(run, defined), *rest], outputs))


def test_an_error_in_its_thread_is_raised_here(
    source: FFCVSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail() -> None:
        calls.append(0)
        if len(calls) == 3:
            raise ZeroDivisionError("the third batch")

    stages(source, monkeypatch, fail)
    source.follow(iter(batches()))
    gather(source, batches()[0])
    gather(source, batches()[1])
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"train\.beton: FFCV failed.*the third batch"):
        gather(source, batches()[2])
    assert time.monotonic() - began < 5
    given = gather(source, batches()[2])  # it can go on
    np.testing.assert_array_equal(pixels(given.images), samples(N)["image"][batches()[2]])


def test_a_stuck_thread_is_told(source: FFCVSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "_IDLE", 1.0)
    release = threading.Event()
    stages(source, monkeypatch, release.wait)
    source.follow(iter(batches()))
    began = time.monotonic()
    try:
        with pytest.raises(RuntimeError, match="FFCV is stuck"):
            gather(source, batches()[0])
        assert time.monotonic() - began < 5
    finally:
        release.set()


def test_a_sleeping_thread_is_waited_for(
    source: FFCVSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does whose page comes from a slow disk."""
    stages(source, monkeypatch, partial(time.sleep, 4.0))
    source.follow(iter(batches()[:1]))
    given = gather(source, batches()[0])
    np.testing.assert_array_equal(pixels(given.images), samples(N)["image"][batches()[0]])


def test_a_slow_thread_is_waited_for(source: FFCVSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        until = time.thread_time() + 0.4
        while time.thread_time() < until:
            pass

    monkeypatch.setattr(adapter, "_IDLE", 0.15)
    monkeypatch.setattr(adapter, "_POLL", 0.05)
    stages(source, monkeypatch, work)
    source.follow(iter(batches()[:1]))
    given = gather(source, batches()[0])
    np.testing.assert_array_equal(pixels(given.images), samples(N)["image"][batches()[0]])


def threads_of(source: FFCVSource) -> int:
    """Threads that read for it."""
    loaders = [getattr(thread, "loader", None) for thread in threading.enumerate()]
    return sum(loader is source._loader for loader in loaders)


def test_no_thread_is_left(ours: Path) -> None:
    source = FFCVSource(ours)
    for read in (0, 1, 5):
        source.follow(iter(batches()))
        for index in batches()[:read]:
            gather(source, index)
        assert threads_of(source) <= min(read, 1)
    for count in (4, 50):  # it waits for room, to say that this was all or for a batch
        source.follow(iter(batches(size=10)[:count]))
        gather(source, batches(size=10)[0])
        time.sleep(0.2)
        began = time.monotonic()
        source.follow(iter([]))
        assert threads_of(source) == 0
        assert time.monotonic() - began < 0.9
    source.close()


# ---------------------------------------------------------------------------------- damage
def test_damage_is_told_before_ffcv_is_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "x.beton", samples(50))
    raw = path.read_bytes()
    path.write_bytes(raw[:-24])
    with pytest.raises(UserError, match="cut short"):
        FFCVSource(path)
    (table,) = struct.unpack_from("<Q", raw, 16)
    flipped = bytearray(raw)
    flipped[table - 9] ^= 4
    path.write_bytes(flipped)
    source = FFCVSource(path)
    with pytest.raises(UserError, match="page 0"):
        gather(source, np.arange(4))
    source.close()
    without_description(path)
    path.write_bytes(raw[:-24])  # one entry of the table less
    with pytest.raises(UserError, match="not in its allocation table"):
        FFCVSource(path)
    wrong = bytearray(raw)
    struct.pack_into("<Q", wrong, table + 16, 9 * 7 * 3 + 1)
    path.write_bytes(wrong)
    with pytest.raises(UserError, match="other sizes in its allocation table"):
        FFCVSource(path)


def test_damaged_jpeg_files(tmp_path: Path) -> None:
    images = [np.full((16, 24, 3), i * 20, dtype=np.uint8) for i in range(6)]
    path = write_rgb(tmp_path / "x.beton", images, [0] * 6)
    raw = path.read_bytes()
    head = raw.index(b"\xff\xc0", 2 << 20)
    for place, value, expected in (
        (head + 6, 18, "is 18x24, expected 16x24"),
        (2 << 20, 0, "is no JPEG file"),
    ):
        damaged = bytearray(raw)
        damaged[place] = value
        path.write_bytes(damaged)
        source = FFCVSource(path)
        assert gather(source, np.arange(1, 6)).images.shape == (5, 3, 16, 24)
        with pytest.raises(UserError, match=f"sample 0 of field 'image' {expected}"):
            gather(source, np.arange(6))
        source.close()
    path = write_rgb(path, [*images, np.zeros((16, 25, 3), dtype=np.uint8)], [0] * 7)
    with pytest.raises(UserError, match="images of different sizes"):
        FFCVSource(path)


def test_damaged_pages_are_left_out(tmp_path: Path) -> None:
    rows = samples(6000)
    path = write(tmp_path / "x.beton", rows, step=1000)
    page = BetonFile(path).first_page
    with path.open("r+b") as file:
        file.seek(page + 5)
        file.write(b"\0\1\2\3")
    native, source = (kind(path, on_damage="skip") for kind in (BetonSource, FFCVSource))
    assert 0 < len(source) == len(native) < 6000
    assert (source.lost, source.quarantined) == (native.lost, native.quarantined)
    assert source.fingerprint == native.fingerprint
    index = np.random.default_rng(0).permutation(len(source))[:200]
    one, two = gather(source, index), native.gather(torch.from_numpy(index))
    for a, b in zip(one, two, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)
    source.close()


def test_fields_of_the_file(ours: Path, source: FFCVSource) -> None:
    native = BetonSource(ours)
    assert source.fingerprint == native.fingerprint
    assert (source.classes, source.has_condition) == (("a", "b"), True)
    assert source.image_shape == native.image_shape == (3, *FIELDS["image"].shape[:2])
    assert source.to(torch.device("cpu")) is source
