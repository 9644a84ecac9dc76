"""Any convolutional architecture from a list of layers."""

from __future__ import annotations

from fastvae.config import Config, DataConfig, LogConfig, ModelConfig, OptimConfig
from fastvae.presets.registry import preset


@preset
def arch() -> Config:
    """Layers from a file (arch_def); without one, MNIST with 2 convolutions and 12 latents.

    Command:  fastvae train arch --data.root data/mnist
              fastvae train arch --arch my.json --data.root data/photos64 \\
                  --data.source shards --model.likelihood gaussian
    Time:     2.3 minutes per epoch on one core of an Intel Xeon with AVX-512 BF16
    Expect:   after one epoch (--epochs 1 --optim.warmup 0.2) test -ELBO 98.6 nats/image (pixels
              thresholded at 0.5), all 12 latents active

    A file has {"input": [height, width, channels], "latent": n, "encode": [[filters, kernel,
    stride], ...]} and perhaps "decode" (else the encoder is mirrored) and "name" (of the run); TOML
    has the same keys. Padding is TensorFlow's 'same'.
    """
    return Config(
        preset="arch",
        epochs=10,
        batch_size=64,
        precision="auto",
        model=ModelConfig(
            encoder="arch",
            decoder="arch",
            image_shape=(1, 28, 28),
            latent_dim=12,
            arch_encode=((32, 3, 2, 2), (64, 3, 2, 2)),
            input_mean=0.13,
            input_std=0.31,
        ),
        data=DataConfig(
            dataset="mnist", root="data/mnist", binarize="threshold", val_fraction=0.04
        ),
        optim=OptimConfig(lr=2e-3, beta2=0.99, warmup=1.0, clip_norm=50.0),
        log=LogConfig(every=50),
    )
