"""Drawings completed by latents alone."""

from __future__ import annotations

from fastvae.config import Config, replace
from fastvae.presets.quickdraw_cvae import quickdraw_cvae
from fastvae.presets.registry import preset


@preset
def quickdraw_cvae_z() -> Config:
    """Partial drawings completed by latents alone: 256 of them, 42.47 M parameters.

    Command:  fastvae train quickdraw-cvae-z (the data: see quickdraw-vae)
    Time:     TIME
    Expect:   EXPECT

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
