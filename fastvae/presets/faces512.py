"""Photos 512x512, trained in two stages, within little memory."""

from __future__ import annotations

from fastvae.config import Config, DataConfig, LogConfig, ModelConfig, OptimConfig
from fastvae.presets.faces128 import two_stages
from fastvae.presets.registry import preset


@preset
def faces512() -> Config:
    """Photos 512x512 in two stages like faces128; 512 latents, 48.8 M parameters.

    Command:  fastvae-data images data/faces --for faces512
              fastvae train faces512 --data.root data/faces-shards
    Time:     2 seconds per photo and pass on one core of an Intel Xeon with AVX-512 BF16
    Expect:   not known: only a few steps of both stages were run here, the plan is work for a GPU

    Memory in training for each image of a micro-batch (batch_size / accumulate): 165 MiB in fp32,
    149 with --recompute; 84 and 80 in bf16 (python -m benchmarks.memory_per_image, one core of an
    Intel Xeon); weights, gradients and Adam's averages are 0.8 GB besides. The largest feature map,
    32 channels of 512x512, rules, so that recomputation saves little here; --accumulate saves more.
    """
    widths = (32, 64, 128, 256, 512, 1024, 1024)
    return Config(
        preset="faces512",
        batch_size=16,
        accumulate=4,
        precision="auto",
        channels_last=True,
        model=ModelConfig(
            encoder="arch",
            decoder="arch",
            likelihood="gaussian",
            image_shape=(3, 512, 512),
            latent_dim=512,
            arch_encode=tuple((filters, 3, 2, 2) for filters in widths),
            input_std=0.25,
        ),
        data=DataConfig(dataset="images", root="data/faces-shards", source="shards", flip=True),
        optim=OptimConfig(optimizer="adam", schedule="constant", warmup=0.0),
        log=LogConfig(every=50, images=8),
        stages=two_stages(150),
    )
