"""Every preset at the size of a toy, with pictures that nobody has to download.

As a script under torchrun it takes each of them through two steps and compares the ranks.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastvae import trainer as trainer_module
from fastvae.config import Config, KLConfig, StageConfig, replace
from fastvae.data.sources import RandomAccess, Samples
from fastvae.engine import distributed
from fastvae.engine.metrics import Stopwatch
from fastvae.presets import get_preset, list_presets
from fastvae.train import make_step, train_step
from fastvae.trainer import Trainer, build

SMALL_FACES = {
    "model__latent_dim": 6,
    "model__image_shape": (3, 16, 16),
    "model__arch_encode": ((4, 3, 2, 2), (8, 3, 2, 2)),
    "model__arch_decode": (),
}
STAGES = (
    StageConfig(epochs=3, lr=2e-3, kl=KLConfig(beta=0.0)),
    StageConfig(epochs=1, lr=1e-3, kl=KLConfig(beta=0.0), freeze=("encoder",)),
)
DRAWINGS = {
    "model__image_shape": (1, 16, 16),
    "model__latent_dim": 4,
    "model__channels": (4, 6),
    "model__hidden": (8,),
}
SHRUNK: dict[str, dict[str, Any]] = {
    "digits": {"model__hidden": (16,)},
    "mnist": {**DRAWINGS, "model__image_shape": (1, 8, 8)},
    "mnist-genzoo": {"model__latent_dim": 4},
    "mnist-vq": {**DRAWINGS, "model__codes": 8, "model__code_dim": 4},
    "mnist-hvae": {**DRAWINGS, "model__group_latents": 2},
    "iwae-mlp": {"model__hidden": (12, 10), "model__image_shape": (1, 8, 8)},
    "quickdraw-vae": DRAWINGS,
    "quickdraw-cvae": DRAWINGS,
    "quickdraw-cvae-z": DRAWINGS,
    "quickdraw-cvae-large": DRAWINGS,
    "coco64": {**DRAWINGS, "model__image_shape": (3, 16, 16)},
    "strips": {
        "model__image_shape": (3, 16, 48),
        "model__latent_dim": 6,
        "model__channels": (2, 3, 4),
    },
    "strips-small": {
        "model__image_shape": (3, 16, 48),
        "model__latent_dim": 6,
        "model__channels": (2, 3, 4),
    },
    "arch": SMALL_FACES,
    "faces128": SMALL_FACES | {"stages": STAGES},
    "faces512": SMALL_FACES | {"stages": STAGES},
}
BATCH = 8
IMAGES = 48


def shrunk(name: str, **changes: Any) -> Config:
    """A preset as a toy: few channels, 6 steps of 8 images per epoch, 24 steps."""
    config = replace(get_preset(name), **SHRUNK[name])
    if not config.stages:
        config = replace(config, epochs=4, max_steps=0, optim__lr=2e-3)
    settings = {
        "batch_size": BATCH,
        "accumulate": 1,
        "optim__warmup": 0.0,
        "optim__schedule": "constant",
        "optim__rates": (),
        "objective__samples": min(3, config.objective.samples),
        "log__every": 1,
        "log__tensorboard": False,
        "log__eval_every": 2.0,
        "log__image_every": 0.0,
        "log__images": 4,
        "checkpoint__every": 0,
        "checkpoint__keep": 9,
        "deterministic": True,
        "precision": "fp32",
        "threads": 1,
        **changes,
    }
    return replace(config, **settings)


class Pictures(RandomAccess):
    """Bright discs, with a part of each as condition and its quarter of the image as label."""

    about = "made up"
    resident = None
    device = torch.device("cpu")
    fingerprint = "discs"
    nbytes = 0
    has_condition = True
    classes = ("0", "1", "2", "3")

    def __init__(self, shape: tuple[int, int, int], count: int) -> None:
        self.image_shape = shape
        _, height, width = shape
        draw = torch.rand(count, 3, generator=torch.Generator().manual_seed(0))
        y, x = draw[:, 0, None, None] * height, draw[:, 1, None, None] * width
        down, across = torch.arange(height)[:, None], torch.arange(width)
        near = ((down - y) ** 2 + (across - x) ** 2).sqrt() / (0.4 * min(height, width))
        grey = (255.0 * (1.3 - near).clamp(0.0, 1.0)).to(torch.uint8)
        self.images = grey[:, None].expand(-1, shape[0], -1, -1).contiguous()
        self.labels = 2 * (draw[:, 0] > 0.5).long() + (draw[:, 1] > 0.5).long()

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Pictures:
        return self

    def gather(self, index: Tensor, epoch: int | None = None, *, pin: bool = False) -> Samples:
        images = self.images[index]
        given = images.clone()
        given[..., images.shape[3] // 2 :] = 0
        return Samples(images, given, self.labels[index])


def sources(config: Config, only: str | None = None) -> dict[str, Pictures]:
    """What ``load_splits`` would give."""
    counts = {"train": IMAGES, "val": 10, "test": 6}
    return {name: Pictures(config.model.image_shape, n) for name, n in counts.items()}


def spread(t: Trainer, tensors: list[Tensor]) -> float:
    """Largest difference of any value between the ranks."""
    flat = torch.cat([x.detach().float().flatten() for x in tensors])
    low, high = flat.clone(), flat.clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN)
    dist.all_reduce(high, op=dist.ReduceOp.MAX)
    return float((high - low).max())


def compare_ranks(config: Config) -> tuple[float, float, float]:
    """Two steps; then the spread over ranks of gradients, of weights and buffers, and of losses
    (which should differ: each rank has its own images)."""
    t = build(config, distributed.join("cpu"))
    run, watch = make_step(t), Stopwatch()
    grads: list[Tensor] = []
    step = t.optimizer.step
    params = list(t.model.parameters())

    def noted(*args: Any, **kwargs: Any) -> Any:
        grads[:] = [p.grad.clone() for p in params if p.grad is not None]
        return step(*args, **kwargs)

    t.optimizer.step = noted  # type: ignore[method-assign]
    t.train_mode()
    for number in range(2):
        train_step(t, run, number, watch)
    assert len(grads) == len(params), "a parameter got no gradient"
    state = [*t.model.parameters(), *t.model.buffers()]
    return spread(t, grads), spread(t, state), spread(t, [t.meter.total])


def main() -> None:
    trainer_module.load_splits = sources  # type: ignore[assignment]
    for name in list_presets():
        for precision in ("fp32", "bf16"):
            found = compare_ranks(shrunk(name, precision=precision, model__dropout=0.0))
            if dist.get_rank() == 0:
                print(name, precision, *found, flush=True)
    distributed.leave()


if __name__ == "__main__":
    sys.exit(main())
