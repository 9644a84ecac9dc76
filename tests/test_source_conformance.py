"""One suite over all sources of images: the same set of numbers, packed in every form.

Bit-exact rows, the same stream for any number of ranks, exact resume at every step, errors that
reach the user in time, damage that is named or left out alike everywhere, threads left alone.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch

from fastvae.config import Config, DataConfig, replace
from fastvae.data.datasets import load_splits
from fastvae.data.loader import Loader, Pixels
from fastvae.data.plan import Plan
from fastvae.data.sources import Source
from fastvae.data_tools import cli
from fastvae.errors import UserError
from tests.ffcv_here import require_ffcv
from tests.shard_cases import CLASSES, pack, rows_of

N, BATCH = 203, 12
CPU = torch.device("cpu")

# data.source -> how data.root is packed.
KINDS = {
    "resident": "shards",
    "mapped": "shards",
    "beton": "beton",
    "ffcv": "beton",
    "webdataset": "tars",
    "webdataset-packed": "shards",
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards, tars and beton: the same samples in the same order."""
    root = tmp_path_factory.mktemp("packed")
    pack(root / "shards")
    for form, target in (("webdataset", "tars"), ("beton", "beton")):
        words = ["convert", root / "shards", "--to", form, "--out", root / target]
        words += ["--shard-rows", 60] if form == "webdataset" else []
        assert cli.main([str(word) for word in words]) == 0
    return root


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "ffcv":
        require_ffcv()
    return name


def config_of(kind: str, root: Path, **data: Any) -> Config:
    source = kind.partition("-")[0]
    settings = {"source": source, "root": str(root / KINDS[kind]), "window": 64, **data}
    return replace(
        Config(model=replace(Config(), model__image_shape=(3, 5, 7)).model),
        data=DataConfig(**settings),
    )


def open_source(kind: str, root: Path, **data: Any) -> Source:
    return load_splits(config_of(kind, root, **data))["train"]


def loader_of(source: Source) -> Loader:
    return Loader(source, Pixels(DataConfig(), 0), CPU)


def plan_of(source: Source, **changes: Any) -> Plan:
    settings = {"n": len(source), "batch_size": BATCH, "seed": 5, "order": source.order, **changes}
    return Plan(**settings)


@pytest.fixture
def source(kind: str, packed: Path) -> Iterator[Source]:
    opened = open_source(kind, packed)
    yield opened
    opened.close()


EXPECTED = rows_of(range(N))


def assert_rows(batch: Any, index: np.ndarray) -> None:
    pixels = EXPECTED["image"][index].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal((batch.x * 255).round().to(torch.uint8).numpy(), pixels)
    np.testing.assert_array_equal(batch.label.numpy(), EXPECTED["label"][index])
    np.testing.assert_array_equal(batch.index.numpy(), index)


# ---------------------------------------------------------------------------------- rows
def test_what_it_says_of_itself(source: Source, kind: str) -> None:
    assert len(source) == N
    assert source.image_shape == (3, 5, 7)
    assert source.device == CPU
    assert source.nbytes > 0
    assert source.about
    assert (list(source.quarantined), source.lost, source.has_condition) == ([], 0, False)
    if kind in ("resident", "mapped", "beton", "ffcv"):
        assert source.classes == CLASSES


def test_an_epoch_is_bit_exact_and_complete(source: Source) -> None:
    loader, plan = loader_of(source), plan_of(source, tail="wrap")
    for epoch in range(2):
        met = []
        for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
            batch = loader.train_batch(plan, step)
            assert_rows(batch, plan.micro(step, 0)[0])
            met.append(batch.index.numpy())
        assert set(np.concatenate(met)) == set(range(N))


def test_evaluation_is_bit_exact_and_counts_each_sample_once(source: Source) -> None:
    for world in range(1, 6):
        counted: list[int] = []
        steps = set()
        for rank in range(world):
            batches = list(loader_of(source).evaluation_batches(25, world, rank))
            steps.add(len(batches))
            for batch in batches:
                assert_rows(batch, batch.index.numpy())
                counted += batch.index[batch.weight > 0].tolist()
        assert len(steps) == 1
        assert sorted(counted) == list(range(N))


def test_gather_in_any_order(source: Source) -> None:
    rng = np.random.default_rng(0)
    for index in (np.array([202, 0, 7]), rng.integers(0, N, 30), np.array([5])):
        source.follow(iter([index]))
        samples = source.gather(torch.from_numpy(index))
        np.testing.assert_array_equal(
            samples.images.permute(0, 2, 3, 1).numpy(), EXPECTED["image"][index]
        )
        assert samples.label is not None
        np.testing.assert_array_equal(samples.label.numpy(), EXPECTED["label"][index])


