"""The Numba form of gather_normalize: the bits of the plain PyTorch form, whatever is asked for."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from fastvae.kernels import gather, gather_numba, gather_op, gather_rows, paths

RNG = torch.tensor([2**62 + 12345, 99])
LAYOUTS = ("planes", "pixels", "batch last", "a window", "repeated")


@pytest.fixture(autouse=True)
def automatic_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTVAE_OPS", raising=False)


def images(layout: str, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    made = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    if layout == "pixels":
        return made.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    if layout == "batch last":
        return made.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    if layout == "a window":
        return torch.nn.functional.pad(made, (1, 2, 3, 4))[:, :, 3:-4, 1:-2]
    return made[:, :1].expand(shape) if layout == "repeated" else made


def arguments(data: Tensor, indices: Tensor, **changes: Any) -> list[Any]:
    defaults: dict[str, Any] = {
        "keys": indices * 3 + 2**33,
        "mean": None,
        "std": None,
        "rng": RNG,
        "dtype": torch.float32,
        "channels_last": False,
        "flip": 0.0,
        "binarize": "none",
        "threshold": 0.3,
    }
    return [data, indices, *(defaults | changes).values()]


def same(data: Tensor, indices: Tensor, **changes: Any) -> None:
    """Both forms, compared as bits (so that NaN equals NaN, and -0 does not equal 0)."""
    given = arguments(data, indices, **changes)
    expected, got = gather.gather_normalize(*given), gather_numba.gather_normalize(*given)
    assert got.stride() == expected.stride()
    assert got.dtype == expected.dtype
    assert torch.equal(got.view(torch.int32), expected.view(torch.int32)), changes


def statistics(channels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mean, std = torch.rand(2, channels, generator=generator)
    return mean, std + 0.1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 2, 3, 9])
def test_the_bits_of_the_plain_form(layout: str, channels: int) -> None:
    mean, std = statistics(channels)
    order = torch.tensor([5, 0, 5, 2, 3])
    normal: tuple[dict[str, Any], ...] = ({}, {"mean": mean}, {"std": std})
    normal += ({"mean": mean, "std": std},)
    for height, width in ((1, 1), (2, 3), (5, 13), (8, 8), (9, 17)):
        data = images(layout, 6, channels, height, width)
        for last, flip, binarize, constants in itertools.product(
            (False, True), (0.0, 0.5), gather.BINARIZE, normal
        ):
            options = {"channels_last": last, "flip": flip, "binarize": binarize}
            same(data, order, **options, **constants)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("layout", ["planes", "pixels"])
def test_images_of_ordinary_size(layout: str, channels_last: bool) -> None:
    mean, std = statistics(3)
    data, order = images(layout, 40, 3, 64, 64), torch.randperm(40)
    same(data, order, channels_last=channels_last)
    same(data, order, channels_last=channels_last, mean=mean, std=std)
    same(images(layout, 40, 1, 28, 28), order, channels_last=channels_last)
    same(images(layout, 40, 1, 28, 28), order[:7], binarize="stochastic", flip=1.0)


def test_every_byte() -> None:
    data = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    mean, std = statistics(1)
    for constants in ({}, {"mean": mean}, {"mean": mean, "std": std}):
        same(data, torch.tensor([0]), **constants)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**63 - 1, -5])
def test_random_bits_for_any_seed_and_key(seed: int) -> None:
    keys = torch.tensor([0, 1, 2**32 - 1, 2**32, 2**62, 2**63 - 1])
    data = images("planes", 6, 1, 5, 7)
    rng = torch.tensor([seed, 7])
    for options in ({"binarize": "stochastic"}, {"flip": 0.4}):
        same(data, torch.arange(6), keys=keys, rng=rng, **options)


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.25, 128 / 255, 1.0, 3.0])
def test_thresholds(threshold: float) -> None:
    data = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    same(data, torch.tensor([0]), binarize="threshold", threshold=threshold)


@pytest.mark.parametrize("layout", ["planes", "pixels"])
def test_indices_outside_are_nan(layout: str) -> None:
    order = torch.tensor([-1, 0, 4, 2, 2**62, 3, -(2**63)])
    for options in ({}, {"flip": 1.0, "binarize": "stochastic", "channels_last": True}):
        data = images(layout, 4, 3, 5, 6)
        got = gather_numba.gather_normalize(*arguments(data, order, **options))
        nan = got.isnan().flatten(1)
        assert nan.all(1).tolist() == nan.any(1).tolist()
        assert nan.all(1).tolist() == [True, False, True, False, True, False, True]
        same(data, torch.tensor([0, 2, 3]), **options)


def test_nothing_to_do() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    same(images("planes", 3, 3, 4, 5), empty, flip=0.5)
    same(images("planes", 0, 3, 4, 5), empty)
    same(images("planes", 0, 3, 4, 5), torch.tensor([0]))


def test_indices_and_constants_with_gaps() -> None:
    data, every = images("planes", 9, 3, 4, 5), torch.arange(18).view(9, 2) // 2
    mean = torch.rand(6)[::2].requires_grad_()
    order = every[:, 0].flip(0)[::2]
    assert not every[:, 0].is_contiguous()
    with torch.no_grad():
        same(data, order, keys=every[:, 1][:5], mean=mean, flip=0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_take_the_plain_form(dtype: torch.dtype) -> None:
    given = arguments(images("planes", 6, 3, 5, 5), torch.tensor([3, 1]), dtype=dtype, flip=0.5)
    got = gather_numba.gather_normalize(*given)
    assert got.dtype == dtype
    assert torch.equal(got, gather.gather_normalize(*given))


@pytest.mark.parametrize("threads", [2, 3])
def test_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather_rows, "_LARGE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    mean, std = statistics(3)
    data = images("pixels", 30, 3, 6, 7)
    for count in (1, 2, 300):
        order = torch.arange(count) % 30
        same(data, order, mean=mean, std=std, channels_last=True)
        same(data, order, mean=mean, std=std, binarize="stochastic", flip=0.5)


def test_which_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba by itself; plain PyTorch where it is forced and where a compiler looks on."""
    ran = []
    monkeypatch.setattr(
        gather_numba,
        "gather_normalize",
        lambda *given: ran.append("numba") or gather.gather_normalize(*given),
    )
    forms = paths.Implementations(
        lambda *given: ran.append("eager") or gather.gather_normalize(*given),
        triton="no.such:thing",
        numba="fastvae.kernels.gather_numba:gather_normalize",
    )
    given = arguments(images("planes", 4, 1, 2, 2), torch.tensor([1]))
    forms.pick(torch.device("cpu"), torch.float32)(*given)
    monkeypatch.setenv("FASTVAE_OPS", "eager")
    forms.pick(torch.device("cpu"), torch.float32)(*given)
    monkeypatch.delenv("FASTVAE_OPS")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    forms.on_cpu(*given)
    assert ran == ["numba", "eager", "eager"]


def test_the_operation_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setitem(
        gather_op.forms.__dict__, "numba", lambda *given: ran.append(1) or torch.zeros(1)
    )
    data, order = images("planes", 4, 1, 2, 2), torch.tensor([1])
    names = ("keys", "mean", "std", "rng", "dtype", "channels_last", "flip", "binarize")
    options = dict(zip((*names, "threshold"), arguments(data, order)[2:], strict=True))
    gather_op.gather_normalize(data, order, **options)
    torch.ops.fastvae.gather_normalize(data, order, *options.values())
    assert len(ran) == 2
