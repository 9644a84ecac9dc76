"""The likelihoods as operations of torch.library, and their two-pass autograd form.

Arguments are those of the explicit forms in ``likelihood.py``; they are taken as valid, since
``fastvae.ops`` checks them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastvae.kernels import likelihood, paths
from fastvae.kernels.library import inlined, register
from fastvae.kernels.once import once_differentiable
from fastvae.kernels.rows import wide_dtype

_INPUTS = (
    "Tensor? second, Tensor target, Tensor? weight, str kind, SymInt samples_per_target, "
    "bool packed, int mixtures"
)
_TRITON = "fastvae.kernels.likelihood_triton"
_NLL = paths.Implementations(likelihood.pixel_nll, f"{_TRITON}:pixel_nll")
_BACKWARD = paths.Implementations(likelihood.pixel_nll_backward, f"{_TRITON}:pixel_nll_backward")
_GRAD = paths.Implementations(likelihood.pixel_nll_grad, f"{_TRITON}:pixel_nll_grad")
# These two are in place, which Triton alone does: PyTorch needs room for its steps anyway.
_GRAD_IN_PLACE = paths.Implementations(likelihood.pixel_nll_grad, f"{_TRITON}:pixel_nll_grad_")
_RESCALE = paths.Implementations(likelihood.rescale_, f"{_TRITON}:rescale_")


def _run_nll(params: Tensor, *inputs: Any) -> Tensor:
    nll: Tensor = _NLL.pick(params.device, params.dtype)(params, *inputs)
    return nll


def _run_backward(grad_row: Tensor, params: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor] = _BACKWARD.pick(params.device, params.dtype)(
        grad_row, params, *inputs
    )
    return gradients


def _run_grad(params: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    results: tuple[Tensor, Tensor, Tensor]
    path = paths.choose(params.device, params.dtype)
    if path == "compiled":  # likes a number per row
        *given, scale = inputs
        results = _GRAD.compiled(
            params, *given, params.new_full(params.shape[:1], scale, dtype=torch.float32)
        )
    else:
        results = getattr(_GRAD, path)(params, *inputs)
    return results


def _visible_grad(params: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    scale = inputs[-1]
    if torch.compiler.is_compiling():  # which likes a number per row
        scale = params.new_full(params.shape[:1], scale, dtype=wide_dtype(params.dtype))
    results: tuple[Tensor, Tensor, Tensor] = _GRAD.eager(params, *inputs[:-1], scale)
    return results


def _run_grad_in_place(params: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    if paths.choose(params.device, params.dtype) == "triton":
        results: tuple[Tensor, Tensor] = _GRAD_IN_PLACE.triton(params, *inputs)
        return results
    nll, grad, grad_second = _run_grad(params, *inputs)
    params.copy_(grad)
    return nll, grad_second


def _run_rescale(grad: Tensor, factor: Tensor) -> None:
    if paths.choose(grad.device, grad.dtype) == "triton":
        _RESCALE.triton(grad, factor)
    else:
        likelihood.rescale_(grad, factor)  # compiling could only add the cost of a guard


def _fake_nll(params: Tensor, *_inputs: Any) -> Tensor:
    return params.new_empty((params.shape[0],), dtype=wide_dtype(params.dtype))


def _fake_second(params: Tensor, second: Tensor | None) -> Tensor:
    dtype = wide_dtype(params.dtype)
    if second is None:
        return params.new_empty((0,), dtype=dtype)
    if second.dim() < 2:
        return params.new_empty((params.shape[0],), dtype=dtype)
    return second.new_empty(second.shape)


def _fake_backward(
    _grad_row: Tensor, params: Tensor, second: Tensor | None, *_inputs: Any
) -> tuple[Tensor, Tensor]:
    return params.new_empty(params.shape), _fake_second(params, second)


def _fake_grad(
    params: Tensor, second: Tensor | None, *_inputs: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_nll(params), params.new_empty(params.shape), _fake_second(params, second)


def _fake_grad_in_place(
    params: Tensor, second: Tensor | None, *_inputs: Any
) -> tuple[Tensor, Tensor]:
    return _fake_nll(params), _fake_second(params, second)


def _fake_rescale(_grad: Tensor, _factor: Tensor) -> None:
    return None


pixel_nll_op = register(f"pixel_nll(Tensor params, {_INPUTS}) -> Tensor", _run_nll, _fake_nll)
pixel_nll_backward_op = register(
    f"pixel_nll_backward(Tensor grad_row, Tensor params, {_INPUTS}) -> (Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
pixel_nll_grad_op = register(
    f"pixel_nll_grad(Tensor params, {_INPUTS}, float scale) -> (Tensor, Tensor, Tensor)",
    _run_grad,
    _fake_grad,
)
pixel_nll_grad_in_place_op = register(
    f"pixel_nll_grad_(Tensor(a!) params, {_INPUTS}, float scale) -> (Tensor, Tensor)",
    _run_grad_in_place,
    _fake_grad_in_place,
)
rescale_op = register("rescale_(Tensor(a!) grad, Tensor factor) -> ()", _run_rescale, _fake_rescale)


pixel_nll_visible = inlined(pixel_nll_op, likelihood.pixel_nll)
pixel_nll_backward_visible = inlined(pixel_nll_backward_op, likelihood.pixel_nll_backward)
pixel_nll_grad_visible = inlined(pixel_nll_grad_op, _visible_grad)


def gradient_of_second(grad: Tensor, second: Tensor | None) -> Tensor | None:
    """The gradient by second in its shape and dtype, from what the operations return."""
    if second is None:
        return None
    if second.dim() < 2:
        return grad.sum().to(second.dtype).reshape(second.shape)
    return grad


class _PixelNll(torch.autograd.Function):
    """Two passes: the gradient waits for grad_row, which differs from row to row (IWAE)."""

    @staticmethod
    def forward(
        ctx: Any,
        params: Tensor,
        second: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        options: tuple[str, int, bool, int],
    ) -> Tensor:
        ctx.save_for_backward(params, second, target, weight)
        ctx.options = options
        nll: Tensor = pixel_nll_visible(params, second, target, weight, *options)
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_row: Tensor) -> tuple[Tensor | None, ...]:
        params, second, target, weight = ctx.saved_tensors
        grad, grad_second = pixel_nll_backward_visible(
            grad_row, params, second, target, weight, *ctx.options
        )
        return grad, gradient_of_second(grad_second, second), None, None, None


def pixel_nll(
    params: Tensor,
    second: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    *,
    kind: str,
    samples_per_target: int = 1,
    packed: bool = False,
    mixtures: int = 1,
) -> Tensor:
    """Negative log-likelihood of each row in nats, differentiable (once) in params and second.

    Shapes: see ``likelihood.py``; returns (R,) float32, or float64 for float64 params.
    """
    nll: Tensor = _PixelNll.apply(
        params, second, target, weight, (kind, samples_per_target, packed, mixtures)
    )
    return nll