def test_batches_keep_their_contents(source: Source) -> None:
    """Nothing that was handed out is written again."""
    indices = [np.arange(i, i + 10, dtype=np.int64) for i in range(0, 200, 10)]
    source.follow(iter(indices))
    given = [source.gather(torch.from_numpy(index)) for index in indices]
    for index, samples in zip(indices, given, strict=True):
        np.testing.assert_array_equal(
            samples.images.permute(0, 2, 3, 1).numpy(), EXPECTED["image"][index]
        )


# ---------------------------------------------------------------------------------- the stream
def test_any_world_sees_the_same_stream(source: Source) -> None:
    loader = loader_of(source)
    one = plan_of(source, batch_size=60)
    whole = [loader.train_batch(one, step).x for step in range(one.steps_per_epoch)]
    for world in range(2, 6):
        plans = [plan_of(source, batch_size=60, world_size=world, rank=r) for r in range(world)]
        assert {plan.steps_per_epoch for plan in plans} == {one.steps_per_epoch}
        ranks = [loader_of(source) for _ in plans]
        for step, expected in enumerate(whole):
            parts = [
                mine.train_batch(plan, step).x for mine, plan in zip(ranks, plans, strict=True)
            ]
            assert torch.equal(torch.cat(parts), expected)


def test_resume_at_every_step(kind: str, packed: Path) -> None:
    first = open_source(kind, packed)
    plan = plan_of(first, batch_size=20, accumulate=2)
    loader = loader_of(first)
    total = 2 * plan.steps_per_epoch
    whole = [[loader.train_batch(plan, s, m).x for m in range(2)] for s in range(total)]
    first.close()
    again = open_source(kind, packed)
    for start in range(total):
        resumed = loader_of(again)
        for step in range(start, min(start + 3, total)):
            for micro in range(2):
                assert torch.equal(resumed.train_batch(plan, step, micro).x, whole[step][micro])
    again.close()


def test_elastic_from_2_to_3_ranks(kind: str, packed: Path) -> None:
    alone = open_source(kind, packed)
    one = plan_of(alone, batch_size=24)
    loader = loader_of(alone)
    whole = [loader.train_batch(one, s).index for s in range(one.steps_per_epoch)]
    alone.close()
    for world, steps in ((2, range(4)), (3, range(4, len(whole)))):
        sources = [open_source(kind, packed) for _ in range(world)]
        plans = [plan_of(s, batch_size=24, world_size=world, rank=r) for r, s in enumerate(sources)]
        assert all(plan.state() == one.state() for plan in plans)
        loaders = [loader_of(s) for s in sources]
        for step in steps:
            parts = [m.train_batch(p, step).index for m, p in zip(loaders, plans, strict=True)]
            assert torch.equal(torch.cat(parts), whole[step])
        for opened in sources:
            opened.close()


def test_resuming_costs_next_to_nothing(packed: Path) -> None:
    opened = open_source("mapped", packed)
    plan = plan_of(opened)
    loader = loader_of(opened)
    loader.train_batch(plan, 0)
    late = 10**9 * plan.steps_per_epoch + 7
    taken = []
    for _ in range(5):
        begin = time.process_time()
        loader.train_batch(plan, late)
        taken.append(time.process_time() - begin)
    assert min(taken) < 0.005  # the promise of the loader, not a benchmark


