"""What every model offers: a training pass, what evaluation needs, and calls for people."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastvae import ops
from fastvae.config import ModelConfig
from fastvae.models.distributions import Draw, LatentDistribution, Posterior
from fastvae.models.inputs import Inputs
from fastvae.models.likelihoods import Likelihood


class Pass(NamedTuple):
    """What a training pass gives. Rows are images, or each image's samples one after another."""

    params: Tensor
    """(B * K, P * C, H, W), parameters of the likelihood."""
    draw: Draw
    """Latents (B * K, ...) and their KL."""
    posterior: Posterior | None = None
    """(B, Z) of models with one Gaussian posterior; None of others."""
    prior: LatentDistribution | None = None
    """The prior of the B images; None of models without a posterior."""
    extra: Tensor | None = None
    """() further term of the training loss (a codebook's commitment), or None."""


class Model(nn.Module, ABC):
    """A generative model of images with latents. Images are (B, C, H, W) in [0, 1].

    Attributes:
        config: what it was built from.
        likelihood: p(x|z).
        latent_dim: numbers per image in what ``encode_mean`` returns and ``decode`` takes.
    """

    config: ModelConfig
    likelihood: Likelihood
    latent_dim: int

    # ------------------------------------------------------------------------------ training
    @abstractmethod
    def forward(
        self, inputs: Inputs, rng: Tensor, sample_offset: int = 0, samples: int = 1
    ) -> Pass:
        """One pass: encode, draw from the posterior, decode.

        Args:
            inputs: the batch.
            rng: (2,) int64, noise state (see ``ops.rng_state``).
            sample_offset: number of the first row of latents, added to the state's counter.
            samples: latents per image.
        """

    # ------------------------------------------------------------------------------ evaluation
    @abstractmethod
    def infer(self, inputs: Inputs) -> Any:
        """What the encoder says of a batch, computed once for all samples of it."""

    @abstractmethod
    def exact_kl(self, inferred: Any) -> Tensor | None:
        """KL(q || p) of each image (B,), nats; None where only samples can tell."""

    @abstractmethod
    def importance(
        self, inputs: Inputs, inferred: Any, seed: int, ordinal: Tensor, samples: int
    ) -> tuple[Tensor, Tensor]:
        """Draw ``samples`` latents for each image.

        Args:
            seed: seed of the noise.
            ordinal: (B * samples,) number of each draw: what its noise is keyed by.

        Returns:
            nll = -log p(x|z) and log p(z) - log q(z|x), (B * samples,) each, in nats.
        """

    @abstractmethod
    def latent_mean(self, inferred: Any) -> Tensor:
        """Posterior means as one vector for each image. Shapes: returns (B, latent_dim)."""

    # ------------------------------------------------------------------------------ for people
    @abstractmethod
    def generate(self, z: Tensor, inputs: Inputs) -> Tensor:
        """Parameters of the likelihood. Shapes: z (B, latent_dim); inputs.x is not looked at."""

    @abstractmethod
    def prior_latents(self, inputs: Inputs, seed: int, temperature: float) -> Tensor:
        """One latent vector from the prior for each row of inputs (whose x is not looked at, but
        for its length). Shapes: returns (B, latent_dim)."""

    @torch.no_grad()
    def encode(self, x: Tensor, y: Tensor | None = None, label: Tensor | None = None) -> Any:
        """What the posterior is for images: of a VAE, mean and logvar (B, Z) each.

        Shapes: x and y (B, C, H, W) uint8 or in [0, 1], label (B,) int.
        """
        return self.infer(self.inputs(x, y, label))

    @torch.no_grad()
    def encode_mean(
        self, x: Tensor, y: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor:
        """Posterior means as one vector for each image. Shapes: returns (B, latent_dim)."""
        return self.latent_mean(self.infer(self.inputs(x, y, label)))

    @torch.no_grad()
    def decode(self, z: Tensor, y: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """Mean image of each latent vector. Shapes: z (B, latent_dim); returns (B, C, H, W) in
        [0, 1]."""
        if z.dim() != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"latents must be (B, {self.latent_dim}), got {tuple(z.shape)}")
        weight = next(self.parameters())
        z = z.to(weight.device, weight.dtype)
        blank = weight.new_empty(len(z), *self.config.image_shape)
        return self.likelihood.mean(self.generate(z, self.inputs(blank, y, label)))

    @torch.no_grad()
    def reconstruct(
        self, x: Tensor, y: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor:
        """Mean image of the posterior mean. Shapes: x (B, C, H, W); returns the same in [0, 1]."""
        inputs = self.inputs(x, y, label)
        z = self.latent_mean(self.infer(inputs))
        return self.likelihood.mean(self.generate(z, inputs))

    @torch.no_grad()
    def sample(
        self,
        count: int,
        *,
        y: Tensor | None = None,
        label: Tensor | None = None,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> Tensor:
        """Mean images of latents drawn from the prior: with a condition, its completions.

        Args:
            count: number of images.
            y, label: condition and labels of models that take them: ``count`` rows, or one for all.
            temperature: scale of the prior's standard deviation; 0 gives its mean.
            seed: the same seed gives the same images, on any device.

        Shapes: returns (count, C, H, W) in [0, 1].
        """
        if count < 0:
            raise ValueError(f"count = {count}: expected 0 or more")
        weight = next(self.parameters())
        blank = weight.new_empty(count, *self.config.image_shape)
        inputs = self.inputs(blank, _one_for_all(y, count), _one_for_all(label, count))
        z = self.prior_latents(inputs, ops.derive_seed(seed, "prior"), temperature)
        return self.likelihood.mean(self.generate(z, inputs))

    def inputs(self, x: Tensor, y: Tensor | None = None, label: Tensor | None = None) -> Inputs:
        """Check what a user gives; what the model does not look at is left out.

        uint8 pixels become [0, 1]. Nothing is binarized here.
        """
        config = self.config
        images = self._pixels("images", x)
        if config.condition == "none":
            y = None
        elif y is None:
            raise ValueError("this model needs a condition: y, images (B, C, H, W)")
        else:
            y = self._pixels("y", y)
        if not config.classes:
            label = None
        elif label is None:
            raise ValueError(f"this model needs labels: label, (B,) of 0 to {config.classes - 1}")
        else:
            label = self._classes(label).to(images.device, torch.int64)
        for name, value in (("y", y), ("label", label)):
            if value is not None and len(value) != len(images):
                raise ValueError(f"{name} has {len(value)} rows for {len(images)} images")
        return Inputs(images, y, label)

    def _pixels(self, name: str, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch tensor, got {type(x).__name__}")
        shape = tuple(self.config.image_shape)
        if x.dim() != 4 or tuple(x.shape[1:]) != shape:
            raise ValueError(
                f"{name} must be (B, {', '.join(map(str, shape))}), got {tuple(x.shape)}"
            )
        if x.dtype not in (torch.uint8, torch.bool) and not x.is_floating_point():
            raise ValueError(
                f"{name} must be uint8 (0..255), bool or floating point (0..1), got {x.dtype}"
            )
        weight = next(self.parameters())
        scaled = x.to(weight.device, weight.dtype)
        return scaled / 255.0 if x.dtype == torch.uint8 else scaled

    def _classes(self, label: Tensor) -> Tensor:
        if not isinstance(label, Tensor):
            raise TypeError(f"label must be a torch tensor, got {type(label).__name__}")
        if label.dim() != 1 or label.is_floating_point() or label.dtype == torch.bool:
            raise ValueError(
                f"label must be integers (B,), got {tuple(label.shape)} of {label.dtype}"
            )
        most = self.config.classes - 1
        if len(label) and not 0 <= int(label.min()) <= int(label.max()) <= most:
            raise ValueError(f"labels must be 0 to {most}")
        return label


def _one_for_all(given: Tensor | None, count: int) -> Tensor | None:
    """A condition or label of one row, ``count`` times."""
    if isinstance(given, Tensor) and given.dim() and len(given) == 1:
        return given.expand(count, *given.shape[1:])
    return given
