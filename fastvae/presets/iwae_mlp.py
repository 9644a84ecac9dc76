"""MNIST with the networks and the schedule of the IWAE paper."""

from __future__ import annotations

from fastvae.config import (
    Config,
    DataConfig,
    LogConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
)
from fastvae.presets.registry import preset


@preset
def iwae_mlp() -> Config:
    """MNIST 28x28, binarized anew each epoch: the MLP of IWAE's Table 1, 50 latents, K = 50.

    Command:  fastvae-data download mnist --root data/mnist
              fastvae train iwae-mlp --data.root data/mnist
    """
    # Burda et al. (2016), section 5: 3^i epochs at rate 0.001 * 10^(-i / 7), i = 0 to 7; round i
    # begins after (3^i - 1) / 2 epochs, and all of them are 3280.
    rates = tuple(((3**i - 1) / 2, 10 ** (-i / 7)) for i in range(8))
    return Config(
        preset="iwae-mlp",
        epochs=20,
        batch_size=20,
        model=ModelConfig(
            encoder="mlp",
            decoder="mlp",
            image_shape=(1, 28, 28),
            latent_dim=50,
            hidden=(200, 200),
            hidden_blocks=0,
            activation="tanh",
            input_mean=0.0,
            input_std=1.0,
        ),
        data=DataConfig(dataset="mnist", root="data/mnist", binarize="dynamic", val_fraction=0.01),
        objective=ObjectiveConfig(kind="iwae", samples=50),
        optim=OptimConfig(
            optimizer="adam", lr=1e-3, eps=1e-4, schedule="piecewise", rates=rates, warmup=0.0
        ),
        log=LogConfig(every=100, image_every=10.0),
    )
