"""``gather_normalize`` as an operation of torch: registered, and dispatched by device."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.kernels import gather
from fastvae.kernels.library import inlined, register
from fastvae.kernels.paths import Implementations

forms = Implementations(
    gather.gather_normalize,
    triton="fastvae.kernels.gather_triton:gather_normalize",
    numba="fastvae.kernels.gather_numba:gather_normalize",
)


def _run(
    images: Tensor,
    indices: Tensor,
    keys: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    rng: Tensor | None,
    dtype: torch.dtype,
    channels_last: bool,
    flip: float,
    binarize: str,
    threshold: float,
) -> Tensor:
    run = forms.pick(images.device, dtype)
    batch: Tensor = run(
        images,
        indices,
        keys,
        mean,
        std,
        rng,
        dtype,
        channels_last,
        flip,
        binarize,
        threshold,
    )
    return batch


def _fake(
    images: Tensor,
    indices: Tensor,
    keys: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    rng: Tensor | None,
    dtype: torch.dtype,
    channels_last: bool,
    flip: float,
    binarize: str,
    threshold: float,
) -> Tensor:
    return gather.allocate(images, indices.shape[0], dtype, channels_last)


_gather_normalize = register(
    "gather_normalize(Tensor images, Tensor indices, Tensor keys, Tensor? mean, Tensor? std, "
    "Tensor? rng, ScalarType dtype, bool channels_last, float flip, str binarize, "
    "float threshold) -> Tensor",
    _run,
    _fake,
)


_visible = inlined(_gather_normalize, forms.on_cpu)


def gather_normalize(
    images: Tensor,
    indices: Tensor,
    *,
    keys: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    rng: Tensor | None,
    dtype: torch.dtype,
    channels_last: bool,
    flip: float,
    binarize: str,
    threshold: float,
) -> Tensor:
    """See ``gather.gather_normalize``; arguments are taken to be valid. There is no gradient."""
    with torch.no_grad():
        batch: Tensor = _visible(
            images,
            indices,
            keys,
            mean,
            std,
            rng,
            dtype,
            channels_last,
            flip,
            binarize,
            threshold,
        )
    return batch
