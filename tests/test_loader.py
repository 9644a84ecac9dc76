"""The loader and the thread that prepares its batches."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fastvae.config import DataConfig
from fastvae.data import loader as loaders
from fastvae.data.loader import Loader, Pixels
from fastvae.data.plan import Plan
from fastvae.data.prefetch import Prefetch
from fastvae.data.sources import RandomAccess, Samples

N = 50


def numbers(count: int, log: list[int] | None = None) -> Iterator[int]:
    for i in range(count):
        if log is not None:
            log.append(i)
        yield i


def prefetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def wait(condition: Any) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_items_come_in_order_and_end() -> None:
    ahead = Prefetch(numbers(100))
    assert list(ahead) == list(range(100))
    assert list(ahead) == []
    wait(lambda: not prefetching())


def test_it_is_so_many_ahead_and_no_more() -> None:
    log: list[int] = []
    ahead = Prefetch(numbers(100, log), depth=3)
    wait(lambda: len(log) >= 4)
    time.sleep(0.1)
    assert len(log) == 4  # three lie ready, one waits for room
    assert next(ahead) == 0
    wait(lambda: len(log) == 5)
    ahead.close()
    assert not prefetching()


def test_errors_come_in_their_place() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise OSError("the disk is on fire")

    ahead = Prefetch(failing())
    assert next(ahead) == 1
    begin = time.monotonic()
    with pytest.raises(OSError, match="on fire"):
        next(ahead)
    assert time.monotonic() - begin < 5
    with pytest.raises(StopIteration):
        next(ahead)


def test_closing_ends_a_thread_that_waits_for_room() -> None:
    ahead = Prefetch(numbers(10**9))
    next(ahead)
    ahead.close()
    assert not prefetching()


def test_a_forgotten_one_ends_its_thread() -> None:
    ahead = Prefetch(numbers(10**9))
    next(ahead)
    del ahead
    gc.collect()
    wait(lambda: not prefetching())


class Slopes(RandomAccess):
    """Images that grow from left to right, with conditions that do so faster."""

    image_shape = (1, 1, 2)
    device = torch.device("cpu")
    nbytes = 2 * N
    fingerprint = "slopes"
    resident = None
    about = "slopes"
    has_condition = True

    def __len__(self) -> int:
        return N

    def to(self, device: torch.device) -> Slopes:
        return self

    def gather(
        self, index: torch.Tensor, epoch: int | None = None, *, pin: bool = False
    ) -> Samples:
        images = torch.tensor([51, 102], dtype=torch.uint8).expand(len(index), 1, 1, 2)
        return Samples(images.contiguous(), 2 * images, None)


def test_training_images_are_mirrored_by_chance_and_their_conditions_with_them() -> None:
    """A pure function of seed, epoch and sample; half of them; evaluation is left alone."""
    pixels = Pixels(DataConfig(flip=True), seed=3)
    loader = Loader(Slopes(), pixels, torch.device("cpu"))
    seen: dict[int, list[bool]] = {i: [] for i in range(N)}
    plan = Plan(n=N, batch_size=10, seed=1, world_size=1, rank=0, accumulate=1, tail="drop")
    for step in range(40 * plan.steps_per_epoch):
        batch = loader.train_batch(plan, step)
        assert batch.y is not None
        turned = batch.x[:, 0, 0, 0] > batch.x[:, 0, 0, 1]
        assert torch.equal(turned, batch.y[:, 0, 0, 0] > batch.y[:, 0, 0, 1])
        for number, is_turned in zip(batch.index.tolist(), turned.tolist(), strict=True):
            seen[number].append(is_turned)
    counts = [sum(turns) for turns in seen.values()]
    assert 850 < sum(counts) < 1150  # 2,000 fair coins: 6.7 deviations either way
    assert min(counts) > 3  # of 40
    assert max(counts) < 37
    again = loader.train_batch(plan, 7)
    assert torch.equal(
        again.x, Loader(Slopes(), pixels, torch.device("cpu")).train_batch(plan, 7).x
    )
    (evaluated,) = list(loader.evaluation_batches(N, 1, 0))
    assert (evaluated.x[:, 0, 0, 0] < evaluated.x[:, 0, 0, 1]).all()


class Counting(RandomAccess):
    """A source of images whose pixels are the sample's number; notes what is asked of it."""

    image_shape = (1, 2, 2)
    device = torch.device("cpu")
    nbytes = 4 * N
    fingerprint = "counting"
    resident = None
    about = "counting"
    has_condition = True

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.told: list[list[int]] = []
        self.pinned: list[bool] = []
        self.threads: set[str] = set()
        self.closed = False

    def __len__(self) -> int:
        return N

    def to(self, device: torch.device) -> Counting:
        return self

    def follow(self, batches: Iterator[np.ndarray]) -> None:
        self.told = [batch.tolist() for batch in batches]

    def gather(
        self, index: torch.Tensor, epoch: int | None = None, *, pin: bool = False
    ) -> Samples:
        self.asked.append(index.tolist())
        self.pinned.append(pin)
        self.threads.add(threading.current_thread().name)
        images = index.to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
        return Samples(images, 255 - images, index % 3)

    def close(self) -> None:
        self.closed = True


def made(source: Counting) -> Loader:
    return Loader(source, Pixels(DataConfig(), 0), torch.device("cpu"))


