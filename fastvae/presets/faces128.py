"""Photos 128x128, trained in two stages."""

from __future__ import annotations

from fastvae.config import (
    Config,
    DataConfig,
    KLConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    StageConfig,
)
from fastvae.presets.registry import preset


@preset
def faces128() -> Config:
    """Photos 128x128 in two stages: all, then the decoder alone; 512 latents, 13.8 M parameters.

    Command:  fastvae-data images data/faces --for faces128
              fastvae train faces128 --data.root data/faces-shards
    Time:     24 + 8 epochs of 300 photos, batch 10: 6.5 minutes of one core of an Intel Xeon
    Expect:   then, with rates 2e-4 and 5e-5, test nll 46,045 nats/image (mean squared error 0.036):
              outlines and colours; photos need the full plan

    The full plan, 150,000 steps for 16,000 images, is work for a GPU and was not run here. For the
    plan of the KL weight see ``two_stages``. Another length:
    --stages.0.epochs 30 --stages.1.epochs 10 --stages.0.kl.points 10 0 12 1.5 16 1.5 16 3
        20 3 20 4.5 24 4.5 24 6 28 6 28 7.5
    """
    widths = (16, 32, 64, 128, 256, 512, 1024)
    return Config(
        preset="faces128",
        batch_size=16,
        precision="auto",
        model=ModelConfig(
            encoder="arch",
            decoder="arch",
            likelihood="gaussian",
            image_shape=(3, 128, 128),
            latent_dim=512,
            arch_encode=tuple((filters, 3, 2, 2) for filters in widths),
            input_std=0.25,
        ),
        data=DataConfig(dataset="images", root="data/faces-shards", source="shards", flip=True),
        optim=OptimConfig(optimizer="adam", schedule="constant", warmup=0.0),
        log=LogConfig(every=50),
        stages=two_stages(150),
    )


def two_stages(epochs: int) -> tuple[StageConfig, StageConfig]:
    """Everything with a growing KL weight, then the decoder alone without KL, each for ``epochs``.

    The original's epoch is 100 steps, and its plan 1,500 of them, with the KL weight growing at
    epochs 500 to 1400. Here an epoch is a pass over the data, and the times keep their shares of a
    stage: 150 passes over 16,000 images in batches of 16 are the original's 150,000 steps. (It went
    down to 1e-5 at epoch 1,000 of the first stage already.)
    """
    return (
        StageConfig(epochs=epochs, lr=1e-4, kl=kl_plan(epochs, weight=1.5)),
        StageConfig(epochs=epochs, lr=1e-5, freeze=("encoder",), kl=KLConfig(beta=0.0)),
    )


def kl_plan(epochs: int, *, weight: float) -> KLConfig:
    """No KL for a third of the time, a ramp to 1, then 1 more at four times; times ``weight``.

    The original's reconstruction loss is the squared error summed over height and width and
    averaged over 3 channels: 2/3 of ours, half the squared error (``gaussian_std`` 1). So its
    weights 1 to 5 are 1.5 to 7.5 here.
    """
    corners = [(500, 0.0), (600, 1.0)]
    for number, time in enumerate((800, 1000, 1200, 1400), start=1):
        corners += [(time, float(number)), (time, number + 1.0)]
    points = tuple((time * epochs / 1500, beta * weight) for time, beta in corners)
    return KLConfig(schedule="lines", points=points, beta=points[-1][1])
