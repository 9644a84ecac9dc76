"""Wrong arguments of the operations: one ValueError that names the argument, before any launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastvae import ops

B, Z, N = 4, 3, 6
NAN, INF = float("nan"), float("inf")


def latents(**changes: Any) -> dict[str, Any]:
    return {
        "mean": torch.zeros(B, Z),
        "logvar": torch.zeros(B, Z),
        "rng": ops.rng_state(0),
        **changes,
    }


def four(**changes: Any) -> dict[str, Any]:
    names = ("mean_q", "logvar_q", "mean_p", "logvar_p")
    return {**{n: torch.zeros(B, Z) for n in names}, "rng": ops.rng_state(0), **changes}


def pixels(**changes: Any) -> dict[str, Any]:
    return {"logits": torch.zeros(B, N), "target": torch.zeros(B, N), **changes}


def gaussian(**changes: Any) -> dict[str, Any]:
    return {"mean": torch.zeros(B, N), "target": torch.zeros(B, N), **changes}


def logistic(**changes: Any) -> dict[str, Any]:
    target = torch.zeros(B, 1, N, dtype=torch.uint8)
    return {"params": torch.zeros(B, 2, N), "target": target, **changes}


def loss(**changes: Any) -> dict[str, Any]:
    return {**pixels(), "kl_row": torch.zeros(B), "kl_dim": torch.zeros(Z), **changes}


def gather(**changes: Any) -> dict[str, Any]:
    images = torch.zeros(5, 3, 2, 2, dtype=torch.uint8)
    return {"images_u8": images, "indices": torch.arange(3), **changes}


Case = tuple[Callable[..., Any], dict[str, Any], str]
CASES: list[Case] = [
    # latents
    (ops.reparam_kl, latents(logvar=torch.zeros(B, Z + 1)), r"mean \(4, 3\), logvar \(4, 4\)"),
    (ops.reparam_kl, latents(mean=torch.zeros(B, Z).long()), "mean must be floating point"),
    (ops.reparam_kl, latents(logvar=torch.zeros(B, Z).double()), "must have the same dtype"),
    (ops.reparam_kl, latents(logvar=0.0), "logvar must be a tensor, got float"),
    (
        ops.reparam_kl,
        latents(logvar=torch.zeros(B, Z, device="meta")),
        "one device.*logvar on meta",
    ),
    (
        ops.reparam_kl,
        {**latents(), "mean": torch.zeros(B), "logvar": torch.zeros(B)},
        r"mean \(4,\)",
    ),
    (ops.reparam_kl, latents(rng=torch.zeros(2)), r"rng must be an int64 tensor.*float32"),
    (ops.reparam_kl, latents(rng=7), "rng must be an int64 tensor.*got 7"),
    (
        ops.reparam_kl,
        latents(rng=torch.zeros(2, dtype=torch.int64, device="meta")),
        "rng is on meta",
    ),
    (ops.reparam_kl, latents(sample_offset=-1), "sample_offset = -1: expected an integer of 0"),
    (ops.reparam_kl, latents(sample_offset=0.5), "sample_offset = 0.5"),
    (ops.reparam_kl, latents(out_dtype=torch.int32), "out_dtype must be floating point"),
    (ops.reparam_kl, latents(clamp_scale=(3.0, -8.0)), r"clamp_scale = \(3.0, -8.0\).*low < high"),
    (ops.reparam_kl, latents(clamp_mean=(NAN, 1.0)), "clamp_mean"),
    (ops.reparam_kl, latents(clamp_mean=(1.0,)), "clamp_mean"),
    (ops.gaussian_sample_kl, four(mean_p=torch.zeros(B, 1)), r"mean_p \(4, 1\)"),
    (ops.gaussian_sample_kl, four(logvar_p=torch.zeros(B, Z).half()), "logvar_p torch.float16"),
    (ops.reparam_kl, latents(rng=torch.zeros(2, 2).long()[:, 0]), "rng must be contiguous"),
    (ops.reparam_kl, latents(sample_offset=2**62), "sample_offset = .*less than 2.62"),
    (ops.reparam_kl, latents(out_dtype="float16"), "out_dtype must be floating point"),
    (ops.reparam_kl, latents(out_dtype=torch.float8_e4m3fn), "out_dtype must be floating point"),
    (ops.reparam_kl, latents(clamp_scale=1.0), "clamp_scale = 1.0"),
    (ops.reparam_kl, latents(clamp_scale="ab"), "clamp_scale = 'ab'"),
    # pixels
    (ops.bernoulli_nll, pixels(target=[1]), "target must be a tensor, got list"),
    (ops.bernoulli_nll, pixels(target=None), "target must be a tensor, got NoneType"),
    (ops.bernoulli_nll, pixels(weight=[1]), "weight must be a tensor, got list"),
    (ops.bernoulli_nll, pixels(logits=torch.zeros(B, N).to_sparse()), "logits must be a dense"),
    (
        ops.bernoulli_nll,
        pixels(target=torch.zeros(B, N, requires_grad=True)),
        "target gets no",
    ),
    (
        ops.bernoulli_nll,
        pixels(weight=torch.zeros(B, N, requires_grad=True)),
        "weight gets no",
    ),
    (ops.gaussian_nll, gaussian(logvar=torch.full((B, N), NAN)), "logvar has values that are not"),
    (
        ops.bernoulli_nll,
        pixels(target=torch.zeros(B, N + 1)),
        r"target \(4, 7\).*expected \(4, 6\)",
    ),
    (ops.bernoulli_nll, pixels(target=torch.zeros(B, N).int()), "target must be floating point"),
    (ops.bernoulli_nll, pixels(target=torch.zeros(B, N, device="meta")), "one device"),
    (ops.bernoulli_nll, pixels(logits=torch.zeros(B, N).int()), "logits must be floating point"),
    (ops.bernoulli_nll, {"logits": torch.zeros(B), "target": torch.zeros(B)}, r"logits \(4,\)"),
    (ops.bernoulli_nll, pixels(samples_per_target=0), "samples_per_target = 0"),
    (ops.bernoulli_nll, pixels(samples_per_target=3), "4 rows cannot be split"),
    (ops.bernoulli_nll, pixels(samples_per_target=2), r"expected \(2, 6\)"),
    (ops.bernoulli_nll, pixels(weight=torch.zeros(B)), r"weight \(4,\) must have shape \(4, 6\)"),
    (ops.bernoulli_nll, pixels(weight=torch.zeros(B, N).int()), "weight must be floating point"),
    (ops.bernoulli_nll, pixels(packed=True), "packed target must be uint8"),
    (ops.bernoulli_nll, pixels(target=torch.zeros(B, 1).byte()), r"\(bit-packed.*packed=True\)"),
    (ops.bernoulli_nll, pixels(target=torch.zeros(B, 2).byte(), packed=True), r"expected \(4, 1\)"),
    (ops.continuous_bernoulli_nll, pixels(target=torch.zeros(1, N)), "must have the same shape"),
    (ops.gaussian_nll, gaussian(logvar=NAN), "logvar = nan: expected a finite number"),
    (ops.gaussian_nll, gaussian(logvar=-INF), "logvar = -inf: expected a finite number"),
    (ops.gaussian_nll, gaussian(logvar="0"), "logvar must be a number"),
    (ops.gaussian_nll, gaussian(logvar=torch.tensor(INF)), "logvar = inf: expected a finite"),
    (ops.gaussian_nll, gaussian(logvar=torch.zeros(N)), r"mean \(4, 6\), logvar \(6,\)"),
    (ops.gaussian_nll, gaussian(logvar=torch.tensor(0)), "logvar .*floating point tensor"),
    (ops.gaussian_nll, gaussian(logvar=torch.zeros((), device="meta")), "logvar is on meta"),
    (ops.dlogistic_nll, logistic(n_mix=0), "n_mix = 0"),
    (ops.dlogistic_nll, logistic(n_mix=2), "multiple of 6 channels for n_mix = 2"),
    (ops.dlogistic_nll, logistic(target=torch.zeros(B, 2, N).byte()), r"expected \(4, 1, 6\)"),
    (ops.dlogistic_nll, logistic(target=torch.zeros(B, 1, N).bool()), "target must be uint8"),
    # the loss
    (ops.elbo_loss, loss(likelihood="bernouli"), "'bernouli': expected one of bernoulli"),
    (ops.elbo_loss, loss(kl_row=torch.zeros(B, Z)), r"kl_row \(4, 3\) must be \(4,\)"),
    (ops.elbo_loss, loss(kl_row=torch.zeros(B).int()), "kl_row must be floating point"),
    (ops.elbo_loss, loss(kl_row=torch.zeros(B, device="meta")), "kl_row on meta"),
    (ops.elbo_loss, loss(kl_dim=None, free_bits=0.5), "free_bits = 0.5 needs kl_dim"),
    (ops.elbo_loss, loss(kl_dim=torch.zeros(0), free_bits=0.5), "free_bits = 0.5 needs kl_dim"),
    (ops.elbo_loss, loss(free_bits=-1.0), "free_bits = -1.0"),
    (
        ops.elbo_loss,
        loss(likelihood="gaussian", target=torch.zeros(B, 1).byte(), packed=True),
        "packed targets are for the bernoulli likelihood",
    ),
    (
        ops.elbo_loss,
        loss(logits=torch.zeros(B * N, requires_grad=True).view(B, N), inplace_grad=True),
        "inplace_grad would overwrite a leaf",
    ),
    (ops.elbo_loss, loss(logits=torch.zeros(1, N).expand(B, N), inplace_grad=True), "expanded"),
    (ops.elbo_loss, loss(beta=NAN), "beta = nan"),
    (ops.elbo_loss, loss(beta=torch.zeros(2)), r"beta \(2,\)"),
    (ops.elbo_loss, loss(beta=torch.ones((), requires_grad=True)), "beta gets no gradient"),
    (ops.elbo_loss, loss(scale=INF), "scale = inf"),
    (ops.elbo_loss, loss(logvar=0.0), "logvar is for the gaussian likelihood"),
    (
        ops.elbo_loss,
        loss(logits=torch.zeros(B, N, requires_grad=True), inplace_grad=True),
        "inplace_grad would overwrite a leaf",
    ),
    (ops.elbo_loss, loss(logits=torch.zeros(B, N).half(), inplace_grad=True), "not for float16"),
    # batches
    (ops.gather_normalize, gather(images_u8=torch.zeros(5, 3, 2, 2)), "images_u8 must be .* uint8"),
    (ops.gather_normalize, gather(indices=torch.arange(3).int()), "indices must be int64"),
    (ops.gather_normalize, gather(indices=torch.tensor([0, 5])), r"0\.\.5 must be in 0\.\.4"),
    (ops.gather_normalize, gather(indices=torch.tensor([-1])), r"-1\.\.-1 must be in 0\.\.4"),
    (ops.gather_normalize, gather(keys=torch.arange(2)), r"keys must be int64 \(3,\)"),
    (ops.gather_normalize, gather(mean=(0.5, 0.5)), "mean has 2 numbers, the images 3 channels"),
    (ops.gather_normalize, gather(std=0.0), "std = 0.0: expected more than 0"),
    (ops.gather_normalize, gather(mean=torch.zeros(2)), r"mean must be float32 \(3,\)"),
    (ops.gather_normalize, gather(std=torch.zeros(3)), "1 / std has values that are not finite"),
    (ops.gather_normalize, gather(indices=[0]), "indices must be a tensor, got list"),
    (ops.gather_normalize, gather(images_u8=None), "images_u8 must be a tensor, got NoneType"),
    (ops.gather_normalize, gather(indices=torch.tensor(1)), "indices must be int64"),
    (ops.gather_normalize, gather(dtype=torch.float64), "dtype must be float32"),
    (ops.gather_normalize, gather(binarize="static"), "binarize = 'static'"),
    (ops.gather_normalize, gather(binarize="stochastic"), "rng is needed"),
    (ops.gather_normalize, gather(flip=1.5, rng=ops.rng_state(0)), "flip = 1.5"),
    (ops.gather_normalize, gather(flip=0.5), "rng is needed"),
    (ops.pack_bits, {"pixels": torch.zeros(4)}, r"pixels \(4,\)"),
    (ops.pack_bits, {"pixels": [1]}, "pixels must be a tensor"),
    (ops.rng_state, {"seed": -1}, "seed = -1"),
    (ops.rng_state, {"seed": 1.5}, "seed = 1.5"),
    (ops.rng_state, {"seed": "1"}, "seed = '1'"),
    (ops.rng_state, {"seed": 1, "counter": 2**62}, "counter = .*less than"),
    (
        ops.philox_normal,
        {"seed": 1, "ordinal": torch.arange(2).int(), "columns": 3},
        "ordinal must",
    ),
    (ops.philox_words, {"seed": 1, "ordinal": torch.zeros(2, 2).long(), "columns": 3}, "ordinal"),
    (ops.philox_normal, {"seed": 2**63, "ordinal": torch.arange(2), "columns": 3}, "seed = "),
    (ops.philox_normal, {"seed": 1, "ordinal": torch.arange(2), "columns": -1}, "columns = -1"),
    (
        ops.philox_bernoulli,
        {"seed": 1, "ordinal": torch.arange(1), "pixels": torch.zeros(3, 4).byte()},
        r"pixels must be uint8 \(1, ...\)",
    ),
]


@pytest.mark.parametrize(
    ("function", "arguments", "message"), CASES, ids=[f"{f.__name__}-{m}" for f, _, m in CASES]
)
def test_wrong_arguments(
    function: Callable[..., Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        function(**arguments)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"{function.__name__}:")


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (ops.reparam_kl, latents()),
        (ops.gaussian_sample_kl, four()),
        (ops.bernoulli_nll, pixels()),
        (ops.continuous_bernoulli_nll, pixels()),
        (ops.gaussian_nll, gaussian()),
        (ops.dlogistic_nll, logistic()),
        (ops.elbo_loss, loss()),
        (ops.gather_normalize, gather()),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_the_unchanged_arguments_are_right(
    function: Callable[..., Any], arguments: dict[str, Any]
) -> None:
    """Or the cases above could fail for another reason."""
    function(**arguments)
