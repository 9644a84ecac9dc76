"""MNIST with a hierarchy of latents."""

from __future__ import annotations

from fastvae.config import Config, DataConfig, LogConfig, ModelConfig, OptimConfig
from fastvae.presets.registry import preset


@preset
def mnist_hvae() -> Config:
    """MNIST 28x28: hierarchical VAE, 5 blocks of latents from 1x1 to 14x14.

    Command:  fastvae-data download mnist --root data/mnist
              fastvae train mnist-hvae --data.root data/mnist
    Time:     to be measured
    Expect:   to be measured
    """
    return Config(
        preset="mnist-hvae",
        epochs=8,
        batch_size=64,
        model=ModelConfig(
            kind="hvae",
            image_shape=(1, 28, 28),
            channels=(16, 32, 64, 64, 64),
            encoder_blocks=1,
            decoder_blocks=1,
            group_latents=4,
            input_mean=0.13,
            input_std=0.31,
        ),
        data=DataConfig(
            dataset="mnist", root="data/mnist", binarize="threshold", val_fraction=0.04
        ),
        optim=OptimConfig(lr=3e-3, beta2=0.99, weight_decay=0.01, warmup=1.0, clip_norm=50.0),
        log=LogConfig(every=50),
    )
