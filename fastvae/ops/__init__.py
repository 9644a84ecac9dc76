"""The public face of the kernels: plain tensors in, plain tensors out.

This is the only package that imports from ``fastvae.kernels``. Losses are per row (one image, one
posterior sample), in nats, summed in float32 (float64 when the inputs are float64) whatever the
autocast state. On a GPU the Triton kernels run, on a CPU the same formulas in PyTorch, compiled
when asked; ``FASTVAE_OPS=triton|compiled|eager`` forces a path (``kernels/paths.py`` has the rule).

All operations work under autograd, autocast, ``torch.compile(fullgraph=True)`` and CUDA graphs,
with any memory layout (channels_last is read as it lies), and never wait for the GPU. Gradients are
first-order: a second derivative raises. Wrong arguments raise one ValueError before any launch.
"""

from __future__ import annotations

from fastvae.kernels.paths import choose as choose_path
from fastvae.kernels.paths import prefer
from fastvae.kernels.strokes_device import DeviceStrokes
from fastvae.ops.batch import gather_normalize
from fastvae.ops.likelihood import (
    bernoulli_nll,
    continuous_bernoulli_nll,
    dlogistic_nll,
    gaussian_nll,
    pack_bits,
)
from fastvae.ops.loss import LIKELIHOODS, ElboOut, elbo_loss
from fastvae.ops.posterior import (
    derive_seed,
    gaussian_log_prob,
    gaussian_sample_kl,
    kl_standard_normal,
    philox_bernoulli,
    philox_normal,
    philox_words,
    reparam_kl,
    reparameterize,
    rng_state,
    widen,
)
from fastvae.ops.strokes import rasterize_strokes

__all__ = [
    "LIKELIHOODS",
    "DeviceStrokes",
    "ElboOut",
    "bernoulli_nll",
    "choose_path",
    "continuous_bernoulli_nll",
    "derive_seed",
    "dlogistic_nll",
    "elbo_loss",
    "gather_normalize",
    "gaussian_log_prob",
    "gaussian_nll",
    "gaussian_sample_kl",
    "kl_standard_normal",
    "pack_bits",
    "philox_bernoulli",
    "philox_normal",
    "philox_words",
    "prefer",
    "rasterize_strokes",
    "reparam_kl",
    "reparameterize",
    "rng_state",
    "widen",
]
