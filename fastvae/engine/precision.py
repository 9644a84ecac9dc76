"""Precision: autocast dtype, loss scaling, TF32, determinism. Weights and losses stay float32."""

from __future__ import annotations

import os

import torch

from fastvae import ops
from fastvae.errors import UserError

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn ``auto`` into bf16 where the hardware computes in it, else fp32."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = _cpu_has_bf16()
    if precision == "auto":
        return "bf16" if has_bf16 else "fp32"
    if precision == "bf16" and device.type == "cuda" and not has_bf16:
        raise UserError(
            f"precision = 'bf16': {torch.cuda.get_device_name(device)} has no bf16 arithmetic; "
            "use --precision fp16 or fp32"
        )
    return precision


def resolve_path(device: torch.device) -> str:
    """The path that the fused operations take on this device: triton, compiled or eager.

    Raises:
        UserError: FASTVAE_OPS is unknown, or asks for what cannot run here.
    """
    try:
        return ops.choose_path(device, torch.float32)
    except ValueError as error:
        raise UserError(str(error)) from None


def _cpu_has_bf16() -> bool:
    """Does this CPU have bf16 dot products (AVX-512 BF16 or AMX)? Without them bf16 is slow."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as info:
            text = info.read()
    except OSError:
        return False
    return "avx512_bf16" in text or "amx_bf16" in text


def set_backend_flags(*, tf32: bool, deterministic: bool, threads: int) -> None:
    """Process-wide switches of torch. ``threads`` 0 leaves the number of CPU threads alone."""
    if threads:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        # cuBLAS reads this when its first handle is made (CUDA docs, "Results reproducibility").
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Not called with False: that alone imports the compiler, 1.5 s for nothing.
        torch.use_deterministic_algorithms(True)


def make_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Loss scaler: active for fp16 only (bf16 has float32's range)."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
