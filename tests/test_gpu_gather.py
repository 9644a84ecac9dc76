"""gather_normalize on a GPU: the same bits as on the CPU, no wait for the device, graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastvae.kernels import gather, gather_op

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]

RNG = torch.tensor([2**62 + 12345, 99])
MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
SHAPES = [(1, 28, 28), (3, 64, 64), (3, 5, 7), (1, 1, 1)]


def images(count: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


def arguments(order: Tensor, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "keys": order + 2**40,
        "mean": None,
        "std": None,
        "rng": RNG,
        "dtype": torch.float32,
        "channels_last": False,
        "flip": 0.0,
        "binarize": "none",
        "threshold": 0.5,
    } | changes
    return {
        name: value.to(order.device) if isinstance(value, Tensor) else value
        for name, value in given.items()
    }


def run(data: Tensor, order: Tensor, device: str, **changes: Any) -> Tensor:
    order = order.to(device)
    return gather_op.gather_normalize(data.to(device), order, **arguments(order, **changes))


@pytest.mark.parametrize("path", ["triton", "eager"])
@pytest.mark.parametrize("shape", SHAPES)
def test_same_bits_as_on_the_cpu(
    shape: tuple[int, ...], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, order = images(16, *shape), torch.tensor([15, 0, 3, 3, 16, -1])
    channels = shape[0]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for binarize in gather.BINARIZE:
            for last in (False, True):
                for flip in (0.0, 0.5):
                    changes = {
                        "dtype": dtype,
                        "binarize": binarize,
                        "channels_last": last,
                        "flip": flip,
                        "mean": MEAN[:channels],
                        "std": STD[:channels],
                    }
                    monkeypatch.setenv("FASTVAE_OPS", "eager")
                    expected = run(data, order, "cpu", **changes)
                    monkeypatch.setenv("FASTVAE_OPS", path)
                    got = run(data, order, "cuda", **changes).cpu()
                    assert got.stride() == expected.stride()
                    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_any_strides() -> None:
    data = images(8, 3, 12, 20)
    order = torch.tensor([7, 0, 3])
    for strided in (
        data.cuda().contiguous(memory_format=torch.channels_last),
        data.cuda().permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    ):
        for binarize in ("none", "stochastic"):
            given = arguments(order.cuda(), binarize=binarize, flip=0.5)
            got = gather_op.gather_normalize(strided, order.cuda(), **given)
            assert torch.equal(got.cpu(), run(data, order, "cpu", binarize=binarize, flip=0.5))


def test_more_than_two_to_the_31_elements() -> None:
    if torch.cuda.mem_get_info()[0] < 4 * 2**30:
        pytest.skip("less than 4 GiB of free GPU memory")
    data = torch.zeros(2**31 // 12_288 + 2, 3, 64, 64, dtype=torch.uint8, device="cuda")
    data[-1] = 255
    order = torch.tensor([len(data) - 1, 0], device="cuda")
    batch = gather_op.gather_normalize(data, order, **arguments(order))
    assert batch.flatten(1).mean(1).tolist() == [1.0, 0.0]
    # The batch runs fastest: offsets within one image pass 2^31 as well.
    far = data.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    batch = gather_op.gather_normalize(far, order, **arguments(order))
    assert batch.flatten(1).mean(1).tolist() == [1.0, 0.0]


def test_graph_replay_reads_new_indices_and_does_not_wait() -> None:
    data, order = images(32, 1, 28, 28).cuda(), torch.arange(4, device="cuda")
    given = arguments(order, binarize="stochastic", flip=0.5)
    given["keys"] = order

    def step() -> Tensor:
        return gather_op.gather_normalize(data, order, **given)

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            batch = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for start in (0, 9, 28):
        order.copy_(torch.arange(start, start + 4))
        graph.replay()
        assert torch.equal(batch, step())
