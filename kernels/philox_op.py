"""``philox_normal`` as an operation of torch.library: Triton on a GPU, PyTorch elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.kernels import philox
from fastvae.kernels.library import register
from fastvae.kernels.paths import Implementations, choose

_NORMAL = Implementations(philox.philox_normal, "fastvae.kernels.philox_triton:philox_normal")


def _run(seed: int, ordinal: Tensor, columns: int) -> Tensor:
    path = choose(ordinal.device, torch.float32)
    # torch.compile would take an int for a constant and compile again for each seed.
    key: int | Tensor = seed
    if path == "compiled":
        key = torch.full((), seed, dtype=torch.int64, device=ordinal.device)
    result: Tensor = getattr(_NORMAL, path)(key, ordinal, columns)
    return result


def _fake(seed: int, ordinal: Tensor, columns: int) -> Tensor:
    return ordinal.new_empty((ordinal.shape[0], columns), dtype=torch.float32)


_op = register("philox_normal(SymInt seed, Tensor ordinal, SymInt columns) -> Tensor", _run, _fake)


def philox_normal(seed: int, ordinal: Tensor, columns: int) -> Tensor:
    """Standard normals (R, columns) float32 for ordinals (R,) int64: ``philox.philox_normal``."""
    result: Tensor = _op(seed, ordinal, columns)
    return result
