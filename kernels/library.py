"""Registration with torch.library: how an operation becomes known to autograd and torch.compile.

Each operation is ``define`` + ``impl`` + a fake kernel (shapes only); gradients come from an
``autograd.Function`` around it. That is the cheapest of torch's ways per call, and the one that
works under ``torch.compile(fullgraph=True)`` with Triton's interpreter too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastvae.kernels.paths import choose

_LIBRARY = torch.library.Library("fastvae", "FRAGMENT")


def register(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define ``fastvae::<schema>`` for CPU and CUDA tensors and return the callable operation.

    Args:
        schema: name and signature in torch's schema language.
        run: does the work; picks its path by the device of its tensors.
        fake: returns empty tensors of the right shapes, dtypes and strides. Allocate with
            ``new_empty``: ``empty_like`` would copy the strides of its argument.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema)
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, run, key)
    torch.library.register_fake(f"fastvae::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.fastvae, name).default


def inlined(operation: Any, eager: Callable[..., Any]) -> Callable[..., Any]:
    """The operation; on a CPU, where nothing else is asked for, its eager form in the open.

    Inside a torch.compile the compiler then sees the formulas, and fuses them with what stands
    before and after. Outside, the dispatch is saved.
    """

    def call(*arguments: Any) -> Any:
        tensor = next(x for x in arguments if isinstance(x, torch.Tensor))
        if tensor.device.type == "cpu":
            path = choose(tensor.device, tensor.dtype)
            if path == "eager" or (path == "compiled" and torch.compiler.is_compiling()):
                return eager(*arguments)
        return operation(*arguments)

    return call
