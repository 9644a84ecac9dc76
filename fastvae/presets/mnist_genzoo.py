"""MNIST with the networks of the GenZoo system, to compare with."""

from __future__ import annotations

from fastvae.config import Config, DataConfig, LogConfig, ModelConfig, OptimConfig
from fastvae.presets.registry import preset


@preset
def mnist_genzoo() -> Config:
    """MNIST 28x28 with GenZoo's networks, whose decoder is affine: 20 latents, 1.1 M parameters.

    Command:  fastvae-data download mnist --root data/mnist
              fastvae train mnist-genzoo --data.root data/mnist
              fastvae train mnist-genzoo --epochs 11        (the table below)
              fastvae train mnist-genzoo --ini config.ini   (the original's own settings)
    Time:     53 s of CPU time per epoch (AMD EPYC, one thread)
    Expect:   after 11 epochs test -ELBO 125.0 nats/image (grey values as Bernoulli means), blurred
              digits; the original reports 130.9 on its training images after 100 epochs

    Training loss, mean over an epoch with dropout, nats per image:

        epoch        1      2      6     11
        original   165.9  140.8  136.0  134.5
        here       173.9  140.5  135.8  134.1
    """
    return Config(
        preset="mnist-genzoo",
        epochs=100,
        batch_size=50,
        model=ModelConfig(
            encoder="genzoo",
            decoder="genzoo",
            image_shape=(1, 28, 28),
            latent_dim=20,
            channels=(16, 32),
            hidden=(512, 256),
            hidden_blocks=0,
            norm="batch",
            dropout=0.2,
            input_mean=0.0,
            input_std=1.0,
        ),
        # The original trains on all 60,000 images and tests on none.
        data=DataConfig(dataset="mnist", root="data/mnist", binarize="none", val_fraction=0.01),
        # Its loss, mean cross-entropy + KL / (784 * batch), is this one over 784: beta is 1. Adam
        # hardly sees the factor.
        optim=OptimConfig(optimizer="adam", lr=1e-3, schedule="constant", warmup=0.0),
        log=LogConfig(every=50, image_every=10.0),
    )
