"""Photographs 64x64: the COCO system."""

from __future__ import annotations

from fastvae.config import Config, DataConfig, LogConfig, ModelConfig, OptimConfig
from fastvae.presets.registry import preset


@preset
def coco64() -> Config:
    """Photos 64x64: 5x5 convolutions with batch norm, 128 latents, 22.8 M parameters.

    Command:  fastvae-data download coco --root data/coco
              fastvae-data images data/coco --out data/coco64
              fastvae train coco64
    Or any folder of photos: fastvae-data images FOLDER --out data/photos
              fastvae train coco64 --data.root data/photos
    Time:     6.5 minutes of one core of an Intel Xeon with AVX-512 BF16 for 313 photos and
              --epochs 25 --batch-size 32
    Expect:   from those, test -ELBO 3339 nats/image (32 photos; nll 3275, kl 64): shapes and
              colours without detail, wrong by 0.14 of the range (the mean photo: by 0.25);
              validation was as good as training and still improving. COCO itself was not tried

    The original's reconstruction loss, half the squared error of pixels in [-1, 1], is a Gaussian
    of deviation 1/2 in [0, 1]; its KL weight 1 is beta 1. One optimizer trains both parts; rates of
    their own: --optim.encoder-rate, --optim.decoder-rate. --model.gaussian-scale shared learns the
    deviation.
    """
    return Config(
        preset="coco64",
        epochs=20,
        batch_size=64,
        precision="auto",
        model=ModelConfig(
            encoder="larsen",
            decoder="larsen",
            likelihood="gaussian",
            gaussian_std=0.5,
            image_shape=(3, 64, 64),
            latent_dim=128,
            channels=(64, 128, 256),
            hidden=(1024,),
            norm="batch",
        ),
        data=DataConfig(dataset="photos", root="data/coco64", source="shards", flip=True),
        optim=OptimConfig(lr=1e-3, weight_decay=0.01, warmup=1.0, clip_norm=100.0),
        log=LogConfig(every=50),
    )
