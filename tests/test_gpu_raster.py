"""rasterize_strokes on a GPU: the pixels of the CPU up to 1 of 255, no wait, graphs, real sizes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastvae.kernels.strokes import Strokes, offsets
from fastvae.ops import DeviceStrokes, rasterize_strokes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


def scribbles(count: int, seed: int = 0) -> Strokes:
    """Drawings of the size of Quick, Draw!'s: 5 strokes of 9 points on average, some empty."""
    rng = np.random.default_rng(seed)
    strokes = rng.integers(0, 11, count)
    lengths = rng.integers(1, 18, strokes.sum())
    steps = rng.integers(-25, 26, (lengths.sum(), 2))
    row = np.repeat(np.arange(len(lengths)), lengths)
    starts = offsets(lengths)[:-1]
    steps[starts] = rng.integers(0, 256, (len(lengths), 2))
    walk = steps.cumsum(axis=0)
    walk -= (walk[starts] - steps[starts])[row]
    points = np.clip(walk, 0, 255).astype(np.uint8)
    return Strokes(points, offsets(lengths), offsets(strokes))


def maps(count: int) -> Tensor:
    noise = torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(0))
    return torch.eye(2, 3) + noise * torch.tensor([0.2, 0.2, 12.0])


def cuts(strokes: DeviceStrokes, order: Tensor) -> Tensor:
    count = (strokes.first[1:] - strokes.first[:-1])[order]
    u = torch.rand(len(order), generator=torch.Generator().manual_seed(0))
    return (u * (count + 1)).long()


def draw(strokes: DeviceStrokes, order: Tensor, side: int, **options: Any) -> list[Tensor]:
    """Images, whole and where asked for partial; arguments go where the strokes are."""
    sent = {k: v.to(strokes.device) if isinstance(v, Tensor) else v for k, v in options.items()}
    images = rasterize_strokes(strokes, order.to(strokes.device), side, **sent)
    return [image.cpu() for image in (images if isinstance(images, tuple) else (images,))]


def assert_close(got: list[Tensor], expected: list[Tensor], share: float = 1e-3) -> None:
    """Within 1 of 255, and equal but for that share of the pixels."""
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.shape == theirs.shape
        difference = (ours.int() - theirs.int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).double().mean() < share


@pytest.mark.parametrize("path", ["triton", "eager"])
@pytest.mark.parametrize("side", [5, 28, 33, 64, 256])
def test_as_on_the_cpu(side: int, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = DeviceStrokes.of(scribbles(100))
    there = here.to("cuda")
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))[
        : 100 if side < 99 else 16
    ]
    for line_width in (0.5, 16.0, 120.0):
        for composite in ("over", "max"):
            for cut in (None, cuts(here, order)):
                for affine in (None, maps(len(order))):
                    options: dict[str, Any] = {
                        "cut": cut,
                        "affine": affine,
                        "line_width": line_width,
                        "composite": composite,
                    }
                    monkeypatch.setenv("FASTVAE_OPS", "eager")
                    expected = draw(here, order, side, **options)
                    monkeypatch.setenv("FASTVAE_OPS", path)
                    assert_close(draw(there, order, side, **options), expected)


def test_as_the_fast_mode_on_a_cpu() -> None:
    pytest.importorskip("fastvae.kernels.raster_fast", reason="no fast mode yet")
    from fastvae.kernels.raster import Frame, rasterize

    strokes = scribbles(20_000)
    there = DeviceStrokes.of(strokes).to("cuda")
    order = torch.randperm(20_000, generator=torch.Generator().manual_seed(1))[:2048]
    cut, affine = cuts(DeviceStrokes.of(strokes), order), maps(2048)
    for side in (28, 64):
        expected = rasterize(
            strokes, Frame(side), order.numpy(), cut=cut.numpy(), affine=affine.numpy(), mode="fast"
        )
        got = draw(there, order, side, cut=cut, affine=affine)
        assert_close(got, [torch.from_numpy(x).unsqueeze(1) for x in expected], share=3e-3)


