"""Inputs of ``sample_kl`` for tests, and what the plain reference makes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from fastvae.kernels import gaussian, philox

BOUNDS = (-1.0, 1.5, -0.75, 0.5)
FLOOR = {torch.float32: 1e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


@dataclass(frozen=True)
class Case:
    """Arguments of ``sample_kl``, and gradients to feed into its backward pass (float64).

    Attributes:
        inputs: mean_q, scale_q, mean_p, scale_p; the last two None without a prior.
        rng: (2,) int64 (seed, counter).
        weights: gradients with respect to z (B, Z), KL per row (B,) and KL per latent (Z,).
    """

    inputs: tuple[Tensor | None, ...]
    rng: Tensor
    weights: tuple[Tensor, Tensor, Tensor]
    sample_offset: int = 5
    log_std: bool = False
    clamp: tuple[float, ...] = gaussian.NO_CLAMP

    @property
    def given(self) -> list[Tensor]:
        return [x for x in self.inputs if x is not None]

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Case:
        """The same with inputs of ``dtype`` that want gradients."""
        moved = (
            None if x is None else x.detach().to(device, dtype).requires_grad_()
            for x in self.inputs
        )
        weights = tuple(w.to(device) for w in self.weights)
        return replace(self, inputs=tuple(moved), rng=self.rng.to(device), weights=weights)

    @property
    def keywords(self) -> dict[str, object]:
        return {
            "sample_offset": self.sample_offset,
            "log_std": self.log_std,
            "clamp": self.clamp,
        }

    def backward(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Outputs and the gradients of their weighted sum, in float64 on the CPU."""
        pairs = zip(outputs, self.weights, strict=True)
        total = sum((w * out.double()).sum() for out, w in pairs)
        gradients = torch.autograd.grad(total, self.given)
        return tuple(x.detach().double().cpu() for x in (*outputs, *gradients))

    def reference(self) -> tuple[Tensor, ...]:
        """z, KL per row, KL per latent and all gradients by autograd, in the dtype of the case."""
        rows, columns = self.given[0].shape
        seed, counter = self.rng.tolist()
        ordinal = torch.arange(rows) + (counter + self.sample_offset)
        eps = philox.philox_normal(seed, ordinal, columns).to(self.given[0])
        outputs = gaussian.sample_kl_reference(*self.inputs, eps, self.log_std, self.clamp)
        return self.backward(outputs)


def make_case(rows: int, columns: int, *, prior: bool, log_std: bool, clamped: bool) -> Case:
    """Inputs in bfloat16 steps, so that all dtypes compute from the same numbers; float64."""
    generator = torch.Generator().manual_seed(rows * 100_003 + columns)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16().double()

    inputs = [draw(rows, columns) for _ in range(4)]
    return Case(
        inputs=(*inputs[:2], *(inputs[2:] if prior else (None, None))),
        rng=torch.tensor([2**40 + 17, 2**33 - 2]),
        weights=(draw(rows, columns), draw(rows), draw(columns)),
        log_std=log_std,
        clamp=BOUNDS if clamped else gaussian.NO_CLAMP,
    )


FLAGS = [
    dict(zip(("prior", "log_std", "clamped"), values, strict=True))
    for values in product((False, True), repeat=3)
]


def assert_as_precise(
    got: tuple[Tensor, ...],
    torch_own: tuple[Tensor, ...],
    exact: tuple[Tensor, ...],
    floor: float,
) -> None:
    """Error to float64 at most twice that of plain PyTorch, or ``floor`` of the largest value."""
    names = ("z", "kl_row", "kl_dim", "mean_q", "scale_q", "mean_p", "scale_p")
    for name, a, b, c in zip(names, got, torch_own, exact, strict=False):
        assert a.shape == c.shape, name
        if c.numel() == 0:
            continue
        error, own = (a - c).abs().max(), (b - c).abs().max()
        assert error <= max(2 * own, floor * c.abs().max()), (name, error, own, c.abs().max())
