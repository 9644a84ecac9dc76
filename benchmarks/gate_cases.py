"""The cases of the compile gate: calls of the launchers, on tensors like those of training.

Only types, shapes, strides and alignments count; nothing is computed, the tensors are not filled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gate_widths import Widths
from fastvae.kernels import (
    gather_triton,
    gaussian_triton,
    likelihood_triton,
    philox_triton,
    raster_triton,
)
from fastvae.kernels.launch import LAUNCH, Launch

FP32, BF16, FP16, U8 = torch.float32, torch.bfloat16, torch.float16, torch.uint8


@dataclass(frozen=True)
class Case:
    """One call of a launcher.

    Attributes:
        row: the row of the launch table that it follows, or its parameters.
        loads, stores: dtype of the widest tensors that it reads and writes in tiles; None where
            neighbours in a tile are not neighbours in memory, or not aligned.
        quick: part of the short selection that the test suite compiles.
        broken: must fail; left out unless asked for by name.
    """

    launch: Callable[[], Any]
    row: str | Launch
    loads: torch.dtype | None = FP32
    stores: torch.dtype | None = FP32
    quick: bool = False
    broken: bool = False

    def widths(self, warp: int) -> Widths:
        """How wide accesses should be where a warp has ``warp`` threads."""
        launch = self.row if isinstance(self.row, Launch) else LAUNCH[self.row]
        elements = launch.elements // (launch.warps * warp)
        loads, stores = (
            0 if dtype is None else min(16, elements * dtype.itemsize)
            for dtype in (self.loads, self.stores)
        )
        return Widths(loads, stores, elements)


CASES: dict[str, Case] = {}


def _add(name: str, launch: Callable[[], Any], row: str | Launch, **options: Any) -> None:
    if name in CASES:
        raise ValueError(f"two cases named {name}")
    CASES[name] = Case(launch, row, **options)


def _short(dtype: torch.dtype) -> str:
    return {FP32: "fp32", BF16: "bf16", FP16: "fp16", U8: "u8"}[dtype]


def _rng() -> Tensor:
    return torch.zeros(2, dtype=torch.int64)


def _shifted(rows: int, columns: int, dtype: torch.dtype = FP32) -> Tensor:
    """A matrix that starts one element past an aligned address."""
    return torch.empty(rows * columns + 1, dtype=dtype)[1:].view(rows, columns)


def _noise_cases() -> None:
    def call(columns: int) -> Tensor:
        return philox_triton.philox_normal(0, torch.zeros(8, dtype=torch.int64), columns)

    _add("normal_20", lambda: call(20), "normal", loads=None, stores=None)
    _add("normal_128", lambda: call(128), "normal", loads=None, quick=True)

    def starved() -> None:
        philox_triton._normal_kernel[(1,)](
            torch.zeros(8, dtype=torch.int64),
            torch.empty(8, 128),
            0,
            8,
            128,
            ROWS=8,
            BLOCK=128,
            num_warps=4,
            enable_fp_fusion=False,
            maxnreg=24,
        )

    _add("normal_spilling", starved, "normal", loads=None, broken=True)


def _gather_cases() -> None:
    def add(
        name: str,
        images: Tensor,
        mean: bool = False,
        dtype: torch.dtype = FP32,
        channels_last: bool = False,
        flip: float = 0.0,
        binarize: str = "none",
        **options: Any,
    ) -> None:
        order = torch.zeros(8, dtype=torch.int64)
        channel = torch.ones(images.shape[1]) if mean else None

        def launch() -> Tensor:
            return gather_triton.gather_normalize(
                images,
                order,
                order,
                channel,
                channel,
                _rng(),
                dtype,
                channels_last,
                flip,
                binarize,
                0.5,
            )

        widths = {"loads": U8, "stores": dtype}
        _add(f"gather_{name}", launch, "gather", **(widths | options))

    mnist = torch.empty(16, 1, 28, 28, dtype=U8)
    colour = torch.empty(16, 3, 64, 64, dtype=U8)
    stored_last = torch.empty(16, 64, 64, 3, dtype=U8).permute(0, 3, 1, 2)
    add("mnist_fp32", mnist, quick=True)
    add("mnist_bf16", mnist, dtype=BF16)
    add("mnist_threshold", mnist, binarize="threshold")
    add("mnist_stochastic", mnist, binarize="stochastic", quick=True)
    add("mnist_stochastic_flip", mnist, binarize="stochastic", flip=0.5, stores=None)
    add("colour_fp16", colour, dtype=FP16)
    add("colour_mean", colour, mean=True)
    add("last_to_last", stored_last, channels_last=True)
    # Neighbours in the batch are not neighbours in the data set: its bytes are read one by one.
    add("colour_flip", colour, flip=0.5, loads=None)
    add("colour_to_last", colour, channels_last=True, loads=None)
    add("last_to_colour", stored_last, mean=True, flip=0.5, loads=None)
    add("misaligned", _shifted(16, 784, U8).view(16, 1, 28, 28), broken=True)


def _gaussian_cases() -> None:
    def add(
        name: str,
        dtype: torch.dtype = FP32,
        latents: int = 128,
        prior: bool = False,
        log_std: bool = False,
        clamp: bool = False,
        forward: bool = True,
        head: Tensor | None = None,
        upstream: str = "zrd",
        **options: Any,
    ) -> None:
        # Mean and scale are halves of one layer's output, as encoders have it.
        head = torch.empty(8, 2 * latents, dtype=dtype) if head is None else head
        pairs = [*head.chunk(2, dim=1), *(head.chunk(2, dim=1) if prior else (None, None))]
        limits = [-5.0, 5.0, -7.0, 7.0] if clamp else [-math.inf, math.inf] * 2

        def launch() -> object:
            if forward:
                return gaussian_triton.sample_kl(*pairs, _rng(), 0, log_std, limits, dtype)
            return gaussian_triton.sample_kl_backward(
                torch.empty(8, latents, dtype=dtype) if "z" in upstream else None,
                torch.empty(8) if "r" in upstream else None,
                torch.empty(latents) if "d" in upstream else None,
                *pairs,
                _rng(),
                torch.empty(0),
                0,
                log_std,
                limits,
            )

        row = "sample_kl" if forward else "sample_kl_backward"
        widths = {"loads": dtype, "stores": dtype} if latents % 16 == 0 else {}
        blank = {"loads": None, "stores": None}
        _add(f"{row}_{name}", launch, row, **(blank | widths | options))

    for forward in (True, False):
        for dtype in (FP32, BF16, FP16):
            add(_short(dtype), dtype, forward=forward, quick=dtype == FP32)
            add(f"prior_{_short(dtype)}", dtype, prior=True, forward=forward, quick=dtype == BF16)
        add("20", latents=20, forward=forward)
        add("20_bf16", BF16, latents=20, forward=forward)
        add("512", latents=512, forward=forward)
        add("log_std_clamp", log_std=True, clamp=True, forward=forward)
        add("prior_log_std_clamp", prior=True, log_std=True, clamp=True, forward=forward)
        add("misaligned", head=_shifted(8, 256), forward=forward, broken=True)
    add("kl_only", upstream="rd", forward=False)
    add("row_only", upstream="zr", forward=False)


def _pixels(
    name: str,
    dtype: torch.dtype = FP32,
    target: torch.dtype = FP32,
    kind: str = "bernoulli",
    form: str = "terminal",
    shape: tuple[int, int] = (8, 784),
    second: str = "none",
    weight: torch.dtype | None = None,
    packed: bool = False,
    mixtures: int = 1,
    samples: int = 1,
    params: Tensor | None = None,
    **options: Any,
) -> None:
    """A case of the likelihoods. ``form``: value, backward, terminal or in_place."""
    rows, pixels = shape
    parts = {"dlogistic": 2 if mixtures == 1 else 3 * mixtures}.get(kind, 1)
    seconds = {"none": None, "scalar": torch.zeros(()), "pixel": torch.empty(shape, dtype=dtype)}
    inputs = (
        torch.empty(rows, parts * pixels, dtype=dtype) if params is None else params,
        seconds[second],
        torch.empty(rows // samples, -(-pixels // 8) if packed else pixels, dtype=target),
        None if weight is None else torch.ones(rows // samples, pixels, dtype=weight),
        kind,
        samples,
        packed,
        mixtures,
    )
    calls: dict[str, Callable[[], Any]] = {
        "value": lambda: likelihood_triton.pixel_nll(*inputs),
        "backward": lambda: likelihood_triton.pixel_nll_backward(torch.ones(rows), *inputs),
        "terminal": lambda: likelihood_triton.pixel_nll_grad(*inputs, 1 / rows),
        "in_place": lambda: likelihood_triton.pixel_nll_grad_(*inputs, 1 / rows),
    }
    widths = {"loads": dtype, "stores": None if form == "value" else dtype}
    row = likelihood_triton.row_of_table(kind, mixtures)
    _add(name, calls[form], row, **(widths | options))


def _likelihood_cases() -> None:
    for form in ("value", "backward", "terminal"):
        for dtype in (FP32, BF16, FP16):
            for target in (dtype, U8):
                name = f"bernoulli_{form}_{_short(dtype)}"
                name += "_u8" if target == U8 else ""
                quick = form == "terminal" and (dtype, target) in ((FP32, FP32), (BF16, U8))
                _pixels(name, dtype, target, form=form, quick=quick)
        _pixels(f"bernoulli_{form}_packed", target=U8, packed=True, form=form)
        _pixels(f"bernoulli_{form}_weight", weight=FP32, form=form)
        _pixels(f"bernoulli_{form}_iwae", samples=4, form=form)
        _pixels(f"continuous_bernoulli_{form}", kind="continuous_bernoulli", form=form)
        for second in ("scalar", "pixel"):
            for dtype in (FP32, BF16):
                name = f"gaussian_{form}_{second}_{_short(dtype)}"
                quick = (form, second, dtype) == ("terminal", "pixel", FP32)
                _pixels(name, dtype, kind="gaussian", second=second, form=form, quick=quick)
    _pixels("bernoulli_weight_bool", weight=torch.bool)
    _pixels("bernoulli_in_place", form="in_place")
    _pixels("bernoulli_64x64", shape=(8, 12_288))
    _pixels("bernoulli_512x512_bf16_u8", BF16, U8, shape=(2, 786_432))
    _pixels("bernoulli_odd", shape=(8, 785), loads=None, stores=None)
    _pixels("bernoulli_misaligned", params=_shifted(8, 784), broken=True)


def _dlogistic_cases() -> None:
    for form in ("value", "backward", "terminal"):
        for mixtures in (1, 10):
            for dtype in (FP32, BF16):
                name = f"dlogistic_{mixtures}_{form}_{_short(dtype)}"
                changes = {"kind": "dlogistic", "form": form, "mixtures": mixtures}
                quick = form == "terminal" and dtype == FP32
                _pixels(name, dtype, U8, shape=(8, 12_288), quick=quick, **changes)
    changes = {"kind": "dlogistic", "shape": (8, 12_288)}
    _pixels("dlogistic_1_float_weight", weight=FP32, **changes)
    _pixels("dlogistic_10_in_place", target=U8, mixtures=10, form="in_place", **changes)
    wrong = _shifted(8, 2 * 12_288)
    _pixels("dlogistic_misaligned", target=U8, params=wrong, broken=True, **changes)


def _rescale_cases() -> None:
    for dtype in (FP32, BF16, FP16):

        def launch(dtype: torch.dtype = dtype) -> None:
            likelihood_triton.rescale_(torch.empty(8, 784, dtype=dtype), torch.ones(()))

        widths = {"loads": dtype, "stores": dtype}
        _add(f"rescale_{_short(dtype)}", launch, "rescale", quick=dtype == FP32, **widths)


def _raster_cases() -> None:
    def add(
        name: str,
        side: int,
        cut: bool = True,
        affine: bool = False,
        line_width: float = 16.0,
        over: bool = True,
        **options: Any,
    ) -> None:
        order = torch.zeros(8, dtype=torch.int64)

        def launch() -> Tensor:
            return raster_triton.rasterize(
                torch.empty(64, 2, dtype=U8),
                torch.empty(8, dtype=U8),
                torch.zeros(9, dtype=torch.int64),
                order,
                order if cut else None,
                torch.zeros(8, 2, 3) if affine else None,
                side,
                line_width,
                16.0,
                over,
            )

        # Points are read one at a time, by all threads alike.
        widths = {"loads": None, "stores": U8 if side % 16 == 0 else None}
        _add(f"raster_{name}", launch, raster_triton.TILE, **(widths | options))

    add("28", 28, cut=False)
    add("28_pair", 28)
    add("64", 64, cut=False)
    add("64_pair", 64, quick=True)
    add("64_pair_affine", 64, affine=True)
    add("64_pair_affine_thin", 64, affine=True, line_width=4.0)
    add("64_pair_max", 64, over=False)


_noise_cases()
_gather_cases()
_raster_cases()
_gaussian_cases()
_likelihood_cases()
_dlogistic_cases()
_rescale_cases()
