"""Which implementation runs: Triton, compiled or eager. One rule, in one place.

    CUDA or ROCm tensors      triton; eager (with one warning) where Triton is missing
    CPU tensors               eager, or the Numba form where an operation has one; compiled where
                              asked for
    float64, on any device    eager: the precision of tests, which the kernels do not compute in

``FASTVAE_OPS=triton|compiled|eager`` forces a path for everything but float64; ``eager`` is then
plain PyTorch, without Numba. On a CPU ``triton`` needs Triton's interpreter
(``TRITON_INTERPRET=1``, thousands of times slower: for tests).
``compiled`` is torch.compile of the eager form, in which loss and gradient stand in one graph.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

import torch

PATHS = ("triton", "compiled", "eager")
VARIABLE = "FASTVAE_OPS"
_preferred = "auto"


def prefer(path: str) -> None:
    """Set what CPU tensors take where FASTVAE_OPS does not say: ``auto`` (eager) or ``compiled``.

    Process-wide; training calls it with ``--compile``.
    """
    global _preferred
    if path not in ("auto", "compiled"):
        raise ValueError(f"prefer: path = {path!r}: expected 'auto' or 'compiled'")
    _preferred = path


def choose(device: torch.device, dtype: torch.dtype) -> str:
    """The path for tensors of this device and dtype: one of PATHS.

    Raises:
        ValueError: FASTVAE_OPS is not a path, or asks for what cannot run here.
    """
    forced = os.environ.get(VARIABLE, "auto") or "auto"
    if forced not in ("auto", *PATHS):
        raise ValueError(f"{VARIABLE}={forced}: expected one of auto, {', '.join(PATHS)}")
    if dtype == torch.float64:
        return "eager"
    if forced == "triton":
        _require_triton(device)
        return forced
    if forced != "auto":
        return forced
    if device.type == "cuda":
        return "triton" if _triton_there() else "eager"
    return "compiled" if device.type == "cpu" and _preferred == "compiled" else "eager"


class Implementations:
    """The forms of one operation, all with the same arguments and results.

    Args:
        eager: plain PyTorch.
        triton: name of the launcher as ``module:function``, imported when it is first needed.
        numba: the same of a form for CPU tensors with the bits of the eager one, if there is any.
    """

    def __init__(self, eager: Callable[..., Any], triton: str, numba: str | None = None) -> None:
        self.eager = eager
        self._triton_name = triton
        self._numba_name = numba

    @cached_property
    def compiled(self) -> Callable[..., Any]:
        # One compilation for each combination of options, dtypes and layouts: more than torch's
        # default allows before it gives up.
        limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(limit, 64)
        return torch.compile(self.eager, fullgraph=True)

    @cached_property
    def triton(self) -> Callable[..., Any]:
        return _named(self._triton_name)

    @cached_property
    def numba(self) -> Callable[..., Any]:
        return self.eager if self._numba_name is None else _named(self._numba_name)

    def pick(self, device: torch.device, dtype: torch.dtype) -> Callable[..., Any]:
        """The form that runs for these tensors."""
        path = choose(device, dtype)
        if path == "eager" and device.type == "cpu":
            return self.on_cpu
        form: Callable[..., Any] = getattr(self, path)
        return form

    def on_cpu(self, *arguments: Any) -> Any:
        """What runs on a CPU where the path is eager. A compiler is shown the formulas."""
        if torch.compiler.is_compiling() or os.environ.get(VARIABLE) == "eager":
            return self.eager(*arguments)
        return self.numba(*arguments)


def _named(name: str) -> Callable[..., Any]:
    """The function ``module:function``."""
    module, function = name.split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def interpreting() -> bool:
    """Does Triton run in its interpreter (read from the environment, as Triton does)?"""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


def _require_triton(device: torch.device) -> None:
    if importlib.util.find_spec("triton") is None:
        raise ValueError(f"{VARIABLE}=triton, but triton is not installed: pip install triton")
    if device.type != "cuda" and not interpreting():
        raise ValueError(
            f"{VARIABLE}=triton, but the tensors are on {device.type}: Triton needs a GPU "
            "(or TRITON_INTERPRET=1, its slow interpreter)"
        )


@lru_cache(maxsize=1)
def _triton_there() -> bool:
    if importlib.util.find_spec("triton") is not None:
        return True
    warnings.warn(
        "triton is not installed: the fused kernels are replaced by plain PyTorch, which is "
        "slower; pip install triton",
        RuntimeWarning,
        stacklevel=2,
    )
    return False
