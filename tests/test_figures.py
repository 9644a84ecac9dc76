"""Pictures: where each pixel goes, and files that appear whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastvae import figures
from fastvae.errors import UserError


def flat(values: list[float], channels: int = 1, side: int = 48) -> Tensor:
    """One image of a single grey value per number."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, channels, side, side)


def test_images_are_laid_out_in_rows_with_gaps() -> None:
    table = figures.grid(flat([0.0, 0.2, 0.4, 0.6, 0.8]), columns=3)
    assert table.shape == (2 * 48 + 1, 3 * 48 + 2, 3)
    assert table.dtype == np.uint8
    for i, grey in enumerate((0, 51, 102, 153, 204, 255)):  # the sixth place is empty: white
        top, left = 49 * (i // 3), 49 * (i % 3)
        assert (table[top : top + 48, left : left + 48] == grey).all()
    assert (table[48] == 255).all()
    assert (table[:, [48, 97]] == 255).all()


def test_pixels_keep_their_place() -> None:
    images = torch.rand(2, 1, 48, 50)
    table = figures.grid(images, columns=2)
    expected = (images * 255).round().to(torch.uint8).numpy()
    for channel in range(3):
        np.testing.assert_array_equal(table[:, :50, channel], expected[0, 0])
        np.testing.assert_array_equal(table[:, 51:, channel], expected[1, 0])


def test_colour_channels_are_red_green_blue() -> None:
    image = torch.zeros(1, 3, 48, 48)
    image[0, 0] = 1.0
    image[0, 2, :24] = 0.6
    table = figures.grid(image, columns=1)
    assert table.shape == (48, 48, 3)
    assert table[0, 0].tolist() == [255, 0, 153]
    assert table[47, 47].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("height", "width", "factor"),
    [(8, 8, 6), (28, 28, 2), (32, 64, 2), (47, 47, 2), (48, 48, 1), (64, 40, 2), (200, 100, 1)],
)
def test_small_images_are_enlarged_by_a_whole_factor(height: int, width: int, factor: int) -> None:
    images = torch.rand(2, 1, height, width)
    table = figures.grid(images, columns=2)
    assert table.shape == (height * factor, (2 * width + 1) * factor, 3)
    np.testing.assert_array_equal(
        table[::factor, : width * factor : factor, 0],
        (images[0, 0] * 255).round().to(torch.uint8).numpy(),
    )
    blocks = table.reshape(height, factor, 2 * width + 1, factor, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()


def test_values_outside_are_clamped() -> None:
    table = figures.grid(flat([-3.0, 7.0]), columns=2)
    assert table[0, 0, 0] == 0
    assert table[0, -1, 0] == 255


def test_gradients_and_half_precision_are_no_obstacle() -> None:
    images = flat([0.0, 1.0]).bfloat16().requires_grad_()
    assert figures.grid(images, columns=2).shape == (48, 97, 3)


def test_pairs_stand_one_above_the_other() -> None:
    above, below = flat([0.0, 0.2, 0.4]), flat([0.6, 0.8, 0.1])
    table = figures.under(above, below, columns=2)
    assert table.shape == (4 * 49 - 1, 2 * 49 - 1, 3)
    corners = table[::49, ::49, 0].tolist()
    assert corners == [[0, 51], [153, 204], [102, 255], [26, 255]]


def test_pairs_of_a_full_row() -> None:
    table = figures.under(flat([0.0] * 8), flat([1.0] * 8))
    assert table.shape == (2 * 49 - 1, 8 * 49 - 1, 3)


def test_png_is_written_whole(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    path = tmp_path / "new" / "picture.png"
    figures.save_png(path, pixels)
    assert os.listdir(path.parent) == ["picture.png"]
    with Image.open(path) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), pixels)
    figures.save_png(path, 255 - pixels)
    assert os.listdir(path.parent) == ["picture.png"]


def test_a_failed_write_leaves_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture.png"
    pixels = np.zeros((4, 4, 3), np.uint8)
    figures.save_png(path, pixels)

    def fail(self: Image.Image, file: Path, **kwargs: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", fail)
        with pytest.raises(OSError, match="disk full"):
            figures.save_png(path, pixels + 1)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


# ---------------------------------------------------------------------------------- curves
def write(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def train_line(step: int) -> dict[str, Any]:
    numbers = {"loss": 9.0 / step, "nll": 5.0, "kl": 1.0, "beta": 1.0, "lr": 1e-3}
    return {"kind": "train", "step": step, **numbers, "images_per_s": 100.0, "skipped": 0.0}


def val_line(step: int) -> dict[str, Any]:
    return {"kind": "val", "step": step, "loss": 8.0 / step, "nll": 4.0, "kl": 1.0, "nelbo": 5.0}


LOGS = {
    "whole": [train_line(1), val_line(1), train_line(2), val_line(2), {"kind": "test", "step": 2}],
    "only train": [train_line(1), train_line(2)],
    "one line": [train_line(1)],
    "not finite": [{**train_line(1), "loss": None, "nll": None}, {**val_line(1), "loss": None}],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["whole", "only train", "one line"])
def test_curves(tmp_path: Path, name: str) -> None:
    path = tmp_path / "images" / "curves.png"
    figures.save_curves(write(tmp_path / "metrics.jsonl", LOGS[name]), path)
    assert os.listdir(path.parent) == ["curves.png"]
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 300


@pytest.mark.filterwarnings("ignore:No artists with labels")
def test_curves_of_a_run_that_diverged(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    figures.save_curves(write(tmp_path / "metrics.jsonl", LOGS["not finite"]), path)
    assert path.is_file()


def test_curves_do_not_pile_up(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    figures.save_curves(write(tmp_path / "metrics.jsonl", LOGS["whole"]), tmp_path / "c.png")
    assert plt.get_fignums() == []


def test_missing_and_damaged_metrics(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no metrics at .*metrics\.jsonl"):
        figures.read_metrics(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n{"kind": "tr')
    with pytest.raises(UserError, match="is damaged"):
        figures.read_metrics(tmp_path / "metrics.jsonl")
