"""Backward passes without a derivative of their own: an error, wherever one is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Refuse(torch.autograd.Function):
    """Hands on its first ``count`` tensors, and raises when differentiated."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(x.detach() for x in tensors[:count] if x is not None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        raise RuntimeError(
            "fastvae's fused operations have first derivatives only: this graph asks to "
            "differentiate twice (create_graph=True); use plain PyTorch for it"
        )


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the backward of an ``autograd.Function`` that cannot be differentiated.

    PyTorch's decorator of this name only ties the error to the incoming gradients. Where those are
    constants (``loss.sum()``), a second derivative through the saved inputs would be taken for
    zero, without a word; here it raises.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *gradients: Tensor | None) -> Any:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return backward(ctx, *gradients)  # the compiler has its own error for this
        with torch.no_grad():
            outputs = backward(ctx, *gradients)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        computed = [x for x in outputs if x is not None]
        tied = iter(_Refuse.apply(len(computed), *computed, *ctx.saved_tensors, *gradients))
        return tuple(None if x is None else next(tied) for x in outputs)

    return wrapper
