"""Drawings completed by a network that need not draw again what it is given."""

from __future__ import annotations

from fastvae.config import Config, replace
from fastvae.presets.quickdraw_cvae import quickdraw_cvae
from fastvae.presets.registry import preset


@preset
def quickdraw_cvae_large() -> Config:
    """Partial drawings completed, with skip connections: 64 latents, 9.71 M parameters.

    Command:  fastvae train quickdraw-cvae-large (the data: see quickdraw-vae)
    Time:     3.2 minutes of one CPU core (Xeon with AVX-512 BF16) for 6 epochs of 6,014 drawings of
              300 categories with --model.image-shape 1 32 32; 4 times that at 64x64
    Expect:   after those 6 epochs, test -ELBO 130.5 nats/image, where the partial drawing with the
              best constant probabilities costs 221.6; the average of 8 completions costs 181.6 and
              has F1 of ink 0.7606, single ones 0.755, the partial drawing 0.7601

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
