"""Pictures: grids of images, rows of inputs above reconstructions, training curves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastvae.errors import UserError

Pixels = NDArray[np.uint8]
_GAP = 1  # pixels between images, before enlarging
_MIN_SIDE = 48  # an image is enlarged by a whole factor until its side has this many pixels


def grid(images: Tensor, columns: int) -> Pixels:
    """Lay images out in rows. Shapes: images (N, C, H, W) in [0, 1]; returns (H', W', 3) uint8."""
    if images.shape[1] not in (1, 3):  # show the first channels of what is neither grey nor RGB
        images = images[:, :3] if images.shape[1] > 3 else images[:, :1]
    n, c, h, w = images.shape
    rows = math.ceil(n / columns)
    canvas = torch.ones(rows * columns, c, h + _GAP, w + _GAP)
    canvas[:n, :, :h, :w] = images.detach().float().cpu().clamp(0.0, 1.0)
    table = canvas.view(rows, columns, c, h + _GAP, w + _GAP).permute(0, 3, 1, 4, 2)
    table = table.reshape(rows * (h + _GAP), columns * (w + _GAP), c)[:-_GAP, :-_GAP]
    pixels = (table * 255.0).round().to(torch.uint8).expand(-1, -1, 3).numpy()
    factor = max(1, math.ceil(_MIN_SIDE / min(h, w)))
    return np.ascontiguousarray(pixels.repeat(factor, axis=0).repeat(factor, axis=1))


def under(*rows: Tensor, columns: int = 8) -> Pixels:
    """Rows of the first images with those of the others underneath: inputs above reconstructions.

    Shapes: (N, C, H, W) each.
    """
    columns = max(1, min(columns, len(rows[0])))
    blocks = []
    for start in range(0, len(rows[0]), columns):
        for images in (row[start : start + columns] for row in rows):
            missing = columns - len(images)
            blank = images.new_ones(missing, *images.shape[1:])
            blocks.append(torch.cat((images, blank)))
    return grid(torch.cat(blocks), columns)


def save_png(path: Path, pixels: Pixels) -> None:
    """Write a PNG whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    Image.fromarray(pixels).save(temporary, format="PNG")
    temporary.replace(path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise UserError(f"no metrics at {path}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def save_curves(metrics: Path, path: Path) -> None:
    """Plot metrics.jsonl: loss, nll, kl, and the schedules over steps."""
    from matplotlib.figure import Figure  # not pyplot: it would change the caller's backend

    lines = read_metrics(metrics)
    panels = [
        ("loss", "loss (nats/image)"),
        ("nll", "reconstruction nll (nats/image)"),
        ("kl", "kl (nats/image)"),
        ("beta", "beta"),
        ("lr", "learning rate"),
        ("images_per_s", "images/s"),
    ]
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis, (key, title) in zip(axes.flat, panels, strict=True):
        for kind, style in (("train", "-"), ("val", "o-")):
            points = [
                (entry["step"], entry[key])
                for entry in lines
                if entry["kind"] == kind and entry.get(key) is not None
            ]
            if points:
                axis.plot(*zip(*points, strict=True), style, label=kind, markersize=3, linewidth=1)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    losses = [float(e["loss"]) for e in lines if e["kind"] == "val" and e.get("loss")]
    if losses:
        # The first steps are off the scale: show from a little below the best to the start.
        low, high = min(losses), max(losses)
        axes.flat[0].set_ylim(low - 0.1 * (high - low) - 1.0, high + 0.5 * (high - low) + 1.0)
    if axes.flat[0].lines:
        axes.flat[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=90, format="png")
    temporary.replace(path)
