"""MNIST from the original idx files."""

from __future__ import annotations

from fastvae.config import Config, DataConfig, LogConfig, ModelConfig, OptimConfig
from fastvae.presets.registry import preset


@preset
def mnist() -> Config:
    """MNIST 28x28, convolutional Bernoulli VAE with 20 latents.

    Command:  fastvae train mnist --data.root data/mnist
    """
    return Config(
        preset="mnist",
        epochs=10,
        batch_size=64,
        precision="auto",
        model=ModelConfig(
            encoder="conv",
            decoder="conv",
            image_shape=(1, 28, 28),
            latent_dim=20,
            channels=(32, 64),
            decoder_blocks=1,
            hidden=(256,),
            hidden_blocks=1,
            input_mean=0.13,
            input_std=0.31,
        ),
        data=DataConfig(
            dataset="mnist", root="data/mnist", binarize="threshold", val_fraction=0.04
        ),
        optim=OptimConfig(lr=3e-3, beta2=0.99, weight_decay=0.01, warmup=1.0, clip_norm=50.0),
        log=LogConfig(every=50),
    )
