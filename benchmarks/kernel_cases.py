"""What ``bench_kernels.py`` measures: operations, shapes of the five systems, and alternatives.

Alternatives ("providers") of each operation:

    eager             what people write: plain PyTorch, autograd
    compile           torch.compile of that
    ours compiled     torch.compile of our operations, which open up to it on a CPU
    compiled explicit our operations alone compiled (FASTVAE_OPS=compiled), called from eager code
    triton            our kernels (GPU)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import DEVICE, ON_GPU, Prepare, path
from fastvae import ops

PROVIDERS = ("eager", "compile", "ours compiled", "triton" if ON_GPU else "compiled explicit")
MODES = ("forward", "backward", "full")


@dataclass(frozen=True)
class Case:
    """An operation at a shape.

    Attributes:
        rows, values, latents: images, numbers per image, latents per image.
        dtype: of the network's output.
        target: dtype of the images.
        samples: posterior samples per image.
    """

    op: str
    system: str
    rows: int
    values: int
    latents: int
    dtype: torch.dtype = torch.float32
    target: torch.dtype = torch.float32
    samples: int = 1

    @property
    def label(self) -> str:
        kind = f"{self.dtype}+{self.target}".replace("torch.", "")
        return f"{self.op} {self.system} [{self.rows},{self.values}] D{self.latents} {kind}"

    def bytes_min(self, mode: str) -> int:
        """Least bytes to move: every input read once, every output written once.

        The pixel losses write the gradient in the forward pass where they are the end of the graph
        (elbo); the other ones read their inputs again in the backward pass.
        """
        e, t = self.dtype.itemsize, self.target.itemsize
        pixels, latents = self.rows * self.values, self.rows * self.latents * 4
        images = pixels // self.samples
        parts = {
            "elbo": (2 * e * pixels + t * images + 3 * latents, 5 * latents),
            "iwae": (e * pixels + t * images, 2 * e * pixels + t * images),
            "gaussian": (2 * e * pixels + t * images, 4 * e * pixels + t * images),
            "dlogistic": (2 * e * pixels + t * images, 4 * e * pixels + t * images),
            "sample_kl": (5 * latents, 9 * latents),
        }
        forward, backward = parts[self.op]
        return {"forward": forward, "backward": backward, "full": forward + backward}[mode]


BF16, U8 = torch.bfloat16, torch.uint8
GPU_CASES = [
    Case("elbo", "S3 mnist", 512, 784, 20),
    Case("elbo", "S0 drawings", 512, 4096, 256),
    Case("elbo", "S1 photos", 128, 12288, 128),
    Case("elbo", "S1 photos, large batch", 1024, 12288, 256),
    Case("elbo", "S1 photos, large batch", 1024, 12288, 256, BF16, U8),
    Case("elbo", "S2 strips", 64, 316800, 1024, BF16, U8),
    Case("elbo", "S4 512x512", 32, 786432, 512),
    Case("elbo", "S4 512x512", 32, 786432, 512, BF16, U8),
    Case("iwae", "S3 mnist, K = 50", 6400, 784, 20, samples=50),
    Case("gaussian", "S1 photos", 1024, 12288, 256),
    Case("dlogistic", "S1 photos", 256, 12288, 256, target=U8),
    Case("sample_kl", "hierarchical", 64, 0, 16384),
]
CPU_CASES = [
    Case("elbo", "S3 mnist", 512, 784, 20),
    Case("elbo", "S0 drawings", 128, 4096, 256),
    Case("elbo", "S1 photos", 128, 12288, 128),
    Case("elbo", "S1 photos", 128, 12288, 128, BF16, U8),
    Case("elbo", "S2 strips", 4, 316800, 1024),
    Case("elbo", "S4 512x512", 2, 786432, 512),
    Case("iwae", "S3 mnist, K = 50", 600, 784, 20, samples=50),
    Case("gaussian", "S1 photos", 64, 12288, 128),
    Case("dlogistic", "S1 photos", 32, 12288, 128, target=U8),
    Case("sample_kl", "hierarchical", 16, 0, 4096),
]
CASES = GPU_CASES if ON_GPU else CPU_CASES

Outputs = list[Tensor]
Forward = Callable[[], Outputs]


def provider(case: Case, name: str, mode: str) -> Prepare:
    """The timed part of one provider in one mode, with the untimed part done before."""
    forward, gradients, leaves = _build(case, name)
    forced = {"triton": "triton", "compiled explicit": "compiled"}.get(name, "auto")

    def backward(outputs: Outputs) -> None:
        torch.autograd.backward(outputs, gradients)

    def clean() -> None:
        for leaf in leaves:
            leaf.grad = None

    def prepare() -> Callable[[], object]:
        clean()
        if mode == "backward":
            with path(forced):
                outputs = forward()

        def run() -> None:
            with path(forced):
                if mode == "backward":
                    backward(outputs)
                elif mode == "forward":
                    forward()
                else:
                    backward(forward())

        return run

    return prepare


def _build(case: Case, name: str) -> tuple[Forward, list[Tensor | None], list[Tensor]]:
    """Forward, gradients of its outputs, and the leaves whose gradients are computed."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        values = torch.randn(*shape, generator=generator)
        return values.to(DEVICE, dtype).requires_grad_()

    rows, values, latents = case.rows, case.values, case.latents
    images = torch.randint(0, 256, (rows // case.samples, values), generator=generator)
    target = images.to(torch.uint8) if case.target == U8 else (images / 255.0).to(case.target)
    target = target.to(DEVICE)
    rng = ops.rng_state(0, DEVICE)
    if case.op == "elbo":
        leaves = [leaf(rows, latents), leaf(rows, latents), leaf(rows, values, dtype=case.dtype)]
        grad_z = torch.randn(rows, latents, generator=generator).to(DEVICE)
        ours, plain = _our_elbo, _plain_elbo
        arguments = (*leaves, target, rng)
        gradients: list[Tensor | None] = [None, grad_z]
    elif case.op == "sample_kl":
        leaves = [leaf(rows, latents) for _ in range(4)]
        ours, plain = _our_sample, _plain_sample
        arguments = (*leaves, rng)
        gradients = [None, torch.randn(rows, latents, generator=generator).to(DEVICE)]
    else:
        parts = 2 if case.op in ("gaussian", "dlogistic") else 1
        leaves = [leaf(rows, parts * values, dtype=case.dtype)]
        ours, plain = _OUR_NLL[case.op], _PLAIN_NLL[case.op]
        arguments = (leaves[0], target, case.samples)
        gradients = [torch.ones(rows, device=DEVICE)]
    compiled = {"compile": plain, "ours compiled": ours}
    function = _compiled(compiled[name]) if name in compiled else plain if name == "eager" else ours
    return (lambda: function(*arguments)), gradients, leaves


@lru_cache(maxsize=64)
def _compiled(function: Callable[..., Outputs]) -> Callable[..., Outputs]:
    return torch.compile(function, fullgraph=True)


def _as_float(target: Tensor) -> Tensor:
    return target.float() / 255.0 if target.dtype == torch.uint8 else target.float()


def _plain_elbo(mean: Tensor, logvar: Tensor, logits: Tensor, target: Tensor, _: Tensor) -> Outputs:
    z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
    kl = 0.5 * (logvar.exp() + mean.square() - 1.0 - logvar).sum(dim=1)
    x, t = logits.float(), _as_float(target)
    nll = F.binary_cross_entropy_with_logits(x, t, reduction="none").sum(dim=1)
    return [(nll + kl).mean(), z]


def _our_elbo(mean: Tensor, logvar: Tensor, logits: Tensor, target: Tensor, rng: Tensor) -> Outputs:
    z, kl_row, kl_dim = ops.reparam_kl(mean, logvar, rng)
    return [ops.elbo_loss(logits, target, kl_row, kl_dim).loss, z]


def _plain_sample(mq: Tensor, lq: Tensor, mp: Tensor, lp: Tensor, _: Tensor) -> Outputs:
    z = mq + torch.exp(0.5 * lq) * torch.randn_like(mq)
    kl = 0.5 * (lp - lq + (lq - lp).exp() + (mq - mp).square() * (-lp).exp() - 1.0)
    return [kl.sum(), z]


def _our_sample(mq: Tensor, lq: Tensor, mp: Tensor, lp: Tensor, rng: Tensor) -> Outputs:
    z, kl_row, _ = ops.gaussian_sample_kl(mq, lq, mp, lp, rng)
    return [kl_row.sum(), z]


def _plain_bernoulli(logits: Tensor, target: Tensor, samples: int) -> Outputs:
    t = _as_float(target).repeat_interleave(samples, dim=0)
    return [F.binary_cross_entropy_with_logits(logits.float(), t, reduction="none").sum(dim=1)]


def _our_bernoulli(logits: Tensor, target: Tensor, samples: int) -> Outputs:
    return [ops.bernoulli_nll(logits, target, samples_per_target=samples)]


def _plain_gaussian(params: Tensor, target: Tensor, _: int) -> Outputs:
    mean, logvar = params.float().chunk(2, dim=1)
    nll = 0.5 * (1.8378770664 + logvar + (mean - _as_float(target)).square() * (-logvar).exp())
    return [nll.sum(dim=1)]


def _our_gaussian(params: Tensor, target: Tensor, samples: int) -> Outputs:
    mean, logvar = params.chunk(2, dim=1)
    return [ops.gaussian_nll(mean, target, logvar, samples_per_target=samples)]


def _plain_dlogistic(params: Tensor, target: Tensor, _: int) -> Outputs:
    """As in the PixelCNN++ code that people copy: cdf of both edges, and cases by torch.where."""
    mean, log_scale = params.float().chunk(2, dim=1)
    log_scale = log_scale.clamp(min=-7.0)
    x = target.float() / 127.5 - 1.0
    centred, inverse = x - mean, torch.exp(-log_scale)
    plus, minus = inverse * (centred + 1.0 / 255.0), inverse * (centred - 1.0 / 255.0)
    inside = torch.log((torch.sigmoid(plus) - torch.sigmoid(minus)).clamp(min=1e-12))
    log_p = torch.where(x < -0.999, plus - F.softplus(plus), inside)
    log_p = torch.where(x > 0.999, -F.softplus(minus), log_p)
    return [-log_p.sum(dim=1)]


def _our_dlogistic(params: Tensor, target: Tensor, samples: int) -> Outputs:
    return [ops.dlogistic_nll(params, target, samples_per_target=samples)]


_PLAIN_NLL = {"iwae": _plain_bernoulli, "gaussian": _plain_gaussian, "dlogistic": _plain_dlogistic}
_OUR_NLL = {"iwae": _our_bernoulli, "gaussian": _our_gaussian, "dlogistic": _our_dlogistic}
