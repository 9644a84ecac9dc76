"""MNIST with latents from a codebook."""

from __future__ import annotations

from fastvae.config import Config, DataConfig, LogConfig, ModelConfig, OptimConfig
from fastvae.presets.registry import preset


@preset
def mnist_vq() -> Config:
    """MNIST 28x28: VQ-VAE with 4x4 codes of 32.

    Command:  fastvae-data download mnist --root data/mnist
              fastvae train mnist-vq --data.root data/mnist
    Time:     to be measured
    Expect:   to be measured
    """
    return Config(
        preset="mnist-vq",
        epochs=8,
        batch_size=64,
        model=ModelConfig(
            kind="vq",
            image_shape=(1, 28, 28),
            channels=(32, 64, 64),
            encoder_blocks=1,
            decoder_blocks=1,
            codes=32,
            code_dim=16,
            input_mean=0.13,
            input_std=0.31,
        ),
        data=DataConfig(
            dataset="mnist", root="data/mnist", binarize="threshold", val_fraction=0.04
        ),
        optim=OptimConfig(lr=2e-3, beta2=0.99, weight_decay=0.01, warmup=1.0, clip_norm=50.0),
        log=LogConfig(every=50),
    )
