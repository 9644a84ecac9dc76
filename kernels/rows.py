"""Small things that the operations on rows share."""

from __future__ import annotations

import torch
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of computation: float64 for float64 (the precision of tests), else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widen(x: Tensor) -> Tensor:
    """``x`` in the dtype of computation."""
    return x.to(wide_dtype(x.dtype))


def inner_one(x: Tensor | None) -> Tensor | None:
    """``x`` with its columns next to one another; its rows may lie apart."""
    return x if x is None or x.dim() < 2 or x.stride(1) == 1 else x.contiguous()


def row_stride(x: Tensor | None) -> int:
    """Elements from one row to the next; 0 where there are no rows."""
    return 0 if x is None or x.dim() == 0 else x.stride(0)


def add_parts(parts: Tensor, dim: int) -> Tensor:
    """Add up partial sums, in a fixed order."""
    return parts.squeeze(dim) if parts.shape[dim] == 1 else parts.sum(dim=dim)
