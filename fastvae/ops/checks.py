"""Checks of arguments of ``fastvae.ops``: one ValueError that names the argument and what was
expected, before anything is launched. Nothing here reads a value from a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def tensor(op: str, name: str, value: object) -> None:
    """The value is a dense tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise ValueError(f"{op}: {name} must be a dense tensor, got {value.layout}")


def same_shape(op: str, **tensors: Tensor) -> None:
    """All tensors have one shape: broadcasting would count elements many times."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{op}: {listed} must have the same shape")


def same_place(op: str, **tensors: Tensor | None) -> None:
    """All tensors that are there lie on one device."""
    devices = {name: str(tensor.device) for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"{op}: all tensors must be on one device, got {listed}")


def floating(op: str, **tensors: Tensor) -> None:
    """All tensors are of one floating point dtype."""
    for name, value in tensors.items():
        tensor(op, name, value)
        if value.dtype not in FLOATS:
            raise ValueError(
                f"{op}: {name} must be floating point of 16, 32 or 64 bits, got {value.dtype}"
            )
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        listed = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        raise ValueError(f"{op}: {listed} must have the same dtype")


def float_dtype(op: str, name: str, dtype: object) -> None:
    """A floating point dtype that the operations compute with."""
    if dtype not in FLOATS:
        raise ValueError(
            f"{op}: {name} must be floating point (a torch dtype of 16, 32 or 64 bits), got {dtype}"
        )


def rows(op: str, name: str, value: Tensor) -> None:
    """The tensor is a batch of something: two axes or more."""
    if value.dim() < 2:
        raise ValueError(f"{op}: {name} {tuple(value.shape)} must be (B, ...)")


def rng(op: str, state: Tensor, device: torch.device) -> None:
    """A noise state: int64 (2,) = (seed, counter) on the device of the other tensors."""
    if not isinstance(state, Tensor) or state.dtype != torch.int64 or tuple(state.shape) != (2,):
        got = f"{tuple(state.shape)} {state.dtype}" if isinstance(state, Tensor) else repr(state)
        raise ValueError(
            f"{op}: rng must be an int64 tensor (seed, counter) of shape (2,), see ops.rng_state; "
            f"got {got}"
        )
    if state.device != device:
        raise ValueError(f"{op}: rng is on {state.device}, expected {device}")
    if state.stride(0) != 1:
        raise ValueError(f"{op}: rng must be contiguous, got stride {state.stride(0)}")


def number(op: str, name: str, value: float, *, least: float = -math.inf) -> None:
    """A finite Python number, not below ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{op}: {name} must be a number, got {value!r}")
    if not math.isfinite(value) or value < least:
        bound = "" if least == -math.inf else f" of {least:g} or more"
        raise ValueError(f"{op}: {name} = {value!r}: expected a finite number{bound}")


