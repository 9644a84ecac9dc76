"""The networks of a model as functions of tensors alone, as ``fastvae export`` writes them."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastvae import ops
from fastvae.errors import UserError
from fastvae.models import VAE, Inputs, Model
from fastvae.models.distributions import DiagonalGaussian, GaussianMixture, Posterior
from fastvae.models.hvae import HVAE, Choose, reparameterize
from fastvae.models.levels import see
from fastvae.models.vq import VQVAE

ROWS = 3
"""Rows of the inputs that networks are exported with: neither 0 nor 1, which exporters single
out."""


class Part(NamedTuple):
    """One network to export."""

    name: str
    network: nn.Module
    """Called with the inputs in order; returns a tuple of tensors."""
    inputs: dict[str, Tensor]
    """Names, and examples of ``ROWS`` rows."""
    outputs: tuple[str, ...]


class _Network(nn.Module):
    """A function of a model's.

    Args:
        model: the model.
        given: names of the arguments, in order: image, latents or noise; condition; label.
    """

    def __init__(self, model: Model, given: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.given = given

    def inputs(self, *tensors: Tensor) -> Inputs:
        """The batch. Without images x is whatever comes first: only its length is looked at."""
        named = dict(zip(self.given, tensors, strict=True))
        first = named.get("image", tensors[0])
        return Inputs(first, named.get("condition"), named.get("label"))


class EncoderNetwork(_Network):
    """Images -> mean and log variance, (B, Z) each."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        assert isinstance(self.model, VAE)
        mean, logvar = self.model.posterior(self.inputs(*tensors))
        return ops.widen(mean), ops.widen(logvar)


class CodeNetwork(_Network):
    """Images -> numbers of codes as floats (B, Z)."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        assert isinstance(model, VQVAE)
        h = model.encoder(see(model.config, model.label, self.inputs(*tensors)))
        vectors = h.permute(0, 2, 3, 1).reshape(-1, h.shape[1])
        codes = model.encoder.codebook.nearest(vectors)
        return (codes.view(h.shape[0], model.latent_dim).float(),)


class DecoderNetwork(_Network):
    """Latents (B, Z) -> mean images (B, C, H, W) in [0, 1]."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        params = self.model.generate(tensors[0], self.inputs(*tensors))
        return (self.model.likelihood.mean(params),)


class ConditionalPriorNetwork(_Network):
    """Condition and label -> mean and log variance of the prior (B, Z)."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        assert isinstance(self.model, VAE)
        prior = self.model.prior(self.inputs(*tensors), self.model)
        assert isinstance(prior, DiagonalGaussian)
        return ops.widen(prior.mean), ops.widen(prior.logvar)


class _Hierarchy(_Network):
    """What a hierarchy computes on its way down.

    Batch sizes are taken from shapes here, which exporters follow; ``len`` would fix them.
    """

    def descend(self, tensors: tuple[Tensor, ...], choose: Choose) -> tuple[Tensor, Tensor]:
        """Parameters of the likelihood, and the latents that were chosen (B, Z)."""
        model = self.model
        assert isinstance(model, HVAE)
        chosen: list[Tensor] = []

        def choose_and_keep(block: int, h: Tensor, prior: Posterior) -> Tensor:
            chosen.append(choose(block, h, prior))
            return chosen[-1]

        label = self.inputs(*tensors).label
        params = model.descend(tensors[0].shape[0], label, choose_and_keep)
        return params, torch.cat([z.flatten(1) for z in chosen], dim=1)

    def group(self, block: int, vector: Tensor) -> Tensor:
        """The part of (B, Z) that belongs to a block, (B, G, h, w)."""
        model = self.model
        assert isinstance(model, HVAE)
        part = vector.split(model.sizes, dim=1)[block]
        return part.view(-1, model.config.group_latents, *model.plans[block].side)


class HierarchicalEncoderNetwork(_Hierarchy):
    """Images -> all posterior means, block after block (B, Z)."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        assert isinstance(model, HVAE)
        features = model.infer(self.inputs(*tensors))

        def choose(block: int, h: Tensor, prior: Posterior) -> Tensor:
            return model.posterior(block, h, features).mean

        return self.descend(tensors, choose)[1:]


