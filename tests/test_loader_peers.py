"""What the benchmarks of loaders compare does the same work: every sample, once per epoch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import loader_peers as peers
from benchmarks.loader_peers import BATCH, Epoch, Images, Labels

IMAGES: Images = np.random.default_rng(0).integers(0, 256, (3 * BATCH, 6, 5, 1), dtype=np.uint8)
LABELS: Labels = np.arange(len(IMAGES), dtype=np.int64)


def ffcv(folder: Path) -> Epoch:
    if os.environ.get("FASTVAE_REQUIRE_FFCV") != "1":
        pytest.importorskip("ffcv", reason="ffcv is not installed")
    return peers.ffcv(peers.write_beton(folder / "train.beton", IMAGES, LABELS))


READERS: dict[str, Callable[[Path], Epoch]] = {
    "mapped": lambda at: peers.mapped(peers.write_shards(at / "shards", IMAGES, LABELS)),
    "ffcv": ffcv,
    "packed webdataset": lambda at: peers.packed_webdataset(
        peers.write_shards(at / "shards", IMAGES, LABELS)
    ),
    "unbatched webdataset": lambda at: peers.unbatched_webdataset(
        peers.write_shards(at / "shards", IMAGES, LABELS)
    ),
    "png webdataset": lambda at: peers.png_webdataset(
        peers.write_png_tar(at / "train.tar", IMAGES, LABELS)
    ),
    "TensorDataset": lambda at: peers.tensor_dataset(IMAGES, LABELS),
}


@pytest.mark.parametrize("make", READERS.values(), ids=READERS)
def test_every_sample_once_in_an_order_of_each_epoch(
    make: Callable[[Path], Epoch], tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    try:
        epoch, orders = make(tmp_path), []
        for number in range(2):
            order = []
            for images, labels in epoch(number):
                pixels = np.asarray(images)
                assert pixels.dtype == np.uint8
                assert len(pixels) == len(labels) == BATCH
                chosen = np.asarray(labels).tolist()
                np.testing.assert_array_equal(
                    pixels.reshape(BATCH, -1), IMAGES[chosen].reshape(BATCH, -1)
                )
                order += chosen
            assert sorted(order) == LABELS.tolist()
            orders.append(order)
        assert orders[0] != orders[1]
        assert orders[0] != LABELS.tolist()
    finally:
        torch.set_num_threads(threads)