def plan(**changes: Any) -> Plan:
    settings: dict[str, Any] = {"n": N, "batch_size": 8, "seed": 1, **changes}
    return Plan(**settings)


def test_a_source_is_told_what_it_will_be_asked() -> None:
    source = Counting()
    loader, order = made(source), plan(accumulate=2)
    for step in range(2, 2 * order.steps_per_epoch):
        for micro in range(2):
            loader.train_batch(order, step, micro)
            if (step, micro) in ((2, 0), (order.steps_per_epoch, 0)):
                source.asked = source.asked[-1:]
            assert source.told[: len(source.asked)] == source.asked
    assert source.told == source.asked  # to the end of the second epoch, and not beyond


def test_it_is_told_again_when_something_else_is_asked() -> None:
    source = Counting()
    loader, order = made(source), plan()
    loader.train_batch(order, 0)
    loader.train_batch(order, 3)
    assert source.told[0] == source.asked[-1] == order.micro(3, 0)[0].tolist()
    loader.rows(np.array([4, 2]))
    assert source.told == [[4, 2]] == source.asked[-1:]
    loader.train_batch(order, 4)
    assert source.told[0] == source.asked[-1] == order.micro(4, 0)[0].tolist()
    list(loader.evaluation_batches(20, 1, 0))
    assert source.told == source.asked[-3:]


def test_batches_hold_image_condition_label_weight_and_numbers() -> None:
    source = Counting()
    loader, order = made(source), plan()
    batch = loader.train_batch(order, 7)
    index, ordinal = order.micro(7, 0)
    assert batch.index.tolist() == index.tolist()
    assert batch.ordinal.tolist() == ordinal.tolist()
    assert (batch.x[:, 0, 0, 0] * 255).round().int().tolist() == index.tolist()
    assert batch.y is not None
    assert (batch.y[:, 0, 0, 0] * 255).round().int().tolist() == (255 - index).tolist()
    assert batch.label is not None
    assert batch.label.tolist() == (index % 3).tolist()
    assert batch.weight.tolist() == [1.0] * 8
    last = list(loader.evaluation_batches(30, 1, 0))[-1]
    assert last.weight.tolist() == [1.0] * 20 + [0.0] * 10


def test_an_error_leaves_a_loader_that_can_go_on() -> None:
    source = Counting()
    loader, order = made(source), plan()
    loader.train_batch(order, 0)
    good = source.gather

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError("the disk is on fire")

    source.gather = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="on fire"):
        loader.train_batch(order, 1)
    source.gather = good  # type: ignore[method-assign]
    assert loader.train_batch(order, 1).index.tolist() == order.micro(1, 0)[0].tolist()


def test_closing_closes_the_source() -> None:
    source = Counting()
    loader = made(source)
    loader.train_batch(plan(), 0)
    loader.close()
    assert source.closed


class NoEvent:
    pass


class NoStream:
    """What a CUDA stream is to the loader, for a machine without one."""

    def __init__(self, *_: Any) -> None:
        self.waited: list[Any] = []

    def __enter__(self) -> NoStream:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def record_event(self) -> NoEvent:
        return NoEvent()

    def wait_event(self, event: Any) -> None:
        assert isinstance(event, NoEvent)
        self.waited.append(event)


def test_ahead_of_a_gpu_everything_happens_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pretended CUDA: order, errors and the end; what a GPU does with it is in the test
    below."""
    here = NoStream()
    monkeypatch.setattr(torch.cuda, "Stream", NoStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: here)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    source = Counting()
    loader, order = made(source), plan()
    loader._ahead = True
    for step in range(2 * order.steps_per_epoch):
        batch = loader.train_batch(order, step)
        assert batch.index.tolist() == order.micro(step, 0)[0].tolist()
    assert len(here.waited) == 2 * order.steps_per_epoch
    assert source.threads == {"prefetch"}
    assert all(source.pinned)
    loader.train_batch(order, 1)
    loader.train_batch(order, 5)  # another stream: the first one's thread is gone
    assert len(prefetching()) <= 1
    loader.close()
    assert not prefetching()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_equal_those_on_the_cpu() -> None:
    device, order = torch.device("cuda", 0), plan()
    source = Counting()
    there = Loader(source, Pixels(DataConfig(binarize="dynamic"), 0), device)
    here = Loader(Counting(), Pixels(DataConfig(binarize="dynamic"), 0), torch.device("cpu"))
    assert there._ahead
    for step in range(2 * order.steps_per_epoch):
        one, other = there.train_batch(order, step), here.train_batch(order, step)
        assert torch.equal(one.x.cpu(), other.x)
        assert one.y is not None
        assert other.y is not None
        assert torch.equal(one.y.cpu(), other.y)
        assert torch.equal(one.ordinal.cpu(), other.ordinal)
    there.close()
    assert all(source.pinned)


def test_slices_of_an_epoch_begin_anywhere_and_end_with_it() -> None:
    order = plan(accumulate=2)
    slices = list(loaders._training_slices(order, order.steps_per_epoch + 4, 1))
    assert len(slices) == 2 * (order.steps_per_epoch - 4) - 1
    assert slices[0][0].tolist() == order.micro(order.steps_per_epoch + 4, 1)[0].tolist()
    assert {epoch for *_, epoch in slices} == {1}