class HierarchicalDecoderNetwork(_Hierarchy):
    """Latents (B, Z) -> mean images (B, C, H, W) in [0, 1]."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        params, _ = self.descend(tensors, lambda block, h, prior: self.group(block, tensors[0]))
        return (self.model.likelihood.mean(params),)


class HierarchicalPriorNetwork(_Hierarchy):
    """Standard normal noise (B, Z) -> latents from the prior (B, Z)."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        def choose(block: int, h: Tensor, prior: Posterior) -> Tensor:
            return reparameterize(prior, self.group(block, tensors[0]), 1.0)

        return self.descend(tensors, choose)[1:]


class _Kind(NamedTuple):
    """The networks of a kind of model, and the parts of the model that they do without."""

    encoder: type[_Network]
    encoded: tuple[str, ...]
    encoder_without: tuple[str, ...]
    decoder: type[_Network]
    decoder_without: tuple[str, ...]


_KINDS: dict[type, _Kind] = {
    VAE: _Kind(
        EncoderNetwork,
        ("mean", "logvar"),
        ("prior", "decoder"),
        DecoderNetwork,
        ("encoder", "prior"),
    ),
    VQVAE: _Kind(
        CodeNetwork,
        ("latents",),
        ("prior", "decoder"),
        DecoderNetwork,
        ("prior",),
    ),
    HVAE: _Kind(
        HierarchicalEncoderNetwork,
        ("latents",),
        (),
        HierarchicalDecoderNetwork,
        ("encoder",),
    ),
}


def _without(model: Model, names: tuple[str, ...]) -> Model:
    """The same model lacking some of its parts, so that a file does not hold their weights."""
    less = copy.copy(model)
    less._modules = {k: v for k, v in model._modules.items() if k not in names}
    return less


def example(like: Tensor, rows: int, *, seed: int) -> Tensor:
    """Random inputs like those of a part: pixels in [0, 1], noise, or labels."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, *like.shape[1:])
    if like.dtype == torch.int64:
        return torch.randint(0, int(like.max()) + 1, shape, generator=generator)
    if like.dim() == 4:
        return torch.rand(shape, generator=generator)
    return torch.randn(shape, generator=generator)


def export_parts(model: Model) -> list[Part]:
    """Encoder, decoder, and the prior if it is a network."""
    config = model.config
    image = torch.full((ROWS, *config.image_shape), 0.5)
    latents = torch.zeros(ROWS, model.latent_dim)
    # Not the same tensor twice: exporters would take the two inputs for one.
    condition = {"condition": image.clone()} if config.condition == "image" else {}
    label = {"label": torch.full((ROWS,), config.classes - 1)} if config.classes else {}
    seen = condition if config.conditioning != "none" else {}

    kind = next((kind for known, kind in _KINDS.items() if isinstance(model, known)), None)
    if kind is None:
        raise UserError(f"model.kind = {config.kind!r} has no encoder and decoder to export")

    def part(
        name: str,
        network: type[_Network],
        without: tuple[str, ...],
        inputs: dict[str, Tensor],
        *outputs: str,
    ) -> Part:
        made = network(_without(model, without), tuple(inputs)).eval()
        return Part(name, made, inputs, outputs)

    encoder, decoder = (kind.encoder, kind.encoder_without), (kind.decoder, kind.decoder_without)
    parts = [
        part("encoder", *encoder, {"image": image} | condition | label, *kind.encoded),
        part("decoder", *decoder, {"latents": latents} | seen | label, "image_mean"),
    ]
    if isinstance(model, HVAE):
        given = {"noise": latents} | label
        parts.append(part("prior", HierarchicalPriorNetwork, ("encoder",), given, "latents"))
    elif isinstance(model, VAE) and config.prior == "conditional":
        rest = ("encoder", "decoder")
        given = condition | label
        parts.append(part("prior", ConditionalPriorNetwork, rest, given, "mean", "logvar"))
    return parts


@torch.no_grad()
def prior_table(model: Model) -> dict[str, Tensor]:
    """A learned prior that is no network, by the names of its tensors; empty where there is none.

    Mixtures: log_weight (K,), mean and logvar (K, Z). vq: log_prob (classes or 1, positions,
    codes).
    """
    if isinstance(model, VQVAE):
        return {"log_prob": model.prior.table().contiguous()}
    if isinstance(model, VAE) and model.config.prior in ("mog", "vamp"):
        blank = torch.zeros(1, *model.config.image_shape)
        prior = model.prior(Inputs(blank), model)
        assert isinstance(prior, GaussianMixture)
        names = ("log_weight", "mean", "logvar")
        return {name: getattr(prior, name).contiguous().clone() for name in names}
    return {}
