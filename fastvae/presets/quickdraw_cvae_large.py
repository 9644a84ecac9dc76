"""Drawings completed by a network that need not draw again what it is given."""

from __future__ import annotations

from fastvae.config import Config, replace
from fastvae.presets.quickdraw_cvae import quickdraw_cvae
from fastvae.presets.registry import preset


@preset
def quickdraw_cvae_large() -> Config:
    """Partial drawings completed, with skip connections: 64 latents, PARAMS M parameters.

    Command:  fastvae train quickdraw-cvae-large (the data: see quickdraw-vae)
    Time:     TIME
    Expect:   EXPECT

    Larger in depth and channels than quickdraw-cvae, at two fifths of its work per image: strided
    convolutions to 4x4 pixels in place of the flat layers, residual blocks, and the partial drawing
    seen at every size, so that latents are for what is missing.
    """
    return replace(
        quickdraw_cvae(),
        preset="quickdraw-cvae-large",
        model__encoder="conv",
        model__decoder="unet",
        model__conditioning="skip",
        model__latent_dim=64,
        model__channels=(32, 64, 128, 256),
        model__encoder_blocks=1,
        model__decoder_blocks=1,
        model__hidden=(256,),
        model__hidden_blocks=1,
        optim__lr=2e-3,
    )