# ---------------------------------------------------------------------------------- errors
def break_source(kind: str, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the source fail from within, some samples on."""

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError("the disk is on fire")

    if kind in ("resident", "mapped"):
        from fastvae.data.shards import ShardReader
        from fastvae.data.sources import resident

        monkeypatch.setattr(ShardReader, "touch", fail)
        monkeypatch.setattr(resident, "_select", fail)
    elif kind in ("beton", "ffcv"):
        from fastvae.data.sources.beton import BetonSource

        monkeypatch.setattr(BetonSource, "_samples", fail)
    else:
        from fastvae.data.sample_rows import SampleRows

        monkeypatch.setattr(SampleRows, "take", fail)


def test_an_exception_inside_reaches_the_user_in_time(
    kind: str, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_source(kind, packed)
    plan = plan_of(opened)
    loader = loader_of(opened)
    loader.source.follow(iter([np.arange(3, dtype=np.int64)]))
    opened.gather(torch.arange(3))  # it works
    break_source(kind, opened, monkeypatch)

    def train() -> None:
        for step in range(2 * plan.steps_per_epoch):
            loader.train_batch(plan, step)
            # A resident source hands all its tensors out at once: gather is what can fail.
            opened.gather(torch.arange(3))

    begin = time.monotonic()
    with pytest.raises((OSError, UserError, RuntimeError), match="the disk is on fire"):
        train()
    assert time.monotonic() - begin < 5.0
    opened.close()


def test_threads_are_left_alone(kind: str, packed: Path) -> None:
    before = torch.get_num_threads(), numba.get_num_threads()
    threads = set(threading.enumerate())
    opened = open_source(kind, packed)
    loader, plan = loader_of(opened), plan_of(opened)
    for step in range(3):
        loader.train_batch(plan, step)
        assert (torch.get_num_threads(), numba.get_num_threads()) == before
    loader.close()
    assert (torch.get_num_threads(), numba.get_num_threads()) == before
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - threads:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.02)


# ---------------------------------------------------------------------------------- damage
def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 100])


def flip(path: Path) -> None:
    """In the middle of an image."""
    raw = bytearray(path.read_bytes())
    png = raw.find(b"IDAT")
    at = 700
    if path.suffix == ".beton":
        at = raw.find(EXPECTED["image"][0].tobytes()) + 3
    elif png > 0:
        at = png + 8
    raw[at] ^= 0x55
    path.write_bytes(raw)


def can_be_noticed(kind: str, damage: Callable[[Path], None]) -> None:
    if kind == "webdataset-packed" and damage is flip:
        pytest.skip("an array in a tar has no checksum; the manifest has (resident, mapped)")


def garbage_header(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    at = 0 if path.suffix == ".beton" else header_after_the_first(raw)
    raw[at : at + 512] = np.random.default_rng(1).bytes(512)
    path.write_bytes(raw)


def header_after_the_first(raw: bytearray) -> int:
    size = int(bytes(raw[124:135]), 8)
    return 512 + -(-size // 512) * 512


def remove(path: Path) -> None:
    path.unlink()


DAMAGE: list[Callable[[Path], None]] = [truncate, flip, garbage_header, remove]


def read_all(kind: str, root: Path, **data: Any) -> Source:
    opened = open_source(kind, root, **data)
    plan = plan_of(opened, batch_size=1)
    loader = loader_of(opened)
    for step in range(0, plan.steps_per_epoch):
        loader.train_batch(plan, step)
    return opened


def victim(kind: str, root: Path) -> Path:
    folder = root / KINDS[kind]
    return folder / ("train.beton" if KINDS[kind] == "beton" else "train-000001.tar")


@pytest.fixture
def copied(packed: Path, tmp_path: Path, kind: str) -> Path:
    shutil.copytree(packed / KINDS[kind], tmp_path / KINDS[kind])
    return tmp_path


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_line_that_names_the_file(
    kind: str, copied: Path, damage: Callable[[Path], None]
) -> None:
    path = victim(kind, copied)
    if damage is remove and kind.startswith("webdataset"):
        # A folder's tars are what is there; sizes.json and manifest.json say what should be.
        pytest.skip("see test_a_missing_tar_of_urls")
    can_be_noticed(kind, damage)
    damage(path)
    begin = time.monotonic()
    with pytest.raises(UserError) as error:
        read_all(kind, copied)
    assert time.monotonic() - begin < 5.0
    assert path.name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["webdataset", "webdataset-packed"])
def test_a_missing_tar_of_urls(source: str, packed: Path) -> None:
    folder = packed / KINDS[source]
    count = len(list(folder.glob("train*.tar")))
    urls = (
        f"{folder}/train-{{000000..{count:06d}}}.tar",  # one more than there are
        f"{folder}/val-000000.tar",
    )
    with pytest.raises(UserError, match=rf"train-{count:06d}\.tar"):
        read_all(source, packed, urls=urls)


@pytest.mark.parametrize("damage", [truncate, flip, garbage_header])
def test_quarantine_is_the_same_on_all_ranks(
    kind: str, copied: Path, damage: Callable[[Path], None]
) -> None:
    if KINDS[kind] == "beton":
        pytest.skip("a small .beton is one page, damaged as a whole: see test_beton.py")
    can_be_noticed(kind, damage)
    damage(victim(kind, copied))
    ranks = [read_all(kind, copied, on_damage="skip") for _ in range(2)]
    one, other = ranks
    assert 0 < len(one) < N
    assert (one.lost, list(one.quarantined)) == (N - len(one), list(other.quarantined))
    assert one.quarantined
    assert (one.fingerprint, len(one)) == (other.fingerprint, len(other))
    index = np.arange(len(one), dtype=np.int64)
    one.follow(iter([index]))
    images = one.gather(torch.from_numpy(index)).images.permute(0, 2, 3, 1).numpy()
    known = {row.tobytes() for row in EXPECTED["image"]}
    assert all(row.tobytes() in known for row in images)
    for opened in ranks:
        opened.close()
