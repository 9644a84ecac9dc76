"""Drawings completed by latents alone."""

from __future__ import annotations

from fastvae.config import Config, replace
from fastvae.presets.quickdraw_cvae import quickdraw_cvae
from fastvae.presets.registry import preset


@preset
def quickdraw_cvae_z() -> Config:
    """Partial drawings completed by latents alone: 256 of them, 42.47 M parameters.

    Command:  fastvae train quickdraw-cvae-z (the data: see quickdraw-vae)
    Time:     4 minutes of one CPU core (Xeon with AVX-512 BF16) for 4 epochs of 6,014 drawings of
              300 categories with --model.image-shape 1 32 32; 4 times that at 64x64
    Expect:   after those 4 epochs, test -ELBO 244.7 nats/image: worse than the partial drawing with
              the best constant probabilities, 221.6. The decoder must draw again, from latents,
              what it could be shown, and has not learned to by then (training drawings cost 239,
              so it has not overfitted): quickdraw-cvae is at 128.0 after 6 epochs

    As quickdraw-cvae, but the decoder p(x|z) never sees the partial drawing: what is known of it
    must pass through the prior p(z|y).

    The original takes means over pixels and over latents with weight 0.1; its loss is this one with
    --kl.beta 1.6 (0.1 * 4096 pixels / 256 latents). Here beta is 1, the evidence lower bound.
    """
    return replace(
        quickdraw_cvae(),
        preset="quickdraw-cvae-z",
        model__conditioning="none",
        model__latent_dim=256,
    )
