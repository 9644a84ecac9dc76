"""Comic strips of three panels."""

from __future__ import annotations

from fastvae.config import Config, DataConfig, KLConfig, LogConfig, ModelConfig, OptimConfig
from fastvae.presets.registry import preset

# The original's loss is the squared error averaged over the N = 3 * 176 * 600 values in [-1, 1]
# plus 1e-4 times the KL (4e-4 from epoch 50 on, 16e-4 from epoch 100). Times N / 2 that is half the
# squared error, a Gaussian of deviation 1 there and 1/2 in [0, 1], and these weights:
BETAS = ((0.0, 15.84), (50.0, 63.36), (100.0, 253.44))


@preset
def strips() -> Config:
    """Three-panel comic strips: shared residual network, 1,024 joint latents, 97 M parameters.

    Command:  fastvae-data strips FOLDER --out data/strips
              fastvae train strips
    Time:     0.6 seconds per strip and pass on one core of an Intel Xeon with AVX-512 BF16
    Expect:   never trained to the end so far. 14 epochs of 65 strips (--epochs 14 --batch-size 12,
              70 steps) come to a test -ELBO of 92,143 nats/image (3 strips): bare paper, a little
              better than one colour for all pixels, 92,590

    Nearly all parameters are in four fully connected layers: 97,085,546, as the original has.
    strips-small does without them.
    """
    return Config(
        preset="strips",
        epochs=400,
        batch_size=64,
        precision="auto",
        model=ModelConfig(
            encoder="panels",
            decoder="panels",
            likelihood="gaussian",
            gaussian_std=0.5,
            image_shape=(3, 176, 600),
            latent_dim=1024,
            channels=(6, 12, 24, 48),
            encoder_blocks=2,
            decoder_blocks=2,
            activation="relu",
            norm="batch",
            clamp_mean=(-10.0, 10.0),
            clamp_logvar=(-16.0, 6.0),
        ),
        data=DataConfig(dataset="strips", root="data/strips", source="shards"),
        kl=KLConfig(schedule="piecewise", points=BETAS, beta=BETAS[-1][1]),
        optim=OptimConfig(optimizer="adam", lr=1e-3, schedule="constant", warmup=0.0),
        log=LogConfig(every=20, eval_every=10.0, image_every=50.0, images=8),
    )
