"""``rasterize_strokes`` as an operation of torch: registered, and dispatched by device.

Its plain form loops as often as the longest drawing has points, a number that no compiler can know:
within a torch.compile the operation stays closed, and FASTVAE_OPS=compiled runs the eager form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.kernels import raster_torch
from fastvae.kernels.library import register
from fastvae.kernels.paths import Implementations, choose

forms = Implementations(raster_torch.rasterize, "fastvae.kernels.raster_triton:rasterize")


def _run(
    points: Tensor,
    last: Tensor,
    first: Tensor,
    indices: Tensor,
    cut: Tensor | None,
    affine: Tensor | None,
    side: int,
    line_width: float,
    padding: float,
    over: bool,
) -> Tensor:
    path = choose(points.device, points.dtype)
    run = forms.triton if path == "triton" else forms.eager
    images: Tensor = run(points, last, first, indices, cut, affine, side, line_width, padding, over)
    return images


def _fake(
    points: Tensor,
    last: Tensor,
    first: Tensor,
    indices: Tensor,
    cut: Tensor | None,
    affine: Tensor | None,
    side: int,
    line_width: float,
    padding: float,
    over: bool,
) -> Tensor:
    return raster_torch.allocate(points, indices.shape[0], side, cut)


_rasterize = register(
    "rasterize_strokes(Tensor points, Tensor last, Tensor first, Tensor indices, Tensor? cut, "
    "Tensor? affine, SymInt side, float line_width, float padding, bool over) -> Tensor",
    _run,
    _fake,
)


def rasterize(
    points: Tensor,
    last: Tensor,
    first: Tensor,
    indices: Tensor,
    cut: Tensor | None,
    affine: Tensor | None,
    side: int,
    line_width: float,
    padding: float,
    over: bool,
) -> Tensor:
    """See ``raster_torch.rasterize``; arguments are taken to be valid. There is no gradient."""
    with torch.no_grad():
        images: Tensor = _rasterize(
            points, last, first, indices, cut, affine, side, line_width, padding, over
        )
    return images
