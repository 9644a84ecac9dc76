"""gather_normalize in Triton's interpreter against plain PyTorch: the same bits.

Run by test_interpreter.py in a process with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import Tensor

from fastvae.kernels import gather, gather_op, gather_triton

if os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("needs TRITON_INTERPRET=1, set before Triton is imported")

RNG = torch.tensor([2**62 + 12345, 99])
LAYOUTS = ["dense", "last", "sliced", "batch_last", "offset"]
SHAPES = [(1, 1, 1), (1, 4, 5), (1, 28, 28), (3, 5, 7), (1, 5, 157), (3, 32, 32)]


def images(
    count: int, channels: int, height: int, width: int, layout: str = "dense", seed: int = 0
) -> Tensor:
    """Random bytes (count, channels, height, width), every value among them where they fit."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    if layout == "last":
        return draw(count, height, width, channels).permute(0, 3, 1, 2)
    if layout == "sliced":
        return draw(count, channels, height + 2, width + 3)[:, :, 1:-1, 2:-1]
    if layout == "batch_last":
        return draw(channels, height, width, count).permute(3, 0, 1, 2)
    if layout == "offset":
        pixels = channels * height * width
        return draw(count * pixels + 1)[1:].view(count, channels, height, width)
    return draw(count, channels, height, width)


def both(data: Tensor, indices: list[int], **changes: object) -> tuple[Tensor, Tensor]:
    """The launcher's result and that of plain PyTorch."""
    order = torch.tensor(indices, dtype=torch.int64)
    arguments: dict[str, object] = {
        "keys": order + 2**40,
        "mean": None,
        "std": None,
        "rng": RNG,
        "dtype": torch.float32,
        "channels_last": False,
        "flip": 0.0,
        "binarize": "none",
        "threshold": 0.5,
    }
    arguments |= changes
    fused = gather_triton.gather_normalize(data, order, **arguments)  # type: ignore[arg-type]
    plain = gather.gather_normalize(data, order, **arguments)  # type: ignore[arg-type]
    return fused, plain


def assert_same(fused: Tensor, plain: Tensor) -> None:
    assert fused.dtype == plain.dtype
    assert fused.shape == plain.shape
    assert fused.stride() == plain.stride()
    assert torch.equal(fused, plain)


@pytest.mark.parametrize("binarize", gather.BINARIZE)
@pytest.mark.parametrize("shape", SHAPES)
def test_same_bits(shape: tuple[int, int, int], binarize: str) -> None:
    for flip, last in ((0.0, False), (0.5, False), (0.0, True), (0.5, True)):
        data = images(6, *shape)
        assert_same(*both(data, [5, 0, 3], binarize=binarize, flip=flip, channels_last=last))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_for_any_strides(layout: str) -> None:
    data = images(6, 3, 5, 7, layout)
    for binarize in ("none", "stochastic"):
        for last in (False, True):
            for flip in (0.0, 0.5):
                changes = {"binarize": binarize, "channels_last": last, "flip": flip}
                assert_same(*both(data, [1, 1, 4], **changes))


@pytest.mark.parametrize("last", [False, True])
def test_normalization_is_rounded_as_in_pytorch(last: bool) -> None:
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    data = images(4, 3, 10, 11)
    for given in ({"mean": mean, "std": std}, {"mean": mean}, {"std": std}):
        assert_same(*both(data, [0, 3], channels_last=last, flip=0.5, **given))
    spread = torch.tensor(0.3).expand(3)
    assert_same(*both(data, [0, 3], mean=spread, std=spread, binarize="threshold"))


def test_all_256_values_are_divided_exactly() -> None:
    data = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    fused, plain = both(data, [0])
    assert torch.equal(fused.flatten(), (torch.arange(256).double() / 255).float())
    assert_same(fused, plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """float16 is exact; the interpreter cuts bfloat16 off where a GPU rounds: one step of 2^-8."""
    fused, plain = both(images(3, 1, 9, 9), [2, 0], dtype=dtype)
    assert fused.dtype == plain.dtype == dtype
    if dtype == torch.float16:
        assert torch.equal(fused, plain)
    torch.testing.assert_close(fused.float(), plain.float(), rtol=2**-7, atol=0)
    fused, plain = both(images(3, 1, 9, 9), [2, 0], dtype=dtype, binarize="stochastic")
    assert torch.equal(fused, plain)


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 1.0])
def test_thresholds(threshold: float) -> None:
    data = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    fused, plain = both(data, [0], binarize="threshold", threshold=threshold)
    assert_same(fused, plain)
    assert fused.sum() == sum(pixel / 255 > threshold for pixel in range(256))


def test_flip_of_probability_0_and_1() -> None:
    data = images(3, 1, 4, 6)
    never, _ = both(data, [0, 1, 2], flip=0.0)
    always, plain = both(data, [0, 1, 2], flip=1.0)
    assert_same(always, plain)
    assert torch.equal(always.flip(3), never)


def test_indices_outside_become_nan() -> None:
    data = images(4, 3, 3, 5)
    for binarize in gather.BINARIZE:
        for last in (False, True):
            fused, plain = both(
                data, [0, -1, 3, 4, 2**40, -(2**62)], binarize=binarize, channels_last=last
            )
            torch.testing.assert_close(fused, plain, rtol=0, atol=0, equal_nan=True)
            lost = [bool(row.isnan().all()) for row in fused]
            assert lost == [False, True, False, True, True, True]


def test_the_batch_does_not_change_a_bit() -> None:
    data = images(16, 1, 8, 8)  # several rows per tile
    order = [7, 3, 3, 15, 0, 9, 12, 1, 2, 4, 5, 6, 8, 10, 11, 13, 14]
    whole, plain = both(data, order, binarize="stochastic", flip=0.5)
    assert_same(whole, plain)
    for row, index in enumerate(order[:4]):
        alone, _ = both(data, [index], binarize="stochastic", flip=0.5)
        assert torch.equal(alone[0], whole[row])


def test_empty_batch_and_empty_data() -> None:
    fused, plain = both(images(3, 1, 4, 4), [])
    assert_same(fused, plain)
    assert fused.shape == (0, 1, 4, 4)
    fused, plain = both(images(0, 1, 4, 4), [0, 1])
    assert math.prod(fused.shape) == 32
    assert fused.isnan().all()
    assert plain.isnan().all()


def test_the_operation_takes_this_path_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVAE_OPS", "triton")
    launched: list[int] = []
    launcher = gather_triton.gather_normalize

    def spy(*arguments: object) -> Tensor:
        launched.append(1)
        return launcher(*arguments)  # type: ignore[arg-type]

    monkeypatch.setitem(gather_op.forms.__dict__, "triton", spy)
    data, order = images(3, 1, 4, 4), torch.tensor([2, 0])
    batch = gather_op.gather_normalize(
        data,
        order,
        keys=order,
        mean=None,
        std=None,
        rng=None,
        dtype=torch.float32,
        channels_last=False,
        flip=0.0,
        binarize="none",
        threshold=0.5,
    )
    assert launched == [1]
    assert torch.equal(batch, data[order] / 255)