def test_two_runs_are_equal() -> None:
    strokes = DeviceStrokes.of(scribbles(3000)).to("cuda")
    order = torch.arange(3000)
    for first, second in zip(draw(strokes, order, 64), draw(strokes, order, 64), strict=True):
        assert torch.equal(first, second)


def test_indices_outside_give_images_of_zeros() -> None:
    here = DeviceStrokes.of(scribbles(7))
    order = torch.tensor([6, -1, 3, 7, 2**40, -(2**63), 2**63 - 1])
    cut = torch.full_like(order, 2**62)
    for image in draw(here.to("cuda"), order, 32, cut=cut):
        assert not image[[1, 3, 4, 5, 6]].any()
        assert_close([image[[0, 2]]], draw(here, order[[0, 2]], 32))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30, 1e-30, 0.0])
def test_maps_that_lead_nowhere(value: float) -> None:
    here = DeviceStrokes.of(scribbles(12))
    affine = torch.eye(2, 3).repeat(12, 1, 1)
    affine.view(12, 6)[torch.arange(6), torch.arange(6)] = value
    order = torch.arange(12)
    got, expected = (draw(s, order, 32, affine=affine) for s in (here.to("cuda"), here))
    assert_close(got, expected)


def test_more_than_two_to_the_31_points() -> None:
    points = 2**31 + 2**20
    if torch.cuda.mem_get_info()[0] < 8 * 2**30:
        pytest.skip("less than 8 GiB of free GPU memory")
    tail = DeviceStrokes.of(scribbles(50)).to("cuda")
    begin = points - len(tail.points)
    begin -= begin % 8
    total = begin + len(tail.points)
    data = torch.zeros((total, 2), dtype=torch.uint8, device="cuda")
    last = torch.full(((total + 7) // 8,), 255, dtype=torch.uint8, device="cuda")
    data[begin:], last[begin // 8 :] = tail.points, tail.last
    first = torch.cat((torch.zeros(1, dtype=torch.int64, device="cuda"), tail.first + begin))
    far = DeviceStrokes(data, last, first)
    order = torch.arange(50)
    for got, expected in zip(
        draw(far, order + 1, 64, cut=torch.full_like(order, 9)),
        draw(tail, order, 64, cut=torch.full_like(order, 9)),
        strict=True,
    ):
        assert torch.equal(got, expected)


def test_images_of_more_than_two_to_the_31_bytes() -> None:
    if torch.cuda.mem_get_info()[0] < 6 * 2**30:
        pytest.skip("less than 6 GiB of free GPU memory")
    strokes = DeviceStrokes.of(scribbles(20)).to("cuda")
    rows = 2**31 // 4096 + 20
    order = torch.arange(rows, device="cuda") % 20
    images = rasterize_strokes(strokes, order, 64)
    assert isinstance(images, Tensor)
    assert torch.equal(images[-20:], rasterize_strokes(strokes, order[-20:], 64))


def test_graph_replay_reads_new_arguments_and_does_not_wait() -> None:
    strokes = DeviceStrokes.of(scribbles(64)).to("cuda")
    order = torch.arange(16, device="cuda")
    cut, affine = torch.full_like(order, 5), maps(16).cuda()

    def step() -> Tensor:
        images = rasterize_strokes(strokes, order, 64, cut=cut, affine=affine)
        return torch.stack(tuple(images))

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            images = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for start in (0, 9, 48):
        order.copy_(torch.arange(start, start + 16))
        cut.fill_(start + 1)
        affine.mul_(0.95)
        graph.replay()
        assert torch.equal(images, step())
        assert images.any()


def test_in_a_compiled_graph() -> None:
    strokes = DeviceStrokes.of(scribbles(64)).to("cuda")

    def batch(order: Tensor, cut: Tensor) -> Tensor:
        whole, partial = rasterize_strokes(strokes, order, 64, cut=cut)
        return torch.cat((whole, partial), dim=1).float() / 255

    order = torch.arange(16, device="cuda")
    cut = torch.full_like(order, 7)
    assert torch.equal(torch.compile(batch, fullgraph=True)(order, cut), batch(order, cut))
