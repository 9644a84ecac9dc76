"""Inputs of the pixel likelihoods for tests, and how precise a result has to be."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastvae.kernels import dlogistic, likelihood
from fastvae.kernels.rows import widen

FLOOR = {torch.float32: 1e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
KINDS = ("bernoulli", "continuous_bernoulli", "gaussian", "dlogistic")


@dataclass(frozen=True)
class Case:
    """Arguments of ``likelihood_op.pixel_nll`` and a gradient for its result.

    Attributes:
        grad_row: (R,) gradient with respect to nll.
    """

    kind: str
    params: Tensor
    second: Tensor | None
    target: Tensor
    weight: Tensor | None
    grad_row: Tensor
    samples: int = 1
    packed: bool = False
    mixtures: int = 1

    @property
    def inputs(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        return self.params, self.second, self.target, self.weight

    @property
    def options(self) -> tuple[str, int, bool, int]:
        return self.kind, self.samples, self.packed, self.mixtures

    @property
    def keywords(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "samples_per_target": self.samples,
            "packed": self.packed,
            "mixtures": self.mixtures,
        }

    @property
    def given(self) -> list[Tensor]:
        """The tensors that get gradients."""
        return [x for x in (self.params, self.second) if x is not None]

    def to(self, dtype: torch.dtype, device: str = "cpu", *, exact: bool = False) -> Case:
        """Parameters in ``dtype`` that want gradients; ``exact``: float targets in it as well."""
        move = {"device": device}
        params, second = (
            None if x is None else x.detach().to(dtype=dtype, **move).requires_grad_()
            for x in (self.params, self.second)
        )
        target = self.target.to(**move)
        if exact and target.is_floating_point():
            target = target.to(dtype)
        weight = None if self.weight is None else self.weight.to(**move)
        assert params is not None
        return replace(
            self,
            params=params,
            second=second,
            target=target,
            weight=weight,
            grad_row=self.grad_row.to(**move),
        )

    def backward(self, nll: Tensor) -> tuple[Tensor, ...]:
        """nll and the gradients of (grad_row * nll).sum(), in float64 on the CPU."""
        total = (nll.double() * self.grad_row.double()).sum()
        gradients = torch.autograd.grad(total, self.given)
        return tuple(x.detach().double().cpu() for x in (nll, *gradients))

    def reference(self) -> Tensor:
        """nll by the plain references, in the dtype of the parameters."""
        params = widen(self.params)
        count = likelihood.parts(self.kind, self.mixtures)
        columns = params.shape[1] // count
        target = self.target
        if self.packed:
            target = likelihood.unpack_bits(target, columns)
        elif self.kind == "dlogistic":
            target = dlogistic.levels(target, torch.float64)
        elif target.dtype == torch.uint8:
            target = target.double() / 255
        target = target.to(params.dtype).repeat_interleave(self.samples, dim=0)
        weight = 1.0 if self.weight is None else self.weight.to(params.dtype)
        if isinstance(weight, Tensor):
            weight = weight.repeat_interleave(self.samples, dim=0)
        # As one row per pixel, so that a weight can come between.
        if self.kind == "dlogistic":
            pixels = params.unflatten(1, (count, columns)).transpose(1, 2).flatten(0, 1)
            element = likelihood.dlogistic_nll(pixels.unsqueeze(-1), target.reshape(-1, 1))
        else:
            pixels, target = params.reshape(-1, 1), target.reshape(-1, 1)
            if self.kind == "gaussian":
                assert self.second is not None
                logvar = widen(self.second)
                logvar = logvar.reshape(-1, 1) if logvar.dim() == 2 else logvar
                element = likelihood.gaussian_nll(pixels, logvar, target)
            elif self.kind == "bernoulli":
                element = likelihood.bernoulli_nll(pixels, target)
            else:
                element = likelihood.continuous_bernoulli_nll(pixels, target)
        return (element.reshape(-1, columns) * weight).sum(dim=1)


def make_case(
    kind: str,
    rows: int,
    columns: int,
    *,
    target: str = "float",
    second: str = "pixel",
    samples: int = 1,
    weight: str = "none",
    mixtures: int = 1,
    spread: float = 2.0,
) -> Case:
    """Inputs in bfloat16 steps, so that all dtypes compute from the same numbers.

    Args:
        target: float, bfloat16, float16, bool, uint8 or packed.
        second: scalar or pixel; for the Gaussian.
        weight: none, float or bool.
    """
    generator = torch.Generator().manual_seed(rows * 100_003 + columns + len(kind))

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16().float()

    targets = rows // samples
    t = torch.rand(targets, columns, generator=generator).bfloat16()
    if target in ("uint8", "packed"):
        width = columns if target == "uint8" else (columns + 7) // 8
        t = torch.randint(0, 256, (targets, width), generator=generator, dtype=torch.uint8)
        if target == "uint8":  # both ends, as images have them
            t[:, ::5], t[:, 1::7] = 0, 255
    elif target == "bool":
        t = t > 0.5
    else:
        t = t.to(getattr(torch, target))
    w = None
    if weight != "none":
        w = torch.rand(targets, columns, generator=generator).bfloat16().float()
        w = w > 0.25 if weight == "bool" else w
    logvar = None
    if kind == "gaussian":
        logvar = draw(1)[0] if second == "scalar" else draw(rows, columns)
    return Case(
        kind=kind,
        params=draw(rows, columns * likelihood.parts(kind, mixtures)) * spread,
        second=logvar,
        target=t,
        weight=w,
        grad_row=draw(rows),
        samples=samples,
        packed=target == "packed",
        mixtures=mixtures,
    )


def assert_as_precise(
    got: tuple[Tensor, ...],
    torch_own: tuple[Tensor, ...],
    exact: tuple[Tensor, ...],
    floor: float,
) -> None:
    """Error to float64 at most twice that of plain PyTorch, or ``floor`` of the largest value."""
    for name, a, b, c in zip(("nll", "params", "second"), got, torch_own, exact, strict=False):
        assert a.shape == c.shape, name
        if c.numel() == 0:
            continue
        error, own = (a - c).abs().max(), (b - c).abs().max()
        assert error <= max(2 * own, floor * c.abs().max()), (name, error, own, c.abs().max())


# Every kind with every way to give targets, variances and weights; odd sizes.
VARIANTS: list[dict[str, object]] = [
    {"kind": "bernoulli"},
    {"kind": "bernoulli", "target": "bfloat16", "weight": "float"},
    {"kind": "bernoulli", "target": "float16", "samples": 2},
    {"kind": "bernoulli", "target": "bool", "weight": "bool"},
    {"kind": "bernoulli", "target": "uint8", "samples": 3, "weight": "float"},
    {"kind": "bernoulli", "target": "packed", "samples": 2},
    {"kind": "continuous_bernoulli"},
    {"kind": "continuous_bernoulli", "target": "uint8", "weight": "bool", "spread": 0.3},
    {"kind": "gaussian", "second": "scalar"},
    {"kind": "gaussian", "second": "scalar", "target": "uint8", "samples": 2, "weight": "float"},
    {"kind": "gaussian", "second": "pixel"},
    {"kind": "gaussian", "second": "pixel", "samples": 3, "weight": "float"},
    {"kind": "dlogistic", "target": "uint8"},
    {"kind": "dlogistic", "target": "uint8", "samples": 2, "weight": "float"},
    {"kind": "dlogistic", "target": "uint8", "mixtures": 3},
    {"kind": "dlogistic", "target": "float", "mixtures": 2, "samples": 2, "weight": "bool"},
]


def name_of(variant: dict[str, object]) -> str:
    return "-".join(str(x) for x in variant.values())