def count(op: str, name: str, value: int, *, least: int, below: int = 2**63) -> None:
    """An integer of at least ``least``, less than ``below``."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)) or value < least:
        raise ValueError(f"{op}: {name} = {value!r}: expected an integer of {least} or more")
    if value >= below:
        raise ValueError(f"{op}: {name} = {value}: expected less than 2^{below.bit_length() - 1}")


def interval(op: str, name: str, bounds: Sequence[float] | None) -> tuple[float, float]:
    """Clamping bounds (low, high); None stands for no bounds."""
    if bounds is None:
        return -math.inf, math.inf
    pair = tuple(bounds) if isinstance(bounds, Sequence) else ()
    numbers = all(isinstance(x, (int, float)) for x in pair)
    if len(pair) != 2 or not numbers or not pair[0] < pair[1]:
        raise ValueError(
            f"{op}: {name} = {bounds!r}: expected (low, high) with low < high, or None"
        )
    return float(pair[0]), float(pair[1])


def scalar(op: str, name: str, value: float | Tensor, like: Tensor) -> None:
    """A finite number, or a one-element floating point tensor on the device of ``like``.

    The value of a tensor is looked at only where that costs nothing: on the CPU.
    """
    if not isinstance(value, Tensor):
        number(op, name, value)
        return
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"{op}: {name} {tuple(value.shape)} {value.dtype} must be a number or a floating point "
            "tensor of one element"
        )
    if value.device != like.device:
        raise ValueError(f"{op}: {name} is on {value.device}, expected {like.device}")
    if _may_look(value) and not math.isfinite(value.item()):
        raise ValueError(f"{op}: {name} = {value.item()!r}: expected a finite number")


def no_gradient(op: str, name: str, value: Tensor) -> None:
    """The tensor expects no gradient: there would be none."""
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{op}: {name} gets no gradient: pass {name}.detach()")


def finite_on_cpu(op: str, name: str, value: Tensor) -> None:
    """All given values are finite; looked at only where that costs no waiting, on the CPU."""
    if _may_look(value) and not torch.isfinite(value).all():
        raise ValueError(f"{op}: {name} has values that are not finite")


def _may_look(value: Tensor) -> bool:
    """Not at what a network computes: its NaN must reach the loss, where the step is skipped."""
    given = not value.requires_grad and torch.is_grad_enabled()
    return given and value.device.type == "cpu" and not torch.compiler.is_compiling()


def target(
    op: str,
    params_shape: tuple[int, ...],
    values: Tensor,
    samples: int,
    packed: bool,
    params: Tensor,
) -> None:
    """A target fits ``params`` of shape (T * samples, ...): pixels, or packed bits."""
    count(op, "samples_per_target", samples, least=1)
    tensor(op, "target", values)
    no_gradient(op, "target", values)
    n_rows, inner = params_shape[0], params_shape[1:]
    if n_rows % samples:
        raise ValueError(
            f"{op}: {n_rows} rows cannot be split into targets of samples_per_target = {samples}"
        )
    expected = (n_rows // samples, *inner)
    if packed:
        expected = (n_rows // samples, (math.prod(inner) + 7) // 8)
        if values.dtype != torch.uint8:
            raise ValueError(
                f"{op}: packed target must be uint8 (see pack_bits), got {values.dtype}"
            )
    elif values.dtype not in (*FLOATS, torch.uint8, torch.bool):
        raise ValueError(
            f"{op}: target must be floating point in [0, 1], uint8 (read as / 255) or bool, "
            f"got {values.dtype}"
        )
    if tuple(values.shape) != expected:
        per = f" with samples_per_target = {samples}" if samples > 1 else ""
        what = "packed target" if packed else "target"
        hint = ""
        bits = (expected[0], (math.prod(inner) + 7) // 8)
        if not packed and values.dtype == torch.uint8 and tuple(values.shape) == bits:
            hint = " (bit-packed targets need packed=True)"
        raise ValueError(
            f"{op}: {what} {tuple(values.shape)} must have the same shape as the images of the "
            f"parameters{per}: expected {expected}{hint}"
        )
    same_place(op, parameters=params, target=values)


def weight(op: str, values: Tensor | None, target_shape: tuple[int, ...], params: Tensor) -> None:
    """A weight per pixel of the target, or None."""
    if values is None:
        return
    tensor(op, "weight", values)
    no_gradient(op, "weight", values)
    if values.dtype not in (*FLOATS, torch.bool):
        raise ValueError(f"{op}: weight must be floating point or bool, got {values.dtype}")
    if tuple(values.shape) != target_shape:
        raise ValueError(f"{op}: weight {tuple(values.shape)} must have shape {target_shape}")
    same_place(op, parameters=params, weight=values)


def indices(op: str, value: Tensor, size: int) -> None:
    """ValueError for an index outside 0..size-1, where looking costs no waiting: on a CPU."""
    if value.device.type != "cpu" or torch.compiler.is_compiling() or not len(value):
        return
    low, high = (int(v) for v in value.aminmax())
    if low < 0 or high >= size:
        raise ValueError(f"{op}: indices {low}..{high} must be in 0..{size - 1}")
