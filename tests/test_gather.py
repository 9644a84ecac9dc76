"""gather_normalize against a loop over pixels in Python, and as an operation of torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastvae.kernels import gather, gather_op, philox

RNG = torch.tensor([2**62 + 12345, 99])
MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])


@pytest.fixture(autouse=True)
def automatic_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTVAE_OPS", raising=False)


def images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def run(data: Tensor, indices: Tensor, **changes: Any) -> Tensor:
    arguments: dict[str, Any] = {
        "keys": indices,
        "mean": None,
        "std": None,
        "rng": RNG,
        "dtype": torch.float32,
        "channels_last": False,
        "flip": 0.0,
        "binarize": "none",
        "threshold": 0.5,
    }
    return gather_op.gather_normalize(data, indices, **(arguments | changes))


def word(stream: int, key: int, column: int) -> int:
    seed = int(RNG[0])
    return int(philox.philox_words(seed, torch.tensor([key]), column + 1, stream=stream)[0, column])


def loop(
    data: Tensor,
    indices: list[int],
    keys: list[int],
    flip: float = 0.0,
    binarize: str = "none",
    threshold: float = 0.5,
    normalize: bool = False,
) -> np.ndarray:
    """The definition, one pixel at a time; float32 where a result is rounded."""
    _, channels, height, width = data.shape
    out = np.zeros((len(indices), channels, height, width), np.float32)
    for b, (index, key) in enumerate(zip(indices, keys, strict=True)):
        mirrored = flip > 0 and word(1, key, 0) < flip * 2**32
        for c, h, w in np.ndindex(channels, height, width):
            pixel = int(data[index, c, h, w])
            if binarize == "threshold":
                value = np.float32(pixel / 255 > threshold)
            elif binarize == "stochastic":
                column = (c * height + h) * width + w
                value = np.float32(word(0, key, column) * 255 < pixel * 2**32 - pixel)
            else:
                value = np.float32(pixel) / np.float32(255)
            if normalize:
                value = (value - MEAN.numpy()[c]) / STD.numpy()[c]
            out[b, c, h, width - 1 - w if mirrored else w] = value
    return out


@pytest.mark.parametrize("binarize", gather.BINARIZE)
@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_equals_the_definition_pixel_by_pixel(flip: float, binarize: str) -> None:
    data, indices, keys = images(7, 3, 2, 5), [6, 0, 2, 2, 5], [3, 2**33, 1, 7, 2**40]
    options: dict[str, Any] = {"flip": flip, "binarize": binarize, "threshold": 0.3}
    for normalize in (False, True):
        expected = loop(data, indices, keys, normalize=normalize, **options)
        given = {"mean": MEAN, "std": STD} if normalize else {}
        for last in (False, True):
            got = run(
                data,
                torch.tensor(indices),
                keys=torch.tensor(keys),
                channels_last=last,
                **options,
                **given,
            )
            np.testing.assert_array_equal(got.numpy(), expected)


def test_half_of_the_samples_are_mirrored() -> None:
    """The loop above draws the same bits; here: that both outcomes occur, at the rate asked for."""
    data = images(1, 1, 1, 2)
    order = torch.zeros(20_000, dtype=torch.int64)
    for flip in (0.1, 0.5, 0.75):
        batch = run(data, order, keys=torch.arange(20_000), flip=flip)
        mirrored = (batch[:, 0, 0, 0] == data[0, 0, 0, 1] / 255).double().mean().item()
        assert abs(mirrored - flip) < 4.5 * math.sqrt(flip * (1 - flip) / 20_000)


def test_stochastic_bits_are_those_of_philox_bernoulli() -> None:
    data, order = images(9, 1, 28, 28), torch.tensor([8, 1, 1])
    keys = torch.tensor([5, 6, 7])
    expected = philox.philox_bernoulli(int(RNG[0]), keys, data[order]).float()
    assert torch.equal(run(data, order, keys=keys, binarize="stochastic"), expected)
    mirrored = run(data, order, keys=keys, binarize="stochastic", flip=1.0)
    assert torch.equal(mirrored, expected.flip(3))


def test_the_mirror_and_the_pixels_read_different_words() -> None:
    """Were it one stream, mirrored samples would have a darker first pixel."""
    data = torch.full((1, 1, 1, 2), 128, dtype=torch.uint8)
    order, keys = torch.zeros(20_000, dtype=torch.int64), torch.arange(20_000)
    bits = run(data, order, keys=keys, binarize="stochastic")[:, 0, 0, 0]
    marked = run(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), order, keys=keys, flip=0.5)
    mirrored = marked[:, 0, 0, 0]
    assert abs(torch.corrcoef(torch.stack((bits, mirrored)))[0, 1]) < 4.5 / math.sqrt(20_000)


def test_every_byte_is_the_nearest_float_to_its_255th() -> None:
    data = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    zero = torch.zeros(1, dtype=torch.int64)
    exact = torch.arange(256).double() / 255
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(run(data, zero, dtype=dtype).flatten(), exact.to(dtype))


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.25, 0.5, 128 / 255, 1.0, 3.0])
def test_thresholds_between_bytes_and_beyond(threshold: float) -> None:
    data = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    batch = run(data, torch.tensor([0]), binarize="threshold", threshold=threshold)
    assert batch.sum() == sum(pixel > 255 * threshold for pixel in range(256))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shape_dtype_and_memory_format(dtype: torch.dtype, last: bool) -> None:
    batch = run(images(5, 3, 4, 6), torch.tensor([0, 4]), dtype=dtype, channels_last=last)
    assert batch.dtype == dtype
    assert batch.shape == (2, 3, 4, 6)
    wanted = torch.channels_last if last else torch.contiguous_format
    assert batch.is_contiguous(memory_format=wanted)


@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        lambda x: torch.nn.functional.pad(x, (1, 2, 3, 4))[:, :, 3:-4, 1:-2],
    ],
    ids=["channels last", "batch last", "a window"],
)
def test_strides_of_the_images_do_not_matter(arrange: Callable[[Tensor], Tensor]) -> None:
    data, order = images(6, 3, 4, 5), torch.tensor([3, 3, 0])
    strided = arrange(data)
    assert strided.stride() != data.stride()
    for binarize in gather.BINARIZE:
        options: dict[str, Any] = {"binarize": binarize, "flip": 0.5}
        assert torch.equal(run(strided, order, **options), run(data, order, **options))


def test_indices_outside_become_nan() -> None:
    data = images(3, 1, 2, 2)
    batch = run(data, torch.tensor([0, -1, 2, 3, 2**62]))
    assert batch.isnan().flatten(1).all(1).tolist() == [False, True, False, True, True]
    assert torch.equal(batch[[0, 2]], data[[0, 2]] / 255)
    assert run(images(0, 1, 2, 2), torch.tensor([0])).isnan().all()


def test_empty_batches() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    for count in (0, 3):
        assert run(images(count, 3, 4, 5), empty, flip=0.5).shape == (0, 3, 4, 5)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    data, order = (
        images(50, 1, 8, 8),
        torch.randperm(50, generator=torch.Generator().manual_seed(1)),
    )
    options: dict[str, Any] = {"binarize": "stochastic", "flip": 0.5}
    whole = run(data, order, **options)
    assert torch.equal(torch.cat([run(data, part, **options) for part in order.split(7)]), whole)


def variants() -> list[dict[str, Any]]:
    return [
        {},
        {"mean": MEAN, "std": STD, "dtype": torch.bfloat16, "channels_last": True},
        {"binarize": "stochastic", "flip": 0.5},
        {"binarize": "threshold", "rng": None},
    ]


@pytest.mark.parametrize("variant", variants(), ids=["plain", "normalized", "bits", "threshold"])
def test_opcheck(variant: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "mean": None,
        "std": None,
        "rng": RNG,
        "dtype": torch.float32,
        "channels_last": False,
        "flip": 0.0,
        "binarize": "none",
        "threshold": 0.5,
    } | variant
    order = torch.tensor([3, 0])
    torch.library.opcheck(
        torch.ops.fastvae.gather_normalize.default,
        (images(4, 3, 5, 6), order, order, *arguments.values()),
    )


def test_in_a_compiled_graph() -> None:
    data, order = images(8, 3, 4, 5), torch.tensor([7, 0, 3])
    variant = {"binarize": "stochastic", "flip": 0.5}

    def doubled(data: Tensor, order: Tensor) -> Tensor:
        return 2 * run(data, order, **variant)

    compiled = torch.compile(doubled, fullgraph=True)
    assert torch.equal(compiled(data, order), doubled(data, order))


@pytest.mark.parametrize("variant", variants()[1:3], ids=["normalized", "bits"])
def test_the_compiled_form(variant: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    data, order = images(8, 3, 4, 5), torch.tensor([7, 0, 3])
    expected = run(data, order, **variant)
    monkeypatch.setenv("FASTVAE_OPS", "compiled")
    got = run(data, order, **variant)
    assert got.stride() == expected.stride()
    assert torch.equal(got, expected)


def test_there_is_no_gradient_to_the_statistics() -> None:
    """They are constants of the data set; the same on every path."""
    mean = MEAN.clone().requires_grad_()
    assert not run(images(4, 3, 2, 2), torch.tensor([0]), mean=mean).requires_grad
