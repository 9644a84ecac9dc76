"""The strokes source: what a batch shows, and what it depends on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastvae import ops
from fastvae.config import Config, DataConfig, ModelConfig, StrokesConfig
from fastvae.data.datasets import load_splits
from fastvae.data.loader import Loader, Pixels
from fastvae.data.plan import Plan
from fastvae.data.sources.strokes import StrokesSource
from fastvae.errors import UserError
from fastvae.kernels.raster import Frame, rasterize
from tests.drawing_cases import random_drawings

CPU = torch.device("cpu")
DRAWINGS = random_drawings(60, timed=True)
ALL = torch.arange(60)
PARTIAL = ("strokes", "points", "time", "box")


def source(side: int = 32, seed: int = 1, **view: object) -> StrokesSource:
    return StrokesSource(DRAWINGS, StrokesConfig(**view), side, seed)


@pytest.mark.parametrize("raster", ["fast", "exact", "binary"])
def test_images_are_those_of_the_rasterizer(raster: str) -> None:
    samples = source(raster=raster).gather(ALL)
    assert samples.images.shape == (60, 1, 32, 32)
    assert samples.images.dtype == torch.uint8
    assert samples.condition is None
    assert samples.label is not None
    assert samples.label.tolist() == DRAWINGS.word.tolist()
    if raster == "binary":
        assert set(samples.images.unique().tolist()) == {0, 255}
    else:
        expected = rasterize(DRAWINGS.strokes, Frame(side=32), ALL.numpy(), mode=raster)
        np.testing.assert_array_equal(samples.images[:, 0].numpy(), expected)


@pytest.mark.parametrize("raster", ["fast", "exact", "binary"])
@pytest.mark.parametrize("partial", PARTIAL)
def test_a_partial_image_is_a_part_of_the_full_one(partial: str, raster: str) -> None:
    for epoch in (None, 0, 1):
        images, condition, _ = source(partial=partial, raster=raster).gather(ALL, epoch)
        assert condition is not None
        # Ink only adds up, but for rounding; and a stroke cut to its first point is a dot, whose
        # edge is smoothed a little differently from that of a line's end.
        most = 16 if partial in ("points", "time") else 1
        assert (condition.int() <= images.int() + most).all()
        several = torch.from_numpy(np.diff(DRAWINGS.strokes.drawing_offset) > 1)
        differs = (condition != images).flatten(1).any(dim=1)
        assert differs[several].all()
        plain = source(raster=raster).gather(ALL, epoch).images
        assert torch.equal(images, plain)


@pytest.mark.parametrize("partial", PARTIAL)
def test_cuts_are_fresh_each_epoch_and_fixed_for_evaluation(partial: str) -> None:
    def condition(epoch: int | None, seed: int = 1) -> torch.Tensor:
        result = source(partial=partial, seed=seed).gather(ALL, epoch).condition
        assert result is not None
        return result

    assert torch.equal(condition(None), condition(None))
    assert torch.equal(condition(3), condition(3))
    assert not torch.equal(condition(3), condition(4))
    assert not torch.equal(condition(3), condition(None))
    assert not torch.equal(condition(3), condition(3, seed=2))


def test_samples_do_not_depend_on_the_batch() -> None:
    made = source(partial="strokes", rotate=20.0, scale=0.2, shear=0.1, shift=10.0)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    whole, part = made.gather(ALL, 2), made.gather(order[:17], 2)
    assert torch.equal(part.images, whole.images[order[:17]])
    assert part.condition is not None
    assert whole.condition is not None
    assert torch.equal(part.condition, whole.condition[order[:17]])


def test_jitter_is_for_training_only() -> None:
    still, moved = source(), source(rotate=25.0, shift=20.0)
    assert torch.equal(moved.gather(ALL).images, still.gather(ALL).images)
    first, second = moved.gather(ALL, 0).images, moved.gather(ALL, 1).images
    changed = (first != second).flatten(1).any(dim=1)
    assert changed.float().mean() > 0.9
    assert not torch.equal(first, still.gather(ALL, 0).images)


def test_threads_do_not_matter() -> None:
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(source(partial="points", rotate=5.0).gather(ALL, 0))
        assert torch.equal(results[0].images, results[1].images)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("binarize", ["none", "threshold", "static", "dynamic"])
def test_batches(binarize: str) -> None:
    pixels = Pixels(DataConfig(binarize=binarize), seed=3)
    loader = Loader(source(partial="strokes"), pixels, CPU)
    plan = Plan(n=60, batch_size=20, seed=5)
    batch = loader.train_batch(plan, 4)
    assert batch.y is not None
    assert batch.label is not None
    assert batch.x.shape == batch.y.shape == (20, 1, 32, 32)
    assert (batch.y <= batch.x + 0.005).all()
    np.testing.assert_array_equal(batch.label.numpy(), DRAWINGS.word[batch.index.numpy()])
    again = loader.train_batch(plan, 4)
    assert torch.equal(batch.x, again.x)
    assert again.y is not None
    assert torch.equal(batch.y, again.y)
    rows = sum(int(b.weight.sum()) for b in loader.evaluation_batches(16, 1, 0))
    assert rows == 60


@pytest.mark.parametrize("composed", [{}, {"partial": "strokes"}, {"partial": "box", "shift": 9.0}])
def test_on_a_device_the_same_is_drawn(composed: dict[str, object]) -> None:
    """The operation for devices, by way of its CPU form."""
    made = source(side=20, **composed)
    there = object.__new__(StrokesSource)
    there.__dict__.update(made.__dict__)
    there._on_device = ops.DeviceStrokes.of(DRAWINGS.strokes)
    for epoch in (None, 1):
        ours, theirs = made.gather(ALL, epoch), there.gather(ALL, epoch)
        for a, b in zip(ours[:2], theirs[:2], strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert (a.int() - b.int()).abs().max() <= 1
    assert there.nbytes < made.nbytes
    assert there.image_shape == (1, 20, 20)


def config(root: Path | str, dataset: str = "strokes", **view: object) -> Config:
    return Config(
        model=ModelConfig(image_shape=(1, 32, 32)),
        data=DataConfig(dataset=dataset, root=str(root)),
        strokes=StrokesConfig(**view),
    )


def save(root: Path, **changes: object) -> None:
    for place, name in enumerate(("train", "val", "test")):
        random_drawings(20, seed=place, **changes).save(root / name)


def test_packed_folder(tmp_path: Path) -> None:
    save(tmp_path)
    sources = load_splits(config(tmp_path))
    assert {name: len(s) for name, s in sources.items()} == {"train": 20, "val": 20, "test": 20}
    assert sources["train"].image_shape == (1, 32, 32)
    again = load_splits(config(tmp_path))
    assert sources["val"].fingerprint == again["val"].fingerprint
    assert sources["val"].fingerprint != sources["test"].fingerprint


def test_chosen_categories(tmp_path: Path) -> None:
    save(tmp_path, words=("dog", "hot dog"))
    sources = load_splits(config(tmp_path, categories=("dog",)))
    labels = sources["train"].gather(torch.arange(len(sources["train"]))).label
    assert labels is not None
    assert labels.unique().tolist() == [0]
    assert 0 < len(sources["train"]) < 20
    with pytest.raises(UserError, match="no category 'dgo' here; nearest: dog"):
        load_splits(config(tmp_path, categories=("dgo",)))


def test_doodles_need_no_files() -> None:
    sources = load_splits(config("nowhere", dataset="doodles", doodles=300))
    assert sum(map(len, sources.values())) == 300
    samples = sources["train"].gather(torch.arange(30))
    ink = (samples.images > 127).float().mean(dim=(1, 2, 3))
    assert ink.min() > 0.02
    assert ink.max() < 0.6


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist: make it with `fastvae-data quickdraw"):
        load_splits(config(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="not a set of drawings"):
        load_splits(config(tmp_path))
    save(tmp_path)
    wide = replace(config(tmp_path), model=ModelConfig(image_shape=(3, 32, 32)))
    with pytest.raises(UserError, match="square images of one channel"):
        load_splits(wide)
    with pytest.raises(UserError, match="have no timing"):
        load_splits(config(tmp_path, partial="time"))
    with pytest.raises(UserError, match="binary"):
        StrokesConfig(raster="binary", rotate=3.0)
    with pytest.raises(UserError, match=r"strokes\.shown"):
        StrokesConfig(shown=(0.5, 0.2))
