"""Drawings completed from their first strokes."""

from __future__ import annotations

from fastvae.config import Config, DataConfig, LogConfig, ModelConfig, OptimConfig, StrokesConfig
from fastvae.presets.registry import preset


@preset
def quickdraw_cvae() -> Config:
    """Partial drawings completed, 64x64: conditional VAE, 32 latents, FiLM, 6.32 M parameters.

    Command:  fastvae train quickdraw-cvae (the data: see quickdraw-vae)
              fastvae train quickdraw-cvae --model.conditioning concat
    Time:     7 minutes of one CPU core (Xeon with AVX-512 BF16) for 6 epochs of 6,014 drawings of
              300 categories with --model.image-shape 1 32 32; 4 times that at 64x64
    Expect:   after those 6 epochs, test -ELBO 128.0 nats/image, where the partial drawing with the
              best constant probabilities costs 221.6; the average of 8 completions costs 208.5, but
              single ones agree less with the drawing than the partial one does (F1 of ink 0.732
              against 0.760): a wrong guess costs more than none. quickdraw-cvae-large does better

    Two encoders, the prior p(z|y) of the partial drawing y and the posterior q(z|x, y); the decoder
    p(x|z, y) sees y through FiLM, or (concat) shrunk as a further channel of its first feature map.

    The original takes means over pixels and over latents; its loss is this one with --kl.beta 128
    (4096 pixels / 32 latents). Here beta is 1, the evidence lower bound. It has a continuous
    Bernoulli on black-and-white pixels, whose density has no bound; here it is a Bernoulli.
    """
    return Config(
        preset="quickdraw-cvae",
        epochs=10,
        batch_size=64,
        precision="auto",
        model=ModelConfig(
            encoder="vgg",
            decoder="vgg",
            prior="conditional",
            condition="image",
            conditioning="film",
            image_shape=(1, 64, 64),
            latent_dim=32,
            channels=(32, 64, 128),
            pool="average",
            input_mean=0.12,
            input_std=0.3,
        ),
        data=DataConfig(dataset="strokes", root="data/quickdraw-strokes", binarize="threshold"),
        strokes=StrokesConfig(raster="fast", partial="strokes"),
        optim=OptimConfig(lr=1e-3, beta2=0.99, weight_decay=0.01, warmup=0.5, clip_norm=200.0),
        log=LogConfig(every=20),
    )
